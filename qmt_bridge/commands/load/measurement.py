"""The counters and times of one measurement. Pure."""

from __future__ import annotations

from collections import Counter

from qmt_bridge.commands.load.histogram import Histogram


class Measurement:
    """What clients received between begin and end; the measurements of several processes add up."""

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        # Frames missing by their sequence; None where that cannot be known.
        self.lost: int | None = 0
        # Frames without a position: whether one is lost, and its latency, cannot be known.
        self.unstamped = 0
        # Frames that were not newer than the previous frame of their topic.
        self.repeated = 0
        # How often a new epoch of the feeder began.
        self.restarts = 0
        # Frames and records that the gateway reports as skipped for a slow client.
        self.skipped = 0
        self.clients = 0
        # Rejected codes, and other errors, each with its count.
        self.rejected: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.processes = 1
        # Times in ms: from the source's callback to publishing, from there to the client, and the sum of both.
        self.feeder = Histogram()
        self.gateway = Histogram()
        self.latency = Histogram()

    def add(self, other: Measurement) -> None:
        """Add the measurement of another process at the same time."""
        self.lost = None if self.lost is None or other.lost is None else self.lost + other.lost
        self.restarts = max(self.restarts, other.restarts)
        self.seconds = max(self.seconds, other.seconds)
        for name in ("frames", "bytes", "unstamped", "repeated", "skipped", "clients", "cpu_seconds", "processes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("rejected", "trouble", "feeder", "gateway", "latency"):
            getattr(self, name).update(getattr(other, name))

    @property
    def rate(self) -> float:
        """Return the frames a second."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def busy(self) -> float:
        """Return the share of the time that the client processes used the CPU."""
        return self.cpu_seconds / self.seconds / self.processes if self.seconds else 0.0
