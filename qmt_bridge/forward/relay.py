"""Messages down and demand up: an XSUB that connects, an XPUB that binds, and libzmq's own proxy between them.

The proxy runs in a thread of its own, within libzmq and without Python's lock. While it runs both sockets are its own;
the owner stops it before it does anything with them.

The XPUB passes up the first subscription of a topic and the last unsubscription, so the feeder sends one copy for all
clients of the forwarder. With XPUB_VERBOSE it would pass up each subscription, and the XSUB counts them: after three
subscribers of a topic the one unsubscription at the end would not be passed up (measured with libzmq 4.3.5), and the
topic would stay subscribed for ever. The last value of a topic needs no such message: it is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from itertools import count
from typing import NamedTuple

import zmq

from qmt_bridge import sockets
from qmt_bridge.addresses.endpoint import Forwarded
from qmt_bridge.forward.demand import Demand
from qmt_bridge.handshakes import Links, connect_again
from qmt_bridge.system import clock

logger = logging.getLogger(__name__)
# A context must not have two sockets at the same address.
_numbers = count()
# What the proxy answers to STATISTICS: of each socket, parts of messages and bytes that came and that left.
_STATISTICS = 8
_PARTS = 2
# Seconds between two lines of the log about topics that were cancelled.
_TELL_SECONDS = 10.0


class Passed(NamedTuple):
    """Messages and bytes that came down from the feeder, and subscriptions that came from clients and went up."""

    messages: int = 0
    size: int = 0
    demands: int = 0

    def plus(self, other: Passed) -> Passed:
        """Return the sum."""
        return Passed(self.messages + other.messages, self.size + other.size, self.demands + other.demands)


class Relay:
    """One of the two streams of messages; one thread uses it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], where: Forwarded, links: Links) -> None:
        """Connect and bind, and pass on from now on; raise `ConfigError`."""
        self._context = context
        self._where = where
        self._links = links
        # Messages of a client that ended the proxy: see `_run`.
        self.odd = self._odd_before = 0
        # Topics that were subscribed again: see `demand`.
        self.restored = 0
        self._told_at = -_TELL_SECONDS
        # Why the proxy has ended; None while it runs.
        self.failure: Exception | None = None
        # What was passed on, as of the last `look`. Set as a whole, because another thread reads it.
        self.passed = Passed()
        # Of it by proxies that have ended, and by the one that runs.
        self._before = Passed()
        self._newest = Passed()
        self._bind()
        self._start()

    @property
    def name(self) -> str:
        """Return the setting of the address at which it listens."""
        return self._where.listened.name

    def look(self) -> None:
        """Read what the proxy has counted, and have it count again; call it every second."""
        self._read_counts()
        if self.odd != self._odd_before:
            # The counts of the proxy began anew in between.
            self._odd_before = self.odd
            self._demand.doubt_all()
        if self._demand.is_doubted(self._newest.demands):
            self._restore()
        self._steer(b"STATISTICS")

    def _restore(self) -> None:
        """Subscribe again what clients have cancelled that had not subscribed it."""
        self._stop()
        try:
            held, passed = self._demand.restore(self.up)
        finally:
            self._start()
        self.passed = self._before = self._before.plus(Passed(demands=passed))
        self.restored += held
        now = clock.monotonic()
        if held and now >= self._told_at + _TELL_SECONDS:
            self._told_at = now
            logger.warning(
                "a client at %s has cancelled what it had not subscribed; %d topics are subscribed again",
                self.name,
                held,
            )

    def connect_again(self, address: str) -> None:
        """Connect to the feeder anew, where libzmq has given up."""
        self._stop()
        connect_again(self.up, address)
        self._start()

    def bind_anew(self) -> None:
        """End all connections of clients; those that may come again do so, and subscribe.

        The XSUB goes too: it counts the subscriptions of clients that are gone. Raise `ConfigError`.
        """
        self._stop()
        self._close_sockets()
        self._where = self._where._replace(listened=self._where.listened._replace(address=self.address))
        self._bind(again=True)
        self._start()

    def close(self) -> None:
        """Pass on no more."""
        self._stop()
        self._close_sockets()

    def _bind(self, *, again: bool = False) -> None:
        upstream, listened = self._where
        self.down = sockets.bind_publisher(
            self._context,
            listened.name,
            listened.address,
            listened.curve,
            links=self._links,
            patience=sockets.FREED_SECONDS if again else 0.0,
        )
        # Where it is bound, and an address by which this process subscribes.
        self.address = self.down.getsockopt_string(zmq.LAST_ENDPOINT)
        self.inproc = f"inproc://subscribed.{next(_numbers)}"
        self.down.bind(self.inproc)
        self.up = sockets.connect_relay(self._context, upstream.address, upstream.curve, self._links, upstream.name)
        self._demand = Demand(self._context, self.down)

    def _close_sockets(self) -> None:
        self._demand.close()
        for socket in (self.up, self.down):
            self._links.leave(socket)
        # Closed alone, its port would be free only some time later.
        self.down.unbind(self.address)
        for socket in (self.up, self.down):
            socket.close(linger=0)

    def _start(self) -> None:
        inproc = f"inproc://relay.{next(_numbers)}"
        self._control, steered = (self._context.socket(zmq.PAIR) for _ in range(2))
        self._control.bind(inproc)
        steered.connect(inproc)
        self._demand.begin()
        self._thread = threading.Thread(target=self._run, args=(steered,), name=self.name)
        self._thread.start()

    def _stop(self) -> None:
        self._steer(b"STATISTICS")
        self._steer(b"TERMINATE")
        self._thread.join()
        self._read_counts()
        self._demand.is_doubted(self._newest.demands)
        self._control.close(linger=0)
        self._before, self._newest = self._before.plus(self._newest), Passed()

    def _read_counts(self) -> None:
        try:
            while True:
                self._take(self._control.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return

    def _steer(self, command: bytes) -> None:
        # A proxy that has ended takes none, and this thread would wait for one that does.
        with contextlib.suppress(zmq.Again):
            self._control.send(command, zmq.NOBLOCK)

    def _run(self, steered: zmq.Socket[bytes]) -> None:
        try:
            while True:
                try:
                    zmq.proxy_steerable(self.up, self.down, self._demand.capture, steered)
                    return
                except zmq.Again:
                    # A client has sent a message in parts whose last one libzmq takes for a subscription and keeps. The
                    # proxy ends when the rest of such a message is not there; what comes next completes it.
                    self.odd += 1
        except Exception as exc:
            self.failure = exc
        finally:
            steered.close(linger=0)

    def _take(self, answer: list[bytes]) -> None:
        if len(answer) != _STATISTICS:
            return
        numbers = [int.from_bytes(part, "little") for part in answer]
        found = Passed(numbers[0] // _PARTS, numbers[1], numbers[4])
        if found.messages < self._newest.messages or found.demands < self._newest.demands:
            # The proxy has ended and begun again meanwhile.
            self._before = self._before.plus(self._newest)
        self._newest = found
        self.passed = self._before.plus(found)
