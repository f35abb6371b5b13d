"""Hundreds of clients that put a load on a gateway and count what arrives: frames, lost frames, latency by hop.

The clients run in processes of their own, one a core. Each process has one loop that splits WebSocket frames and
decodes no JSON, so that the server is the limit and not the clients.
"""
