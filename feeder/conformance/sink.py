"""The sink of the checks: it keeps what a source tells it, and notes each call that the protocol does not allow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from feeder.conformance.records import as_read, fault, times, trade_fault
from feeder.source import FeedState
from feeder.sources.said import check_topic, known_accounts, known_code, known_state
from qmt_bridge.errors import ErrorCode
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.topics import Kind, Topic, mask, parse_topic

# Nanoseconds by which a time of reception may differ from the clock of the checks.
_TOLERANCE_NS = 1_000_000_000


class WatchingSink:
    """Implements `Sink`; any thread may call it. `faults` has one sentence for each call that is not allowed."""

    def __init__(self, past: Sequence[TradeEvent] = ()) -> None:
        self.faults: list[str] = []
        self.bodies: dict[Topic, list[Any]] = {}
        self.accepted: list[Topic] = []
        self.refused: dict[Topic, tuple[str, str]] = {}
        self.states: list[tuple[FeedState, str | None, bool]] = []
        self.accounts: list[tuple[AccountState, ...]] = []
        self.trades: list[tuple[str, str, Mapping[str, Any]]] = []
        # By number: the bodies and the begin of a history, or why there is none.
        self.histories: dict[int, list[tuple[list[Any], int] | tuple[str, str]]] = {}
        # Set when the source has been closed.
        self.closed = False
        self._past = past
        self._began_ns = clock.time_ns()
        # Topics that were subscribed at any time: what was queued comes after `unsubscribe`.
        self._wanted: set[Topic] = set()
        self._ended: set[Topic] = set()
        self._changed = threading.Condition()

    # -- For the checks

    def want(self, topic: Topic) -> None:
        """Expect messages of `topic` from now on."""
        with self._changed:
            self._wanted.add(topic)
            self._ended.discard(topic)

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        """Return whether `condition` holds within `seconds`."""
        until = time.monotonic() + seconds
        with self._changed:
            while not condition():
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.05))
            return True

    def count(self, topic: Topic) -> int:
        """Return how many messages of `topic` have come."""
        return len(self.bodies.get(topic, ()))

    def total(self) -> int:
        """Return how many messages of all topics have come."""
        return sum(len(bodies) for bodies in list(self.bodies.values()))

    # -- The sink

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        """Keep a message, as a client reads it."""
        with self._noting(f"publish of {topic!r}"):
            check_topic(topic)
            self._check_time(topic, received_ns)
            parts = parse_topic(topic)
            read = as_read(body)
            said = fault(parts, read, clock.time_ns() // 1_000_000)
            if said:
                self.faults.append(f"{topic}: {said}")
                return
            earlier = self.bodies.setdefault(topic, [])
            if parts.kind is Kind.QUOTE and parts.detail == "tick":
                moments = [*(times(earlier[-1])[-1:] if earlier else ()), *times(read)]
                if moments != sorted(moments):
                    self.faults.append(f"{topic}: a tick is older than the one before")
            if parts.kind is Kind.DOWNLOAD:
                if topic in self._ended:
                    self.faults.append(f"{topic}: a message follows the end of the download")
                if "status" in read:
                    self._ended.add(topic)
            elif self.closed:
                self.faults.append(f"{topic}: a message has come after close")
            elif topic not in self._wanted:
                self.faults.append(f"{topic}: a message has come, and it was never subscribed")
            earlier.append(read)

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        """Keep ticks by code."""
        self.publish(topic, ticks, received_ns)

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        """Keep a trade event; a fill that has come before is a fault."""
        with self._noting("publish_trade"):
            self._check_time("a trade event", received_ns)
            read = as_read(data)
            if said := trade_fault(account, event, read):
                self.faults.append(said)
                return
            earlier = (each for *of, each in self.trades if of == [account, event])
            if event == "trade" and is_among(read, earlier):
                self.faults.append(f"the fill {read.get('traded_id')!r} has come twice")
            self.trades.append((account, event, read))

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        """Yield the events that were given, as those of a journal."""
        now_ms = clock.time_ns() // 1_000_000
        return iter([(now_ms, event) for event in self._past])

    def accept(self, topic: Topic) -> None:
        """Keep that a topic is served."""
        with self._noting("accept"):
            check_topic(topic)
            self.accepted.append(topic)

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        """Keep that a topic is not served."""
        with self._noting("refuse"):
            check_topic(topic)
            self._check_reason(reason)
            self.refused[topic] = known_code(code), reason

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        """Keep a state of the session."""
        with self._noting("set_state"):
            if reason is not None:
                self._check_reason(reason)
            self.states.append((known_state(state), reason, data_lost))

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        """Keep the states of the accounts; a number that is not masked is a fault."""
        with self._noting("set_accounts"):
            told = known_accounts(accounts)
            for each in told:
                if each.account != mask(each.account):
                    self.faults.append("the state of an account shows its number, which no key protects: use mask")
            self.accounts.append(told)

    def give_history(self, number: int, bodies: Iterable[object], from_ms: int) -> None:
        """Keep the answer to a question."""
        read = [as_read(body) for body in bodies]
        with self._noting("give_history"):
            if not isinstance(from_ms, int):
                raise TypeError(f"from_ms is a number, not {from_ms!r}")
            self.histories.setdefault(number, []).append((read, from_ms))

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        """Keep that a question has no answer."""
        with self._noting("refuse_history"):
            self._check_reason(reason)
            self.histories.setdefault(number, []).append((known_code(code), reason))

    def wait_room(self, limit: int, timeout: float) -> bool:
        """Return that there is room."""
        return True

    def _noting(self, call: str) -> _Noting:
        return _Noting(self._changed, self.faults, call)

    def _check_time(self, what: str, received_ns: int) -> None:
        now_ns = clock.time_ns()
        if not isinstance(received_ns, int) or not (
            self._began_ns - _TOLERANCE_NS <= received_ns <= now_ns + _TOLERANCE_NS
        ):
            self.faults.append(f"{what}: received_ns is the time of the callback in ns since 1970, not {received_ns!r}")

    def _check_reason(self, reason: object) -> None:
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"a reason is a sentence, not {reason!r}")


class _Noting:
    """Holds the lock, notifies those that wait, and makes a fault of an error: the feeder's sink raises none."""

    def __init__(self, changed: threading.Condition, faults: list[str], call: str) -> None:
        self._changed = changed
        self._faults = faults
        self._call = call

    def __enter__(self) -> None:
        self._changed.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if error is not None:
            self._faults.append(f"{self._call}: {type(error).__name__}: {error}")
        self._changed.notify_all()
        self._changed.release()
        return isinstance(error, Exception)


def is_among(fill: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a fill with an identity is one of `others`; the mark of one that a query found does not count."""
    if not fill.get("traded_id"):
        return False
    plain = {name: value for name, value in fill.items() if name != "recovered"}
    return any({name: value for name, value in each.items() if name != "recovered"} == plain for each in others)
