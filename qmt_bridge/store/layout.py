"""How a message is a key and a value in the database: keys sort by topic, epoch and sequence number. Pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

from qmt_bridge.wire.positions import Position

# The topic's number, epoch, seq; big-endian, so that the database sorts them as numbers.
_KEY = struct.Struct(">IQQ")
# The time of the record (ms), received_ns, published_ns; the body follows.
_HEAD = struct.Struct(">QQQ")
HEAD_BYTES = _HEAD.size
LARGEST = 2**64 - 1


class Record(NamedTuple):
    """A stored message. `ms` is the time of its newest record, which never goes back within an epoch."""

    epoch: int
    seq: int
    ms: int
    received_ns: int
    published_ns: int
    body: bytes

    @property
    def position(self) -> Position:
        """Return its position in its topic."""
        return Position(self.epoch, self.seq)


def key_of(number: int, epoch: int, seq: int) -> bytes:
    """Return the key of a message of the topic `number`."""
    return _KEY.pack(number, epoch, seq)


def value_of(record: Record) -> bytes:
    """Return the value of a message."""
    return _HEAD.pack(record.ms, record.received_ns, record.published_ns) + record.body


def read_record(number: int, key: bytes, value: bytes) -> Record | None:
    """Return the message of a key and a value; None if it is one of another topic than `number`."""
    found, epoch, seq = _KEY.unpack(key)
    if found != number:
        return None
    ms, received_ns, published_ns = _HEAD.unpack_from(value)
    return Record(epoch, seq, ms, received_ns, published_ns, value[HEAD_BYTES:])
