"""The times, in seconds, and the limits of the quote session. Read at each use, so that a test can set them."""

from __future__ import annotations

# A terminal takes about a minute to start, so attempts that follow each other faster than RETRY_LAST gain nothing.
RETRY_FIRST = 0.5
RETRY_LAST = 5.0
# xtquant waits for its servers without a limit; loading every market takes a fraction of this.
CENTER_SECONDS = 120.0
# How often to look at the connection: xtquant may not tell that it was lost.
WATCH_SECONDS = 1.0
# How often to ask again for what was refused: a terminal answers before it is logged in, and limits become free.
REFUSED_SECONDS = 60.0
# How long there has to be room for single subscriptions before ticks go back to them. A topic that is given up only to
# be wanted again finds its place free, and costs one call each way.
RETURN_SECONDS = 5.0
# Of the two seconds that `close` may take: to give subscriptions back, and to wait for the thread.
LEAVE_SECONDS = 1.5
JOIN_SECONDS = 1.9
# How long a subscription has to bring a first tick by itself. Then the terminal is asked for the newest one, which is
# all that there is after the close. The pause doubles, up to FIRST_LAST, while the terminal has none.
FIRST_SECONDS = 2.0
FIRST_LAST = 1800.0
# The number of codes in one such call: a new subscription has to wait for it.
FIRST_CODES = 20
# After so many calls in a row a piece of background work has its turn, though more calls wait.
CALLS_IN_A_ROW = 10
# How many formulas are held at a time. Instruments and periods are limited by what the terminal has, formulas are not,
# and the terminal calculates each of them with every tick.
MAX_FORMULAS = 1000
