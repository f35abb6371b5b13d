"""What one client may cost: requests a second, origins. Pure; time is an argument."""

from __future__ import annotations

from collections.abc import Sequence


class TokenBucket:
    """Lets `rate` requests a second pass, and four seconds' worth of them at once."""

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._tokens = rate * 4
        self._at = now

    def take(self, now: float) -> bool:
        """Return whether one more request may pass at `now` (seconds)."""
        self._tokens = min(self.rate * 4, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    """Return whether a browser page of `origin` may connect; programs send no Origin and always may."""
    return (
        origin is None or "*" in allowed or origin.rstrip("/").lower() in {item.rstrip("/").lower() for item in allowed}
    )
