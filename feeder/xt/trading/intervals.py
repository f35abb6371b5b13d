"""The times, in seconds, and the limits of the trade source. They are read at each use, so that a test can set them."""

from __future__ import annotations

# Between two attempts to connect or to subscribe an account.
RETRY_FIRST = 1.0
RETRY_LAST = 30.0
# How long to wait for a new connection. After that the attempt is given up, logged, and made again.
OPEN_SECONDS = 30.0
# How long to wait for the subscription of an account or for the answer to a query.
ANSWER_SECONDS = 30.0
# How often to ask whether the terminal still answers: xtquant may not tell that the connection was lost.
PROBE_SECONDS = 30.0
# Between the two answers that have to agree that a position is gone: a terminal that has just logged in lists less.
CONFIRM_SECONDS = 10.0
# At most so many connections are given up while a call into xtquant has not returned. Each costs threads and shared
# memory, and a terminal that has let so many calls hang lets the next one hang too.
LEFT_BEHIND = 5
# How long the calls have to hang, if `xt_hang` is not longer, in a process in which no connection was ever open: the
# next process may hang as well, and each restart interrupts the quotes of every client.
NEVER_OPEN_SECONDS = 600.0
# Of the two seconds that `close` may take: to stop a connection, and to wait for the thread.
STOP_SECONDS = 1.5
JOIN_SECONDS = 1.9
# How far back the journal is read at the start, in ms: the terminal shows a day's orders over the longest holiday.
PAST_MS = 12 * 24 * 3600 * 1000
