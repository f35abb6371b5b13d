"""The search for the highest rate that is held. Pure: the measurement is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

# After rates that were all held, so many times as much is offered; after those that were not, this share of what was
# reached.
UP = 1.4
DOWN = 0.95
# The search ends when the lowest rate that was not held is at most so many times the highest one that was.
CLOSE = 1.1


class Step(NamedTuple):
    """One measurement: the rates that were offered and reached, whether that was held, and further figures."""

    offered: float
    reached: float
    held: bool
    figures: dict[str, float | None]


def sustained(measure: Callable[[float], Step], first: float, steps: int) -> tuple[Step | None, Step | None]:
    """Return the step with the highest rate that was held, and the lowest that was not, after at most `steps` steps."""
    best: Step | None = None
    over: Step | None = None
    offered, share = first, 1.0
    for _ in range(steps):
        found = measure(offered)
        if found.held:
            best = found
        else:
            over = found
            share *= DOWN
        if over is None:
            offered = found.offered * UP
        elif best is None:
            offered = share * min(over.reached, over.offered)
        elif over.offered <= best.offered * CLOSE:
            break
        else:
            # Between the two, because a measurement that something else has disturbed may show a rate that is too low.
            offered = math.sqrt(best.offered * over.offered)
    return best, over
