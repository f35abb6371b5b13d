"""Replay: a source that plays a recording (`feeder.replay.recording`) at any pace, every moment of it in order.

One thread plays and calls the sink. The feeder's calls reach it through a queue, so that a topic that is subscribed
meanwhile first gets the newest played data and then everything later. Times and values are those of the recording, and
`simulated` says whether its data was invented.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from feeder.replay.lookback import Lookback, Played
from feeder.replay.recording import Recording, open_recording
from feeder.source import DownloadRequest, Health, Sink, by_kind
from qmt_bridge.config import Config
from qmt_bridge.errors import QMTBridgeError, Refused
from qmt_bridge.system import clock
from qmt_bridge.wire.playback import due
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

logger = logging.getLogger(__name__)

# Messages that may wait to be sent before the next moment is played: 2 MB of ticks, some 10 ms of sending.
_ROOM = 1000
# Seconds between two checks for `close` while there is no room; `close` has to return within two seconds.
_LOOK = 0.2
# threading's longest wait on Windows is 49 days, less than a slow replay over a holiday.
_LONGEST_WAIT = 3600.0


class _ClosedError(Exception):
    """Ends the player's thread at any place where it waits."""


class Replay:
    """A source that plays `config.file`; the settings are named as in `Config`.

    It starts `delay` seconds after the first subscription. A tape with only trade events, which are not subscribed at a
    source, starts `delay` seconds after the source. At the end the state is ``ended``, with the reason ``damaged: ...``
    if a part of the tape could not be read. With `loop` it starts again, as long as a topic is subscribed.
    """

    protocol = 1
    name = "replay"
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA, Kind.TRADE))

    def __init__(self, config: Config) -> None:
        # Set from the recording in `start`.
        self.simulated = False
        self.lossless = config.speed == 0
        self._speed = config.speed
        self._delay = config.delay
        self._loop = config.loop
        self._path = Path(config.file)
        # Calls for the player's thread; other threads change nothing else.
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure = ""
        # Only the player's thread uses the rest.
        self._wanted: set[Topic] = set()
        # How many moments were played since the file began, and the newest time of one.
        self._played = 0
        self._newest = 0.0
        self._wanted_since = 0.0
        self._behind = False

    def start(self, sink: Sink) -> None:
        """Read the file once, and start the player; raise `ConfigError` about ``file`` if it cannot be played."""
        self._sink = sink
        # Log this first, because reading a long tape takes some time.
        logger.info("replay of %s at speed %g", self._path, self._speed)
        # Any, because the player only passes the moments of a recording back to it.
        self._recording: Recording[Any] = open_recording(self._path, self._speed)
        self.simulated = self._recording.simulated
        self._wanted_since = clock.monotonic()
        sink.set_state("up")
        self._lookback = Lookback(self._recording, sink)
        self._lookback.start()
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._thread.start()

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic` with its newest played data; raise `Refused` if the file does not have it."""
        if self._failure:
            raise Refused("upstream_unavailable", self._failure)
        self._recording.check(parts, topic)
        self._calls.put(partial(self._join, topic))

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic`; the replay continues without it."""
        self._calls.put(partial(self._wanted.discard, topic))

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Refuse: a replay plays its recording and has no other history."""
        raise Refused("upstream_refused", "a replay has no history to download")

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Find what was played of `topic` so far; raise `Refused` if the file does not have it."""
        if self._failure:
            raise Refused("upstream_unavailable", self._failure)
        self._recording.check(parts, topic)
        self._calls.put(partial(self._look_back, number, topic, day_ms))

    def capabilities(self) -> dict[str, str]:
        """Return the kinds of topics (see `Source`)."""
        return by_kind(self.kinds)

    def upstream(self) -> int:
        """Return how many topics the player serves."""
        return len(self._wanted)

    def health(self) -> Health:
        """Return nothing: there is no SDK."""
        return Health()

    def hung(self) -> str | None:
        """Return None: a replay calls nothing that could hang (see `Source`)."""
        return None

    def close(self) -> None:
        """Stop the player, wherever it waits."""
        self._calls.put(self._stop)
        if self._thread is not None:
            self._thread.join(2)
            self._lookback.close()

    def _run(self) -> None:
        try:
            self._play()
            missing = self._recording.missing
            if self._recording.damaged:
                self._sink.set_state("ended", missing)
                logger.error("replay of %s ended, but it is %s", self._path, missing)
            else:
                self._sink.set_state("ended")
                logger.info("replay of %s ended%s", self._path, missing and f"; {missing}")
            # Topics that are subscribed later still get their newest messages.
            self._serve(math.inf)
        except _ClosedError:
            pass
        except QMTBridgeError as exc:
            # The file is at fault, which the text says.
            logger.error("replay of %s failed: %s", self._path, exc)
            self._fail(exc)
        except Exception as exc:
            logger.exception("replay of %s failed", self._path)
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self._failure = f"the replay failed: {exc}"
        self._sink.set_state("down", self._failure)

    def _play(self) -> None:
        recording = self._recording
        while True:
            # With a subscription left from the last round, the delay is over and the file starts at once.
            while recording.on_demand and not self._wanted:
                self._calls.get()()
            self._serve(self._wanted_since + self._delay)
            start = clock.monotonic()
            self._played, self._newest = 0, 0.0
            with closing(recording.moments()) as moments:
                for at, moment in moments:
                    self._serve(start + due(at, recording.first, self._speed))
                    self._wait_room(_ROOM)
                    recording.publish(moment, self._wanted, self._sink, clock.time_ns())
                    self._played += 1
                    self._newest = max(self._newest, at)
            if not self._loop:
                # The state "ended" must not be published before the last messages.
                self._wait_room(1)
                return
            logger.debug("replay of %s starts again", self._path)
            # Pause for a second of recorded time, so that subscribers can leave and a file of one moment does not spin.
            self._serve(clock.monotonic() + (1 / self._speed if self._speed else 0.0))

    def _join(self, topic: Topic) -> None:
        if not self._wanted:
            self._wanted_since = clock.monotonic()
        self._wanted.add(topic)
        self._sink.accept(topic)
        self._recording.publish_newest(topic, self._sink, clock.time_ns())

    def _look_back(self, number: int, topic: Topic, day_ms: int) -> None:
        # On the player's thread, between two moments: all that was played was published, and nothing else.
        self._lookback.begin(Played(number, topic, self._played, day_ms or self._newest))

    def _stop(self) -> None:
        raise _ClosedError

    def _serve(self, until: float) -> None:
        """Make the queued calls until the monotonic time `until`, and at least those that are queued already."""
        while True:
            left = min(max(until - clock.monotonic(), 0.0), _LONGEST_WAIT)
            try:
                call = self._calls.get(timeout=left)
            except queue.Empty:
                if clock.monotonic() >= until:
                    return
            else:
                call()

    def _wait_room(self, limit: int) -> None:
        while not self._sink.wait_room(limit, _LOOK):
            if self._speed and not self._behind:
                self._behind = True
                logger.warning(
                    "replay of %s falls behind its pace: the feeder cannot send speed %g", self._path, self._speed
                )
            self._serve(0.0)
