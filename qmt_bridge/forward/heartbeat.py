"""The feeder's heartbeats as clients of the forwarder get them: a subscriber behind the relay of market data."""

from __future__ import annotations

import logging

import zmq

from qmt_bridge.errors import WireError
from qmt_bridge.forward.relay import Relay
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import FeedStatus, read_status
from qmt_bridge.wire.topics import STATUS_TOPIC

logger = logging.getLogger(__name__)

# Heartbeats come once a second; after three missed ones the feeder counts as absent, as for a gateway.
ABSENT_AFTER = 3.0


class Heartbeat:
    """Reads the heartbeats that pass; one thread uses it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], relay: Relay) -> None:
        """Subscribe behind `relay`."""
        self._context = context
        # The newest one; None before the first.
        self.status: FeedStatus | None = None
        self.strange = 0
        self._heard_at = float("-inf")
        self._is_there = False
        # When it was looked for the first time.
        self._begun_at: float | None = None
        self._is_missed = False
        self._relay = relay
        self.socket = self._subscribe()

    def anew(self) -> None:
        """Subscribe again: the relay has another socket."""
        self.socket.close(linger=0)
        self.socket = self._subscribe()

    def take(self, now: float) -> None:
        """Read what has come."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self.status = read_status(Frame.from_parts(parts).body)
            except WireError as exc:
                if not self.strange:
                    logger.warning("a heartbeat that comes from the feeder's address cannot be read: %s", exc)
                self.strange += 1
                continue
            self._heard_at = now

    def look(self, now: float) -> None:
        """Log that heartbeats begin or end, or that none has come since the start."""
        self._begun_at = now if self._begun_at is None else self._begun_at
        if self.status is None and not self._is_missed and now - self._begun_at >= ABSENT_AFTER:
            self._is_missed = True
            logger.warning(
                "no heartbeat has come since the start: is the feeder, or a forwarder that reaches it, at market_addr?"
            )
        if self._is_there == self.is_there(now):
            return
        self._is_there = not self._is_there
        if self._is_there and self.status is not None:
            logger.info("the feeder's heartbeats come: source %s, state %s", self.status.source, self.status.state)
        else:
            logger.warning("no heartbeat of the feeder for %.1f s", now - self._heard_at)

    def is_there(self, now: float) -> bool:
        """Return whether one has come lately."""
        return now - self._heard_at < ABSENT_AFTER

    def age(self, now: float) -> float | None:
        """Return the seconds since the newest one; None before the first."""
        return None if self.status is None else now - self._heard_at

    @property
    def epoch(self) -> int:
        """Return the epoch of the feeder; 0 before the first heartbeat."""
        return 0 if self.status is None else self.status.epoch

    def close(self) -> None:
        """Read no more."""
        self.socket.close(linger=0)

    def _subscribe(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.SUB)
        socket.linger = 0
        socket.connect(self._relay.inproc)
        socket.subscribe(STATUS_TOPIC)
        return socket
