"""What the gateway counts, read from its page /metrics on a thread of its own: it may hang like any other program."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from qmt_bridge.process.stop import Stop
from qmt_bridge.system import clock

logger = logging.getLogger(__name__)

PATH = "/metrics"
LOOK_SECONDS = 4.0
_LOST = "qmt_bridge_lost_total"
_CUT = "qmt_bridge_cut_off_total"

# Takes a path, and what asks it to give up; returns the status and the body that the gateway answers, None without one.
Fetch = Callable[[str, Stop], tuple[int, bytes] | None]


class Counted(NamedTuple):
    """The totals of all workers: messages that they have missed, and how often each client was cut off."""

    lost: int
    cut: dict[str, int]


class Gateway:
    """Asks the gateway every few seconds. Any thread may read what it has found."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._stop = Stop()
        # When it last answered (clock.monotonic), and what; None before the first answer, and if it does not tell.
        self.found: tuple[float, Counted | None] | None = None
        self._thread = threading.Thread(target=self._run, name="alerts-gateway", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, seconds: float) -> None:
        """End; wait for a question that is under way at most `seconds`."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            answer = self._fetch(PATH, self._stop)
            if answer is not None:
                status, body = answer
                counted: Counted | None = None
                try:
                    counted = read(body.decode()) if status == 200 else None
                except ValueError as exc:
                    if not failing:
                        logger.warning("what the gateway counts cannot be read: %s", type(exc).__name__)
                    failing = True
                self.found = clock.monotonic(), counted
            self._stop.wait(LOOK_SECONDS)


def read(text: str) -> Counted | None:
    """Return what is counted in a page of metrics, None if it is not of a gateway; raise `ValueError` if it is none."""
    lost: int | None = None
    cut: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == _LOST:
                lost = int(sample.value)
            elif sample.name == _CUT:
                cut[sample.labels.get("client", "")] = int(sample.value)
    return None if lost is None else Counted(lost, cut)
