"""Which trade events were published already: a broker pushes those of the day again after a reconnect.

A record is a repeat only if all of its fields are equal. Its identity (account, order id, code) names the order or
position. It shows which record is newer than a query's answer, whether an order returned to its state before a cancel
that failed, and which positions are sold out. No record that differs is dropped because its identity is the same. That
includes values that depend on the market price: if a query answers with another value, it is published.

Pure. `Publication` uses it, under its guard: callbacks and the session's threads publish.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from qmt_bridge.wire import frames
from qmt_bridge.wire.shanghai import SHANGHAI_SECONDS

# ORDER_REPORTED, _REPORTED_CANCEL, _PARTSUCC_CANCEL, _PART_SUCC: after a cancel that fails, an order returns to the
# status before it.
_CANCELLABLE = frozenset((50, 51, 52, 55))

# The events that are compared. The terminal sends all other events once, and they are always published. In a position,
# `market_value`, `last_price`, `profit_rate`, `float_profit` and `position_profit` depend on the market price, in an
# asset `market_value` and `total_asset`. They are compared like the rest: if only they change, some brokers push no
# record, and clients would keep the values of the last fill. This costs at most one event for each position and asset
# every `xt_reconcile` seconds of trading hours.
_COMPARED = frozenset(("order", "trade", "position", "asset"))
# Enumerations to which the feeder adds a name, such as ``order_status_name``. These names, and the mark ``recovered``,
# are the feeder's own fields and are not compared. `instrument_name` is a field of the terminal.
NAMED = ("account_type", "order_type", "price_type", "direction", "offset_flag", "order_status", "status", "market")
_OURS = frozenset(("recovered", *(f"{field}_name" for field in NAMED)))
_TIMES = {"order": "order_time", "trade": "traded_time"}
# The values that brokers write if there is no number.
_NO_NUMBER = (None, "", "0", "-1", 0, -1)
# The fields that become zero when a position is sold out; yesterday's volume and the prices stay as they were.
_HELD = (
    "volume",
    "can_use_volume",
    "frozen_volume",
    "on_road_volume",
    "market_value",
    "float_profit",
    "position_profit",
)
_DAY_SECONDS = 24 * 3600
# How far the broker's clock may be ahead of ours.
_SKEW_SECONDS = 300
# How many records of one position are remembered that differ in no part of their identity; more count as new ones.
_SIBLINGS = 32

# The identity of one order, position or asset.
Key = tuple[object, ...]


class Record(NamedTuple):
    """One order, fill, position or asset: its fields, and the bytes of those texts that could not be read."""

    data: dict[str, object]
    unread: bytes = b""


class News(NamedTuple):
    """A record to publish; give it to `Published.remember` once it is published."""

    event: str
    record: Record
    key: Key | None
    digest: bytes
    # By what a repeat of it is recognised: the digest, with the day if its time has no date.
    mark: bytes


class Answer(NamedTuple):
    """The records of a query's answer that are to be published."""

    news: list[News]
    # Whether a record differs from a push that came after the query: only the next answer shows which one is right.
    is_overtaken: bool


class _Known:
    """What was published of one order, position or asset."""

    __slots__ = ("admitted", "history", "is_held", "last", "phase", "recent", "record", "replayed")

    def __init__(self) -> None:
        # The digest of the newest record, and of the newest ones: a position of a future may be listed as several.
        self.last = b""
        self.recent: dict[bytes, None] = {}
        # The newest record of a position, encoded, and whether its volume was not zero.
        self.record = b""
        self.is_held = False
        # An order's status and volume of fills.
        self.phase: tuple[object, object] = (None, None)
        # The digests of all records of an order, in order. If a broker pushes them again, the place in this list.
        self.history: list[bytes] = []
        self.replayed: int | None = None
        # The count of all published events at its newest one.
        self.admitted = 0

    def begin_replay(self, digest: bytes) -> None:
        """Note that an earlier record was pushed again, not because a cancel failed: the later ones may follow."""
        is_earlier = digest != self.last and digest in self.history
        self.replayed = self.history.index(digest) if is_earlier else None

    def replay(self, digest: bytes) -> bool:
        """Return whether a record is the next one of the records that are pushed again."""
        if self.replayed is None:
            return False
        follows = self.replayed + 1
        is_next = self.history[follows : follows + 1] == [digest]
        self.replayed = follows if is_next and follows < len(self.history) - 1 else None
        return is_next


class Published:
    """The events of the last two days that had orders or fills, and older positions that are still held."""

    def __init__(self) -> None:
        # Events admitted so far.
        self.count = 0
        self._day = 0
        self._recent: dict[Key, _Known] = {}
        self._older: dict[Key, _Known] = {}
        self._marks: set[bytes] = set()
        self._older_marks: set[bytes] = set()
        # The records of the newest answer to a query whose time has no date. A terminal still lists them after midnight
        # and over a holiday, and they are not new then.
        self._listed: dict[Key, frozenset[bytes]] = {}

    def admit(self, event: str, data: Mapping[str, object], at_ns: int, asked: int | None = None) -> bool:
        """Return whether one event is to be published, and remember it as published (see `judge`)."""
        found = self.judge(event, Record(dict(data)), at_ns, asked)
        if found is not None:
            self.remember(found)
        return found is not None

    def restore(self, event: str, data: Mapping[str, object], at_ns: int) -> None:
        """Remember an event of the journal."""
        record = Record(dict(data))
        if event in _COMPARED:
            self._remember_day(event, at_ns)
            nth = 1
            while _is_nameless_fill(event, record) and self._has(_look(event, record, at_ns, nth)[1]):
                nth += 1
            self.remember(News(event, record, _key(event, record.data), *_look(event, record, at_ns, nth)))

    def judge(self, event: str, record: Record, at_ns: int, asked: int | None = None) -> News | None:
        """Return an event as news, or None if it was published already.

        `asked` is None for a push, and for the answer to a query the `count` when the query was asked. An order,
        position or asset that was pushed since then is newer than the answer. A pushed position or asset is always
        published.
        """
        found, _ = self._judge(event, record, at_ns, asked)
        return found

    def answered(self, account: Key, event: str, records: Sequence[Record], at_ns: int, asked: int) -> Answer:
        """Return the news in the answer to a query of all of an account's orders, fills, positions, or asset.

        The caller gives it to `remember` before the next call.
        """
        siblings = {key for key, times in Counter(_key(event, each.data) for each in records).items() if times > 1}
        listed = self._listed.get((event, account), frozenset())
        alike: Counter[bytes] = Counter()
        news: dict[bytes, News] = {}
        is_overtaken = False
        undated = set()
        told: dict[Key, dict[bytes, None]] = {key: {} for key in siblings if key is not None}
        for record in records:
            key = _key(event, record.data)
            nth = 1
            if _is_nameless_fill(event, record):
                # If an answer lists a fill twice, there are two fills. If it is pushed twice, there may be only one.
                whole = _digest(event, record)
                alike[whole] += 1
                nth = alike[whole]
            digest, mark = _look(event, record, at_ns, nth)
            if mark != digest:
                undated.add(digest)
                if digest in listed:
                    continue
            found, overtaken = self._judge(event, record, at_ns, asked, nth, key in siblings)
            is_overtaken = is_overtaken or overtaken
            if found is not None:
                news[mark] = found
            elif key in told:
                told[key][digest] = None
        self._listed[(event, account)] = frozenset(undated)
        for key, digests in told.items():
            # A record that is not listed any more is a change if it comes again.
            self._find(key).recent = digests
        return Answer(list(news.values()), is_overtaken)

    def remember(self, news: News) -> None:
        """Remember an event as published."""
        event, (data, _), key, digest, mark = news
        self.count += 1
        if event not in _COMPARED:
            return
        if key is None or event in _TIMES:
            self._marks.add(mark)
        if key is None:
            return
        known = self._find(key)
        known.last, known.phase = digest, _phase(data)
        if event == "order":
            known.history.append(digest)
            known.replayed = None
        known.recent.pop(digest, None)
        known.recent[digest] = None
        if len(known.recent) > _SIBLINGS:
            del known.recent[next(iter(known.recent))]
        if event == "position":
            known.record, known.is_held = frames.encode(data), bool(data.get("volume"))
        known.admitted = self.count

    def sold_out(
        self, account: object, listed: Iterable[Mapping[str, object]], asked: int
    ) -> dict[Key, dict[str, object]]:
        """Return the positions of `account` that were held and are missing in `listed`, the answer to a query of all.

        Each is the last event of the position, with nothing held. Positions that were pushed after the query was
        `asked` are newer and are not returned. Some brokers list a sold position until the end of the day, with zero;
        that is an ordinary change.
        """
        there = {_key("position", data) for data in listed}
        gone = {}
        for key, known in (*self._older.items(), *self._recent.items()):
            if known.is_held and key not in there and known.admitted <= asked:
                data = frames.decode(known.record)
                if data.get("account_id") == account:
                    gone[key] = data | {name: type(data[name])() for name in _HELD if data.get(name) is not None}
        return gone

    def _judge(
        self, event: str, record: Record, at_ns: int, asked: int | None, nth: int = 1, is_sibling: bool = False
    ) -> tuple[News | None, bool]:
        """Return the news, and whether a record of an answer differs from a push that is newer than the answer."""
        if event not in _COMPARED:
            return News(event, record, None, b"", b""), False
        self._remember_day(event, at_ns)
        key = _key(event, record.data)
        digest, mark = _look(event, record, at_ns, nth)
        known = None if key is None else self._find(key)
        is_marked = False
        if known is None or event in _TIMES:
            # The journal has no bytes that could not be read: after a restart, compare their replacement.
            is_marked = self._has(mark) or (
                bool(record.unread) and self._has(_look(event, Record(record.data), at_ns, nth)[1])
            )
        is_old = known is not None and asked is not None and known.admitted > asked
        if known is None:
            is_news = not is_marked
        elif event in _TIMES:
            is_replayed = asked is None and is_marked and known.replay(digest)
            is_news = not is_marked or (
                digest != known.last and not is_replayed and _is_back(_phase(record.data), known.phase)
            )
            if is_marked and asked is None and not is_news and not is_replayed:
                known.begin_replay(digest)
        else:
            # Every push is published, but an answer is not published again.
            is_news = asked is None or (digest not in known.recent if is_sibling else digest != known.last)
        if is_old:
            return None, is_news
        return (News(event, record, key, digest, mark) if is_news else None), False

    def _has(self, mark: bytes) -> bool:
        if mark in self._older_marks:
            # It came again today, so keep it with those of today.
            self._older_marks.discard(mark)
            self._marks.add(mark)
        return mark in self._marks

    def _remember_day(self, event: str, at_ns: int) -> None:
        """Begin a new day, and forget what is too old. Positions and assets begin none: they change at any time."""
        day = _day(at_ns)[0]
        if event in _TIMES and day > self._day:
            held = {key: known for key, known in self._older.items() if known.is_held}
            self._day, self._older, self._recent = day, held | self._recent, {}
            self._older_marks, self._marks = self._marks, set()

    def _find(self, key: Key) -> _Known:
        known = self._recent.get(key)
        if known is None:
            known = self._recent[key] = self._older.pop(key) if key in self._older else _Known()
        return known


def _key(event: str, data: Mapping[str, object]) -> Key | None:
    """Return the identity of an order, position or asset; None if there is none, as for a fill."""
    account = event, repr(data.get("account_type")), repr(data.get("account_id"))
    if event == "asset":
        return account
    code = data.get("stock_code")
    if event == "position":
        if not code:
            return None
        return (*account, repr(code), repr(data.get("direction")), repr(data.get("secu_account")))
    if event == "order":
        for field in ("order_id", "order_sysid"):
            number = data.get(field)
            if number not in _NO_NUMBER:
                return (*account, repr(code), field, repr(number))
    return None


def _is_nameless_fill(event: str, record: Record) -> bool:
    return event == "trade" and record.data.get("traded_id") in _NO_NUMBER


def _phase(data: Mapping[str, object]) -> tuple[object, object]:
    return data.get("order_status"), data.get("traded_volume")


def _is_back(now: tuple[object, object], before: tuple[object, object]) -> bool:
    """Return whether an order returned from a cancel that failed, or began the next cancel."""
    return now[0] != before[0] and now[1] == before[1] and {now[0], before[0]} <= _CANCELLABLE


def _look(event: str, record: Record, at_ns: int, nth: int = 1) -> tuple[bytes, bytes]:
    """Return the digest of a record, and the mark by which it is remembered: with the day if its time has no date."""
    digest = _digest(event, record, nth)
    if event not in _TIMES:
        return digest, digest
    written = _digits(record.data.get(_TIMES[event]))
    if len(written) >= 10 or _is_date(written):
        return digest, digest
    day, now = _day(at_ns)
    seconds = _seconds(written)
    if seconds is not None and seconds > now + _SKEW_SECONDS:
        # Just after midnight a broker may push events of the evening again.
        day -= 1
    return digest, digest + day.to_bytes(4, "big")


def _digest(event: str, record: Record, nth: int = 1) -> bytes:
    fields = [(name, _canonical(value)) for name, value in sorted(record.data.items()) if name not in _OURS]
    whole = frames.encode((event, nth, fields)) + record.unread
    return hashlib.blake2b(whole, digest_size=16).digest()


def _canonical(value: object) -> object:
    """Return the form that all spellings of a value share: 5 and 5.0, 0.0 and -0.0, NaN and null."""
    if isinstance(value, float):
        if not math.isfinite(value):
            # As the journal has it.
            return None
        return int(value) if value.is_integer() and abs(value) < 2**63 else value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            # The journal has it in this form.
            return ascii(value)
        return value
    if isinstance(value, Mapping):
        return sorted((str(name), _canonical(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def _day(at_ns: int) -> tuple[int, int]:
    """Return the day in Shanghai, counted from 1970, and its second."""
    return divmod(at_ns // 1_000_000_000 + SHANGHAI_SECONDS, _DAY_SECONDS)


def _digits(value: object) -> str:
    """Return the digits of a time: seconds or milliseconds since 1970, ``20250701093015``, ``93015``, ``09:30:15``."""
    if isinstance(value, str):
        return re.sub(r"\D", "", value.partition(".")[0])
    if isinstance(value, int | float) and math.isfinite(value) and value > 0:
        return str(int(value))
    return ""


def _is_date(written: str) -> bool:
    return bool(re.fullmatch(r"20\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", written))


def _seconds(written: str) -> int | None:
    """Return the second of the day of ``HHMMSS``, perhaps with milliseconds; None if it is no time."""
    if not written or not int(written):
        return None
    clock = written.zfill(6) if len(written) <= 6 else written.zfill(9)[:6]
    hours, minutes, seconds = int(clock[:2]), int(clock[2:4]), int(clock[4:])
    return hours * 3600 + minutes * 60 + seconds if hours < 24 and minutes < 60 and seconds < 60 else None
