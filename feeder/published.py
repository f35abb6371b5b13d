"""Which trade events were published already: after a reconnect a broker pushes the day again, and queries tell it.

Pure, and guarded by its one user, `xttrade`: callbacks and the session's thread both publish.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qmt_bridge.wire import frames

# ORDER_REPORTED, _REPORTED_CANCEL, _PARTSUCC_CANCEL, _PART_SUCC: a cancel that fails leads back.
_CANCELLABLE = frozenset((50, 51, 52, 55))

# What makes two events one, by its key and (where it is not the whole event) its state.
_KEYS = {
    "order": ("account_id", "order_id"),
    "trade": ("account_id", "stock_code", "order_id", "traded_id"),
    "position": ("account_type", "account_id", "stock_code", "direction", "secu_account"),
    "asset": ("account_type", "account_id"),
}
# order_time and traded_time because a broker may give a number again on another day.
_STATES = {
    "order": ("order_time", "order_sysid", "order_status", "traded_volume", "status_msg"),
    "trade": ("traded_time",),
}
# What there is none of once a position is sold out; yesterday's volume and the prices stay what they were.
_HELD = (
    "volume",
    "can_use_volume",
    "frozen_volume",
    "on_road_volume",
    "market_value",
    "float_profit",
    "position_profit",
)
_DAY_NS = 24 * 3600 * 1_000_000_000

# What names one order, trade, position or asset.
Key = tuple[object, ...]


class _Known:
    """What was published of one order, trade, position or asset."""

    __slots__ = ("admitted", "is_held", "last", "phase", "states")

    def __init__(self) -> None:
        self.states: set[object] = set()
        # The newest: of an order or trade its state, of a position or asset the whole event, encoded.
        self.last: object = None
        # A position that was not zero.
        self.is_held = False
        # An order's status and volume of fills.
        self.phase: tuple[object, object] = (None, None)
        # The number of its newest event among all.
        self.admitted = 0


class Published:
    """What was published on the two last days that had events; of earlier ones only the positions that are held."""

    def __init__(self) -> None:
        # Events admitted so far.
        self.count = 0
        self._day = 0
        self._recent: dict[Key, _Known] = {}
        self._older: dict[Key, _Known] = {}

    def admit(self, event: str, data: Mapping[str, object], at_ns: int, asked: int | None = None) -> bool:
        """Return whether an event is to be published, and remember it as published.

        `asked` is for what a query answered: the `count` when it was asked. An order, position or asset that was
        pushed since then is newer than the answer.
        """
        if event not in _KEYS or data.get("traded_id") == "":
            return True
        known = self._find(_key(event, data), at_ns // _DAY_NS)
        if asked is not None and known.admitted > asked:
            return False
        phase = data.get("order_status"), data.get("traded_volume")
        state: object
        if event in _STATES:
            state = repr([data.get(field) for field in _STATES[event]])
            is_news = state not in known.states or (
                # Back from a cancel that failed, or to the next one.
                state != known.last and phase[1] == known.phase[1] and {phase[0], known.phase[0]} <= _CANCELLABLE
            )
        else:
            state = frames.encode(data)
            # Pushed as often as the broker likes, but not told again when asked.
            is_news = asked is None or state != known.last
        if is_news:
            if event in _STATES:
                known.states.add(state)
            known.last, known.phase = state, phase
            known.is_held = event == "position" and bool(data.get("volume"))
            self.count += 1
            known.admitted = self.count
        return is_news

    def sold_out(
        self, account: object, listed: Iterable[Mapping[str, object]], asked: int
    ) -> dict[Key, dict[str, object]]:
        """Return the positions of `account` that were held and that `listed`, the answer to a query of all, lacks.

        Each is the last event of it with nothing held any more. Brokers may go on listing what was sold until the end
        of the day, at zero; that is told like any change. What was pushed after the query was `asked` is newer.
        """
        there = {_key("position", data) for data in listed}
        gone = {}
        for key, known in (*self._older.items(), *self._recent.items()):
            if known.is_held and key not in there and known.admitted <= asked:
                assert isinstance(known.last, bytes)
                data = frames.decode(known.last)
                if data.get("account_id") == account:
                    gone[key] = data | {name: type(data[name])() for name in _HELD if data.get(name) is not None}
        return gone

    def _find(self, key: Key, day: int) -> _Known:
        if day > self._day:
            held = {key: known for key, known in self._older.items() if known.is_held}
            self._day, self._older, self._recent = day, held | self._recent, {}
        known = self._recent.get(key)
        if known is None:
            known = self._recent[key] = self._older.pop(key) if key in self._older else _Known()
        return known


def _key(event: str, data: Mapping[str, object]) -> Key:
    return (event, *(repr(data.get(field)) for field in _KEYS[event]))
