"""`qmt-bridge record`: write what topics carry on a tape, a new one every Shanghai day or hour if asked for.

A thread of its own consumes and writes; the caller's flushes, so that a silent feeder leaves nothing in memory, and
ends it. A disk that takes no more ends the recording with an error; it never goes on with an unreported gap.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Generator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, cast

from qmt_bridge.config import Config, connection
from qmt_bridge.consumer import spelled, subscribe
from qmt_bridge.errors import ConfigError
from qmt_bridge.process.stop import Stop
from qmt_bridge.silence import Silence
from qmt_bridge.system import clock
from qmt_bridge.tapes.tally import Tally
from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.shanghai import SHANGHAI, SHANGHAI_SECONDS
from qmt_bridge.wire.topics import STATUS_TOPIC, Topic

logger = logging.getLogger(__name__)

Rotate = Literal["day", "hour"]

# A recorder that is killed loses at most so many seconds.
FLUSH_SECONDS = 0.5
# A feeder that is there sends a heartbeat within a second; without one the thread is left where it waits.
STOP_SECONDS = 1.5

_SECONDS = {"day": 24 * 3600, "hour": 3600}
_STAMPS = {"day": "%Y%m%d", "hour": "%Y%m%dT%H"}
_NS = 1_000_000_000


def tape_path(out: str, rotate: Rotate | None, at_ns: int) -> Path:
    """Return the tape for a moment: its day or hour replaces ``{date}``, or else precedes the file's suffixes."""
    if rotate is None:
        return Path(out)
    stamp = datetime.fromtimestamp(at_ns // _NS, SHANGHAI).strftime(_STAMPS[rotate])
    if "{date}" in out:
        return Path(out.replace("{date}", stamp))
    path = Path(out)
    stem, dot, suffixes = path.name.partition(".")
    return path.with_name(f"{stem}-{stamp}{dot}{suffixes}")


def next_rotation(rotate: Rotate | None, at_ns: int) -> float:
    """Return when the day or hour of a moment ends (ns since 1970)."""
    if rotate is None:
        return float("inf")
    period = _SECONDS[rotate] * _NS
    offset = SHANGHAI_SECONDS * _NS
    return ((at_ns + offset) // period + 1) * period - offset


class Recorder:
    """Records `topics`, and the feeder's heartbeats, which say where the data comes from, until it is stopped."""

    def __init__(self, topics: Sequence[str], out: str, rotate: Rotate | None, config: Config, version: str) -> None:
        """Check everything; raise `BadRequest` or `WireError` for a topic, `ConfigError` for keys or ``out``."""
        for placeholder in re.findall(r"\{\w*\}", out):
            if placeholder != "{date}":
                raise ConfigError("out", f"{placeholder} is no placeholder; {{date}} is the one for the day or hour")
        if rotate is None and "{date}" in out:
            rotate = "day"
        self.tally = Tally()
        self.paths: list[Path] = []
        self._out = out
        self._rotate = rotate
        topics = list(dict.fromkeys((*spelled(topics), STATUS_TOPIC)))
        # Messages by prefix, for the summary.
        self._silence = Silence(Topic(topic) for topic in topics if topic != STATUS_TOPIC)
        self._session = session_frame(topics, version)
        frames = subscribe(*topics, **connection(config))
        self._frames = cast(Generator[Frame, None, None], frames)
        self._thread = threading.Thread(target=self._consume, name="recorder", daemon=True)
        # Guards everything below.
        self._lock = threading.Lock()
        self._stopped = False
        self._failure: Exception | None = None
        self._ended: list[TapeWriter] = []
        now = clock.time_ns()
        self._tape = self._open(now)
        self.tally.note(Recorded(now, self._session))

    def run(self, stop: Stop) -> None:
        """Record until `stop` is set; raise `Refused` for a topic that is not served, `OSError` for a full disk."""
        self._thread.start()
        try:
            while not stop.wait(FLUSH_SECONDS) and self._thread.is_alive():
                with self._lock:
                    self._tape.flush()
                    ended, self._ended = self._ended, []
                # It may take long, so it does not hold the lock.
                for tape in ended:
                    tape.close()
        finally:
            with self._lock:
                self._stopped = True
            self._thread.join(STOP_SECONDS)
            for tape in (*self._ended, self._tape):
                tape.close()
        if self._failure is not None:
            raise self._failure

    def summary(self) -> str:
        """Return what was recorded, for the user."""
        tally = self.tally
        tapes = ", ".join(f"{path} ({path.stat().st_size:,} B)" for path in self.paths)
        lost = f"{tally.missed:,} lost in {tally.gap_count:,} gaps" if tally.gap_count else "no gaps"
        said = (
            f"recorded {tally.frames:,} messages, {tally.size:,} bytes, of {tally.topics:,} topics on {tapes}; {lost}"
        )
        # A topic that was asked for may well be silent; a prefix without messages is mostly a mistake.
        silent = self._silence.summary() if self._silence.prefixes else None
        return said if silent is None else f"{said}\n{silent}"

    def _consume(self) -> None:
        try:
            for frame in self._frames:
                recorded = Recorded(clock.time_ns(), frame)
                with self._lock:
                    if self._stopped:
                        return
                    if recorded.arrival_ns >= self._until:
                        self._ended.append(self._tape)
                        self._tape = self._open(recorded.arrival_ns)
                    self._tape.write(*recorded)
                    self.tally.note(recorded)
                    self._silence.note((frame,))
        except Exception as exc:
            self._failure = exc
        finally:
            self._frames.close()

    def _open(self, at_ns: int) -> TapeWriter:
        tape = TapeWriter(tape_path(self._out, self._rotate, at_ns), Recorded(at_ns, self._session))
        self._until = next_rotation(self._rotate, at_ns)
        self.paths.append(tape.path)
        if tape.cut:
            logger.warning("%s ended within a block; the last %d bytes were cut off", tape.path, tape.cut)
        logger.info("recording on %s", tape.path)
        return tape
