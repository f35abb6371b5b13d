"""What the clients of one process share."""

from __future__ import annotations

import re
import selectors
from collections.abc import Sequence
from urllib.parse import urlsplit

from qmt_bridge.commands.load.load import Load
from qmt_bridge.commands.load.measurement import Measurement

_BUFFER = 256 * 1024


class Shared:
    """What the clients of one process share: the load, the selector, one buffer, and the counters."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.parts = urlsplit(load.url)
        self.match = re.compile(load.stamps.pattern).match
        self.topics = _Topics(load.codes)
        self.buffer = bytearray(_BUFFER)
        self.selector = selectors.DefaultSelector()
        self.measured = Measurement()
        # Epochs of the feeder that began meanwhile.
        self.epochs: set[bytes] = set()
        # When a frame came, and the two times in its text.
        self.timed: list[tuple[float, bytes, bytes]] = []
        self.measures = False


class _Topics(dict[bytes, bytes]):
    """The topic by which a code came: its market's, where whole markets are asked for."""

    def __init__(self, asked: Sequence[str]) -> None:
        super().__init__()
        self._asked = frozenset(code.encode() for code in asked)

    def __missing__(self, code: bytes) -> bytes:
        market = code.rpartition(b".")[2]
        # A code whose market is asked for too comes with its market.
        self[code] = market if market in self._asked else code
        return self[code]
