"""Topic -> members: one upstream subscription however many clients, last values for late joiners, gaps repaired.

Pure: no sockets, time is an argument; what has to go upstream is told to an `Upstream`. Runs on the event loop.

Subscribe first, ask second, hold what arrives meanwhile, drop what is not newer than the answer (WIRE.md, CatchUp).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import ALL_TRADES, KINDS, Behaviour, Kind, Topic

# Without an answer a joiner goes live after this long, and a topic still pending at its source is asked again.
ANSWER_TIMEOUT = 1.0
# A loss need not have a successor that shows it: the last values are compared once so long nothing more was lost,
# or at the latest after so long.
CALM_SECONDS = 1.0
LONGEST_LOSS = 10.0

Outcome = Literal["live", "pending", "unanswered", "refused"]


class Refusal(NamedTuple):
    """Why a topic is not served; a position that has expired would have had to be from `oldest` to `newest`."""

    code: ErrorCode
    reason: str
    oldest: int = 0
    newest: int = 0


class Member(Protocol):
    """One client's wish for one topic. It must not wait, nor join or leave anything while it is told something."""

    def deliver(self, frame: Frame) -> None:
        """Take a frame."""

    def starts(self, epoch: int, seq: int) -> bool:
        """Hear where the last value stands and return whether to deliver it; `settle` follows."""

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Hear how joining ended, and again when a topic was asked for anew; "refused" means it has been removed."""

    def missed(self, count: int) -> None:
        """Hear that so many messages were lost on the way from the feeder, for good."""


class Upstream(Protocol):
    """The link to the feeder, as the hub sees it."""

    def subscribe(self, topic: Topic) -> None:
        """Subscribe the ZeroMQ topic or prefix."""

    def unsubscribe(self, topic: Topic) -> None:
        """Take the subscription back."""

    def ask(self, topics: list[Topic], after: int | None) -> int | None:
        """Send a CatchUp and return its id, or None while the feeder is away."""


class _Ask:
    """A CatchUp under way for one stream; every joiner that came since shares its answer."""

    __slots__ = ("after", "id", "parts", "seen", "sent_at")

    def __init__(self, after: int | None, now: float, seen: tuple[int, int] = (0, 0)) -> None:
        self.after = after
        # Epoch and seq that those have seen who wait for it; a last value that is not newer is no news.
        self.seen = seen
        # None while the feeder is away.
        self.id: int | None = None
        self.sent_at = now
        self.parts: list[Frame] = []


class Stream:
    """One upstream subscription: who receives it and where it stands."""

    __slots__ = (
        "asks",
        "behaviour",
        "behind",
        "epoch",
        "held",
        "joiners",
        "members",
        "pending_since",
        "probe",
        "seq",
        "synced",
        "topic",
    )

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.behaviour: Behaviour = KINDS[Kind(topic.partition("/")[0])]
        # Receive every frame.
        self.members: dict[Member, None] = {}
        # Wait for an answer.
        self.joiners: dict[Member, _Ask] = {}
        # Have an answer that is ahead of what the older members have seen: receive from this seq on.
        self.behind: dict[Member, int] = {}
        self.asks: list[_Ask] = []
        # What arrived since the first joiner began to wait.
        self.held: deque[Frame] = deque()
        # 0: nothing is known yet.
        self.epoch = 0
        self.seq = 0
        # False once an ask went unanswered: the feeder was away, so its return has to be followed by a new one.
        self.synced = True
        # Since when the source has not said whether it serves the topic, and the ask that will tell.
        self.pending_since: float | None = None
        self.probe: int | None = None

    @property
    def journaled(self) -> bool:
        """Return whether seq goes on counting over the restarts of the feeder."""
        return self.behaviour.keeps == "journal"

    @property
    def empty(self) -> bool:
        """Return whether nobody wants this stream any more."""
        return not (self.members or self.joiners or self.behind)


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
        self._trade_seq = 0
        # When market data was first and last lost since values were last compared.
        self._loss: tuple[float, float] | None = None

    def join(self, members: Mapping[Topic, Member], now: float, after: int | None = None) -> None:
        """Add a member to each topic; it hears the outcome by `settle`, then gets the last value and what follows.

        `after` (trade topics) is the last position the client has seen: it gets every later event.
        """
        asking: list[Stream] = []
        for topic, member in members.items():
            stream = self.streams.get(topic)
            if stream is None:
                stream = self.streams[topic] = Stream(topic)
                self._upstream.subscribe(topic)
            shared = next((ask for ask in stream.asks if ask.after == after and not ask.seen[1]), None)
            if shared is None:
                shared = _Ask(after, now)
                stream.asks.append(shared)
                asking.append(stream)
            stream.joiners[member] = shared
        self._ask(asking, after, now)

    def leave(self, topic: Topic, member: Member) -> None:
        """Remove a member; the last one ends the upstream subscription."""
        stream = self.streams.get(topic)
        if stream is None:
            return
        for group in (stream.members, stream.joiners, stream.behind):
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
        if stream.epoch:
            reborn = frame.epoch != stream.epoch
            if reborn and (not stream.journaled or frame.seq <= stream.seq):
                # What the feeder published before our subscription reached its new life is unknown; a journal
                # that begins again is another one.
                after = None
            else:
                missed = frame.seq - stream.seq - 1
                if missed < 0:
                    return
                if missed:
                    self._count_gap(stream, missed, now)
                reborn = missed > 0 and stream.behaviour.on_gap != "count"
                after = stream.seq if stream.journaled else None
            if reborn:
                # Nobody gets this frame now: the answer brings it, or what has replaced it.
                self._rejoin([stream], now, after)
                if stream.joiners:
                    stream.held.append(frame)
                stream.epoch, stream.seq = frame.epoch, frame.seq
                return
        stream.epoch, stream.seq = frame.epoch, frame.seq
        stream.pending_since = None
        for member in stream.members:
            member.deliver(frame)
        if stream.joiners:
            stream.held.append(frame)
        if stream.behind:
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
            expired = state.code == "resume_expired"
            # A position that is too old is the trouble of those who asked for it; anything else is everybody's.
            self._refuse(stream, state, [m for m, of in stream.joiners.items() if of is ask or not expired], expired)
            return
        ask.parts += self._parts(stream, state)
        ask.sent_at = now
        if state.more:
            return
        stream.asks.remove(ask)
        newer = [frame for frame in stream.held if not self._covers(stream, state, frame)]
        if newer and newer[0].seq > state.seq + 1 and newer[0].epoch == state.epoch:
            # The ask was quicker than the subscription, and a frame was published between the two.
            self._count_gap(stream, newer[0].seq - state.seq - 1, now)
            if stream.behaviour.on_gap != "count":
                again = _Ask(state.seq if stream.journaled else None, now, ask.seen)
                again.parts = ask.parts if stream.journaled else []
                stream.asks.append(again)
                stream.joiners.update({m: again for m, of in stream.joiners.items() if of is ask})
                self._ask([stream], again.after, now)
                return
        stream.synced = True
        if state.state == "pending" and not stream.seq:
            stream.pending_since = now
        behind = self._is_behind(stream, state)
        if behind and not stream.members and not stream.behind:
            # Nobody has yet to see what is still on its way: it is in the answer.
            stream.epoch, stream.seq = state.epoch, state.seq
            behind = False
        epoch, seq = ask.seen
        is_news = stream.journaled or state.epoch != epoch or state.seq > seq
        for member in [member for member, of in stream.joiners.items() if of is ask]:
            del stream.joiners[member]
            starts = member.starts(state.epoch, state.seq)
            member.settle("pending" if state.state == "pending" else "live", None)
            if starts and is_news:
                for frame in ask.parts:
                    member.deliver(frame)
            for frame in newer:
                member.deliver(frame)
            if behind:
                stream.behind[member] = state.seq
            else:
                stream.members[member] = None
        self._tidy(stream)

    def feeder_seen(self, epoch: int, trade_seq: int, now: float) -> None:
        """Take a heartbeat: it shows a new life of the feeder, and a trade event that was lost without a successor."""
        reborn, self.epoch = epoch != self.epoch, epoch
        stale = [stream for stream in self.streams.values() if not stream.synced or (reborn and stream.epoch != epoch)]
        trades = self.streams.get(ALL_TRADES)
        # The event may still be on its way when the heartbeat comes, by another socket; not so one heartbeat later.
        if trades is not None and 0 < trades.seq < self._trade_seq and trades not in stale:
            self._count_gap(trades, self._trade_seq - trades.seq, now)
            stale.append(trades)
        self._trade_seq = trade_seq
        for stream in stale:
            stream.synced = True
        self._rejoin([stream for stream in stale if not stream.journaled], now, None)
        for stream in stale:
            if stream.journaled:
                self._rejoin([stream], now, stream.seq or None)

    def recheck(self, now: float) -> None:
        """Ask for every topic anew: the source may refuse what it served before, or have what was lost."""
        self._rejoin([stream for stream in self.streams.values() if not stream.journaled], now, None)

    def expire(self, now: float) -> None:
        """Let those go live whose ask was not answered in time, and ask again for what is pending or was lost."""
        if self._loss is not None:
            first, last = self._loss
            if now - last >= CALM_SECONDS or now - first >= LONGEST_LOSS:
                self._loss = None
                self.recheck(now)
        probes: list[Stream] = []
        for stream in tuple(self.streams.values()):
            for ask in [ask for ask in stream.asks if now - ask.sent_at >= ANSWER_TIMEOUT]:
                self._give_up(stream, ask, now)
            if stream.pending_since is not None and now - stream.pending_since >= ANSWER_TIMEOUT:
                stream.pending_since = now
                probes.append(stream)
        if probes:
            sent = self._upstream.ask([stream.topic for stream in probes], None)
            for stream in probes:
                stream.probe = sent

    def _ask(self, streams: list[Stream], after: int | None, now: float) -> None:
        """Send the newest ask of each stream."""
        if not streams:
            return
        sent = self._upstream.ask([stream.topic for stream in streams], after)
        for stream in streams:
            ask = stream.asks[-1]
            ask.id, ask.sent_at = sent, now
            if sent is None:
                self._give_up(stream, ask, now)

    def _give_up(self, stream: Stream, ask: _Ask, now: float) -> None:
        """Go live without an answer; but an event after a known position may not be lost, so ask on for it."""
        stream.synced = False
        if ask.after is not None:
            ask.parts.clear()
            ask.id, ask.sent_at = self._upstream.ask([stream.topic], ask.after), now
            return
        stream.asks.remove(ask)
        for member in [member for member, of in stream.joiners.items() if of is ask]:
            del stream.joiners[member]
            member.settle("unanswered", None)
            for frame in (*ask.parts, *stream.held):
                member.deliver(frame)
            stream.members[member] = None
        self._tidy(stream)

    def _rejoin(self, streams: list[Stream], now: float, after: int | None) -> None:
        """Make every member wait for an answer as if it had just joined."""
        asking = []
        for stream in streams:
            if stream.members or stream.behind:
                ask = _Ask(after, now, (0, 0) if stream.journaled else (stream.epoch, stream.seq))
                stream.asks.append(ask)
                for member in (*stream.members, *stream.behind):
                    stream.joiners[member] = ask
                stream.members.clear()
                stream.behind.clear()
                asking.append(stream)
        self._ask(asking, after, now)

    def _parts(self, stream: Stream, state: TopicState) -> list[Frame]:
        if state.body is None:
            return []
        topic = Topic(state.topic)
        if not stream.journaled:
            return [Frame(topic, state.epoch, state.seq, 0, 0, state.body)]
        events = frames.decode(state.body)
        return [Frame(topic, state.epoch, event["seq"], 0, 0, frames.encode(event)) for event in events]

    @staticmethod
    def _covers(stream: Stream, state: TopicState, frame: Frame) -> bool:
        """Return whether the answer holds the frame, or what has replaced it."""
        if stream.journaled or frame.epoch == state.epoch:
            return frame.seq <= state.seq
        return frame.epoch < state.epoch

    @staticmethod
    def _is_behind(stream: Stream, state: TopicState) -> bool:
        if stream.journaled or stream.epoch == state.epoch:
            return stream.seq < state.seq
        return stream.epoch < state.epoch

    @staticmethod
    def _pass(stream: Stream, frame: Frame) -> None:
        for member, seq in tuple(stream.behind.items()):
            if frame.seq > seq:
                member.deliver(frame)
            if frame.seq >= seq:
                del stream.behind[member]
                stream.members[member] = None

    def _probed(self, stream: Stream, state: TopicState, now: float) -> None:
        if state.more:
            return
        stream.probe = None
        if state.state == "refused":
            self._refuse(stream, state, list(stream.joiners), False)
        elif state.state == "live":
            stream.pending_since = None
            if not stream.seq:
                self._rejoin([stream], now, None)

    def _count_gap(self, stream: Stream, count: int, now: float) -> None:
        self.gaps += 1
        self.lost += count
        if not stream.journaled:
            self._loss = (now if self._loss is None else self._loss[0], now)
            for member in stream.members:
                member.missed(count)

    def _refuse(self, stream: Stream, state: TopicState, joiners: list[Member], only: bool) -> None:
        """Part with `joiners`, and unless `only` they are meant with everybody else."""
        code, reason = state.code or "upstream_refused", state.error or "refused by the source"
        refusal = Refusal(code, reason, state.oldest, state.seq)
        for member in joiners if only else (*stream.members, *stream.behind, *joiners):
            for group in (stream.members, stream.joiners, stream.behind):
                group.pop(member, None)
            member.settle("refused", refusal)
        self._tidy(stream)

    def _tidy(self, stream: Stream) -> None:
        if not stream.joiners:
            stream.held.clear()
            stream.asks.clear()
        if stream.empty and self.streams.pop(stream.topic, None) is not None:
            self._upstream.unsubscribe(stream.topic)
