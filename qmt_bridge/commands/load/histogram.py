"""Counts of times, for percentiles. Pure."""

from __future__ import annotations

import math
from collections import Counter

PERCENTILES = (0.5, 0.99, 0.999)


class Histogram(Counter[int]):
    """Counts of times in classes 1 % wide, from one microsecond on; histograms of several processes add up."""

    def add(self, ms: float) -> None:
        """Count one time; a time below one microsecond counts as one microsecond."""
        self[round(100 * math.log(ms * 1000)) if ms > 0.001 else 0] += 1

    def percentile(self, share: float) -> float | None:
        """Return the time in ms that `share` of all do not exceed; None where nothing was counted."""
        left = math.ceil(share * self.total())
        for number in sorted(self):
            left -= self[number]
            if left <= 0:
                return math.exp(number / 100) / 1000
        return None

    def shown(self) -> dict[str, float | None]:
        """Return the percentiles in ms by their names."""
        return {f"p{100 * share:g}": self.percentile(share) for share in PERCENTILES}
