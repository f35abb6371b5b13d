"""What a flood did to the good clients, the worker and the feeder, and which targets it missed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# The p99 of the good clients may rise by this factor, and to so many milliseconds.
FACTOR = 2.0
MOST_MS = 20.0
# MB by which the worker may have grown 10 s after the flood, and the most that the feeder may work, in parts of a core.
GROWN_MB = 20.0
FEEDER_CPU = 0.3
# Seconds after which a half-open connection has to be gone, with one for the worker's turn; milliseconds in which a
# good client connects meanwhile.
HALF_OPEN_SECONDS = 11.0
CONNECT_MS = 100.0

HEAD = (
    "flood", "p99 before, ms", "during", "gaps", "closed", "connect, ms", "RSS before, MB", "peak", "10 s after",
    "worker", "feeder", "answers", "missed",
)  # fmt: skip


class Good(NamedTuple):
    """What the good clients saw: when (time.monotonic()), and what."""

    # Milliseconds between the feeder's receipt and ours.
    delays: list[tuple[float, float]]
    # Milliseconds until a new client has its first frame.
    connects: list[tuple[float, float]]
    gaps: list[tuple[float, str]]
    closes: list[tuple[float, str]]


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


def percentile(values: Iterable[float], part: float) -> float:
    """Return the value below which `part` of them are; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


def within(seen: Sequence[tuple[float, float]], begin: float, end: float) -> list[float]:
    """Return what was seen between two times."""
    return [value for at, value in seen if begin <= at < end]


def misses(of: Measured) -> list[str]:
    """Return which targets were missed."""
    found = []
    # NaN, where nothing was received, misses them too.
    if not of.p99_during <= MOST_MS:
        found.append(f"p99 above {MOST_MS:.0f} ms")
    if not of.p99_during <= FACTOR * of.p99_before:
        found.append(f"p99 above {FACTOR:.0f} x")
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
        counts or "none",
        "; ".join(misses(of)) or "-",
    )
    return f"| {' | '.join(cells)} |"


def head() -> str:
    """Return the first two lines of the table."""
    return f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}"
