"""The gateway: a stateless ASGI worker. One event loop; no threads, no state but the open sockets and their topics.

The path of a message through this process:

1. ``feed`` drains a ZeroMQ SUB in batches as soon as its descriptor is readable, and makes a Frame of each message.
2. ``hub`` looks its topic up once, and the topic's stream (``streams``) hands the frame to every member: the clients'
   subscriptions.
3. ``subscription`` shows it as the client asked (``view``, ``pace``) and leaves it with the ``session``: past the
   client's ``outbox`` while nothing waits there, else in it; it conflates for a client that does not keep up.
4. ``writer`` writes what a turn of the loop has queued for a client in one go; the WebSocket frame is built once and
   is the same bytes for every client.

A request takes the other way: ``endpoints`` names its topics, ``hub`` subscribes those that no client had yet and asks
the feeder for the last value of each.
"""
