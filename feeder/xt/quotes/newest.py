"""Newest: the newest record of each item of a topic, whatever the order of the callbacks.

xtquant calls back on several threads, so an older record may be ready after a newer one. Pure: the time is an argument,
and callers hold a lock from `admit` until the admitted record is handed over.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from qmt_bridge.wire.topics import Versions

# The times of records may go back for good: a test environment, the next session, a corrected tick. If nothing newer
# came for this time, an older record counts as the newest. Stocks tick every three seconds, and a callback is late by
# much less than this.
SETTLE_NS = 5_000_000_000
# The time of a record that is further in the future than this is wrong, and is not used.
FUTURE_MS = 3_600_000
_NS_PER_MS = 1_000_000
# For how many bars of one code the version is tracked: a bar may still be corrected after the next one has begun.
_BARS = 3


class Moment(NamedTuple):
    """The time at which a callback was entered: in ns since 1970, and in ns of a monotonic clock for the order."""

    received_ns: int
    entered_ns: int


class _Mark(NamedTuple):
    # None if the record has no time, or one that cannot be right.
    time: int | None
    volume: float | None
    entered_ns: int


class Newest:
    """The newest records of one topic; `versions` says which records are versions of the same item."""

    __slots__ = ("_bars", "_marks", "_versions", "records")

    def __init__(self, versions: Versions) -> None:
        # The record that was admitted last, by code.
        self.records: dict[str, Any] = {}
        self._versions = versions
        self._marks: dict[Hashable, _Mark] = {}
        self._bars: dict[str, deque[Hashable]] = {}

    def admit(self, code: str, record: Any, moment: Moment) -> bool:
        """Return whether to publish `record` of `code`, which came at `moment`: not if a newer version was admitted.

        Its own time decides, then its volume, then the order in which the callbacks were entered.
        """
        key = code if self._versions == "code" else self._key(code, record)
        if key is not None:
            mark = _mark(record, moment)
            last = self._marks.get(key)
            if last is not None:
                if _is_older(mark, last) and mark.entered_ns - last.entered_ns < SETTLE_NS:
                    return False
                if last.entered_ns > mark.entered_ns:
                    mark = mark._replace(entered_ns=last.entered_ns)
            elif key is not code:
                self._forget_bars(code, key)
            self._marks[key] = mark
        self.records[code] = record
        return True

    def admit_all(self, records: Mapping[str, Any], moment: Moment) -> dict[str, Any]:
        """Return those of `records` by code that may be published (see `admit`)."""
        if self._versions != "code":
            return {code: record for code, record in records.items() if self.admit(code, record, moment)}
        # The usual case takes a third of the time of `admit`. This matters because the lock is held over thousands.
        fresh: dict[str, Any] = {}
        marks, entered_ns = self._marks, moment.entered_ns
        limit = moment.received_ns // _NS_PER_MS + FUTURE_MS
        for code, record in records.items():
            last = marks.get(code)
            time = record.get("time") if type(record) is dict else None
            if (
                last is not None
                and type(time) is int
                and last.time is not None
                and last.time < time < limit
                and last.entered_ns <= entered_ns
            ):
                volume = record.get("volume")
                marks[code] = _Mark(time, volume if type(volume) is int or type(volume) is float else None, entered_ns)
            elif not self.admit(code, record, moment):
                continue
            fresh[code] = record
        self.records |= fresh
        return fresh

    def is_new(self, code: str, record: Any) -> bool:
        """Return whether `record` differs from the one of `code` that was admitted last.

        An answer of get_full_tick has fields that no push has (timetag, tickvol), and its amount is an integer. So if
        one of the two is such an answer, only the common fields are compared, and only the whole part of the amount.
        """
        last = self.records.get(code)
        if last is None or not (_is_answer(last) or _is_answer(record)):
            return last is None or not _is_same(last, record)
        if not isinstance(last, Mapping) or not isinstance(record, Mapping):
            return True
        common = last.keys() & record.keys()
        return not common or not all(_is_same(_whole(name, last), _whole(name, record)) for name in common)

    def _key(self, code: str, record: Any) -> Hashable:
        """Return the item of which `record` is a version; None for an event."""
        match self._versions:
            case "topic":
                return ""
            case "bar":
                time = record.get("time") if isinstance(record, Mapping) else None
                return (code, time) if isinstance(time, int | float) else None
            case "values":
                return _shape(record)
            case _:
                return None

    def _forget_bars(self, code: str, key: Hashable) -> None:
        keys = self._bars.setdefault(code, deque())
        keys.append(key)
        if len(keys) > _BARS:
            self._marks.pop(keys.popleft(), None)


def _mark(record: Any, moment: Moment) -> _Mark:
    if not isinstance(record, Mapping):
        return _Mark(None, None, moment.entered_ns)
    time, volume = record.get("time"), record.get("volume")
    if type(time) is float and time.is_integer():
        time = int(time)
    if type(time) is not int or not 0 < time < moment.received_ns // _NS_PER_MS + FUTURE_MS:
        time = None
    if isinstance(volume, bool) or not isinstance(volume, int | float):
        volume = None
    return _Mark(time, volume, moment.entered_ns)


def _is_answer(record: Any) -> bool:
    """Return whether `record` is an answer of get_full_tick: only its answers have the time as a text."""
    return isinstance(record, Mapping) and "timetag" in record


def _is_same(value: Any, other: Any) -> bool:
    # Also compared as text, because NaN is not equal to itself.
    return bool(value == other) or repr(value) == repr(other)


def _whole(name: str, record: Mapping[str, Any]) -> Any:
    """Return the field `name` of `record`, the amount without its fraction."""
    value = record[name]
    return int(value) if name == "amount" and isinstance(value, float) and math.isfinite(value) else value


def _is_older(mark: _Mark, last: _Mark) -> bool:
    if mark.time is not None and last.time is not None and mark.time != last.time:
        return mark.time < last.time
    if mark.volume is not None and last.volume is not None and mark.volume != last.volume:
        # The volume is the total of the day or of the bar, so it only grows.
        return mark.volume < last.volume
    return mark.entered_ns < last.entered_ns


def _shape(document: Any) -> Hashable:
    """Return for which bars and outputs a formula's document has values."""
    if not isinstance(document, Mapping):
        return None
    times, outputs = document.get("timelist"), document.get("outputs")
    if not isinstance(times, list) or not isinstance(outputs, Mapping):
        return None
    return len(times), str(times[-1:]), tuple(outputs)
