"""What the sockets of one worker share: the feed, the key, the counters. One for each process, on its event loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.admin.administration import Administration
from gateway.connections import descriptors, handshake
from gateway.costs.budget import Budget
from gateway.costs.shares import Shares, limits_of_worker
from gateway.costs.slices import Slices
from gateway.costs.turns import OPENING_OF_CLIENT, Turns
from gateway.costs.views import Views
from gateway.counters import Counts, CutOffs, Numbers, SentByPath
from gateway.endpoints.urls import ENDPOINTS
from gateway.feed import Feed
from gateway.http.admission import Purses
from gateway.http.closed import ClosedAnswers
from gateway.http.events import EVENTS
from gateway.http.leases import Leases
from gateway.http.waiting import Waiting
from gateway.keys.entry import Entry
from gateway.metrics import Exporter
from gateway.sending.flushes import Flushes
from gateway.sending.pool import Pool
from gateway.session import Session
from qmt_bridge import __version__
from qmt_bridge.config import Config
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import told_feed, trade_state

# An opted-in client that was sent nothing for this many seconds is sent a heartbeat.
HEARTBEAT = 15.0


class Worker:
    """Feed, sessions and counters of one event loop (session.Host, and Host of http/admission.py)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.entry = Entry(config, descriptors.places(asyncio.get_running_loop(), config.max_connections))
        self.sessions: dict[Session, None] = {}
        self.sent = SentByPath((*ENDPOINTS, *EVENTS))
        self.flushes = Flushes()
        self.pool = Pool(config.outbox_total_bytes, self._relieve_soon)
        self.budget = Budget(config.max_code_rate, config.max_topics, asyncio.get_running_loop().time())
        self.views = Views(config.max_views)
        shares = limits_of_worker(config.max_depths, config.max_formulas, config.xt_download_queue, config.workers)
        self.shares = Shares(shares, config.grace)
        self.slices = Slices()
        self.turns = Turns()
        self.opening_turns = Turns(OPENING_OF_CLIENT)
        self.limited: Counter[str] = Counter()
        self.cut_off = CutOffs()
        self.feed = Feed(config, self._feed_changed, self.flushes)
        self.leases = Leases(self.feed.hub, self.slices, self.shares)
        self.purses = Purses(config)
        self.store = self.feed.store
        self.waiting = Waiting(config.outbox_total_bytes)
        self.closed = ClosedAnswers()
        self.administration = Administration(self)
        self.note = self.administration.note
        self._exporter = Exporter((*ENDPOINTS, *EVENTS))

    def numbers(self) -> Numbers:
        """Return all numbers of this worker as they are now."""
        hub, sent, newest = self.feed.hub, self.sent.together(), self.feed.newest_ns
        return Numbers(
            Counts(
                frames_received=hub.received,
                frames_sent=sent.frames,
                bytes_sent=sent.bytes,
                skipped=sent.skipped,
                gaps=hub.gaps,
                lost=hub.lost,
                malformed=self.feed.malformed,
                catch_ups=self.feed.asked,
                wrong_keys=self.entry.attempts.total,
            ),
            connections=Counter(session.path for session in self.sessions),
            topics=len(hub.streams),
            newest_tick_age=max(0.0, (clock.time_ns() - newest) / 1e9) if newest else None,
            slow_clients=sum(session.sender.stalled for session in self.sessions),
            waiting_bytes=self.pool.size + self.pool.tables.size,
            limited=dict(
                self.limited + handshake.limited + Counter(turns=self.turns.limited + self.opening_turns.limited)
            ),
            cut_off=dict(self.cut_off.counts),
            client_lag=max((session.sender.lag for session in self.sessions), default=0.0),
            by_path=self.sent.by_path,
        )

    def welcome(self) -> dict[str, Any]:
        """Return the first frame of a client that opted in when it connected."""
        limits = {"max_topics": self.config.max_topics, "max_rate": self.config.max_rate}
        state = self.feed_state()
        state["feed"] = told_feed(state["feed"])
        return {"type": "welcome", "server": f"qmt-bridge/{__version__}", **state, "limits": limits}

    def feed_state(self) -> dict[str, Any]:
        """Return what is known of the feeder, for welcome frames and the status pages."""
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
            # The worst state of the accounts whose trade events are served; none is served without its connection.
            "trade": "down" if status.accounts and self.feed.trade_trouble else trade_state(status.accounts),
        }

    def start(self) -> None:
        """Connect to the feeder, which may start later; raise `ConfigError` if the settings make that impossible."""
        self.feed.start()
        self._follow_trades()
        self.entry.tick()
        loop = asyncio.get_running_loop()
        handshake.entries[loop] = self.entry
        self._timer = loop.call_later(1.0, self._tick)

    def _follow_trades(self) -> None:
        """Receive trade events from now on if a key may have them; without one no client gets them."""
        if self.entry.sees_trades:
            self.feed.follow_trades()

    def stop(self) -> None:
        """Disconnect."""
        self._timer.cancel()
        self.administration.leave()
        handshake.entries.pop(asyncio.get_running_loop(), None)
        self.feed.stop()
        self.export()

    def export(self) -> Numbers:
        """Copy the numbers to the metrics that Prometheus scrapes, and return them."""
        numbers = self.numbers()
        self._exporter.export(numbers, self.feed_state()["feed"], self.feed.status, self.feed.delays)
        return numbers

    def _relieve_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._relieve)

    def _relieve(self) -> None:
        """Abort the clients for which most waits, if the outboxes of all clients take too much memory."""
        sessions = list(self.sessions)
        for place in self.pool.relieve(session.sender.outbox for session in sessions):
            self.limited["outbox_total_bytes"] += 1
            sessions[place].shed()

    def _feed_changed(self) -> None:
        status = self.feed.status
        if status is not None:
            self.entry.simulated = status.simulated
        self.administration.feed_changed()
        notice: dict[str, Any] = {"type": "feed", "state": "down", "reason": self.feed.absence, "data_lost": True}
        if status is not None:
            notice.update(
                state=told_feed(status.state),
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
        self.administration.tick(self.export().counts)
        self.entry.tick()
        self._follow_trades()
        self.leases.expire(clock.monotonic())
        now, today = loop.time(), time.time()
        for session in tuple(self.sessions):
            session.check_key(today)
            session.tell_missed()
            session.tell_refused()
            sender = session.sender
            sender.check(now, self.config.slow_timeout)
            if session.opted_in and not sender.stalled and now - sender.sent_at >= HEARTBEAT:
                session.tell({"type": "heartbeat", "time": clock.time_ns() // 1_000_000})


class Workers:
    """The worker of each event loop that serves the app; under a server there is one loop.

    Users (the lifespan, sockets, pages) are counted, because some servers do not run the ASGI lifespan (``uvicorn
    --lifespan off``, Starlette's test client without ``with``), and a test client makes a new loop for every socket.
    There the first socket or page starts the worker and the last one stops it. Without the count there would be no
    feed, or the sockets of the feed would stay open.
    """

    def __init__(self) -> None:
        self._workers: dict[asyncio.AbstractEventLoop, tuple[Worker, int]] = {}

    @asynccontextmanager
    async def use(self, config: Config) -> AsyncIterator[Worker]:
        """Enter with the running loop's worker: the first user starts it, and the last one to leave stops it."""
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
