"""The clients of one process, in one loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from qmt_bridge.commands.load.client import OPEN_TIMEOUT, Client
from qmt_bridge.commands.load.load import Load
from qmt_bridge.commands.load.measurement import Measurement
from qmt_bridge.commands.load.shared import Shared

# With a sample, how long after the end each topic may take for the frame that shows its last sequence number.
CLOSING_TIMEOUT = 5.0
# Seconds between two reads of the pipe from the parent process.
PAUSE = 0.01
# Times that are counted at once while no frame arrives: so few that the next frame does not wait. When more than MANY
# times are noted, some are counted even while frames arrive.
FEW = 20
MANY = 100_000
_UNKNOWN = (b"", b"null")


class Crew(Shared):
    """The clients of one process, in one loop over a selector.

    A selector costs less CPU than asyncio, and uvloop would read a busy socket many times before the next socket.
    """

    def __init__(self, load: Load, numbers: Sequence[int], make: type[Client]) -> None:
        super().__init__(load)
        self._clients = [make(self, number) for number in numbers]
        self._reading = [client for client in self._clients if not client.stalls]

    def turn(self) -> None:
        """Read every socket that has data; without any, count some times, or wait up to PAUSE seconds."""
        wait = 0 if self.timed else PAUSE
        if self.selector.get_map():
            came = self.selector.select(wait)
        else:
            # Windows cannot wait for no socket at all: WinError 10022.
            came = []
            time.sleep(wait)
        for key, _ in came:
            key.data.read()
        if not came:
            self._count_times(FEW)
        elif len(self.timed) > MANY:
            self._count_times(MANY // 100)

    def _count_times(self, most: int) -> None:
        """Count times that were only noted at the arrival of their frames, so that other frames did not wait."""
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
        """Open every socket and wait for its ack; return the errors, if there are any."""
        for client in self._clients:
            try:
                client.connect()
            except OSError as exc:
                client.fail(f"cannot connect: {exc.strerror or exc}; is a gateway running there?")
                break
            # Answers are read between two connects, so that the server's queue of new connections does not overflow.
            self.turn()
        return self.settle()

    def settle(self) -> Counter[str]:
        """Wait until every client's subscription is acknowledged; return the errors, if there are any."""
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
        """Return the measurement, once each topic has shown its last sequence number, or CLOSING_TIMEOUT is over."""
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
        """Close every connection."""
        for client in self._clients:
            client.close()
        self.selector.close()
