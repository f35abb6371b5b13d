"""The load that is put on a gateway: how many clients, their URL, and their requests."""

from __future__ import annotations

import math
import os
import sys
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from qmt_bridge.wire.frames import encode

# select() on Windows watches at most 512 sockets.
WINDOWS_SOCKETS = 500
_FIELDS = {"realtime": "stocks", "whole_quote": "codes", "l2_thousand": "stocks"}


class Stamps(NamedTuple):
    """How a frame shows its position: `pattern` has the groups epoch, seq, time, published and code, maybe empty."""

    pattern: bytes
    # Milliseconds in one unit of the times.
    unit: float = 1.0


# Option "seq" (docs/websocket.md, "Options of a subscription"). A body of several codes is known by its first one.
STAMPED = Stamps(
    rb'\{"type":"data","epoch":(?P<epoch>\d+),"seq":(?P<seq>\d+),"time":(?P<time>[\d.]+|null)'
    rb',"published":(?P<published>[\d.]+|null),"data":\{"(?P<code>[^"]+)"'
)


class Load(NamedTuple):
    """How many clients connect, where to, and what they ask for; the same for every client process."""

    url: str
    codes: tuple[str, ...] = ()
    clients: int = 100
    # Codes of each client, which begin where those of the previous client ended; 0: every client takes all codes.
    each: int = 0
    period: str = "tick"
    headers: tuple[tuple[str, str], ...] = ()
    # First frame of a client, instead of one made from its codes.
    send: str = ""
    # One frame in `sample` is parsed, the others are only counted.
    sample: int = 1
    # How many clients read nothing while the others are measured.
    stalled: int = 0
    # Whether a client waits for the ack of its request.
    acked: bool = True
    stamps: Stamps = STAMPED
    # Cores for the client processes, where the system can pin them; empty: all.
    cores: tuple[int, ...] = ()
    # File of the certificate authority to trust; empty: those of the system.
    ca: str = ""

    def codes_of(self, number: int) -> tuple[str, ...]:
        """Return the codes that client `number` asks for."""
        if not 0 < self.each < len(self.codes):
            return self.codes
        first = number * self.each
        return tuple(self.codes[(first + i) % len(self.codes)] for i in range(self.each))

    def request(self, number: int) -> bytes:
        """Return the first frame of client `number`."""
        if self.send:
            return self.send.encode()
        name = endpoint(self.url)
        request: dict[str, Any] = {"id": 1, "seq": True, _FIELDS[name]: self.codes_of(number)}
        return encode({**request, "period": self.period} if name == "realtime" else request)

    @property
    def processes(self) -> int:
        """Return the number of client processes: one a core, on Windows more if there are very many clients."""
        needed = math.ceil(self.clients / WINDOWS_SOCKETS) if sys.platform == "win32" else 1
        return max(1, min(self.clients, max(len(self.cores) or os.cpu_count() or 1, needed)))


def endpoint(url: str) -> str:
    """Return the endpoint that a URL names; raise ValueError for one that cannot be measured."""
    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    if name not in _FIELDS:
        raise ValueError(f"cannot measure {url!r}; expected a URL of {', '.join(f'/ws/{known}' for known in _FIELDS)}")
    return name
