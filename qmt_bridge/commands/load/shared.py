"""What the clients of one process share."""

from __future__ import annotations

import re
import selectors
import ssl
from collections.abc import Sequence
from functools import cached_property
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
        # Epochs of the feeder that began while frames were counted.
        self.epochs: set[bytes] = set()
        # The arrival of a frame in ms, and the two times in its text.
        self.timed: list[tuple[float, bytes, bytes]] = []
        self.measures = False

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Return the context of the connections with TLS: reading the authorities of a system takes 20 ms."""
        return ssl.create_default_context(cafile=self.load.ca or None)


class _Topics(dict[bytes, bytes]):
    """The topic that carries each code: its market, if the whole market is subscribed, else the code."""

    def __init__(self, asked: Sequence[str]) -> None:
        super().__init__()
        self._asked = frozenset(code.encode() for code in asked)

    def __missing__(self, code: bytes) -> bytes:
        market = code.rpartition(b".")[2]
        # The gateway sends a code once, with its market, if both are subscribed.
        self[code] = market if market in self._asked else code
        return self[code]
