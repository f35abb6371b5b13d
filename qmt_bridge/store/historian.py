"""The store as an asker of the feeder: questions for histories, and their answers."""

from __future__ import annotations

import logging

import zmq

from qmt_bridge.addresses.endpoint import Endpoint
from qmt_bridge.errors import WireError
from qmt_bridge.sockets import connect_dealer
from qmt_bridge.wire.requests import AskHistory, encode_ask
from qmt_bridge.wire.source_history import SourceHistory, decode_source_history

logger = logging.getLogger(__name__)


class Historian:
    """A DEALER; one thread uses it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], where: Endpoint) -> None:
        """Connect; raise `ConfigError`."""
        self.socket = connect_dealer(context, where.address, where.curve, name=where.name)
        # Answers that could not be read.
        self.strange = 0

    def ask(self, question: AskHistory) -> bool:
        """Send a question; return False while there is no connection."""
        try:
            self.socket.send(encode_ask(question), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def take(self) -> SourceHistory | None:
        """Return one answer that has arrived."""
        try:
            parts = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        try:
            return decode_source_history(parts[-1])
        except WireError as exc:
            if not self.strange:
                logger.warning("what came from the feeder's address for questions is left out: %s", exc)
            self.strange += 1
            return None
