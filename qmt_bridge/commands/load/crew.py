"""The clients of one process, in one loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from qmt_bridge.commands.load.client import OPEN_TIMEOUT, Client
from qmt_bridge.commands.load.load import Load
from qmt_bridge.commands.load.measurement import Measurement
from qmt_bridge.commands.load.shared import Shared

# Where not every frame is looked at: how long a topic has for the one that shows how far it has come.
CLOSING_TIMEOUT = 5.0
# Between two looks for what the parent says.
PAUSE = 0.01
# Times counted in a moment without frames: so few that the next frame does not wait. Above the other number they are
# counted even while frames come.
FEW = 20
MANY = 100_000
_UNKNOWN = (b"", b"null")


class Crew(Shared):
    """The clients of one process, in one loop over what can be read: a selector of Python costs less than asyncio,
    and uvloop reads a flooded socket over and over before it looks at the next."""

    def __init__(self, load: Load, numbers: Sequence[int], make: type[Client]) -> None:
        super().__init__(load)
        self._clients = [make(self, number) for number in numbers]
        self._reading = [client for client in self._clients if not client.stalls]

    def turn(self) -> None:
        """Read whatever has come; else count some times, or wait a moment."""
        came = self.selector.select(0 if self.timed else PAUSE)
        for key, _ in came:
            key.data.read()
        if not came:
            self._count_times(FEW)
        elif len(self.timed) > MANY:
            self._count_times(MANY // 100)

    def _count_times(self, most: int) -> None:
        """Count times that were only noted when their frames came, because others were waiting then."""
        measured, unit = self.measured, self.load.stamps.unit
        for now, came, published in self.timed[-most:]:
            if came in _UNKNOWN:
                continue
            began = float(came) * unit
            measured.latency.add(now - began)
            if published not in _UNKNOWN:
                sent = float(published) * unit
                measured.feeder.add(sent - began)
                measured.gateway.add(now - sent)
        del self.timed[-most:]

    def connect(self) -> Counter[str]:
        """Open every socket and wait for its ack; return what went wrong, if something did."""
        for client in self._clients:
            try:
                client.connect()
            except OSError as exc:
                client.fail(f"cannot connect: {exc}")
                break
            # Answers are read meanwhile, so that no backlog of the server is full.
            self.turn()
        return self.settle()

    def settle(self) -> Counter[str]:
        """Wait until every client's subscription is acknowledged; return what went wrong, if something did."""
        until = time.monotonic() + OPEN_TIMEOUT
        while not all(client.settled for client in self._clients) and not self.measured.trouble:
            if time.monotonic() > until:
                waiting = sum(not client.settled for client in self._clients)
                return Counter({f"no answer within {OPEN_TIMEOUT:.0f} s": waiting})
            self.turn()
        return self.measured.trouble

    def begin(self) -> None:
        """Count from here on."""
        rejected, self.measured = self.measured.rejected, Measurement()
        self.measured.rejected = rejected
        self.timed.clear()
        self.epochs.clear()
        for client in self._clients:
            client.begin()
        self.measures = True
        self._began = time.monotonic(), time.process_time()

    def end(self) -> None:
        """Stop counting frames."""
        measured = self.measured
        began, cpu = self._began
        measured.seconds, measured.cpu_seconds = time.monotonic() - began, time.process_time() - cpu
        self.measures = False
        measured.clients = len(self._reading)
        measured.frames = sum(client.frames for client in self._reading)
        measured.bytes = sum(client.bytes for client in self._reading)
        measured.repeated = sum(client.repeated for client in self._reading)
        measured.unstamped = sum(client.unstamped for client in self._reading)
        for client in self._reading:
            client.end()

    def result(self) -> Measurement:
        """Return the measured, once each topic has shown how far it has come or has had its time for that."""
        until = time.monotonic() + CLOSING_TIMEOUT
        while any(client.awaited for client in self._reading) and time.monotonic() < until:
            self.turn()
        measured = self.measured
        self._count_times(len(self.timed))
        measured.restarts = len(self.epochs)
        lost = [client.lost() for client in self._reading]
        known = [count for count in lost if count is not None]
        certain = (
            len(known) == len(lost) and (self.load.sample == 1 or not measured.restarts) and not measured.unstamped
        )
        measured.lost = sum(known) if certain else None
        return measured

    def leave(self) -> None:
        """Drop every connection."""
        for client in self._clients:
            client.close()
        self.selector.close()
