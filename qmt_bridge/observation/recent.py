"""What has happened lately, as sentences. Pure; time is an argument.

Of each kind the newest are kept, so that many of one kind, which a client may cause, push no others out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

import msgspec

# Of each kind, and of all of them in one answer.
KEPT = 50
SHOWN = 200
# Kinds of which events are kept, and bytes of a sentence.
_KINDS = 20
_BYTES = 300
# JSON takes six bytes for each of them.
_CONTROL = re.compile("[\x00-\x1f\x7f]")


class Happening(msgspec.Struct, frozen=True):
    """One event: when (ms since 1970), in which process, of which kind, and what."""

    time: int
    where: str
    kind: str
    text: str


class Recent:
    """The newest events of one process, which is called `where`."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._kept: dict[str, deque[Happening]] = {}

    def note(self, kind: str, text: str, time_ms: int) -> None:
        """Take down what has happened; `kind` is a word of our own, `text` is cut if it is long."""
        self._keep(_happening(self.where, kind, text, time_ms))

    def learn(self, where: str, kind: str, text: str, time_ms: int) -> None:
        """Take down what another process, `where`, has told, if it is not known yet."""
        told = _happening(where, kind, text, time_ms)
        if told not in self._kept.get(kind, ()):
            self._keep(told)

    def _keep(self, happening: Happening) -> None:
        if happening.kind in self._kept or len(self._kept) < _KINDS:
            self._kept.setdefault(happening.kind, deque(maxlen=KEPT)).append(happening)

    def newest(self) -> list[Happening]:
        """Return the newest of all kinds, the newest first."""
        return newest(each for kept in self._kept.values() for each in kept)


def _happening(where: str, kind: str, text: str, time_ms: int) -> Happening:
    shown = _CONTROL.sub(" ", text[:_BYTES]).encode("utf-8", "backslashreplace")[:_BYTES].decode(errors="ignore")
    return Happening(time_ms, where, kind, shown)


def newest(happenings: Iterable[Happening]) -> list[Happening]:
    """Return the newest of these events, the newest first."""
    return sorted(happenings, key=lambda each: each.time, reverse=True)[:SHOWN]
