"""The times, in seconds, and the limits of the trade source. They are read at each use, so that a test can set them."""

from __future__ import annotations

# The pause between two attempts to connect or to subscribe an account.
RETRY_FIRST = 1.0
RETRY_LAST = 30.0
# How long to wait for a new connection. After that the attempt ends, the log says so, and another one begins.
OPEN_SECONDS = 30.0
# How long to wait for the subscription of an account or for the answer to a query.
ANSWER_SECONDS = 30.0
# How often to check whether the terminal still answers: xtquant may not report that the connection was lost.
PROBE_SECONDS = 30.0
# The time between the two answers in which a position must be missing to be gone: a terminal that has just logged in
# may not list all positions.
CONFIRM_SECONDS = 10.0
# The largest number of connections that are left behind because a call into xtquant has not returned. Each costs
# threads and shared memory, and after so many the next call would most likely hang too.
LEFT_BEHIND = 5
# How long the calls must hang (`xt_hang` if that is longer) in a process that never had a connection. It is long
# because the next process may hang as well, and each restart interrupts the quotes of every client.
NEVER_OPEN_SECONDS = 600.0
# Parts of the two seconds that `close` may take: to stop a connection, and to wait for the thread.
STOP_SECONDS = 1.5
JOIN_SECONDS = 1.9
# How far back the journal is read at the start, in ms. It covers the longest holiday, because a terminal shows the
# orders of the last trading day until the next one.
PAST_MS = 12 * 24 * 3600 * 1000
