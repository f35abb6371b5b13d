"""A subscription that is read what the store of the day has: from a `start` on until it meets the live stream.

Until then nothing is left out, whatever its options say. With the option `complete` it is read the store after each
loss, too. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from gateway.sending.sender import Sender
from gateway.streams.member import Beginning, Gap, StoreQuestion
from gateway.subscription import ENDED, Owner, Subscription, Terms, Ticket
from qmt_bridge.system import clock
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.topics import Topic

# The least number of seconds between two looks whether records are due: at a high speed several are, in one write.
LOOK_SECONDS = 0.01


class ReadSubscription(Subscription):
    """One client's subscription to one topic that is read the store (streams.member.Reader)."""

    __slots__ = ("_kept", "_on_end", "_reading", "_terms", "_timer", "beginning", "question", "seq_id")

    def __init__(
        self,
        sender: Sender,
        owner: Owner,
        topic: Topic,
        terms: Terms,
        question: StoreQuestion,
        position: Position | None = None,
        seq_id: int | None = None,
        on_end: Callable[[ReadSubscription], None] | None = None,
    ) -> None:
        """Call `on_end` once all was delivered, if the question has an end."""
        self.question = question
        self.seq_id = seq_id
        # Where its records begin; None until the store has answered.
        self.beginning: Beginning | None = None
        self._reading = not question.begins_live
        # The bytes of records that are not due yet, and what calls when the next one is.
        self._kept = 0
        self._timer: asyncio.TimerHandle | None = None
        self._terms = terms
        self._on_end = on_end
        if self._reading:
            sender.readings += 1
        super().__init__(sender, owner, topic, terms, position, seq_id)

    def serve(self, terms: Terms, seq_id: int | None = None) -> None:
        """Serve by these terms from now on, or from the live stream on."""
        self._terms = terms
        now = terms._replace(interval=0.0, keep_all=True) if self._reading else terms
        super().serve(now, self.seq_id)

    def begins(self, beginning: Beginning) -> None:
        """Note where its records begin; without an ack that shows it, tell what is missing."""
        self.beginning = beginning
        if beginning.gap is not None and not isinstance(self.gate, Ticket):
            self.gap(beginning.gap)

    def open(self, act: Callable[[float], None]) -> None:
        """Call `act` when it is this subscription's turn; there is no ack before the first answer."""
        self.owner.ask_turn(self, act)

    def read_on(self, act: Callable[[float], None]) -> None:
        """Call `act` after what was delivered has been sent, when it is this subscription's turn."""
        # What a ticket holds is not counted, so nothing more is read before the ack.
        self.in_order(partial(self._sender.when_drained, partial(self._ask_turn, act)))

    def _ask_turn(self, act: Callable[[float], None], now: float) -> None:
        self.owner.rest(self)
        if self.gate is not ENDED:
            self.owner.ask_turn(self, act, self.question.chunk)

    def play(self, at: float, act: Callable[[float], None]) -> None:
        """Call `act` at `at`, or later: once what was delivered has been sent."""
        self.in_order(partial(self._sender.when_drained, partial(self._wait_due, at, act)))

    def _wait_due(self, at: float, act: Callable[[float], None], now: float) -> None:
        if self.gate is ENDED:
            return
        if at <= now:
            act(now)
        else:
            self._timer = self._sender.loop.call_later(max(at - now, LOOK_SECONDS), self._play, act)

    def _play(self, act: Callable[[float], None]) -> None:
        # The loop would only log an exception, and the client would wait for records that do not come any more.
        self._timer = None
        try:
            act(clock.monotonic())
        except Exception:
            self.owner.broke()

    def keep(self, size: int) -> None:
        """Count records that are not due yet as what waits for the client."""
        self._sender.outbox.keep_paced(size - self._kept)
        self._kept = size

    def rest(self) -> None:
        """Give back the turn: the store is not asked now."""
        self.owner.rest(self)

    def gap(self, gap: Gap) -> None:
        """Tell the client what is missing between what it was sent and what follows."""
        self.in_order(partial(self.owner.tell_gap, self, gap))

    def met(self) -> None:
        """Serve by the client's own terms what follows."""
        self.rest()
        self.in_order(self._serve_live)

    def _serve_live(self) -> None:
        self._stop_reading()
        self.serve(self._terms)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            # What was read may wait for the client for some seconds.
            self._sender.when_drained(self._forget_reading)

    def _forget_reading(self, now: float) -> None:
        self._sender.readings -= 1

    def ended(self) -> None:
        """Tell the endpoint that all was delivered."""
        self.rest()
        if self._on_end is not None:
            self.in_order(partial(self._on_end, self))

    def end_early(self) -> None:
        """Tell the endpoint that the client wants no more of what it asked for up to an end."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)

    def stop(self) -> None:
        """Give back the turn: the subscription has ended."""
        super().stop()
        self._stop_reading()
        self.owner.rest(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.keep(0)
        if self.question.playback is not None:
            self.question.playback.leave(self)
