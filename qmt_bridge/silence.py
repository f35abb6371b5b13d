"""Find the subscribed topics and prefixes without a message, and when to report them. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Iterable

from qmt_bridge.errors import WireError
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import KINDS, Kind, Topic, parse_topic, shown_topic

# Seconds. Ticks of one instrument come every three seconds, so two of them are missing.
FIRST_SECONDS = 6.0
AGAIN_SECONDS = 600.0


class Silence:
    """The `wanted` topics and prefixes for which no message has come yet."""

    def __init__(self, wanted: Iterable[Topic]) -> None:
        self.topics: set[Topic] = set()
        self.prefixes: set[Topic] = set()
        for topic in wanted:
            try:
                parse_topic(topic)
            except WireError:
                self.prefixes.add(topic)
            else:
                self.topics.add(topic)
        self._heard = False
        self._since: float | None = None
        self._told_at: float | None = None

    def note(self, frames: Iterable[Frame]) -> None:
        """Take the frames that have arrived."""
        for frame in frames:
            self._heard = self._heard or frame.topic in self.topics
            if self.prefixes:
                # A prefix that has received a frame is removed, so this work ends soon.
                self.prefixes = {prefix for prefix in self.prefixes if not frame.topic.startswith(prefix)}

    def remark(self, now: float) -> str | None:
        """Return a sentence about silent topics: after FIRST_SECONDS of a connection, then every AGAIN_SECONDS."""
        if self._since is None:
            self._since = now
        due = self._since + FIRST_SECONDS if self._told_at is None else self._told_at + AGAIN_SECONDS
        if now < due:
            return None
        said = self.summary()
        if said is not None:
            self._told_at = now
        return said

    def summary(self) -> str | None:
        """Return which prefixes have received nothing, or that no topic has; None if all is well."""
        if self.prefixes:
            # Trade events are published without a subscription, so their silence needs no other advice.
            listening = sorted(prefix for prefix in self.prefixes if _asks_nothing(prefix))
            if not listening:
                return f"nothing has come for {_some(sorted(self.prefixes))}: there are no trade events yet"
            return (
                f"nothing has come for {_some(listening)}: a prefix asks for nothing, it only brings what others ask "
                "for; name whole topics, such as quote/600519.SH/tick/ or whole/SH/, or give --codes-file"
            )
        if self.topics and not self._heard:
            return (
                f"nothing has come for {_some(sorted(self.topics))}: outside trading hours, or for an instrument that "
                "is halted, this is right; `qmt-bridge doctor` looks at the feeder"
            )
        return None


def _asks_nothing(prefix: Topic) -> bool:
    head = prefix.partition("/")[0]
    return head not in (Kind.TRADE, Kind.STATUS) and head in KINDS


def _some(topics: list[Topic]) -> str:
    rest = len(topics) - 3
    return ", ".join(map(shown_topic, topics[:3])) + (f" and {rest} more" if rest > 0 else "")
