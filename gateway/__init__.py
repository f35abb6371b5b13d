"""The gateway: a stateless ASGI worker. One event loop; no threads, no state but the open sockets and their topics.

The path of a message through this process:

1. ``feed`` drains a ZeroMQ SUB in batches as soon as its descriptor is readable, and makes a Frame of each message.
2. ``hub`` looks its topic up once, and the topic's stream (``streams``) hands the frame to every member: the clients'
   subscriptions.
3. ``subscription`` renders it as the client asked (``view``, ``pace``) and gives it to the client's ``sender``. A frame
   goes through the client's ``outbox`` only while other frames wait there; the outbox conflates for a slow client.
4. ``writer`` writes with one call all frames that one turn of the loop has queued for a client. The WebSocket frame is
   built once, and every client is sent the same bytes.

A request takes the opposite way: ``endpoints`` reads the topics from it, ``hub`` subscribes those that no client had
yet and asks the feeder for the last value of each.
"""
