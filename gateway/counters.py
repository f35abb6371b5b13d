"""Every number of a worker, declared once; `/metrics` and `/readyz` render this structure.

The hot path counts in plain integers, because a write to prometheus_client's shared files costs as much as a delivery.
`Numbers` is made from these integers once a second, and when a page is requested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True)
class Sent:
    """The counters of all senders of one URL of a worker."""

    frames: int = 0
    bytes: int = 0
    # Frames and records that slow clients were not sent because a newer one had replaced them.
    skipped: int = 0
    # How often a connection was full, so that its client had to read first.
    write_pauses: int = 0


class SentByPath:
    """The counters of all senders of one worker, by their URLs."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.by_path = {path: Sent() for path in paths}

    def of(self, path: str) -> Sent:
        """Return the counters of a URL."""
        if path not in self.by_path:
            self.by_path[path] = Sent()
        return self.by_path[path]

    def together(self) -> Sent:
        """Return the sums over all URLs."""
        each = self.by_path.values()
        return Sent(sum(of.frames for of in each), sum(of.bytes for of in each), sum(of.skipped for of in each))


# What of `Sent` the metrics have by URL.
BY_ENDPOINT: Mapping[str, str] = {
    "frames": "WebSocket frames and events sent to clients, by URL.",
    "bytes": "Bytes sent to clients, by URL.",
    "skipped": "Frames and records that slow clients were not sent, by URL.",
    "write_pauses": "How often a connection was full, so that its client had to read first, by URL.",
}


class Counts(NamedTuple):
    """Numbers that only grow while the worker runs; `COUNTED` says what each of them is."""

    frames_received: int
    frames_sent: int
    bytes_sent: int
    skipped: int
    gaps: int
    lost: int
    malformed: int
    catch_ups: int
    wrong_keys: int


COUNTED: Mapping[str, str] = {
    "frames_sent": "WebSocket frames sent to clients.",
    "bytes_sent": "Bytes of WebSocket frames sent to clients.",
    "frames_received": "Messages received from the feeder.",
    "skipped": "Frames and records that slow clients were not sent because a newer one had replaced them.",
    "gaps": "Sequence gaps seen on the way from the feeder.",
    "lost": "Messages missing in those gaps.",
    "malformed": "Messages from the feeder's address that do not follow docs/wire.md.",
    "catch_ups": "Questions to the feeder where topics stand, or what the journal has.",
    "wrong_keys": "Attempts with a wrong, revoked or expired API key.",
}


# What a client may cost, and what all clients of a worker may.
LIMITS = (
    "outbox_total_bytes",
    "requests",
    "codes",
    "codes_of_all",
    "unread_answers",
    "frames",
    "handshakes",
    "connections",
    "upstream",
    "views",
    "without_key",
    "turns",
)


class Numbers(NamedTuple):
    """One worker's numbers at one moment."""

    counts: Counts
    # Open sockets by URL.
    connections: Mapping[str, int]
    # Topics subscribed at the feeder.
    topics: int
    # Seconds since the newest market data was published; None before the first.
    newest_tick_age: float | None
    # Clients that are behind, so that data waits for them in the gateway.
    slow_clients: int
    # Bytes that wait for them; a frame that waits for several clients counts for each of them.
    waiting_bytes: int
    # How often each limit was reached, by its name.
    limited: Mapping[str, int]
    # Seconds between write and read for the client that is most behind.
    client_lag: float
    # What was sent, by URL.
    by_path: Mapping[str, Sent]
