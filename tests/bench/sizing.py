"""The sizing rule: what a core serves, computed from the figures that were measured. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import workers
from tests.bench.observing import Results
from tests.bench.servers import OURS

# A market of which each of 5,000 codes changes once in so many seconds.
PACE = 3.0
CODES = 5000
# The size of a tick with its code, in bytes.
TICK = 480


def rules(results: Results) -> list[str]:
    """Return one sentence for each resource of which the figures were measured."""
    return list(_rules(results))


def _rules(results: Results) -> Iterator[str]:
    def figure(load: int, row: str, name: str) -> float | None:
        return results.get((load, row), {}).get(name)

    same, different = figure(1, OURS.name, "rate"), figure(3, OURS.name, "rate")
    ten = 10 / PACE
    if same and different:
        yield (
            f"**Messages a core.** One worker uses one core. It delivers {different:,.0f} frames/s where clients share "
            f"little (load 3), and {same:,.0f} where all take the same ten codes (load 1)."
        )
        yield (
            f"**Clients a core.** A client of ten codes, each changing every {PACE:g} s, gets {ten:.1f} frames/s: by "
            f"load 3 one core can serve {different / ten:,.0f} of them. Leave half of it for bursts."
        )
    each, worker = figure(7, OURS.name, "connection_kb"), figure(7, OURS.name, "worker_mb")
    if each and worker:
        yield (
            f"**Memory.** {worker:,.0f} MB a worker, and {each:.1f} KB a client (load 7): "
            f"{worker + each * 1.024:,.0f} MB with 1,000 clients. What waits for slow clients comes on top (load 9), "
            f"within the bounds of [websocket.md](websocket.md#slow-clients)."
        )
    raw = figure(workers.NUMBER, workers.name_of(1, False), "data_mb")
    wire, data = (figure(workers.NUMBER, workers.name_of(1, True), name) for name in ("wire_mb", "data_mb"))
    whole = CODES * TICK / PACE / 1e6
    small = TICK * ten / 1e3
    if raw and wire and data:
        yield (
            f"**Bandwidth.** A client of ten codes takes {small:.1f} KB/s, one of the whole market {whole:.2f} MB/s "
            f"({whole * 8:.1f} Mbit/s), deflated {whole * wire / data:.2f} MB/s: {wire / data:.0%}, of invented ticks "
            f"that differ from code to code."
        )
        yield (
            f"**Whole markets.** One worker sends {raw:,.0f} MB/s, {raw / whole:,.0f} clients of the whole market; "
            f"deflated {data:,.0f} MB/s of data in {wire:,.1f} MB/s, {data / whole:,.0f} clients."
        )
