"""The latency of good clients at rest and while hostile ones are there: printed, and a fault only if that is asked."""

from __future__ import annotations

from collections.abc import Sequence

import click

from tests.support.seen import percentile


def compare(who: str, at_rest: Sequence[float], meanwhile: Sequence[float], most: float | None) -> list[str]:
    """Print latencies in ms; return a fault if `most` is given and the p99 has risen by more percent than that."""
    shown = []
    for name, part in (("median", 0.5), ("p99", 0.99)):
        rest, load = percentile(at_rest, part), percentile(meanwhile, part)
        shown.append(f"{name} {rest:.1f} ms at rest and {load:.1f} ms meanwhile ({100 * (load / rest - 1):+.0f} %)")
    click.echo(f"{who}: {', '.join(shown)}")
    rise = 100 * (percentile(meanwhile, 0.99) / percentile(at_rest, 0.99) - 1)
    # NaN, where nothing was received, is a fault too.
    return [f"the p99 of {who} has risen by {rise:.0f} %"] if most is not None and not rise <= most else []
