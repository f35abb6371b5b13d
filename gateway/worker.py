"""What the sockets of one worker share: the feed, the key, the counters. Runs on the event loop; one a process.

A worker starts with the first who needs it (the ASGI lifespan, or a socket where the server runs no lifespan) and
stops with the last, so that the app also works under a test client, which makes a new loop for every socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.auth import Keys
from gateway.endpoints import ENDPOINTS
from gateway.feed import Feed
from gateway.metrics import Exporter
from gateway.session import Ended, Session
from qmt_bridge import __version__
from qmt_bridge.config import Config
from qmt_bridge.wire.messages import trade_state

logger = logging.getLogger(__name__)

# An opted-in client hears something at least this often.
HEARTBEAT = 15.0


class Worker:
    """Feed, sessions and counters of one event loop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.keys = Keys(config.api_key)
        self.sessions: dict[Session, None] = {}
        self.feed = Feed(config, self._feed_changed, self.flush)
        # Sessions with something to write, and whether the loop has been asked to call `flush`.
        self._pending: list[Session] = []
        self._planned = False
        self.frames_sent = 0
        self.bytes_sent = 0
        # Frames and records that slow clients did not get because a newer one had replaced them.
        self.skipped = 0
        self._exporter = Exporter(ENDPOINTS)

    @property
    def connections(self) -> Counter[str]:
        """Return the number of open sockets by URL."""
        return Counter(session.path for session in self.sessions)

    @property
    def newest_age(self) -> float | None:
        """Return the seconds since the newest market data was published; None before the first."""
        newest = self.feed.newest_ns
        return max(0.0, (time.time_ns() - newest) / 1e9) if newest else None

    def welcome(self) -> dict[str, Any]:
        """Return the first frame of a client that opted in when it connected."""
        limits = {"max_topics": self.config.max_topics, "max_rate": self.config.max_rate}
        return {"type": "welcome", "server": f"qmt-bridge/{__version__}", **self.feed_state(), "limits": limits}

    def feed_state(self) -> dict[str, Any]:
        """Return what is known of the feeder, for welcome frames and health."""
        status = self.feed.status
        if status is None:
            nothing = dict.fromkeys(("source", "simulated", "trade"))
            return {"feed": "down", "reason": self.feed.absence, "epoch": 0, **nothing}
        return {
            "feed": status.state,
            "reason": status.reason,
            "epoch": status.epoch,
            "source": status.source,
            "simulated": status.simulated,
            # The worst state of the accounts whose trade events are served.
            "trade": trade_state(status.accounts),
        }

    def start(self) -> None:
        """Connect to the feeder, which need not be there; raise `ConfigError` where that is impossible."""
        self.feed.start()
        self._timer = asyncio.get_running_loop().call_later(1.0, self._tick)

    def stop(self) -> None:
        """Disconnect."""
        self._timer.cancel()
        self.feed.stop()
        self.export()

    def plan_flush(self, session: Session) -> None:
        """Let `session` write once the loop has done what it is at."""
        self._pending.append(session)
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Let every session write that has something to; the feed does not wait for the loop's next turn."""
        self._planned = False
        pending, self._pending = self._pending, []
        for session in pending:
            try:
                session.flush()
            except Exception:
                # A bug in our code costs one client, not those that come after it.
                logger.exception("session on %s cannot be written to", session.path)
                session.end(Ended(1011, "internal", "internal error"))

    def export(self) -> None:
        """Copy the counters to where a scrape finds them."""
        self._exporter.export(self)

    def _feed_changed(self) -> None:
        status = self.feed.status
        notice: dict[str, Any] = {"type": "feed", "state": "down", "reason": self.feed.absence, "data_lost": True}
        if status is not None:
            notice.update(
                state=status.state,
                reason=status.reason,
                data_lost=status.data_lost or self.feed.interrupted,
                since=status.since,
                source=status.source,
                simulated=status.simulated,
                epoch=status.epoch,
            )
        for session in self.sessions:
            if session.opted_in:
                session.tell(notice)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(1.0, self._tick)
        self.export()
        now = loop.time()
        for session in tuple(self.sessions):
            session.tell_missed()
            began = session.sending_since
            if began is not None and now - began > self.config.slow_timeout:
                session.end(Ended(1013, "slow_client", f"nothing was read for {self.config.slow_timeout:.0f} s"))
            elif session.opted_in and began is None and now - session.sent_at >= HEARTBEAT:
                session.tell({"type": "heartbeat", "time": time.time_ns() // 1_000_000})


class Workers:
    """The worker of each event loop that serves the app: one under a server."""

    def __init__(self) -> None:
        self._workers: dict[asyncio.AbstractEventLoop, tuple[Worker, int]] = {}

    @asynccontextmanager
    async def use(self, config: Config) -> AsyncIterator[Worker]:
        """Enter with the running loop's worker, started by the first user; the last one out stops it."""
        loop = asyncio.get_running_loop()
        if loop not in self._workers:
            started = Worker(config)
            started.start()
            self._workers[loop] = (started, 0)
        worker, users = self._workers[loop]
        self._workers[loop] = (worker, users + 1)
        try:
            yield worker
        finally:
            worker, users = self._workers[loop]
            if users > 1:
                self._workers[loop] = (worker, users - 1)
            else:
                del self._workers[loop]
                worker.stop()
