"""Compares what a client received with the journal. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson


class Received(NamedTuple):
    """One trade event as a client received it: its position, and a checksum of its content."""

    seq: int
    digest: int


class Verdict(NamedTuple):
    """How a client's events differ from the journal's up to a position; all numbers have to be zero."""

    lost: int
    duplicated: int
    reordered: int
    # Events with a position or content that the journal does not have.
    foreign: int

    @property
    def is_clean(self) -> bool:
        """Return whether nothing differs."""
        return not any(self)


def digest(event: Mapping[str, Any]) -> int:
    """Return a checksum of type and data."""
    return zlib.crc32(orjson.dumps([event["type"], event["data"]], option=orjson.OPT_SORT_KEYS))


def received(event: Mapping[str, Any]) -> Received:
    """Return position and checksum of an event."""
    return Received(event["seq"], digest(event))


def journaled(rows: Sequence[tuple[int, bytes]]) -> dict[int, int]:
    """Return the checksums of the journal's rows (seq, body) by position."""
    return {seq: digest(msgspec.json.decode(body)) for seq, body in rows}


def judge(got: Sequence[Received], journal: Mapping[int, int], last: int) -> Verdict:
    """Compare what a client received with every event of the journal up to `last`."""
    seen: set[int] = set()
    duplicated = reordered = foreign = newest = 0
    for seq, content in got:
        if seq in seen:
            duplicated += 1
        elif seq < newest:
            reordered += 1
        if journal.get(seq) != content:
            foreign += 1
        seen.add(seq)
        newest = max(newest, seq)
    lost = sum(seq not in seen for seq in journal if seq <= last)
    return Verdict(lost, duplicated, reordered, foreign)
