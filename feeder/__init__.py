"""The feeder: it owns the xtquant session and makes messages. Threads, no asyncio.

The threads of this process, and who may touch what:

main            `app`: starts and stops; owns nothing while the feeder runs.
publisher       `publisher`: the ZeroMQ sockets, `registry` and `journal` are its alone. It calls the source's
                `subscribe`, `unsubscribe`, `download` and `upstream`, which return at once.
the source's    whatever `xtquote`, `xttrade`, `xtdownload`, `simulator` or `replay` start, and the threads on which
                xtquant calls back. They reach the publisher only through the `Sink`, which encodes in the calling
                thread and leaves the rest in an inbox.

A socket belongs to one thread. Nothing is shared but the inbox and the row of trade events, two deques.
"""
