"""Tell the feeder how a store or the alerts are, for its metrics and for the page (docs/wire.md, "Reports").

A report never waits: while the feeder is away, or does not take it, there is none.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import zmq

from qmt_bridge.addresses.endpoint import reporting_endpoint
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.sockets import connect_dealer
from qmt_bridge.wire.parts.report import REPORT_SECONDS, Report
from qmt_bridge.wire.requests import decode_reply, encode_ask
from qmt_bridge.wire.survey import Roll

logger = logging.getLogger(__name__)

# For the last report.
LINGER_MS = 200
# For so long a feeder that starts at the same time may not have made its keys yet; that is not told.
STARTS_SECONDS = 10.0


class Reporter:
    """The socket; one thread uses it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], config: Config) -> None:
        self._context = context
        self._config = config
        self._socket: zmq.Socket[bytes] | None = None
        self._next = 0.0
        # Since when there is no connection; None with one, and before the first report.
        self._lacks_since: float | None = None
        # What was logged last: why there are no reports.
        self._told = ""

    def is_due(self, now: float) -> bool:
        """Return whether it is time for a report; `now` is in seconds of a monotonic clock."""
        return now >= self._next

    def send(self, report: Report, now: float) -> None:
        """Send a report, if the feeder can be reached."""
        self._next = now + REPORT_SECONDS
        if self._socket is None and not self._connect(now):
            return
        assert self._socket is not None
        self._take_refusals(self._socket)
        with suppress(zmq.Again):
            self._socket.send(encode_ask(report), zmq.NOBLOCK)

    def close(self, last: Report | None) -> None:
        """Send a last report, which says that the part ends, and disconnect."""
        if self._socket is None:
            return
        if last is not None:
            with suppress(zmq.Again):
                self._socket.send(encode_ask(last), zmq.NOBLOCK)
        self._socket.close(LINGER_MS)

    def _connect(self, now: float) -> bool:
        """Connect; the folder or the keys of a feeder that has not started yet may come later."""
        try:
            where = reporting_endpoint(self._config)
            self._socket = connect_dealer(self._context, where.address, where.curve, name=where.name)
        except ConfigError as exc:
            if self._lacks_since is None:
                self._lacks_since = now
            if now - self._lacks_since >= STARTS_SECONDS:
                self._tell(str(exc))
            return False
        return True

    def _take_refusals(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                answer = socket.recv_multipart(zmq.NOBLOCK)[-1]
            except zmq.Again:
                return
            with suppress(WireError):
                reply = decode_reply(answer)
                if isinstance(reply, Roll) and reply.error is not None:
                    self._tell(reply.error)

    def _tell(self, why: str) -> None:
        if why != self._told:
            self._told = why
            logger.info("the feeder is not told how this process is: %s", why)
