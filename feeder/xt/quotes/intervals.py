"""The times, in seconds, and the limits of the quote session. Read at each use, so that a test can set them."""

from __future__ import annotations

# A terminal takes about a minute to start, so attempts that are more frequent than RETRY_LAST gain nothing.
RETRY_FIRST = 0.5
RETRY_LAST = 5.0
# xtquant waits for its servers without a limit; loading every market takes a fraction of this.
CENTER_SECONDS = 120.0
# How often to check the connection: xtquant may not report that it was lost.
WATCH_SECONDS = 1.0
# How often to try refused subscriptions again: a terminal that is not logged in yet refuses them, and so does a limit
# that later has room again.
REFUSED_SECONDS = 60.0
# For how long there must be room for single subscriptions before ticks return to them. If a topic is unsubscribed and
# soon subscribed again, its place is still free, and this costs one call each way.
RETURN_SECONDS = 5.0
# Parts of the two seconds that `close` may take: to unsubscribe, and to wait for the thread.
LEAVE_SECONDS = 1.5
JOIN_SECONDS = 1.9
# How long to wait for the first tick of a subscription. Then the terminal is asked for its newest tick: after the close
# it pushes none. While the terminal has none either, the pause doubles, up to FIRST_LAST.
FIRST_SECONDS = 2.0
FIRST_LAST = 1800.0
# The number of codes in one such call; it is limited because a new subscription has to wait for the call.
FIRST_CODES = 20
# After this many calls in a row one piece of background work is done, even if more calls wait.
CALLS_IN_A_ROW = 10
# How many formulas may be subscribed at the same time. The terminal calculates each of them with every tick. Other
# topics need no such limit, because the terminal has a limited number of instruments and periods.
MAX_FORMULAS = 1000
