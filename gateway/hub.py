"""Topic -> members: one upstream subscription however many clients, last values for late joiners, gaps repaired.

Pure: no sockets, time is an argument; what has to go upstream is told to an `Upstream`. Runs on the event loop.

Subscribe first, ask second, hold what arrives meanwhile, drop what is not newer than the answer (WIRE.md, CatchUp).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal, NamedTuple, Protocol

import msgspec

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame, read
from qmt_bridge.wire.messages import event_position
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import ALL_TRADES, Behaviour, Topic, behaviour_of

# Without an answer a joiner goes live after this long, and a topic still pending at its source is asked again.
ANSWER_TIMEOUT = 1.0
# A lost message need not have a successor that shows it: a topic that has been quiet for so long is compared with the
# feeder, and again so long it stays quiet; so many at a time, since the feeder has ticks to publish.
QUIET_SECONDS = 4.0
COMPARE_SECONDS = 60.0
COMPARE_TOPICS = 250

# What arrives meanwhile is kept for those who wait for an answer. Of a journal more can be asked for.
HELD_FRAMES = 10_000


_bodies_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])

Outcome = Literal["live", "pending", "unanswered", "refused"]


class Refusal(NamedTuple):
    """Why a topic is not served; a position that has expired would have had to be from `oldest` to `newest`.

    `epoch` is the life of the feeder that has said so.
    """

    code: ErrorCode
    reason: str
    oldest: int = 0
    newest: int = 0
    epoch: int = 0


class Member(Protocol):
    """One client's wish for one topic. It must not wait, nor join or leave anything while it is told something."""

    def deliver(self, frame: Frame) -> None:
        """Take a frame."""

    def starts(self, epoch: int, seq: int) -> bool:
        """Hear where the last value stands, or after which event it begins; return whether to deliver the value.

        `settle` follows.
        """

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Hear how joining ended, and again when a topic was asked for anew; "refused" means it has been removed."""

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` with the time, later, once what was delivered has been taken."""

    def missed(self, count: int) -> None:
        """Hear that so many messages were lost on the way from the feeder, for good."""

    def snapshot_ended(self, count: int) -> None:
        """Hear that the snapshot of a market, which comes in pieces, has been delivered: so many codes."""


class Upstream(Protocol):
    """The link to the feeder, as the hub sees it."""

    def subscribe(self, topic: Topic) -> None:
        """Subscribe the ZeroMQ topic or prefix."""

    def unsubscribe(self, topic: Topic) -> None:
        """Take the subscription back."""

    def ask(self, topics: list[Topic], after: int | None, epoch: float | None, exact: bool) -> int | None:
        """Send a CatchUp and return its id, or None while the feeder is away.

        `epoch` is a life of the feeder whose journal has the position `after`; `exact`: it was seen in that very life.
        """


class _Ask:
    """A CatchUp under way for one stream; every joiner that came since shares its answer."""

    __slots__ = ("after", "epoch", "exact", "id", "late", "parts", "paused", "seen", "sent_at", "settled")

    def __init__(
        self,
        after: int | None,
        now: float,
        seen: tuple[int, int] = (0, 0),
        epoch: float | None = None,
        exact: bool = True,
    ) -> None:
        # The position after which a journal is still to be read (None: from now on), and a life of the feeder that had
        # that journal, if one is known; `exact`: it was seen in that very one.
        self.after = after
        self.epoch = epoch
        self.exact = exact
        # Epoch and seq that those have seen who wait for it; a last value that is not newer is no news.
        self.seen = seen
        # None while the feeder is away.
        self.id: int | None = None
        self.sent_at = now
        self.parts: list[Frame] = []
        # The life of the feeder whose answer was set aside, for it seemed to have ended.
        self.late = 0
        # Whether those who wait have heard how joining ended, and whether they have to take what they have first.
        self.settled = False
        self.paused = False


class Stream:
    """One upstream subscription: who receives it and where it stands."""

    __slots__ = (
        "apart",
        "asks",
        "behaviour",
        "compare_at",
        "end",
        "end_at",
        "epoch",
        "held",
        "joiners",
        "members",
        "pending_since",
        "probe",
        "probed_codes",
        "seq",
        "stood",
        "synced",
        "topic",
        "unended",
    )

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.behaviour: Behaviour = behaviour_of(topic)
        # Receive every frame.
        self.members: dict[Member, None] = {}
        # Wait for an answer.
        self.joiners: dict[Member, _Ask] = {}
        # Stand elsewhere (epoch, seq): ahead, by an answer, of what the stream has brought, or nowhere yet.
        self.apart: dict[Member, tuple[int, int]] = {}
        self.asks: list[_Ask] = []
        # What arrived since the first joiner began to wait.
        self.held: deque[Frame] = deque(maxlen=HELD_FRAMES)
        # 0: nothing is known yet.
        self.epoch = 0
        self.seq = 0
        # Where it stood when last looked at, and when to compare it with the feeder if it still stands there.
        self.stood = (0, 0)
        self.compare_at = 0.0
        # False once an ask went unanswered: the feeder was away, so its return has to be followed by a new one.
        self.synced = True
        # Since when the source has not said whether it serves the topic, and the ask that will tell.
        self.pending_since: float | None = None
        self.probe: int | None = None
        self.probed_codes = 0
        # Of a market: those who came before it had a snapshot, which the source then pushes like news; when to ask
        # what it has by now; and, once that is known, where it stands (epoch, seq) and how many codes it has.
        self.unended: dict[Member, None] = {}
        self.end_at = 0.0
        self.end: tuple[int, int, int] | None = None

    @property
    def journaled(self) -> bool:
        """Return whether seq goes on counting over the restarts of the feeder."""
        return self.behaviour.keeps == "journal"

    @property
    def empty(self) -> bool:
        """Return whether nobody wants this stream any more."""
        return not (self.members or self.joiners or self.apart)

    def forget(self) -> None:
        """Stand nowhere, as everybody does who waits for an answer, and have to be asked for anew."""
        self.epoch = self.seq = 0
        self.held.clear()
        for ask in self.asks:
            ask.seen = (0, 0)
        self.synced = False


class Hub:
    """The table of streams of one worker, with its counters."""

    def __init__(self, upstream: Upstream) -> None:
        self.streams: dict[Topic, Stream] = {}
        self.epoch = 0
        # Frames received, and sequence gaps with the messages lost in them.
        self.received = 0
        self.gaps = 0
        self.lost = 0
        self._upstream = upstream
        # The latest of all epochs.
        self._latest = 0
        # Where the journal stood at the newest heartbeat, and in which life; None before the first.
        self._trade_seq: int | None = None
        self._trade_epoch: int | None = None
        self._compare_at = 0.0

    def join(
        self, members: Mapping[Topic, Member], now: float, after: int | None = None, epoch: float | None = None
    ) -> None:
        """Add a member to each topic; it hears the outcome by `settle`, then gets the last value and what follows.

        `after` (trade topics) is the last position the client has seen, in the journal that had the life `epoch` if it
        knows one: it gets every later event; without `after`, every event that comes from now on.
        """
        asking: list[tuple[Stream, _Ask]] = []
        for topic, member in members.items():
            stream = self.streams.get(topic)
            if stream is None:
                stream = self.streams[topic] = Stream(topic)
                self._upstream.subscribe(topic)
            begin, life, exact = after, epoch, False
            if after is None and stream.journaled:
                # To ask where the journal stands would leave out what is published until the answer.
                if stream.epoch:
                    stream.members[member] = None
                    member.starts(stream.epoch, stream.seq)
                    member.settle("live", None)
                    continue
                begin, life, exact = self._trade_seq, self._trade_epoch, True
            position = (begin, life, exact)
            alike = (ask for ask in stream.asks if (ask.after, ask.epoch, ask.exact) == position)
            shared = next((ask for ask in alike if not (ask.seen[1] or ask.settled)), None)
            if shared is None:
                shared = _Ask(begin, now, epoch=life, exact=exact)
                asking.append((stream, shared))
            stream.joiners[member] = shared
        self._ask(asking, now)

    def leave(self, topic: Topic, member: Member) -> None:
        """Remove a member; the last one ends the upstream subscription."""
        stream = self.streams.get(topic)
        if stream is None:
            return
        for group in (stream.members, stream.joiners, stream.apart, stream.unended):
            group.pop(member, None)
        self._tidy(stream)

    def receive(self, frame: Frame, now: float) -> None:
        """Hand a frame from a SUB socket to the members of its topic."""
        stream = self.streams.get(frame.topic)
        if stream is None:
            # One prefix stands for the trade topics of all accounts.
            stream = self.streams.get(ALL_TRADES) if frame.topic.startswith(ALL_TRADES) else None
            if stream is None:
                return
        self.received += 1
        # Who stands ahead may have to be replayed what the stream itself does not miss, having brought nothing yet.
        reborn = bool(stream.apart) and stream.journaled and _leaves_hole(stream, frame)
        if stream.epoch:
            if frame.epoch < stream.epoch:
                # Also of a journal: what the later life does not have died with the one before.
                return
            if frame.epoch > stream.epoch:
                # What the feeder published before our subscription reached its new life is unknown, and whether its
                # journal is the same.
                reborn = True
            else:
                missed = frame.seq - stream.seq - 1
                if missed < 0:
                    return
                if missed and stream.behaviour.on_gap != "snapshot":
                    self._count_gap(stream, missed, stream.members)
                reborn = reborn or (missed > 0 and stream.behaviour.on_gap != "count")
        if reborn:
            # Nobody gets this frame before the answer, which brings it or what has replaced it.
            stream.held.append(frame)
            self._rejoin([stream], now)
            stream.epoch, stream.seq = frame.epoch, frame.seq
            return
        stream.epoch, stream.seq = frame.epoch, frame.seq
        stream.pending_since = None
        for member in stream.members:
            member.deliver(frame)
        if stream.joiners:
            stream.held.append(frame)
        if stream.apart:
            self._pass(stream, frame)

    def answer(self, state: TopicState, now: float) -> None:
        """Take one reply to a CatchUp."""
        stream = self.streams.get(Topic(state.topic))
        if stream is None:
            return
        if state.id == stream.probe:
            self._probed(stream, state, now)
            return
        ask = next((ask for ask in stream.asks if ask.id == state.id), None)
        if ask is None:
            return
        if state.state == "refused":
            stream.asks.remove(ask)
            if ask.after is None:
                self._refuse(stream, state)
                return
            # A replay that cannot be is the trouble of those who asked for it; anything else is everybody's.
            if state.epoch < stream.epoch:
                self._doubt(stream, now)
            self._part(stream, _waiting(stream, ask), _refusal(state))
            return
        ask.sent_at = now
        if stream.journaled and state.epoch < max(stream.epoch, self.epoch):
            if ask.late != state.epoch:
                # Of a life that has ended; asked again, the next one says whether it goes on from there.
                ask.late = state.epoch
                self._send(stream, ask, now)
                return
            self._doubt(stream, now)
        if ask.after is None:
            self._take_value(stream, ask, state, now)
        else:
            self._take_events(stream, ask, ask.after, state, now)

    def _take_value(self, stream: Stream, ask: _Ask, state: TopicState, now: float) -> None:
        """Take where a topic stands, with its last value where it has one."""
        position = (state.epoch, state.seq)
        if state.body is not None and not stream.journaled:
            ask.parts.append(Frame(stream.topic, state.epoch, state.seq, 0, 0, state.body))
        if state.more:
            return
        newer = [frame for frame in stream.held if not _covers(stream, position, frame)]
        hole = _hole(stream, position, newer)
        if hole:
            # The ask was quicker than the subscription and a frame was published between the two, or one was lost while
            # it was under way.
            self._count_gap(stream, hole, _waiting(stream, ask))
            if stream.behaviour.on_gap != "count":
                if stream.journaled:
                    ask.after, ask.epoch, ask.exact = state.seq, state.epoch, True
                ask.parts.clear()
                self._send(stream, ask, now)
                return
        if state.state == "pending" and not stream.seq:
            stream.pending_since = now
        epoch, seq = ask.seen
        is_news = position > ask.seen
        if seq and state.epoch == epoch:
            # What came between what they have seen and the last value is gone.
            self._count_gap(stream, state.seq - seq - 1, _waiting(stream, ask))
        for member in _waiting(stream, ask):
            starts = member.starts(state.epoch, state.seq)
            member.settle("pending" if state.state == "pending" else "live", None)
            if starts and is_news:
                for frame in ask.parts:
                    member.deliver(frame)
                if stream.behaviour.keeps == "by_code":
                    self._end_snapshot(stream, member, ask.parts, now)
            for frame in newer:
                member.deliver(frame)
        self._place(stream, ask, position)

    def _end_snapshot(self, stream: Stream, member: Member, parts: list[Frame], now: float) -> None:
        """Tell a member that its snapshot has ended, or if there is none yet, see to it that this is told later."""
        if parts:
            stream.unended.pop(member, None)
            member.snapshot_ended(sum(frames.count_codes(part.body) for part in parts))
            return
        if not stream.unended:
            stream.end_at = now + ANSWER_TIMEOUT
        # What was known of it may be of a life of the feeder that has ended.
        stream.end = None
        stream.unended[member] = None

    def _end_pushed(self, stream: Stream) -> None:
        """Tell those who have by now received, as news, all that the market's first snapshot had."""
        if stream.end is None:
            return
        epoch, seq, count = stream.end
        for member in tuple(stream.unended):
            position = (stream.epoch, stream.seq) if member in stream.members else stream.apart.get(member)
            # A member that waits for an answer gets a snapshot by that.
            if position is not None and position >= (epoch, seq):
                del stream.unended[member]
                member.snapshot_ended(count)
        if not stream.unended:
            stream.end = None

    def _take_events(self, stream: Stream, ask: _Ask, after: int, state: TopicState, now: float) -> None:
        """Take a chunk of the journal after a position; the next one is asked for when this one has been taken."""
        events = [event for event in _events(state) if event.seq > after]
        if events and events[0].seq > after + 1:
            # A chunk was lost: the feeder's socket drops what a worker does not take in time.
            self._send(stream, ask, now)
            return
        waiting = _waiting(stream, ask)
        for member in waiting:
            if not ask.settled:
                member.starts(state.epoch, after)
                member.settle("live", None)
            for event in events:
                member.deliver(event)
        ask.settled = True
        ask.epoch, ask.exact = state.epoch, True
        ask.after = after = events[-1].seq if events else max(after, state.seq)
        if state.more:
            # From here on each at its own speed.
            stream.asks.remove(ask)
            for member in waiting:
                own = stream.joiners[member] = _Ask(after, now, epoch=state.epoch)
                own.settled = own.paused = True
                stream.asks.append(own)
                member.when_drained(partial(self._go_on, stream, own))
            return
        newer = [frame for frame in stream.held if not _covers(stream, (state.epoch, after), frame)]
        # An answer that ends before what the stream has brought already has not reached the end of the journal.
        if _hole(stream, (state.epoch, after), newer) or (events and not newer and stream.seq > after):
            self._send(stream, ask, now)
            return
        for member in waiting:
            for frame in newer:
                member.deliver(frame)
        self._place(stream, ask, (state.epoch, after))

    def _go_on(self, stream: Stream, ask: _Ask, now: float) -> None:
        if ask.paused and ask in stream.asks:
            ask.paused = False
            self._send(stream, ask, now)

    def _place(self, stream: Stream, ask: _Ask, position: tuple[int, int]) -> None:
        """Make members of those who have waited for `ask` and now stand at `position` or, by what was held, later."""
        waiting = _waiting(stream, ask)
        stream.asks.remove(ask)
        stream.synced = True
        is_apart = not stream.epoch or _is_ahead(stream, position)
        if is_apart and not stream.members and not stream.apart and len(waiting) == len(stream.joiners):
            # Nobody else has yet to see what is still on its way: it is in the answer.
            stream.epoch, stream.seq = position
            is_apart = False
        for member in waiting:
            del stream.joiners[member]
            if is_apart:
                stream.apart[member] = position
            else:
                stream.members[member] = None
        self._tidy(stream)

    def feeder_seen(self, epoch: int, trade_seq: int, now: float) -> None:
        """Take a heartbeat: it shows a new life of the feeder, and a trade event that was lost without a successor."""
        reborn, self.epoch = epoch != self.epoch, epoch
        self._latest = max(self._latest, epoch)
        if epoch < self._latest and not reborn:
            # The second heartbeat says so: the clock was set back, and this life does not know of the one before.
            for stream in self.streams.values():
                if stream.epoch > epoch and not stream.journaled:
                    stream.forget()
        trades = self.streams.get(ALL_TRADES)
        stale = [stream for stream in self.streams.values() if not stream.synced or (reborn and stream.epoch != epoch)]
        # The event may still be on its way when the heartbeat comes, by another socket; not so one heartbeat later.
        known = self._trade_seq or 0
        if trades is not None and trades not in stale:
            stands = [seq for life, seq in ((trades.epoch, trades.seq), *trades.apart.values()) if life]
            if min(stands, default=known) < known:
                self._count_gap(trades, known - min(stands), ())
                stale.append(trades)
        self._trade_seq, self._trade_epoch = trade_seq, epoch
        for stream in stale:
            stream.synced = True
        self._rejoin(stale, now)

    def recheck(self, now: float) -> None:
        """Ask for every topic anew: the source was away, and may refuse what it served before."""
        self._rejoin([stream for stream in self.streams.values() if not stream.journaled], now)

    def expire(self, now: float) -> None:
        """Let those go live whose ask was not answered in time, and ask again for what is pending or may be lost."""
        if now >= self._compare_at:
            self._compare_at = now + ANSWER_TIMEOUT
            self._compare(now)
        probes: list[Stream] = []
        for stream in tuple(self.streams.values()):
            for ask in [ask for ask in stream.asks if not ask.paused and now - ask.sent_at >= ANSWER_TIMEOUT]:
                # Those who waited for an ask may have been the last who waited for any.
                if ask in stream.asks:
                    self._give_up(stream, ask, now)
            if stream.pending_since is not None and now - stream.pending_since >= ANSWER_TIMEOUT:
                stream.pending_since = now
                probes.append(stream)
            elif stream.unended:
                self._end_pushed(stream)
                if stream.unended and stream.end is None and now >= stream.end_at:
                    stream.end_at = now + ANSWER_TIMEOUT
                    probes.append(stream)
        if probes:
            sent = self._upstream.ask([stream.topic for stream in probes], None, None, False)
            for stream in probes:
                stream.probe = sent
                stream.probed_codes = 0

    def _ask(self, asks: list[tuple[Stream, _Ask]], now: float) -> None:
        """Send asks, those with the same position in one question; a stream is in each question once."""
        questions: dict[tuple[int | None, float | None, bool], list[dict[Stream, _Ask]]] = {}
        for stream, ask in asks:
            stream.asks.append(ask)
            alike = questions.setdefault((ask.after, ask.epoch, ask.exact), [])
            question = next((question for question in alike if stream not in question), None)
            if question is None:
                alike.append(question := {})
            question[stream] = ask
        for position, alike in questions.items():
            for question in alike:
                sent = self._upstream.ask([stream.topic for stream in question], *position)
                for stream, ask in question.items():
                    ask.id, ask.sent_at = sent, now
                    if sent is None:
                        self._give_up(stream, ask, now)

    def _send(self, stream: Stream, ask: _Ask, now: float) -> None:
        """Ask again: of a journal for what follows, else for a newer value."""
        ask.id, ask.sent_at = self._upstream.ask([stream.topic], ask.after, ask.epoch, ask.exact), now

    def _give_up(self, stream: Stream, ask: _Ask, now: float) -> None:
        """Go live without an answer; but an event after a known position may not be lost, so ask on for it."""
        stream.synced = False
        held = [frame for frame in stream.held if not _covers(stream, ask.seen, frame)]
        hole = _hole(stream, ask.seen, held)
        if hole and stream.journaled and ask.after is None:
            # What has come since tells where those stand who wait.
            ask.after, ask.epoch = held[0].seq - 1, held[0].epoch
        if ask.after is not None:
            self._send(stream, ask, now)
            return
        stream.asks.remove(ask)
        waiting = _waiting(stream, ask)
        self._count_gap(stream, hole, waiting)
        # Who has seen nothing does not stand where the stream does.
        is_apart = not held and (not ask.seen[0] or _is_ahead(stream, ask.seen))
        for member in waiting:
            del stream.joiners[member]
            member.settle("unanswered", None)
            for frame in (*ask.parts, *held):
                member.deliver(frame)
            if stream.behaviour.keeps == "by_code" and (not held or held[0].seq == 1):
                # What the source pushes from its first message on is the snapshot.
                self._end_snapshot(stream, member, [], now)
            if is_apart:
                stream.apart[member] = ask.seen
            else:
                stream.members[member] = None
        self._tidy(stream)

    def _doubt(self, stream: Stream, now: float) -> None:
        """See to it that a stream of events does not stand in a life that was not the latest: its clock was ahead."""
        self._rejoin([stream], now)
        stream.forget()
        stream.synced = True

    def _rejoin(self, streams: list[Stream], now: float) -> None:
        """Make every member wait for an answer as if it had just joined where it stands."""
        asking: list[tuple[Stream, _Ask]] = []
        for stream in streams:
            positions = dict.fromkeys(stream.members, (stream.epoch, stream.seq)) | stream.apart
            stream.members.clear()
            stream.apart.clear()
            asks: dict[tuple[int, int], _Ask] = {}
            for member, seen in positions.items():
                ask = asks.get(seen)
                if ask is None:
                    position, epoch = None, None
                    if stream.journaled:
                        if seen[0]:
                            epoch, position = seen
                        else:
                            # It was there before it was known where the journal stands.
                            position, epoch = self._trade_seq, self._trade_epoch
                    ask = asks[seen] = _Ask(position, now, (0, 0) if stream.journaled else seen, epoch)
                    asking.append((stream, ask))
                stream.joiners[member] = ask
        self._ask(asking, now)

    def _pass(self, stream: Stream, frame: Frame) -> None:
        """Hand a frame to those who stand elsewhere; whom it reaches stands where the stream does."""
        for member, position in tuple(stream.apart.items()):
            if not _covers(stream, position, frame):
                if frame.epoch == position[0]:
                    self._count_gap(stream, frame.seq - position[1] - 1, [member])
                member.deliver(frame)
            elif (frame.epoch, frame.seq) != position:
                continue
            del stream.apart[member]
            stream.members[member] = None

    def _probed(self, stream: Stream, state: TopicState, now: float) -> None:
        if state.body is not None:
            stream.probed_codes += frames.count_codes(state.body)
        if state.more:
            return
        stream.probe = None
        if state.state == "refused":
            self._refuse(stream, state)
        elif state.state == "live":
            was_pending, stream.pending_since = stream.pending_since is not None, None
            if was_pending and not stream.seq:
                self._rejoin([stream], now)
            elif stream.unended:
                stream.end = state.epoch, state.seq, stream.probed_codes
                self._end_pushed(stream)

    def _count_gap(self, stream: Stream, count: int, members: Iterable[Member]) -> None:
        """Count a gap and tell those who have missed something for good."""
        if count <= 0:
            return
        self.gaps += 1
        self.lost += count
        if not stream.journaled:
            for member in members:
                member.missed(count)

    def _compare(self, now: float) -> None:
        """Ask for what has been quiet; of trade events the heartbeat tells."""
        quiet: list[Stream] = []
        for stream in self.streams.values():
            position = (stream.epoch, stream.seq)
            if position != stream.stood:
                stream.stood = position
                stream.compare_at = now + QUIET_SECONDS
            elif now >= stream.compare_at and not stream.journaled and len(quiet) < COMPARE_TOPICS:
                stream.compare_at = now + COMPARE_SECONDS
                quiet.append(stream)
        self._rejoin(quiet, now)

    def _refuse(self, stream: Stream, state: TopicState) -> None:
        self._part(stream, [*stream.members, *stream.apart, *stream.joiners], _refusal(state))

    def _part(self, stream: Stream, members: list[Member], refusal: Refusal) -> None:
        for member in members:
            for group in (stream.members, stream.joiners, stream.apart, stream.unended):
                group.pop(member, None)
            member.settle("refused", refusal)
        self._tidy(stream)

    def _tidy(self, stream: Stream) -> None:
        if not stream.joiners:
            stream.held.clear()
            stream.asks.clear()
        if stream.empty and self.streams.pop(stream.topic, None) is not None:
            self._upstream.unsubscribe(stream.topic)


def _refusal(state: TopicState) -> Refusal:
    code, reason = state.code or "upstream_refused", state.error or "refused by the source"
    return Refusal(code, reason, state.oldest, state.seq, state.epoch)


def _waiting(stream: Stream, ask: _Ask) -> list[Member]:
    return [member for member, of in stream.joiners.items() if of is ask]


def _events(state: TopicState) -> list[Frame]:
    bodies: list[msgspec.Raw] = [] if state.body is None else read(_bodies_decoder, state.body)
    topic = Topic(state.topic)
    return [Frame(topic, state.epoch, event_position(body), 0, 0, bytes(body)) for body in bodies]


def _covers(stream: Stream, position: tuple[int, int], frame: Frame) -> bool:
    """Return whether who stands at `position` (epoch, seq) has the frame, or what has replaced it."""
    epoch, seq = position
    if frame.epoch == epoch or (stream.journaled and frame.epoch > epoch):
        return frame.seq <= seq
    return frame.epoch < epoch


def _leaves_hole(stream: Stream, frame: Frame) -> bool:
    """Return whether somebody who stands elsewhere would miss an event before `frame`, or have another journal's."""
    return any(epoch and (frame.seq > seq + 1 or frame.epoch > epoch) for epoch, seq in stream.apart.values())


def _is_ahead(stream: Stream, position: tuple[int, int]) -> bool:
    """Return whether `position` (epoch, seq) is one that the stream has yet to reach."""
    return position > (stream.epoch, stream.seq)


def _hole(stream: Stream, position: tuple[int, int], frames: Iterable[Frame]) -> int:
    """Return how many messages are missing between `position` (epoch, seq; epoch 0: none) and among `frames`."""
    epoch, seq = position
    hole = 0
    for frame in frames:
        if epoch and (stream.journaled or frame.epoch == epoch):
            hole += max(0, frame.seq - seq - 1)
        epoch, seq = frame.epoch, frame.seq
    return hole
