"""Where a moment is in a stored topic. No I/O of its own: it asks a view, a few records for each question.

A feeder that was started anew goes on with the market, and its records with their times. A replay that is played again
begins with the morning: what was recorded before it is another run, and no part of its day.
"""

from __future__ import annotations

from typing import NamedTuple

from qmt_bridge.store.layout import Record
from qmt_bridge.store.view import View

# By so many ms the first record of a new feeder may be older than the last one before it: the source gives the newest
# snapshot of a code again, and a batch has the time of its newest tick.
SLACK_MS = 300_000
# Messages of the first step away from where a moment should be.
NEAR = 16


class Found(NamedTuple):
    """The first message with a record at or after a moment, and the one before it in the same run."""

    first: Record | None
    before: Record | None


def find(view: View, moment_ms: int) -> Found:
    """Return where `moment_ms` is in the newest run of a topic."""
    found: Record | None = None
    last = view.last()
    while last is not None:
        if last.ms < moment_ms:
            return Found(found, last)
        begin = view.first_from(last.epoch, 0)
        assert begin is not None
        found = _first_at(view, begin, last, moment_ms)
        if found.seq > begin.seq:
            break
        last = view.last_before(begin.epoch, 0)
        if last is not None and last.ms > begin.ms + SLACK_MS:
            return Found(found, None)
    return Found(found, None if found is None else _before(view, found))


def _before(view: View, found: Record) -> Record | None:
    before = view.last_before(found.epoch, found.seq)
    return before if before is not None and before.epoch == found.epoch else None


def _first_at(view: View, begin: Record, last: Record, moment_ms: int) -> Record:
    """Return the first message of an epoch at or after a moment that is not behind its last one.

    It is looked for near where it would be if messages came evenly, because a block of batches takes some ms to read.
    """

    def from_(seq: int) -> Record:
        record = view.first_from(begin.epoch, seq)
        assert record is not None
        return record

    if begin.ms >= moment_ms:
        return begin
    found, low, high, step = last, begin.seq + 1, last.seq, NEAR
    guess = low + (high - low) * (moment_ms - begin.ms) // max(1, last.ms - begin.ms)
    record = from_(guess)
    if record.ms >= moment_ms:
        found, high = record, guess
        while low < high:
            record = from_(at := max(low, high - step))
            if record.ms < moment_ms:
                low = record.seq + 1
                break
            found, high, step = record, at, 2 * step
    else:
        low = record.seq + 1
        while low < high:
            record = from_(at := min(high - 1, low + step))
            if record.ms >= moment_ms:
                found, high = record, at
                break
            low, step = record.seq + 1, 2 * step
    while low < high:
        record = from_(middle := (low + high) // 2)
        if record.ms >= moment_ms:
            found, high = record, middle
        else:
            low = record.seq + 1
    return found
