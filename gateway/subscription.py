"""One client's subscription to one topic: it takes frames from the hub and gives them to the client's sender.

A ticket holds the frames of new topics until the ack is sent, a pacer limits the rate of frames if the client asked for
that, and a view renders them. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

from gateway.sending.depth import kept_levels, served_by
from gateway.sending.outbox import Item
from gateway.sending.pace import Limit, limit
from gateway.sending.sender import Sender
from gateway.sending.view import View, field_names, in_one_order
from gateway.streams.member import Gap, Outcome, Refusal
from qmt_bridge.errors import WireError
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.hints import Ignored, did_you_mean
from qmt_bridge.wire.messages import known_fields
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.topics import Behaviour, Kind, Topic, behaviour_of

# How many held frames are read to see which fields records have.
FRAMES_LOOKED_AT = 20
# Held frames that are passed on in one turn of the loop.
PASSED_A_TURN = 100
# Combinations of terms and kinds of topics that are remembered.
MANNERS = 256


class Owner(Protocol):
    """The session, as far as a subscription uses it."""

    # The subscriptions that the client has not ended.
    subscriptions: dict[Subscription, None]
    # Messages lost on the way from the feeder, of which the client has not been told.
    missed: int

    def tell_ignored(self, ignored: Iterable[Ignored]) -> None:
        """Tell the client which names of its request are unknown."""

    def refused(self, subscription: Subscription, refusal: Refusal) -> None:
        """Forget a topic that is not served, or no longer; tell the client if its gate is no `Ticket`."""

    def broke(self) -> None:
        """End the session because of the exception that is being handled."""

    def snapshot_ended(self, subscription: Subscription, count: int) -> None:
        """Tell the client that it was sent a whole snapshot of `count` codes."""

    def ask_turn(self, subscription: Subscription, act: Callable[[float], None], chunk: int | None = None) -> None:
        """Call `act` with the time when it is the turn of a subscription to be read a chunk of the store's records.

        `chunk` is its bytes; None is the first chunk, which has turns of its own.
        """

    def rest(self, subscription: Subscription) -> None:
        """Take that a subscription has no turn, and waits for none."""

    def tell_gap(self, subscription: Subscription, gap: Gap) -> None:
        """Tell the client what is missing of a topic that it asked for from a moment of the past on."""


# What is held: a frame, the number of codes of a snapshot that ends, or something to do then.
_Entry = Frame | int | Callable[[], None]


class Ticket:
    """Holds the frames of a client's new topics until all topics are answered, so the ack is sent before the data."""

    __slots__ = ("_complete", "_held", "_sender", "_waiting", "pending", "refused", "subscriptions")

    def __init__(
        self, sender: Sender, subscriptions: Iterable[Subscription], complete: Callable[[Ticket], None]
    ) -> None:
        self.refused: dict[Topic, Refusal] = {}
        # Topics for which the feeder has not answered yet whether it can serve them.
        self.pending: list[Topic] = []
        self.subscriptions: list[Subscription] = []
        self._sender = sender
        # Those that have not been answered.
        self._waiting: set[Subscription] = set()
        # In order.
        self._held: list[tuple[Subscription, _Entry]] = []
        # Sends the ack; None once it was called.
        self._complete: Callable[[Ticket], None] | None = complete
        for subscription in subscriptions:
            self.add(subscription)
        self._finish()

    def add(self, subscription: Subscription) -> None:
        """Wait for one more subscription, and hold its frames."""
        subscription.gate = self
        self.subscriptions.append(subscription)
        self._waiting.add(subscription)

    def waits_for(self, subscription: Subscription) -> bool:
        """Return whether the feeder has not answered for a subscription."""
        return subscription in self._waiting

    def hold(self, subscription: Subscription, frame: Frame) -> None:
        """Keep a frame until the ack is sent."""
        self._held.append((subscription, frame))

    def fields_held(self) -> frozenset[str]:
        """Return the names of the fields in some of the held records."""
        some = [frame for _, frame in self._held if isinstance(frame, Frame)][:FRAMES_LOOKED_AT]
        return frozenset[str]().union(*(field_names(frame) or () for frame in some))

    def hold_end(self, subscription: Subscription, count: int) -> None:
        """Keep the end of a snapshot, after its frames."""
        self._held.append((subscription, count))

    def hold_act(self, subscription: Subscription, act: Callable[[], None]) -> None:
        """Call `act` after the frames that are held now have been passed on."""
        self._held.append((subscription, act))

    def settle(self, subscription: Subscription, outcome: Outcome, refusal: Refusal | None) -> None:
        """Take a subscription's outcome; after the last one, the ack and the held frames are sent."""
        first = subscription in self._waiting
        self._waiting.discard(subscription)
        if refusal is not None:
            self.refused[subscription.topic] = refusal
        elif first and outcome != "live":
            self.pending.append(subscription.topic)
        if first and not self._waiting:
            self._sender.later(self._finish)

    def _finish(self) -> None:
        complete = self._complete
        if self._waiting or complete is None:
            # A subscription was added since this call was planned; its outcome plans the next one.
            return
        self._complete = None
        try:
            complete(self)
        finally:
            self._open()

    def _open(self) -> None:
        """Pass on what was held, and what comes from now on."""
        held, self._held = self._held, []
        opening = _Opening(self._sender, [of for of in self.subscriptions if of.gate is self], held)
        opening.pass_on()

    def release(self, subscription: Subscription) -> None:
        """Wait no longer for a subscription that the client ended; its gate drops the frames that are held."""
        self.settle(subscription, "live", None)


class _Opening:
    """The gate between the ack and the newest data: passes on what a ticket has held, in several turns of the loop.

    Thousands of snapshots for a client that does not read go through its outbox, which takes 20 us each.
    """

    __slots__ = ("_held", "_sender", "_subscriptions")

    def __init__(
        self, sender: Sender, subscriptions: list[Subscription], held: list[tuple[Subscription, _Entry]]
    ) -> None:
        self._sender = sender
        self._subscriptions = subscriptions
        self._held = deque(held)
        for subscription in subscriptions:
            subscription.gate = self

    def hold(self, subscription: Subscription, frame: Frame) -> None:
        """Keep a frame until those before it have been passed on."""
        self._held.append((subscription, frame))

    def hold_end(self, subscription: Subscription, count: int) -> None:
        """Keep the end of a snapshot, after its frames."""
        self._held.append((subscription, count))

    def hold_act(self, subscription: Subscription, act: Callable[[], None]) -> None:
        """Call `act` after the frames that are held now have been passed on."""
        self._held.append((subscription, act))

    def pass_on(self) -> None:
        """Pass on the oldest frames; the rest, and what comes meanwhile, later."""
        for _ in range(min(PASSED_A_TURN, len(self._held))):
            self._pass(*self._held.popleft())
        if self._held:
            self._sender.later(self.pass_on)
            return
        for subscription in self._subscriptions:
            if subscription.gate is self:
                subscription.gate = subscription.pacer

    def _pass(self, subscription: Subscription, frame: _Entry) -> None:
        is_open = subscription.gate is self
        if is_open:
            subscription.gate = subscription.pacer
        try:
            if isinstance(frame, Frame):
                subscription.deliver(frame)
            elif isinstance(frame, int):
                subscription.snapshot_ended(frame)
            elif subscription.gate is not ENDED:
                frame()
        finally:
            if is_open and subscription.gate is not ENDED:
                subscription.gate = self


class Pacer:
    """Limits the rate of a subscription's frames (option ``max_rate_ms``)."""

    __slots__ = ("_counted", "_limit", "_loop", "_outbox", "_timer")

    def __init__(self, limit: Limit, sender: Sender) -> None:
        self._limit = limit
        self._loop = sender.loop
        # Counts what is kept, as what waits for the client in any other way.
        self._outbox = sender.outbox
        self._counted = 0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, subscription: Subscription, frame: Frame) -> None:
        """Pass on what is due of the frame, and keep the rest until then."""
        due = self._limit.offer(frame, self._loop.time())
        self._count(self._limit.size)
        self._pass(subscription, due)
        if self._limit.full:
            self.release(subscription)
        elif (
            self._limit.waits
            and subscription in subscription.owner.subscriptions
            and (self._timer is None or self._timer.when() > self._limit.due)
        ):
            self._plan(subscription)

    def hold_end(self, subscription: Subscription, count: int) -> None:
        """Tell the client of the end of a snapshot: none of its frames had to wait."""
        subscription.owner.snapshot_ended(subscription, count)

    def release(self, subscription: Subscription) -> None:
        """Pass on all that was kept, unless the client has ended the subscription."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kept = self._limit.take_all()
        self._count(0)
        self._pass_on_time(subscription, kept)

    def stop(self) -> None:
        """Forget what was kept: the subscription has ended, and a timer would keep its session for up to an hour."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._count(0)

    def _count(self, size: int) -> None:
        if size != self._counted:
            self._outbox.keep_paced(size - self._counted)
            self._counted = size

    def _plan(self, subscription: Subscription) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if subscription in subscription.owner.subscriptions:
            self._timer = self._loop.call_at(self._limit.due, self._release_due, subscription)

    def _release_due(self, subscription: Subscription) -> None:
        # The loop would only log an exception, and the client would wait for frames that do not come any more.
        try:
            self._pass_due(subscription)
        except Exception:
            subscription.owner.broke()

    def _pass_due(self, subscription: Subscription) -> None:
        self._timer = None
        now = self._loop.time()
        if now >= self._limit.due:
            due = self._limit.take(now)
            self._count(self._limit.size)
            self._pass_on_time(subscription, due)
        if self._limit.waits:
            self._plan(subscription)

    def _pass_on_time(self, subscription: Subscription, kept: list[Frame]) -> None:
        if subscription in subscription.owner.subscriptions:
            self._pass(subscription, kept)

    def _pass(self, subscription: Subscription, admitted: list[Frame]) -> None:
        gate, subscription.gate = subscription.gate, None
        try:
            for frame in admitted:
                subscription.deliver(frame)
        finally:
            subscription.gate = gate


class _Ended:
    """The gate of a subscription that has ended: nothing passes, although its stream may still have it as a member."""

    __slots__ = ()

    def hold(self, subscription: Subscription, frame: Frame) -> None:
        """Drop a frame."""

    def hold_end(self, subscription: Subscription, count: int) -> None:
        """Drop the end of a snapshot."""


ENDED = _Ended()


class Terms(NamedTuple):
    """How a subscription is served; the defaults are what xtquant's document says (requests.Options)."""

    fields: tuple[str, ...] = ()
    stamped: bool = False
    # The least number of seconds between two frames.
    interval: float = 0.0
    # Never conflate.
    keep_all: bool = False
    snapshot: bool = True
    # Read from the store what is lost on the way from the feeder.
    complete: bool = False


DOCUMENTED = Terms()


class _Manner(NamedTuple):
    """What follows from the terms for all topics of one kind and detail, so that thousands of codes share it."""

    # None stands for the default view, which every frame renders once and keeps.
    view: View | None
    behaviour: Behaviour
    # The fields that were asked for and are not documented.
    unknown: tuple[str, ...]


@lru_cache(maxsize=MANNERS)
def _manner(terms: Terms, word: str, ending: str, binary: bool, deflated: bool, seq_id: int | None) -> _Manner:
    """Return how to serve topics that begin with `word`, and have `ending` after the code."""
    detail = ending.rstrip("/")
    levels = kept_levels(int(detail)) if word == Kind.L2 else 0
    view = View(binary, in_one_order(terms.fields), terms.stamped, seq_id, deflated, levels)
    behaviour = behaviour_of(f"{word}/?/{ending}")
    if terms.keep_all:
        behaviour = behaviour._replace(versions="none")
    known = known_fields(Kind(word), detail) if terms.fields else frozenset()
    return _Manner(
        None if view == View() else view, behaviour, tuple(name for name in terms.fields if name not in known)
    )


def reduced_view(topic: Topic, terms: Terms) -> View | None:
    """Return the view that leaves out fields or levels, of which an address may use a limited number; None if all."""
    word, _, *detail = topic.split("/")
    if not terms.fields and word != Kind.L2:
        return None
    view = _manner(Terms(terms.fields), word, "/".join(detail), False, False, None).view
    return view if view is not None and (view.fields or view.levels) else None


class Subscription:
    """One client's subscription to one topic (hub.Member)."""

    __slots__ = (
        "_behaviour",
        "_joined",
        "_position",
        "_sender",
        "_unknown",
        "_view",
        "began",
        "epoch",
        "gate",
        "owner",
        "pacer",
        "recovered",
        "snapshot",
        "topic",
        "upstream",
    )

    def __init__(
        self,
        sender: Sender,
        owner: Owner,
        topic: Topic,
        terms: Terms = DOCUMENTED,
        position: Position | None = None,
        seq_id: int | None = None,
    ) -> None:
        self.owner = owner
        self._sender = sender
        self.topic = topic
        # The topic whose frames serve it: those of a larger depth are cut.
        self.upstream = served_by(topic)
        # Whether the client has missed nothing since its `position`; None without a position, or before the answer.
        self.recovered: bool | None = None
        # The position after which new frames begin; 0 while the feeder has not answered.
        self.began = 0
        self.epoch = 0
        # What holds frames: the ticket until the ack is sent, then the pacer, if there is one.
        self.gate: Ticket | _Opening | Pacer | _Ended | None = None
        self.pacer: Pacer | None = None
        self._position = position
        self._joined = False
        self.serve(terms, seq_id)

    def serve(self, terms: Terms, seq_id: int | None = None) -> None:
        """Serve by these terms from now on."""
        outbox = self._sender.outbox
        word, _, *detail = self.topic.split("/")
        manner = _manner(terms, word, "/".join(detail), outbox.binary, outbox.deflated, seq_id)
        self._view, self._behaviour, self._unknown = manner
        self.snapshot = terms.snapshot
        pacer = Pacer(limit(terms.interval, behaviour_of(self.topic)), self._sender) if terms.interval else None
        before, self.pacer = self.pacer, pacer
        if before is not None:
            before.release(self)
        if self.gate is before:
            self.gate = self.pacer

    def deliver(self, frame: Frame) -> None:
        """Queue a frame for the client."""
        sender = self._sender
        if self.gate is not None:
            self.gate.hold(self, frame)
        elif sender.room > 0 or sender.make_room():
            ready = sender.ready
            if not ready:
                sender.wake()
            if self._view is None:
                ready.append(frame.prepared or frame.framed)
            elif not self._make_ready(frame, self._view):
                return
            sender.room -= len(frame.body)
            if sender.ready_seqs is not None:
                sender.ready_seqs.append(frame.seq)
        else:
            if self._unknown:
                self._look_for_fields(frame)
            sender.put(Item(frame, self._behaviour, self._view, self))

    def _make_ready(self, frame: Frame, view: View) -> bool:
        """Render a frame for this turn's write; return False if its body cannot be shown so."""
        if self._unknown:
            self._look_for_fields(frame)
        try:
            self._sender.ready.append(view.of(frame).framed)
        except WireError:
            self._sender.outbox.unfit += 1
            return False
        except Exception:
            # A bug in our code, which the other members of the stream must not suffer from.
            self.owner.broke()
            return False
        return True

    def _look_for_fields(self, frame: Frame) -> None:
        """Tell the client which fields that it asked for are neither documented nor in the first record."""
        names = field_names(frame)
        if names:
            unknown, self._unknown = self._unknown, ()
            self.owner.tell_ignored(
                Ignored(name, did_you_mean(name, names) or "the first record has no such field")
                for name in unknown
                if name not in names
            )

    def starts(self, epoch: int, seq: int) -> bool:
        """Return whether to send the last value, which has the position (`epoch`, `seq`), to the client."""
        if self._joined:
            # This is a later value: it repairs a loss or belongs to a new epoch.
            return True
        self._joined = True
        self.began = seq
        self.epoch = epoch
        if self._position is None:
            return self.snapshot
        # Compared as floats, because a browser has rounded the epoch to one.
        missed = seq - self._position.seq if float(self._position.epoch) == float(epoch) else -1
        # At the next message the client has missed only the last value, which it is sent now.
        self.recovered = missed in (0, 1)
        return missed != 0

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Pass the outcome to the ticket, and a refusal to the session."""
        self._joined = True
        if self.gate is ENDED:
            # The client has ended it, and may have subscribed the topic again.
            return
        if refusal is not None:
            self.owner.subscriptions.pop(self, None)
            self.stop()
            self.owner.refused(self, refusal)
        if isinstance(self.gate, Ticket):
            self.gate.settle(self, outcome, refusal)
        if refusal is not None:
            # What the ticket has held is of a code that the ack rejects.
            self.gate = ENDED

    def end(self) -> None:
        """Send nothing more, also of what waits: the client has ended the subscription."""
        gate, self.gate = self.gate, ENDED
        self._sender.outbox.drop(self)
        self.stop()
        if isinstance(gate, Ticket):
            gate.release(self)

    def stop(self) -> None:
        """End the timer of what was kept: the subscription has ended."""
        if self.pacer is not None:
            self.pacer.stop()

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` once nothing waits in the client's outbox."""
        self._sender.when_drained(act)

    def snapshot_ended(self, count: int) -> None:
        """Tell the client that it has a whole snapshot, after the last of its frames."""
        if self.gate is not None:
            self.gate.hold_end(self, count)
        else:
            self.owner.snapshot_ended(self, count)

    def in_order(self, act: Callable[[], None]) -> None:
        """Call `act` after the frames that were delivered before: now, or once the ack is sent."""
        if isinstance(self.gate, Ticket | _Opening):
            self.gate.hold_act(self, act)
        elif self.gate is not ENDED:
            act()

    def missed(self, count: int) -> None:
        """Count lost messages; the worker's timer has the client told once a second."""
        if self.gate is not ENDED:
            self.owner.missed += count
