"""Looks a topic up in what a replay has played so far, on a thread of its own: a long file takes some time.

A thread of the replay asks and says how far it has played, so that a history never has what is still to come.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

from feeder.replay.recording import Recording
from feeder.source import Sink
from qmt_bridge.errors import QMTBridgeError, Refused
from qmt_bridge.system import clock
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import Topic

logger = logging.getLogger(__name__)

# Seconds that a look may take: in so many some ten million messages of a tape are read.
LOOK_SECONDS = 40.0
# `close` waits so long for the thread, which looks at the clock after so many moments.
JOIN_SECONDS = 1.0
_MOMENTS = 1000


class Played(NamedTuple):
    """A question: the topic, how many moments of the file were played, and a time (ms) of the day that is meant."""

    number: int
    topic: Topic
    moments: int
    day_ms: float


class Lookback:
    """Answers questions one after the other; `begin` may be called from any thread."""

    def __init__(self, recording: Recording[Any], sink: Sink) -> None:
        self._recording = recording
        self._sink = sink
        self._waiting: queue.SimpleQueue[Played | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay-lookback", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def begin(self, question: Played) -> None:
        """Queue a question."""
        self._waiting.put(question)

    def close(self) -> None:
        """Stop the thread; questions that wait are not answered."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while (question := self._waiting.get()) is not None and not self._closing.is_set():
            try:
                self._sink.give_history(question.number, self._bodies(question), midnight(int(question.day_ms)))
            except Refused as exc:
                self._sink.refuse_history(question.number, exc.code, exc.reason)
            except QMTBridgeError as exc:
                self._sink.refuse_history(question.number, "upstream_refused", str(exc))
            except Exception as exc:
                logger.exception("the history of %s cannot be read", question.topic)
                self._sink.refuse_history(question.number, "internal", f"the file cannot be read: {exc}")

    def _bodies(self, question: Played) -> Iterator[object]:
        began = clock.monotonic()
        day = midnight(int(question.day_ms))
        with closing(self._recording.moments()) as moments:
            for number, (at, moment) in enumerate(islice(moments, question.moments)):
                if number % _MOMENTS == 0 and (self._closing.is_set() or clock.monotonic() - began > LOOK_SECONDS):
                    raise Refused("upstream_refused", f"the file was not read in {LOOK_SECONDS:g} s")
                # Before the first trade of a code its time is 0, which is on no day.
                if at and midnight(int(at)) == day:
                    yield from self._recording.past(moment, question.topic)
