"""The answers to what gateways and consumers ask: where topics stand, what a journal has, new downloads, histories.

The publisher's thread drives it; it has no sockets and no clock. A question about a topic is answered by the registry,
one about a journal chunk by chunk on the journal's thread, between other work. Replies wait in `Askers`, at the pace of
their asker.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from feeder.events import Positions
from feeder.histories import Histories
from feeder.journal.journal import CHUNK_BYTES, Journal
from feeder.journal.thread import JournalThread
from feeder.listing import listed
from feeder.registry import Registry
from feeder.roll import Roll
from feeder.source import DownloadRequest, Source
from qmt_bridge.answering.askers import Askers, Peer, Replies
from qmt_bridge.errors import BadRequest, ErrorCode, Refused, WireError
from qmt_bridge.wire import earlier, frames
from qmt_bridge.wire.parts.report import Report
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import (
    AskHistory,
    CatchUp,
    DownloadStarted,
    Reply,
    StartDownload,
    TopicState,
    decode_ask,
)
from qmt_bridge.wire.survey import FEEDER, Attend, Finding, Found, Question, SubscriptionTerms, Survey
from qmt_bridge.wire.survey import Roll as Asked
from qmt_bridge.wire.topics import ALL_TRADES, KINDS, Topic, parse_topic

logger = logging.getLogger(__name__)

# Replies of one turn (1 to 2 ms), and their bytes, before ticks have their turn again.
TURN = 100
TURN_BYTES = 256 * 1024
# An envelope is what ZeroMQ puts before a question: of a DEALER one part, of a REQ two, each proxy adds one.
MAX_ENVELOPE_PARTS = 16
MAX_ENVELOPE_BYTES = 1024
# Questions for the journal that wait: of all connections, and of one.
MAX_REPLAYS = 10_000
MAX_REPLAYS_OF_ONE = 1000

_terms_decoder = msgspec.json.Decoder(SubscriptionTerms)
_JOURNALED = frozenset(kind for kind, behaviour in KINDS.items() if behaviour.keeps == "journal")

Outcome = Literal["sent", "full", "gone"]
"""What became of one reply: sent, no room at its connection, or no such connection any more."""


class Rights(NamedTuple):
    """What an asker may have beside answers about market data; `advice` says what to do for the rest."""

    asks: bool = True
    downloads: bool = True
    # Surveys of all workers, which name their clients and may end them.
    administers: bool = True
    advice: str = ""


class Reporter(Protocol):
    """What the feeder tells of itself in a survey."""

    def state(self) -> Mapping[str, Any]:
        """Return what it is doing and has seen lately."""

    def reported(self, peer: Peer, report: Report) -> None:
        """Take the report of a store or of alerts; raise `BadRequest`."""

    def capabilities(self, told: Callable[[Mapping[str, Any]], None]) -> None:
        """Ask the source what it can serve; `told` is called with the answer, later, on the publisher's thread."""


ALL = Rights()


class Replay(NamedTuple):
    """A question for the journal that is answered chunk by chunk, between other work."""

    peer: Peer
    number: int
    topic: str
    account: str | None
    # With a `start`, where that is is looked up first.
    position: JournalPosition
    # Bytes of the only chunk that is wanted; 0: all there is.
    room: int


class Answers:
    """Questions that are being answered. `sent` are the positions of the newest events published."""

    def __init__(
        self,
        registry: Registry,
        source: Source,
        journal: JournalThread,
        sent: Positions,
        on_refused: Callable[[bytes, str, object], None],
        on_failure: Callable[[Exception], None],
        reporter: Reporter,
    ) -> None:
        self.askers = Askers(on_failure)
        self.roll = Roll()
        self._reporter = reporter
        self.replays: deque[Replay] = deque()
        self.histories = Histories(registry, source, on_refused)
        # Whether the journal's thread is reading a chunk.
        self.looking_up = False
        self._registry = registry
        self._source = source
        self._journal = journal
        self._sent = sent
        self._on_refused = on_refused
        self._replay_askers: Counter[bytes] = Counter()
        # Whether each connection with a replay has first to take a reply that was sent to it.
        self._blocked = False
        self._now = 0.0

    def take(self, peer: Peer, payload: bytes, rights: Rights = ALL) -> None:
        """Note the question of `peer`; raise `BadRequest` or `WireError` for one that cannot be answered."""
        size = sum(map(len, peer))
        if len(peer) > MAX_ENVELOPE_PARTS or size > MAX_ENVELOPE_BYTES:
            raise BadRequest("bad_request", f"an envelope of {len(peer)} parts, {size} bytes")
        told = earlier.refusals(payload, self._registry.epoch)
        if told:
            self._queue(peer, iter(told), sum(map(len, told)))
            raise BadRequest("bad_request", "it is of version 1 of the wire: update its program")
        ask = decode_ask(payload)
        if isinstance(ask, StartDownload):
            self._reply(peer, self._start_download(peer, ask, rights))
            return
        if isinstance(ask, AskHistory):
            answer = self.histories.take(peer, ask, self._now)
            self._queue(peer, iter((answer,)), len(answer))
            return
        if not isinstance(ask, CatchUp):
            self._take_survey(peer, ask, rights)
            return
        # Each topic once, however often it is named.
        topics = list(dict.fromkeys(ask.topics))
        size = sum(len(text) + 100 for text in topics)
        if not self.askers.add(peer, self._states(peer, ask, topics, rights), size):
            raise BadRequest("rate_limited", f"about {len(topics)} topics, while too many questions wait")

    def send(self, now: float, deliver: Callable[[Peer, bytes], Outcome]) -> None:
        """Send some replies by `deliver`, in turns between the connections that read."""
        self._now = now
        decided = self._registry.decided
        while decided:
            peer, number, text = decided.popleft()
            self._queue(peer, self._registry.states(number, text), len(text))
        waiting = len(self.askers)
        self._send_turn(now, deliver)
        if len(self.askers) < waiting:
            # A connection has taken all its replies, so the next chunk of its replay may be read.
            self._blocked = False

    def give_history(self, number: int, bodies: Sequence[bytes], from_ms: int) -> None:
        """Send the history that the source has found for a question."""
        found = self.histories.found(number, bodies, from_ms)
        if found is not None and not self.askers.add(found.peer, found.parts, found.size):
            self._queue(found.peer, iter((found.instead,)), len(found.instead))

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        """Send why the source has not found a history."""
        refused = self.histories.refused(number, code, reason)
        if refused is not None:
            self._queue(*refused)

    def look_up(self, hung: str | None) -> None:
        """Have one chunk read, so that a long replay delays neither the others nor a tick.

        `hung` is why the disk does not answer, if it does not: the question is refused for it.
        """
        if self.looking_up and hung is None:
            return
        replay = self._next_replay()
        if replay is None:
            return
        if hung is not None:
            self._reply(replay.peer, _unreadable(replay, self._registry.epoch, self._sent.of(replay.account), hung))
            return
        self.looking_up = True
        epoch = self._registry.epoch
        self._journal.ask(lambda journal: partial(self._continue, replay, _read_chunk(replay, journal, epoch)))

    def deadline(self, hung: bool) -> float | None:
        """Return when `send` or `look_up` has something to do: 0.0 is at once, None never as things stand."""
        if self.replays and not self._blocked and (hung or not self.looking_up):
            return 0.0
        return self.askers.deadline()

    def _send_turn(self, now: float, deliver: Callable[[Peer, bytes], Outcome]) -> None:
        size = 0
        for _ in range(TURN):
            message = self.askers.take(now)
            if message is None:
                return
            peer, payload = message
            if not payload:
                continue
            match deliver(peer, payload):
                case "full":
                    self.askers.full(now)
                case "gone":
                    self.askers.gone()
                    self.roll.gone(peer[0])
                case "sent":
                    self.askers.sent()
                    size += len(payload)
                    if size > TURN_BYTES:
                        return

    def _reply(self, peer: Peer, reply: Reply) -> None:
        body = reply.body if isinstance(reply, TopicState) else None
        self._queue(peer, iter((reply,)), len(body or b"") + 500)

    def _queue(self, peer: Peer, replies: Replies, size: int) -> None:
        if not self.askers.add(peer, replies, size):
            # A connection that does not read gets no reply, and its program asks again.
            self._on_refused(peer[0], "an answer", "too much waits for its asker, which does not read")

    # -- Topics

    def _states(self, peer: Peer, ask: CatchUp, topics: list[str], rights: Rights) -> Replies:
        for text in topics:
            if text.partition("/")[0] in _JOURNALED and not rights.asks:
                error = f"trade events are not for this asker: {rights.advice}"
                yield TopicState(ask.id, text, "refused", error, "forbidden", self._registry.epoch)
            elif text.partition("/")[0] in _JOURNALED:
                yield self._trade_state(peer, ask, text)
            else:
                answered = False
                for state in self._registry.ask(peer, ask.id, text, self._now):
                    yield state
                    answered = True
                if not answered:
                    yield None

    def _start_download(self, peer: Peer, ask: StartDownload, rights: Rights) -> DownloadStarted:
        if not rights.downloads:
            return DownloadStarted(ask.id, None, "forbidden", f"downloads are not for this asker: {rights.advice}")
        try:
            topic, key = self._registry.start_download(ask, peer[0], self._now)
        except BadRequest as exc:
            return DownloadStarted(ask.id, None, exc.code, exc.reason)
        if key is None:
            return DownloadStarted(ask.id, topic)
        request = DownloadRequest(tuple(dict.fromkeys(ask.stocks)), *key[1:])
        refused = self._download(topic, request)
        if refused is None:
            return DownloadStarted(ask.id, topic)
        self._registry.drop_download(topic, key)
        return DownloadStarted(ask.id, None, refused.code, refused.reason)

    def _download(self, topic: Topic, request: DownloadRequest) -> Refused | None:
        try:
            self._source.download(topic, request)
        except Refused as exc:
            return exc
        except Exception as exc:
            logger.exception("source %s failed to start a download", self._source.name)
            return Refused("internal", f"source {self._source.name} failed: {exc}")
        return None

    # -- Surveys

    def _take_survey(self, peer: Peer, ask: Attend | Survey | Finding | Report, rights: Rights) -> None:
        """Note a worker that attends or a part that reports, begin a survey, or pass on what a worker has found."""
        if not rights.administers:
            if isinstance(ask, Finding):
                raise BadRequest("forbidden", "a finding of an asker that may not survey")
            self._reply(peer, Asked(ask.id, [], f"surveys are not for this asker: {rights.advice}"))
        elif isinstance(ask, Report):
            self._take_report(peer, ask)
        elif isinstance(ask, Survey):
            self._begin_survey(peer, ask)
        elif isinstance(ask, Finding):
            asker = self.roll.asker(ask.id, self._now)
            if asker is not None:
                found = bytes(ask.found)
                self._queue(asker.peer, iter((Found(asker.number, ask.worker, msgspec.Raw(found)),)), len(found))
        elif ask.leaves:
            self.roll.leave(ask.worker)
        else:
            self.roll.attend(ask.worker, peer, self._now)

    def _take_report(self, peer: Peer, report: Report) -> None:
        try:
            self._reporter.reported(peer, report)
        except BadRequest as exc:
            self._reply(peer, Asked(report.id, [], exc.reason))

    def _begin_survey(self, peer: Peer, ask: Survey) -> None:
        number, workers = self.roll.begin(peer, ask.id, ask.worker, self._now)
        terms = msgspec.Raw(bytes(ask.terms))
        # The feeder has a part in surveys of everybody.
        findings = self._find(peer, ask) if ask.worker is None else None
        self._reply(peer, Asked(ask.id, [*workers, *([FEEDER] if findings is not None else ())]))
        for worker in workers.values():
            self._queue(worker, iter((Question(number, ask.what, terms),)), len(bytes(terms)))
        if findings is not None:
            self._queue(peer, findings, 0)

    def _find(self, peer: Peer, ask: Survey) -> Iterator[Reply | None] | None:
        """Return the feeder's part of a survey; None if it has none."""
        match ask.what:
            case "state":
                return (self._found(ask.id, self._reporter.state()) for _ in range(1))
            case "subscriptions":
                # Read now: terms that cannot be read are refused.
                terms = frames.read(_terms_decoder, bytes(ask.terms))
                return self._listed(ask.id, terms)
            case "capabilities":
                return self._asked_source(peer, ask.id)
        return None

    def _listed(self, number: int, terms: SubscriptionTerms) -> Iterator[Reply | None]:
        for part in listed(self._registry.entries, terms, self._now):
            yield None if part is None else self._found(number, part)

    def _asked_source(self, peer: Peer, number: int) -> Iterator[Reply | None]:
        self._reporter.capabilities(lambda told: self._reply(peer, self._found(number, told)))
        yield None

    def _found(self, number: int, found: object) -> Found:
        return Found(number, FEEDER, msgspec.Raw(msgspec.json.encode(found)))

    # -- The journal

    def _trade_state(self, peer: Peer, ask: CatchUp, text: str) -> TopicState | None:
        """Return the answer about a trade topic; None if the journal is read first."""
        epoch = self._registry.epoch
        try:
            account = None if text == ALL_TRADES else parse_topic(text).name
        except WireError as exc:
            return TopicState(ask.id, text, "refused", str(exc), "bad_request", epoch)
        position = ask.position
        if position is None:
            return TopicState(ask.id, text, "live", epoch=epoch, seq=self._sent.of(account))
        if ask.after is not None and ask.start is not None:
            error = "start and after are two places to begin at: give one"
            return TopicState(ask.id, text, "refused", error, "bad_request", epoch)
        if len(self.replays) >= MAX_REPLAYS or self._replay_askers[peer[0]] >= MAX_REPLAYS_OF_ONE:
            error = "too many questions for the trade journal wait"
            return TopicState(ask.id, text, "refused", error, "rate_limited", epoch)
        self._queue_replay(Replay(peer, ask.id, text, account, position, ask.room))
        return None

    def _queue_replay(self, replay: Replay) -> None:
        self.replays.append(replay)
        self._replay_askers[replay.peer[0]] += 1

    def _next_replay(self) -> Replay | None:
        """Return the next replay whose connection has taken all that was sent to it."""
        self._blocked = False
        for _ in range(len(self.replays)):
            replay = self.replays.popleft()
            if self.askers.has_room(replay.peer):
                self._replay_askers[replay.peer[0]] -= 1
                if not self._replay_askers[replay.peer[0]]:
                    del self._replay_askers[replay.peer[0]]
                return replay
            self.replays.append(replay)
        self._blocked = True
        return None

    def _continue(self, replay: Replay, state: TopicState) -> None:
        self.looking_up = False
        self._reply(replay.peer, state)
        if state.state == "live" and state.more and replay.room <= 0:
            # The position is one of this journal now, so no epoch has to be checked any more.
            end = None if replay.position.end is None else state.end_ms or replay.position.end
            self._queue_replay(replay._replace(position=JournalPosition(state.seq, end=end)))


def _read_chunk(replay: Replay, journal: Journal, epoch: int) -> TopicState:
    """Return the next chunk of a replay, in the epoch `epoch` of the feeder. On the journal's thread."""
    _, number, topic, account, position, room = replay
    newest = journal.newest_of(account)
    size = min(room, CHUNK_BYTES) if room > 0 else CHUNK_BYTES
    try:
        if position.start is not None:
            span = journal.find(position.start, position.end, account)
            chunk = journal.read(span.after, account, size, span.until)
            return TopicState(
                number,
                topic,
                "live",
                epoch=epoch,
                seq=chunk.last,
                body=chunk.body,
                more=chunk.more,
                start_ms=span.start_ms,
                end_ms=span.end_ms,
                from_ms=span.from_ms,
                holes=[] if span.missing is None else [span.missing],
            )
        oldest = journal.oldest(account)
        is_ours = journal.has(position, account)
        if not is_ours or not oldest <= position.seq <= newest:
            error = f"events after {position.seq} cannot be replayed, only those after {oldest} to {newest}"
            if not is_ours:
                error = (
                    f"position {position.seq} is not one of this journal, which has what follows {oldest} to {newest}"
                )
            return TopicState(number, topic, "refused", error, "resume_expired", epoch, newest, oldest=oldest)
        until = newest if position.end is None else journal.before(position.end, account)
        chunk = journal.read(position.seq, account, size, until)
    except BadRequest as exc:
        return TopicState(number, topic, "refused", exc.reason, exc.code, epoch, newest)
    except sqlite3.Error as exc:
        logger.exception("trade journal cannot be read")
        return _unreadable(replay, epoch, newest, str(exc))
    return TopicState(number, topic, "live", None, None, epoch, chunk.last, chunk.body, chunk.more)


def _unreadable(replay: Replay, epoch: int, newest: int, reason: str) -> TopicState:
    error = f"the trade journal cannot be read: {reason}"
    return TopicState(replay.number, replay.topic, "refused", error, "internal", epoch, newest)
