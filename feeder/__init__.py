"""The feeder: it owns the xtquant session and makes messages. Threads; asyncio only in that of `push`.

The threads of this process, and what each of them owns:

main            `app`: starts and stops; owns nothing while the feeder runs.
publisher       `publisher` with `answers`, `askers` and `registry`: the ZeroMQ sockets and the state of all topics. It
                calls the source's `subscribe`, `unsubscribe`, `download` and `upstream`, which return at once.
journal         `journal.thread` with `journal.journal`: the file of the trade events.
the source's    those that `xt`, `sim`, `replay` or `push` start, and those of xtquant's callbacks. They reach the
                publisher only through `inbox`, which encodes on the calling thread and queues the rest.

A socket belongs to one thread. Threads share nothing but queues: the two of `inbox`, and those of `journal.thread`.
"""
