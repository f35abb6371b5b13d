"""The table of topics: each has one upstream subscription, whatever the number of clients.

Pure: no sockets, time is an argument; subscriptions and questions go to an `Upstream`. Runs on the event loop. What a
stream does with a frame or an answer, for late joiners and after a gap, is in `gateway.streams`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.streams.events import EventStream
from gateway.streams.held import HeldBytes
from gateway.streams.member import Member, Reader, StoreQuestion, Upstream
from gateway.streams.questions import Questions
from gateway.streams.stored import StoredStream
from gateway.streams.stream import ANSWER_TIMEOUT, Losses, Stream
from gateway.streams.values import ValueStream
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import ALL_TRADES, Topic, behaviour_of

# After a lost message there may be no next message that shows the gap. Therefore the position of a topic without
# messages for QUIET_SECONDS is compared with the feeder's, and again after each COMPARE_SECONDS without a message, or
# after QUIET_SECONDS if the feeder was further and a member is to miss nothing.
QUIET_SECONDS = 4.0
COMPARE_SECONDS = 60.0
# At most this many topics at a time, because the feeder has to publish ticks meanwhile.
COMPARE_TOPICS = 250
# Seconds between two searches for quiet topics.
COMPARE_EVERY = ANSWER_TIMEOUT


class Hub:
    """The streams of one worker, and its counters of frames and losses."""

    def __init__(self, upstream: Upstream) -> None:
        self.streams: dict[Topic, Stream] = {}
        # Those of market data, by their topics as they are on the wire: to decode a topic takes as long as to find it.
        self.market: dict[bytes, Stream] = {}
        # Frames received.
        self.received = 0
        self._upstream = upstream
        self._questions = Questions(upstream)
        self._losses = Losses()
        self._held = HeldBytes()
        # The latest epoch of all heartbeats; `epoch` is that of the newest heartbeat, which may be an older one.
        self._latest = 0
        self._compare_at = 0.0

    @property
    def epoch(self) -> int:
        """Return the epoch of the newest heartbeat, 0 before the first."""
        return self._questions.epoch

    @property
    def gaps(self) -> int:
        """Return the number of sequence gaps."""
        return self._losses.gaps

    @property
    def lost(self) -> int:
        """Return the number of messages that were lost in gaps."""
        return self._losses.lost

    def join(self, members: Mapping[Topic, Member], now: float, after: JournalPosition | None = None) -> None:
        """Add a member to each topic; `settle` tells it the outcome, then it receives the last value and new frames.

        A member of trade events receives every event after the position `after` of the journal, or without `after`
        every event from now on.
        """
        asking = []
        for topic, member in members.items():
            stream = self.streams.get(topic) or self._open(topic)
            self._subscribe(stream)
            cohort = stream.join(member, after, now)
            if cohort is not None:
                asking.append((stream, cohort))
        self._questions.ask(asking, now)

    def read(self, readers: Mapping[Topic, tuple[Reader, StoreQuestion]], now: float) -> None:
        """Add a member to each topic that is read the answers of the store to its question, and then new frames.

        With `StoreQuestion.complete` it is read what is lost later, too.
        """
        asking = []
        for topic, (reader, question) in readers.items():
            stream = self.streams.get(topic) or self._open(topic)
            assert isinstance(stream, StoredStream), topic
            if question.complete and question.end is None:
                stream.keep(reader, question)
            if question.begins_live:
                self._subscribe(stream)
                joined = stream.join(reader, None, now)
                if joined is not None:
                    asking.append((stream, joined))
                continue
            cohort = stream.read(reader, question, now)
            if question.end is None:
                self._subscribe(stream)
                asking.append((stream, cohort))
            elif cohort.reading is not None:
                stream.ask_store(cohort, cohort.reading, now)
        self._questions.ask(asking, now)

    def leave(self, topic: Topic, member: Member) -> None:
        """Remove a member; the last one ends the upstream subscription."""
        stream = self.streams.get(topic)
        if stream is not None:
            stream.leave(member)
            self._close_if_empty(stream)

    def receive(self, frame: Frame, now: float) -> None:
        """Hand a frame from a SUB socket to the members of its topic."""
        stream = self.streams.get(frame.topic)
        if stream is None:
            # The trade events of each account have their own topic; one stream has them all.
            stream = self.streams.get(ALL_TRADES) if frame.topic.startswith(ALL_TRADES) else None
            if stream is None:
                return
        self.received += 1
        stream.receive(frame, now)

    def answer(self, state: TopicState, now: float) -> None:
        """Take one reply to a CatchUp."""
        stream = self.streams.get(Topic(state.topic))
        if stream is not None:
            stream.answer(state, now)
            keeps = isinstance(stream, StoredStream) and stream.keeps
            if keeps and Position(state.epoch, state.seq) > stream.position:
                # What the feeder has published has not come, and what it publishes next may not come either.
                stream.compare_at = min(stream.compare_at, now + QUIET_SECONDS)
            self._close_if_empty(stream)

    def history(self, answer: TopicHistory, now: float) -> None:
        """Take an answer of the store."""
        self._questions.store_seen = now
        stream = self.streams.get(Topic(answer.topic))
        if isinstance(stream, StoredStream):
            stream.history(answer, now)
            self._close_if_empty(stream)

    def feeder_seen(self, epoch: int, trade_seq: int, now: float) -> None:
        """Take a heartbeat: it shows a new epoch, and a lost trade event that no later event has shown."""
        is_new, self._questions.epoch = epoch != self.epoch, epoch
        self._latest = max(self._latest, epoch)
        if epoch < self._latest and not is_new:
            self._follow_older_epoch(epoch)
        stale = [stream for stream in self.streams.values() if not stream.synced or (is_new and stream.epoch != epoch)]
        # Heartbeats and trade events arrive by two sockets: the newest event that a heartbeat names may arrive after
        # it, but it has arrived, or is lost, when the next heartbeat arrives.
        before = self._questions.journal
        trades = self.streams.get(ALL_TRADES)
        if isinstance(trades, EventStream) and trades not in stale and before and trades.count_missed(before.seq):
            stale.append(trades)
        self._questions.journal = JournalPosition(trade_seq, epoch, exact=True)
        for stream in stale:
            stream.synced = True
        self._ask_anew(stale, now)

    def recheck(self, now: float) -> None:
        """Ask for every last value again: the source was down, and may now refuse topics that it served before."""
        self._ask_anew([stream for stream in self.streams.values() if not stream.journaled], now)

    def expire(self, now: float) -> None:
        """Continue without the answers that are late, and ask again for what is pending or may be lost."""
        if now >= self._compare_at:
            self._compare_at = now + COMPARE_EVERY
            self._compare(now)
        due = []
        for stream in tuple(self.streams.values()):
            if stream.expire(now):
                due.append(stream)
            elif not stream.subscribed and isinstance(stream, StoredStream):
                # The store may have been given up for a part of the day.
                self._close_if_empty(stream)
        probes = [stream for stream in due if isinstance(stream, ValueStream)]
        if probes:
            question = self._questions.send([stream.topic for stream in probes])
            for stream in probes:
                stream.probed_by(question)

    def _open(self, topic: Topic) -> Stream:
        behaviour = behaviour_of(topic)
        kind = EventStream if behaviour.keeps == "journal" else ValueStream
        stream = self.streams[topic] = kind(topic, self._questions, self._losses, self._held)
        if behaviour.socket == "market":
            self.market[topic.encode("ascii")] = stream
        return stream

    def _subscribe(self, stream: Stream) -> None:
        if not stream.subscribed:
            stream.subscribed = True
            self._upstream.subscribe(stream.topic)

    def _close_if_empty(self, stream: Stream) -> None:
        if stream.empty and self.streams.pop(stream.topic, None) is not None:
            self.market.pop(stream.topic.encode("ascii"), None)
            if stream.subscribed:
                self._upstream.unsubscribe(stream.topic)

    def _ask_anew(self, streams: Iterable[Stream], now: float) -> None:
        self._questions.ask([(stream, cohort) for stream in streams for cohort in stream.ask_anew(now)], now)

    def _follow_older_epoch(self, epoch: int) -> None:
        """Follow a feeder whose clock was set back: frames with its older epoch would be dropped.

        Called for the second heartbeat in a row with that epoch; one alone may be a late one of the previous process.
        """
        for stream in self.streams.values():
            if stream.epoch > epoch and not stream.journaled:
                stream.forget_position()

    def _compare(self, now: float) -> None:
        """Ask for the values of quiet topics; for trade events the heartbeats do this."""
        quiet: list[Stream] = []
        for stream in self.streams.values():
            if stream.seq != stream.compared.seq or stream.epoch != stream.compared.epoch:
                stream.compared = stream.position
                stream.compare_at = now + QUIET_SECONDS
            elif now >= stream.compare_at and not stream.journaled and len(quiet) < COMPARE_TOPICS:
                stream.compare_at = now + COMPARE_SECONDS
                quiet.append(stream)
        self._ask_anew(quiet, now)
