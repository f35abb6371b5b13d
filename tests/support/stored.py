"""Messages for tests of the store, and columns of a database in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from qmt_bridge.store.layout import Record
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic, quote_topic

TOPIC = quote_topic("600519.SH")
# 2026-11-27 09:30 in Shanghai.
OPEN = 1795743000000
EPOCH = (OPEN - 1_800_000) * 1_000_000


def tick(seq: int, ms: int, *, epoch: int = EPOCH, topic: Topic = TOPIC, late_ms: int = 100, size: int = 0) -> Frame:
    """Return a quote of `ms` that was received `late_ms` later; its body has at least `size` bytes."""
    code = topic.split("/")[1]
    # Random, so that compression does not make it small.
    pad = random.Random(seq).randbytes(size // 2).hex()
    body = b'{"%s":[{"time":%d,"seq":%d,"pad":"%s"}]}' % (code.encode(), ms, seq, pad.encode())
    received_ns = (ms + late_ms) * 1_000_000
    return Frame(topic, epoch, seq, received_ns, received_ns + 1000, body)


def record(seq: int, ms: int, epoch: int = 7) -> Record:
    return Record(epoch, seq, ms, ms * 1_000_000, ms * 1_000_000, b"{}")


class MemoryColumn:
    """The messages of one topic of one part."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = sorted(records)
        # How many were read.
        self.reads = 0

    def first_from(self, number: int, epoch: int, seq: int) -> Record | None:
        self.reads += 1
        return next(self.records(number, epoch, seq), None)

    def last_before(self, number: int, epoch: int, seq: int) -> Record | None:
        self.reads += 1
        return next((each for each in reversed(self._records) if (each.epoch, each.seq) < (epoch, seq)), None)

    def records(self, number: int, epoch: int, seq: int) -> Iterator[Record]:
        yield from (each for each in self._records if (each.epoch, each.seq) >= (epoch, seq))
