"""One run of the store: follow the feeder, write, answer, remove old days, until it is stopped. One thread."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date, datetime, timedelta
from pathlib import Path

import msgspec
import zmq

from qmt_bridge import __version__, private
from qmt_bridge.addresses import endpoint
from qmt_bridge.config import Config
from qmt_bridge.errors import BadRequest, ConfigError, WireError
from qmt_bridge.handshakes import Links
from qmt_bridge.process import child
from qmt_bridge.process.child import TRY_AGAIN
from qmt_bridge.process.stop import Stop
from qmt_bridge.reports.reporter import Reporter
from qmt_bridge.store.answers import Answers
from qmt_bridge.store.backfill import Backfill
from qmt_bridge.store.database import DatabaseError
from qmt_bridge.store.follower import Follower
from qmt_bridge.store.historian import Historian
from qmt_bridge.store.log import Log
from qmt_bridge.store.service import Service
from qmt_bridge.system import clock
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import StoredFrame, StoreStatus, TopicHistory, encode_status
from qmt_bridge.wire.parts.report import Report
from qmt_bridge.wire.requests import CatchUp
from qmt_bridge.wire.shanghai import SHANGHAI
from qmt_bridge.wire.topics import STORE_TOPIC, Topic, shown_topic

logger = logging.getLogger(__name__)

# Of the data folder.
FOLDER = "store"
# Seconds that a message waits at most until it is written: what a killed process loses.
COMMIT_SECONDS = 0.05
# Seconds between two times that what was written is brought to the disk: what a failure of the power loses.
SYNC_SECONDS = 1.0
# Seconds between two looks at old days, at the size of the store, and at the room on the disk.
TRIM_SECONDS = 10.0
LOOK_SECONDS = 0.5
# The longest wait for a message; a request to end is seen after it.
WAIT_SECONDS = 0.05
# While messages come, those of so many ms are taken together, unless a question arrives: a turn for each would cost
# several times as much as to store it.
GATHER_MS = 5
# Messages that are taken before questions have their turn.
TURN = 500
# Below so many free bytes on the disk nothing is stored, so that the journal of trade events has room; the database
# could not be opened either on a disk without any.
RESERVE_BYTES = 256 * 1024 * 1024
# It goes on when there are so many more.
_MORE_BYTES = 64 * 1024 * 1024
_MIB = 1024 * 1024
_NS_PER_MS = 1_000_000


class Store:
    """A store with its sockets; `open`, then `turn` again and again, then `close`. One thread uses it."""

    def __init__(self, config: Config, topics: Sequence[Topic]) -> None:
        self._config = config
        self._topics = topics
        self._closing = ExitStack()
        # Why nothing is stored; None while it is.
        self.failure: str | None = None
        self.lost = 0
        # Seconds between the feeder and this store, of the newest message.
        self._lag = 0.0
        # How often, and for how many seconds, the disk was waited for.
        self._syncs = 0
        self._sync_seconds = 0.0
        # Bytes that the disk had left at the last look.
        self._free = 0

    def open(self) -> None:
        """Open the log, listen and subscribe.

        Raise `ConfigError` for what cannot be used, and `DatabaseError` if the disk fails.
        """
        with ExitStack() as closing:
            listened = endpoint.store_endpoint(self._config, "feeder")
            followed = endpoint.followed_endpoint(self._config)
            self.folder = self._make_folder()
            self._log = Log(self.folder, self._config.store_max_mb)
            closing.callback(self._log.close)
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            closing.callback(context.destroy, 0)
            self._links = Links()
            closing.callback(self._links.close)
            # Since when each own topic is followed without a break (ms since 1970).
            self._since = dict.fromkeys(self._topics, math.inf)
            self._is_connected = False
            # What completes days from the source's history; None without that.
            self._historian: Historian | None = None
            self._backfill: Backfill | None = None
            if self._config.backfill:
                historian = self._historian = Historian(context, endpoint.source_endpoint(self._config))
                self._backfill = Backfill(self._log, historian.ask, self._follow, self._leave)
            self._answers = Answers(self._log, self._since, None if self._backfill is None else self._backfill.want)
            self._service = Service(context, listened, self._config.curve_dir, self._links, self._answer)
            closing.callback(self._service.close)
            self._follower = Follower(context, followed, self._links, self._topics)
            self._reporter = Reporter(context, self._config)
            closing.callback(self._end_reports)
            self._make_pollers()
            # Whether the newest turn has taken messages, and no more were there.
            self._gathers = False
            self._free = _free_bytes(self.folder)
            now = clock.monotonic()
            self._commit_at: float | None = None
            self._sync_at: float | None = None
            self._look_at = self._trim_at = now
            self._closing = closing.pop_all()
        logger.info(
            "store started: %s, market %s, in %s, %s",
            self._service.address,
            self._config.market_addr,
            self.folder,
            f"{len(self._topics)} topics of its own" if self._topics else "what others subscribe",
        )

    @property
    def address(self) -> str:
        """Return where questions are answered."""
        return self._service.address

    def turn(self) -> None:
        """Wait for messages and questions, and do what is due; raise `DatabaseError` if the disk fails."""
        pause = self._pause_ms(clock.monotonic())
        ready = dict(self._asked.poll(min(pause, GATHER_MS)) if self._gathers else self._poller.poll(pause))
        now = clock.monotonic()
        self._service.admit(ready)
        busy = self._take(now)
        self._complete(now)
        self._service.take()
        self._service.send(now, busy=busy)
        now = clock.monotonic()
        if self._commit_at is not None and now >= self._commit_at:
            self._commit(now)
        if self._sync_at is not None and now >= self._sync_at:
            self._sync(now)
        if now >= self._look_at:
            self._look(now)
        if now >= self._trim_at:
            self._trim_at = now + TRIM_SECONDS
            self._trim()

    def close(self) -> None:
        """Write what has arrived, and close everything; raise `DatabaseError` if the disk fails."""
        self._closing.close()

    def status(self) -> StoreStatus:
        """Return how the store is."""
        return StoreStatus(
            clock.time_ns() // _NS_PER_MS,
            __version__,
            child.instance(),
            self.failure,
            len(self._log),
            self._log.stored,
            self._log.left_out + self.lost + self._follower.strange,
            self._service.refused,
            self._log.size,
            tuple(self._log.days),
            self._free,
            self._backfill.filled if self._backfill is not None else 0,
            self._backfill.unfilled if self._backfill is not None else 0,
            self._log.waiting,
            round(self._lag, 4),
            self._syncs,
            round(self._sync_seconds, 4),
        )

    def _take(self, now: float) -> bool:
        """Take messages of the feeder; return whether more of them may wait."""
        day = _today().isoformat()
        taken = 0
        frame: Frame | None = None
        for frame in self._follower.take(TURN, self._log.names):
            taken += 1
            if self.failure is not None:
                self.lost += 1
                continue
            try:
                self._log.append(frame, day)
            except WireError as exc:
                self._leave_out(frame, str(exc))
            except BadRequest as exc:
                self._leave_out(frame, exc.reason)
        if self._log.waiting and self._commit_at is None:
            self._commit_at = now + COMMIT_SECONDS
        if frame is not None:
            self._lag = max(0.0, (clock.time_ns() - frame.published_ns) / 1e9)
        self._gathers = 0 < taken < TURN
        return taken == TURN

    def _complete(self, now: float) -> None:
        """Take at most one part of a history, some milliseconds of work, so that messages are stored meanwhile."""
        if self._backfill is None or self._historian is None:
            return
        if (answer := self._historian.take()) is not None:
            self._backfill.take(answer)
        if self.failure is not None:
            self._backfill.stop(self.failure)
        self._backfill.step(now, clock.time_ns(), _today().isoformat())

    def _follow(self, topic: Topic) -> None:
        self._follower.follow(topic)

    def _leave(self, topic: Topic) -> None:
        self._follower.leave(topic)

    def _leave_out(self, frame: Frame, reason: str) -> None:
        if not self.lost:
            logger.warning("a message of %s is not stored: %s", shown_topic(frame.topic), reason)
        self.lost += 1

    def _commit(self, now: float) -> None:
        self._commit_at = None
        self._log.commit()
        if self._sync_at is None:
            self._sync_at = now + SYNC_SECONDS

    def _sync(self, now: float) -> None:
        self._sync_at = None
        self._log.sync()
        self._syncs += 1
        self._sync_seconds += clock.monotonic() - now

    def _answer(self, ask: CatchUp, text: str) -> TopicHistory:
        if text != STORE_TOPIC:
            return self._answers.answer(ask, text)
        now = clock.time_ns()
        body = msgspec.Raw(encode_status(self.status()))
        return TopicHistory(ask.id, text, frames=[StoredFrame(0, 0, now, now, body)])

    def _look(self, now: float) -> None:
        self._look_at = now + LOOK_SECONDS
        if self._service.look(now):
            self._make_pollers()
        if self._reporter.is_due(now):
            self._reporter.send(Report(0, store=self.status()), now)
        for notice in self._links.look(now):
            logger.log(logging.INFO if notice.good else logging.WARNING, "%s", notice.text)
        if self._is_connected != self._links.all_up():
            self._is_connected = not self._is_connected
            since = clock.time_ns() / _NS_PER_MS if self._is_connected else math.inf
            self._since.update(dict.fromkeys(self._topics, since))

    def _end_reports(self) -> None:
        self._reporter.close(Report(0, store=self.status(), leaves=True))

    def _trim(self) -> None:
        oldest = _today() - timedelta(days=max(0, self._config.store_days - 1))
        for day in self._log.trim(oldest.isoformat()):
            logger.info("messages of %s were removed from the store", day)
        free = self._free = _free_bytes(self.folder)
        if self.failure is None and free < RESERVE_BYTES:
            self.failure = f"the disk of {self.folder} has only {free // _MIB} MiB left"
            logger.error("%s: nothing is stored until it has %d", self.failure, (RESERVE_BYTES + _MORE_BYTES) // _MIB)
        elif self.failure is not None and free >= RESERVE_BYTES + _MORE_BYTES:
            self.failure = None
            logger.warning("the disk has room again: messages are stored; %d were not", self.lost)

    def _pause_ms(self, now: float) -> int:
        until = now + WAIT_SECONDS
        for deadline in (self._commit_at, self._service.deadline()):
            if deadline is not None:
                until = min(until, deadline)
        return max(0, int((until - now) * 1000) + (until > now))

    def _make_pollers(self) -> None:
        """Poll messages and questions, or questions and what was asked of the feeder alone."""
        self._poller, self._asked = zmq.Poller(), zmq.Poller()
        self._poller.register(self._follower.socket, zmq.POLLIN)
        asked = [] if self._historian is None else [self._historian.socket]
        for socket in (*asked, *self._service.readable()):
            self._poller.register(socket, zmq.POLLIN)
            self._asked.register(socket, zmq.POLLIN)

    def _make_folder(self) -> Path:
        folder = self._config.data_path / FOLDER
        try:
            private.keep_folder(folder.parent)
            private.make_folder(folder)
        except OSError as exc:
            raise ConfigError("data_dir", f"cannot make the folder {folder}: {exc.strerror or exc}") from exc
        return folder


def _free_bytes(folder: Path) -> int:
    """Return what the disk of a folder has left; raise `DatabaseError` for a folder that is not there any more."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as exc:
        raise DatabaseError(f"cannot look at {folder}: {exc.strerror or exc}") from exc


def _today() -> date:
    return datetime.fromtimestamp(clock.time_ns() / 1e9, SHANGHAI).date()


def run(config: Config, topics: Sequence[Topic], stop: Stop) -> int:
    """Run a store until `stop` is set; return the exit code of the process.

    A disk that fails ends it, to be started again: what it misses meanwhile is a gap. Raise `ConfigError` for settings,
    keys or a folder that cannot be used.
    """
    store = Store(config, topics)
    try:
        store.open()
        while not stop.is_set():
            store.turn()
    except DatabaseError as exc:
        logger.critical("the store cannot write or read: %s", exc)
        with contextlib.suppress(DatabaseError):
            store.close()
        return TRY_AGAIN
    store.close()
    return 0
