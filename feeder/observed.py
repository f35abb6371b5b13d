"""What the feeder has seen of itself lately: how late messages are, which market was heard when, what has happened.

Pure; time is an argument. The publisher's thread alone uses it.
"""

from __future__ import annotations

from typing import Any

from feeder.registry import Entry
from qmt_bridge.observation.delays import SAMPLE_EVERY, Delays, exchange_delay
from qmt_bridge.observation.rates import Rates
from qmt_bridge.observation.recent import Recent
from qmt_bridge.wire.survey import FEEDER
from qmt_bridge.wire.topics import Kind

# Of a bar the time is its end.
_TIMED = frozenset(("tick", "l2quote", "l2order", "l2transaction"))
# Markets whose age is known; there are some twenty.
_MARKETS = 100


class Observed:
    """Delays, rates, markets and events of one feeder process."""

    def __init__(self) -> None:
        self.recent = Recent(FEEDER)
        self.rates = Rates()
        self.exchange = Delays()
        self.publish = Delays()
        # When a message is timed next (time.monotonic).
        self.sample_at = 0.0
        self._markets: dict[str, float] = {}

    def published(self, entry: Entry, now: float) -> None:
        """Take that a message of the market of `entry` came."""
        if entry.market and (entry.market in self._markets or len(self._markets) < _MARKETS):
            self._markets[entry.market] = now

    def sample(self, entry: Entry, body: bytes, received_ns: int, published_ns: int, now: float) -> None:
        """Time a message that was published."""
        self.sample_at = now + SAMPLE_EVERY
        self.publish.add((published_ns - received_ns) / 1e9, now)
        if entry.parts.kind is not Kind.QUOTE or entry.parts.detail in _TIMED:
            delay = exchange_delay(body, received_ns)
            if delay is not None:
                self.exchange.add(delay, now)

    def markets(self, now: float) -> dict[str, float]:
        """Return by market the seconds since its newest message. From any thread."""
        return {name: round(now - at, 3) for name, at in sorted(self._markets.copy().items())}

    def shown(self, now: float) -> dict[str, Any]:
        """Return the feeder's part of a survey about states."""
        return {
            "markets": self.markets(now),
            "published_rate": self.rates.rate("published"),
            "exchange_to_callback": self.exchange.counts(now),
            "callback_to_publish": self.publish.counts(now),
            "events": self.recent.newest(),
        }
