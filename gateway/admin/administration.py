"""What one worker tells of itself, and what it is told to end: its answers to surveys. Runs on the event loop."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import secrets
import socket
from typing import Protocol

import msgspec

from gateway.admin import clients, topics
from gateway.admin.clients import ClientsQuery, sessions_of
from gateway.admin.state import WorkerPart, WorkerState
from gateway.admin.surveys import Findings, Surveys
from gateway.admin.topics import EndedPart, EndTerms, HoldersPart, Pages
from gateway.admin.watch import WhyTerms, look
from gateway.counters import Counts, Numbers
from gateway.feed import Feed
from gateway.session import Session
from qmt_bridge import __version__
from qmt_bridge.observation.rates import Rates
from qmt_bridge.observation.recent import Recent
from qmt_bridge.system import clock
from qmt_bridge.wire import frames
from qmt_bridge.wire.survey import SubscriptionTerms, What

# Seconds for which an answer about all workers is shared.
SHARED = 1.0
_NS_PER_MS = 1_000_000


class KickTerms(msgspec.Struct, frozen=True):
    """The terms of a survey that closes the socket of one client, which has this number at its worker."""

    number: int
    reason: str


class Watched(Protocol):
    """The worker, as far as it is administered."""

    feed: Feed
    sessions: dict[Session, None]

    @property
    def leases(self) -> Pages:
        """Return the topics that requests over HTTP hold."""

    def numbers(self) -> Numbers:
        """Return all numbers of the worker as they are now."""


class Administration:
    """The name of one worker, what it has seen lately, and its surveys."""

    def __init__(self, worker: Watched) -> None:
        self._worker = worker
        # New for each worker process, so that no answer is about another one.
        self.name = secrets.token_hex(4)
        self._started = clock.time_ns() // _NS_PER_MS
        self._recent = Recent(self.name)
        self._rates = Rates()
        self._lost = 0
        parent = multiprocessing.parent_process()
        self._gateway = f"{socket.gethostname()}:{os.getpid() if parent is None else parent.pid}"
        self._surveys = Surveys(self.name, worker.feed, self._answer)
        worker.feed.on_survey = self._surveys.take
        self._epoch = 0
        # When what is shared was asked, and the task that does it.
        self._shared: dict[What, tuple[float, asyncio.Task[Findings]]] = {}
        self._told_feed: tuple[str, str | None] | None = None

    def note(self, kind: str, text: str) -> None:
        """Take down what has happened."""
        self._recent.note(kind, text, clock.time_ns() // _NS_PER_MS)

    def feed_changed(self) -> None:
        """Take that the feeder came, went, or said something new of its session."""
        status = self._worker.feed.status
        told = ("down", self._worker.feed.absence) if status is None else (status.state, status.reason)
        if status is not None and status.epoch != self._epoch:
            self._epoch = status.epoch
            self.note("feed", f"the feeder is connected: source {status.source}, state {status.state}")
            self._surveys.begin_anew()
        elif told != self._told_feed:
            state, reason = told
            self.note("feed", f"the feed is {state}{f': {reason}' if reason else ''}")
        self._told_feed = told

    def tick(self, counts: Counts) -> None:
        """Note the counters, and tell the feeder that this worker is there. Called once a second."""
        self._rates.note(counts._asdict(), clock.monotonic())
        if counts.lost > self._lost:
            self.note("gap", f"{counts.lost - self._lost} messages were lost on the way from the feeder")
            self._lost = counts.lost
        self._surveys.attend()

    def leave(self) -> None:
        """Answer no more."""
        self._surveys.leave()

    async def ask(self, what: What, terms: object = None, worker: str | None = None, *, takes: float = 0.0) -> Findings:
        """Ask all workers and the feeder, or one worker alone; raise `surveys.TooMany`.

        `takes` is for how many seconds those that are asked look before they answer.
        """
        return await self._surveys.ask(what, terms, worker, takes)

    async def ask_shared(self, what: What) -> Findings:
        """Ask all, or share what was found less than `SHARED` seconds ago: pages of many clients ask every second."""
        now = clock.monotonic()
        asked_at, asking = self._shared.get(what, (-math.inf, None))
        if asking is None or now - asked_at >= SHARED:
            asking = asyncio.get_running_loop().create_task(self.ask(what))
            self._shared[what] = now, asking
        # One client that goes away does not end it for the others.
        found, missing = await asyncio.shield(asking)
        return Findings(found, [*missing])

    async def _answer(self, what: What, terms: msgspec.Raw) -> object:
        """Answer a survey; raise `WireError` for terms that cannot be read."""
        match what:
            case "state":
                return self._part()
            case "clients":
                query = frames.read(_clients, terms)
                return clients.part_of(self._worker.sessions, query, self.name, self._gateway)
            case "subscriptions":
                return await self._listed(frames.read(_subscriptions, terms))
            case "why":
                seen = frames.read(_why, terms)
                return await look(self._worker.feed.hub, self._worker.sessions, seen, self.name)
            case "kick":
                return self._kick(frames.read(_kick, terms))
            case "end":
                return self._end(frames.read(_end, terms))
        return None

    def _part(self) -> WorkerPart:
        numbers, delays, now = self._worker.numbers(), self._worker.feed.delays, clock.monotonic()
        rates = self._rates
        state = WorkerState(
            worker=self.name,
            gateway=self._gateway,
            pid=os.getpid(),
            version=__version__,
            started=self._started,
            clients=sum(numbers.connections.values()),
            topics=numbers.topics,
            messages_rate=rates.rate("frames_received"),
            frames_rate=rates.rate("frames_sent"),
            bytes_rate=rates.rate("bytes_sent"),
            waiting_bytes=numbers.waiting_bytes,
            slow_clients=numbers.slow_clients,
            lag=round(numbers.client_lag, 4),
            gaps_hour=rates.in_hour("gaps"),
            lost_hour=rates.in_hour("lost"),
            skipped_hour=rates.in_hour("skipped"),
        )
        return WorkerPart(
            state, delays.publish_to_worker.counts(now), delays.worker_to_socket.counts(now), self._recent.newest()
        )

    async def _listed(self, terms: SubscriptionTerms) -> HoldersPart:
        hub, part = self._worker.feed.hub, None
        for part in topics.listed(hub.streams, self._worker.leases, terms, self.name):
            if part is None:
                await asyncio.sleep(0)
        assert part is not None
        return part

    def _kick(self, terms: KickTerms) -> EndedPart:
        found = list(sessions_of(self._worker.sessions, terms.number))
        for session in found:
            self.note("client", f"{session.path} of {session.address} is ended by an administrator")
            session.kick(terms.reason)
        return EndedPart(len(found))

    def _end(self, terms: EndTerms) -> EndedPart:
        ended = topics.end(self._worker.feed.hub, self._worker.leases, terms)
        if ended.ended:
            self.note("client", f"{terms.topic[:80]} is ended by an administrator for {ended.ended} clients")
        return ended


_clients = msgspec.json.Decoder(ClientsQuery)
_subscriptions = msgspec.json.Decoder(SubscriptionTerms)
_kick = msgspec.json.Decoder(KickTerms)
_end = msgspec.json.Decoder(EndTerms)
_why = msgspec.json.Decoder(WhyTerms)
