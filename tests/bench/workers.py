"""Load 17: the whole market to clients of 1 to 4 workers on one machine, raw and deflated, in MB/s.

The workers may use every core, and the load one of them, as on a machine that has no more.
"""

from __future__ import annotations

import functools
import os
import time
import zlib
from collections.abc import Sequence

from qmt_bridge.commands.load.crews import Crews
from qmt_bridge.wire.frames import DEFLATE_WINDOW, encode
from tests.bench.observing import MB, Figures, Settings, load_of, observe
from tests.bench.publish import FIRST_SEQ, Slices
from tests.bench.search import Step, sustained
from tests.bench.servers import SERVER_CORES, Asking, Row, Running, gateway

CLIENTS = 100
# Codes of one batch: as many as a terminal delivers at once fit into the 64 KiB of a message.
BATCH = 100
WORKERS = (1, 2, 3, 4)
# Clients look at one frame of so many.
SAMPLE = 20
# The first byte of a compressed text frame: FIN, RSV1, text.
COMPRESSED = 0xC1
OFFER = (("Sec-WebSocket-Extensions", "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),)
# The batches a second at which the search begins. With compression it begins low: a worker that is overloaded
# compresses for each slow client what it has merged for that one, and takes seconds to return.
FIRST = {False: 100.0, True: 30.0}
# Seconds that what waits may take to arrive after a step.
DRAIN = 15.0
# Workers that have used no more CPU seconds in a fifth of a second have nothing to write.
IDLE = 0.03
STEPS = 7
# A rate is held if about as much arrives (more would be what an earlier step has left), and nothing is skipped or lost.
HELD = 0.95, 1.05
NUMBER = 17


class AskingWhole(Asking):
    """A client of a whole market."""

    def joined(self) -> None:
        self.send(encode({"id": 1, "codes": self.crew.load.codes}))
        self.settled = not self.crew.load.acked


class Inflating(AskingWhole):
    """The same with permessage-deflate: of many compressed frames one is inflated and looked at."""

    def split(self, data: bytearray, start: int, end: int) -> int:
        """Count the complete frames of ``data[start:end]``, and return where the rest begins."""
        while start + 2 <= end:
            size, body = data[start + 1], start + 2
            if size > 125:
                body = start + (4 if size == 126 else 10)
                size = int.from_bytes(data[start + 2 : body])
            stop = body + size
            if stop > end:
                break
            if data[start] == COMPRESSED:
                self.frames += 1
                self._left -= 1
                if self._left > 0:
                    start = stop
                    continue
                self._left = self._every
                # A message leaves out the marker at the end of its last block (RFC 7692, 7.2.1).
                whole = zlib.decompressobj(-DEFLATE_WINDOW).decompress(data[body:stop] + b"\0\0\xff\xff")
                self._look(bytearray(whole), 0, len(whole), time.time_ns() / 1e6)
            else:
                super().split(data, start, stop)
            start = stop
        return start


def name_of(workers: int, deflate: bool) -> str:
    """Return the name of a row."""
    return f"{workers} {'worker' if workers == 1 else 'workers'}, {'deflated' if deflate else 'raw'}"


def _row(workers: int, deflate: bool) -> Row:
    cores = tuple(range(os.cpu_count() or 1)) if SERVER_CORES else ()
    return Row(
        name_of(workers, deflate),
        functools.partial(gateway, kind="wire", workers=workers, deflate=deflate, cores=cores),
        Inflating if deflate else AskingWhole,
        acked=True,
        headers=OFFER if deflate else (),
    )


SCALING = tuple(_row(workers, deflate) for deflate in (False, True) for workers in WORKERS)


def scaled(row: Row, market: Sequence[str], settings: Settings) -> Figures:
    """Return the highest rate at which every client of a row's workers receives every batch of the market."""
    key = NUMBER, row.name
    with row.start() as running:
        url = running.url.replace("realtime", "whole_quote")
        load = load_of(running, row, ("SH",), CLIENTS, url=url, sample=SAMPLE)
        with Crews(load, row.client) as crews:
            crews.connect()
            measure = functools.partial(_step, running, crews, market, settings)
            best, over = sustained(measure, settings.rates.get(key, FIRST[bool(row.headers)]), STEPS)
    if best is None:
        raise RuntimeError("no rate was held")
    settings.rates[key] = best.offered
    return {**best.figures, "limited": float(over is None)}


def _step(running: Running, crews: Crews, market: Sequence[str], settings: Settings, offered: float) -> Step:
    seen = observe(running, crews, market, offered * CLIENTS, settings.seconds, "SH")
    _drain(running)
    measured = seen.measured
    arrived = measured.rate / seen.offered
    held = HELD[0] <= arrived <= HELD[1] and not measured.skipped and not measured.lost
    size = len(Slices().fill(market[:BATCH], FIRST_SEQ, time.time_ns() // 1000))
    figures = {
        **seen.figures(),
        "batches": measured.rate / CLIENTS,
        "wire_mb": measured.bytes / measured.seconds / MB,
        "data_mb": measured.rate * size / MB,
        "memory_mb": running.usage().rss / MB,
    }
    return Step(seen.offered / CLIENTS, measured.rate / CLIENTS, held, figures)


def _drain(running: Running) -> None:
    """Wait until the workers have nothing to write, so that one step leaves nothing to the next."""
    until = time.monotonic() + DRAIN
    used = running.usage().cpu_seconds
    while time.monotonic() < until:
        time.sleep(0.2)
        before, used = used, running.usage().cpu_seconds
        if used - before < IDLE:
            return
