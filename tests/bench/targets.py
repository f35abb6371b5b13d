"""The targets, and whether the measured figures meet them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.bench.observing import Figures, Results
from tests.bench.servers import JOINED, NATS, OURS, PUBLIC, SINGLE, STARLETTE, WS

# Seconds for which the memory has to stay flat.
SOAK = 600.0
# The target of these figures is for each round, so the largest counts.
WORST = {"growth_mb"}


def over_rounds(rounds: Sequence[Figures]) -> Figures:
    """Return the median of every figure over the rounds that have it; of `WORST` the largest one."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    known = {name: [value for figures in rounds if (value := figures.get(name)) is not None] for name in names}
    return {
        name: (max(values) if name in WORST else statistics.median(values)) if values else None
        for name, values in known.items()
    }


def multiple(ratio: float) -> str:
    """Return a ratio with three digits, or as a whole number from a hundred on."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


class Verdict(NamedTuple):
    """A target and the measured figure; `met` is None if nothing was measured."""

    load: int
    target: str
    here: str
    met: bool | None


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield every target of the loads that ran."""

    def figure(load: int, row: str, name: str) -> float | None:
        return results.get((load, row), {}).get(name)

    def ratio(load: int, row: str, least: float, text: str, name: str = "rate") -> Verdict:
        ours, theirs = figure(load, OURS.name, name), figure(load, row, name)
        if not ours or not theirs:
            return Verdict(load, text, "not measured", None)
        return Verdict(load, text, f"{multiple(ours / theirs)} x", ours / theirs >= least)

    def most(load: int, name: str, limit: float, text: str, unit: str, scale: float = 1.0) -> Verdict:
        ours = figure(load, OURS.name, name)
        if ours is None:
            return Verdict(load, text, "not measured", None)
        return Verdict(load, text, f"{ours * scale:,.3g} {unit}".rstrip(), ours * scale <= limit)

    def none(load: int, name: str, text: str) -> Verdict:
        ours = figure(load, OURS.name, name)
        return Verdict(
            load, text, "not measured" if ours is None else f"{ours:,.0f}", None if ours is None else not ours
        )

    def against(load: int, row: str, share: float, name: str, text: str) -> Verdict:
        ours, theirs = figure(load, OURS.name, name), figure(load, row, name)
        if not ours or not theirs:
            return Verdict(load, text, "not measured", None)
        return Verdict(load, text, f"{ours:.3g} ms against {theirs:.3g} ms", ours <= theirs * share)

    def least(load: int, name: str, limit: float, text: str) -> Verdict:
        ours = figure(load, OURS.name, name)
        return Verdict(
            load, text, "not measured" if ours is None else f"{ours:,.0f}", None if ours is None else ours >= limit
        )

    def sustained() -> Verdict:
        text = "200 records/s to 20 clients sustained; share of the core reported"
        rate, offered, cpu = (figure(10, OURS.name, name) for name in ("rate", "offered", "cpu"))
        if rate is None or not offered:
            return Verdict(10, text, "not measured", None)
        return Verdict(10, text, f"{rate:,.0f}/s of {offered:,.0f}/s, {cpu:.0%} of a core", rate >= 0.99 * offered)

    def flat() -> Verdict:
        text = "memory flat within 2 % of the second tenth of ten minutes: the last one, and the peak"
        growth, peak, seconds = (figure(11, OURS.name, name) for name in ("growth", "peak", "seconds"))
        if growth is None or peak is None or seconds is None:
            return Verdict(11, text, "not measured", None)
        # A tenth of a shorter run is too short for the caches to fill, and the rest too short to see growth.
        met = max(growth, peak) <= 0.02 if seconds >= SOAK else None
        return Verdict(11, text, f"{growth:+.2%}, at most {peak:+.1%} in {seconds:,.0f} s", met)

    def within(name: str, least: float, text: str) -> Verdict:
        ours = figure(9, OURS.name, name)
        if ours is None:
            return Verdict(9, text, "not measured", None)
        return Verdict(9, text, f"{ours:.3f}", ours >= least)

    every = (
        ratio(1, PUBLIC.name, 290, "at least 290 x the public qmt-bridge"),
        ratio(1, STARLETTE.name, 8, "at least 8 x Starlette send_text"),
        ratio(1, JOINED, 0.95, "at least 0.95 x the bare loop that joins as many frames"),
        against(2, PUBLIC.name, 1 / 20, "p99", "p99 at most 1/20 of the public qmt-bridge's at 8,000/s"),
        most(2, "p99", 3.0, "p99 at 50,000/s at most 3 ms", "ms"),
        ratio(3, NATS.name, 1.0, "ahead of nats-server"),
        ratio(3, STARLETTE.name, 6.0, "at least 6 x Starlette send_text"),
        ratio(3, WS.name, 1.4, "at least 1.4 x node ws"),
        ratio(3, SINGLE, 2.0, "at least 2 x the bare loop with one write a frame"),
        most(3, "p99", 5.0, "p99 at 40,000/s at most 5 ms", "ms"),
        against(4, WS.name, 1.1, "p50", "p50 at 10,000/s at most 1.1 x node ws'"),
        most(5, "p99", 6.0, "p99 at most 6 ms", "ms"),
        none(5, "skipped", "no code skipped"),
        none(5, "lost", "no frame lost"),
        most(6, "p50", 0.35, "p50 at most 0.35 ms", "ms"),
        most(6, "p99", 1.0, "p99 at most 1 ms", "ms"),
        most(7, "connection_kb", 25.0, "at most 25 KB a connection", "KB"),
        most(8, "subscribe_s", 0.2, "subscribed in at most 0.2 s", "s"),
        none(8, "lost", "none lost"),
        most(8, "back_s", 0.5, "all back within 0.5 s of a restart of the feeder", "s"),
        none(9, "lost", "the others lose nothing"),
        within("throughput", 0.97, "the others' throughput within 3 %"),
        most(9, "p99_ratio", 1.2, "the others' p99 within 20 %", "x"),
        most(9, "growth_mb", 5.0, "memory grows by at most 5 MB in each round", "MB"),
        sustained(),
        flat(),
        most(12, "first_s", 2.0, "at most 2 s from its start to the first frame of every client", "s"),
        most(13, "restored_s", 2.0, "at most 2 s from the connection to all subscriptions", "s"),
        none(14, "lost", "none lost"),
        most(14, "p99", 20.0, "p99 from the callback to a consumer at most 20 ms", "ms"),
        least(15, "rate", 50_000, "at least 50,000/s"),
    )
    ran = {load for load, _ in results}
    return (verdict for verdict in every if verdict.load in ran)
