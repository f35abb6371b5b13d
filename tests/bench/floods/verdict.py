"""What a flood did to the good clients, the worker and the feeder, and which targets it missed. Pure."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

# The p99 of the good clients may rise by this factor, and to so many milliseconds.
FACTOR = 2.0
MOST_MS = 20.0
# The same factor for wrong keys, how many attempts a minute there have to be, and lines of the log a minute: the good
# clients that come and go have 300 of their own.
WRONG_KEYS_FACTOR = 1.2
WRONG_KEYS = 10_000
LOG_LINES = 320
# MB by which the worker may have grown 10 s after the flood, and the most that the feeder may work, in parts of a core.
GROWN_MB = 20.0
FEEDER_CPU = 0.3
# Seconds after which a half-open connection has to be gone, with one for the worker's turn; milliseconds in which a
# good client connects meanwhile.
HALF_OPEN_SECONDS = 11.0
CONNECT_MS = 100.0

# The answers to a wrong key: the close with 1008, and the status before the handshake.
REFUSALS = ("1008", "HTTP 429")

HEAD = (
    "flood", "p99 before, ms", "during", "gaps", "closed", "connect, ms", "RSS before, MB", "peak", "10 s after",
    "worker", "feeder", "log, lines", "answers", "missed",
)  # fmt: skip


class Answers(NamedTuple):
    """How the server answered a flood: closes, statuses and refusals, and the seconds that one connection lasted."""

    counts: Counter[str]
    longest: float


class Measured(NamedTuple):
    """One flood's figures."""

    name: str
    p99_before: float
    p99_during: float
    gaps: int
    closed: int
    # Milliseconds, of the slowest.
    connect: float
    # MB.
    rss_before: float
    rss_peak: float
    rss_after: float
    # Parts of a core.
    worker_cpu: float
    feeder_cpu: float
    answers: Answers
    # Whether the flood is one of half-open connections, which have targets of their own.
    half_open: bool = False
    # Whether the flood is one of wrong keys, which has targets of its own.
    wrong_keys: bool = False
    # Of the flood: how long it was, and what it added to the log.
    seconds: float = 60.0
    log_lines: int = 0


def misses(of: Measured) -> list[str]:
    """Return which targets were missed."""
    found = []
    # NaN, where nothing was received, misses them too.
    if not of.p99_during <= MOST_MS:
        found.append(f"p99 above {MOST_MS:.0f} ms")
    factor = WRONG_KEYS_FACTOR if of.wrong_keys else FACTOR
    if not of.p99_during <= factor * of.p99_before:
        found.append(f"p99 above {factor:.2g} x")
    if of.gaps:
        found.append("gaps")
    if of.closed:
        found.append("good clients closed")
    if of.rss_after - of.rss_before > GROWN_MB:
        found.append(f"RSS {of.rss_after - of.rss_before:.0f} MB above")
    if of.feeder_cpu > FEEDER_CPU:
        found.append(f"feeder above {FEEDER_CPU:.0%}")
    if of.half_open and of.answers.longest > HALF_OPEN_SECONDS:
        found.append(f"half open for {of.answers.longest:.1f} s")
    if of.half_open and not of.connect <= CONNECT_MS:
        found.append(f"connect above {CONNECT_MS:.0f} ms")
    return found + (_wrong_keys(of) if of.wrong_keys else [])


def _wrong_keys(of: Measured) -> list[str]:
    counts, minutes = of.answers.counts, of.seconds / 60
    found = []
    if counts["left open"]:
        found.append(f"{counts['left open']} accepted")
    if sum(counts[name] for name in REFUSALS) < WRONG_KEYS * minutes:
        found.append("too few attempts")
    if of.log_lines > LOG_LINES * minutes:
        found.append(f"{of.log_lines} lines of the log")
    return found


def row(of: Measured) -> str:
    """Return a flood's line of the table."""
    counts = ", ".join(f"{name} {count:,}" for name, count in of.answers.counts.most_common())
    cells = (
        of.name,
        f"{of.p99_before:.1f}",
        f"{of.p99_during:.1f}",
        str(of.gaps),
        str(of.closed),
        f"{of.connect:.0f}",
        f"{of.rss_before:.0f}",
        f"{of.rss_peak:.0f}",
        f"{of.rss_after:.0f}",
        f"{of.worker_cpu:.0%}",
        f"{of.feeder_cpu:.0%}",
        str(of.log_lines),
        counts or "none",
        "; ".join(misses(of)) or "-",
    )
    return f"| {' | '.join(cells)} |"


def head() -> str:
    """Return the first two lines of the table."""
    return f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}"
