"""Topics that are subscribed for clients that have no connection: each request holds its topics for some seconds.

A page that asks every second so has one subscription at the feeder, and not one a second. A lease keeps the newest
frame of its topic. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from gateway.costs.shares import Shares, is_scarce
from gateway.costs.slices import Slices
from gateway.hub import Hub
from gateway.streams.member import Outcome, Refusal
from qmt_bridge.errors import BadRequest
from qmt_bridge.system import clock
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic

# Seconds that a topic stays subscribed after a request for it.
HELD = 15.0
# Topics that are joined or left at a time, which takes 2 ms.
PART = 100


class Lease:
    """One topic and its newest frame (hub.Member)."""

    __slots__ = ("_loop", "began", "decided", "holders", "newest", "refusal", "topic")

    # Done once there is a frame or a refusal.
    decided: asyncio.Future[None]

    def __init__(self, topic: Topic, now: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.topic = topic
        # Until when each client holds it; a client without a key is marked by True.
        self.holders: dict[tuple[str, bool], float] = {}
        self.newest: Frame | None = None
        self.begin(now)

    def begin(self, now: float) -> None:
        """Wait for the first frame from now on."""
        self.began = now
        self.refusal: Refusal | None = None
        self.decided = self._loop.create_future()

    def deliver(self, frame: Frame) -> None:
        """Keep the frame in place of the one before."""
        self.newest = frame
        self._decide()

    def starts(self, epoch: int, seq: int) -> bool:
        """Return True: the last value is what the lease is for."""
        return True

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Keep a refusal; the source is not asked again with each request, but after `HELD` seconds."""
        if refusal is not None:
            self.newest, self.refusal = None, refusal
            self._decide()

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` in the next turn of the loop: nothing is sent."""
        self._loop.call_soon(lambda: act(clock.monotonic()))

    def missed(self, count: int) -> None:
        """Ignore it: only the newest frame counts."""

    def snapshot_ended(self, count: int) -> None:
        """Ignore it."""

    def _decide(self) -> None:
        if not self.decided.done():
            self.decided.set_result(None)


class Leases:
    """The leases of one worker."""

    def __init__(self, hub: Hub, slices: Slices, shares: Shares) -> None:
        self._hub = hub
        self._slices = slices
        self._shares = shares
        self._leases: dict[Topic, Lease] = {}
        # How many topics each client holds.
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how many topics are held."""
        return len(self._leases)

    def take(self, client: str, topics: Sequence[Topic], most: int, *, with_key: bool, bounded: bool) -> list[Lease]:
        """Hold topics for a client for `HELD` seconds from now on; return their leases in the same order.

        Raise `BadRequest` if the client would hold more than `most`, or, without a key and `bounded`, more than its
        share of what is scarce at the source. Nothing is held then that was not before.
        """
        now, holder = clock.monotonic(), (client, not with_key)
        added = [topic for topic in dict.fromkeys(topics) if not self._holds(topic, holder)]
        if self._held[client] + len(added) > most:
            told = f"a client holds at most {most} topics, each for {HELD:.0f} s after its last request"
            raise BadRequest("symbol_limit", told)
        scarce: list[Topic] = [topic for topic in added if not with_key and is_scarce(topic)]
        for number, topic in enumerate(scarce):
            if bounded and (reason := self._shares.admits(topic)):
                for taken in scarce[:number]:
                    self._shares.remove(taken)
                raise BadRequest("symbol_limit", reason)
            self._shares.add(topic)
        self._held[client] += len(added)
        new = [topic for topic in added if topic not in self._leases]
        for topic in new:
            self._leases[topic] = Lease(topic, now)
        leases = [self._leases[topic] for topic in topics]
        joining = [self._leases[topic] for topic in new]
        for lease in leases:
            lease.holders[holder] = now + HELD
            if lease.refusal is not None and now - lease.began >= HELD and lease not in joining:
                # The hub has removed it with the refusal.
                lease.begin(now)
                joining.append(lease)
        self._in_parts(joining, self._join)
        return leases

    def expire(self, now: float) -> None:
        """End what is held no longer at `now` (clock.monotonic())."""
        ended = []
        for lease in list(self._leases.values()):
            for holder, until in list(lease.holders.items()):
                if until <= now:
                    del lease.holders[holder]
                    self._give_back(holder, lease.topic)
            if not lease.holders:
                del self._leases[lease.topic]
                ended.append(lease)
        self._in_parts(ended, self._leave)

    def holds(self, topic: Topic) -> int:
        """Return for how many clients a topic is held."""
        lease = self._leases.get(topic)
        return 0 if lease is None else len(lease.holders)

    def end(self, topic: Topic, refusal: Refusal) -> int:
        """Refuse a topic to those that hold it, for as long as they do; return how many these are."""
        lease = self._leases.get(topic)
        if lease is None:
            return 0
        self._hub.leave(topic, lease)
        lease.begin(clock.monotonic())
        lease.settle("refused", refusal)
        return len(lease.holders)

    def _holds(self, topic: Topic, holder: tuple[str, bool]) -> bool:
        lease = self._leases.get(topic)
        return lease is not None and holder in lease.holders

    def _give_back(self, holder: tuple[str, bool], topic: Topic) -> None:
        client, keyless = holder
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        if keyless and is_scarce(topic):
            self._shares.remove(topic)

    def _in_parts(self, leases: Sequence[Lease], act: Callable[[Sequence[Lease]], None]) -> None:
        for at in range(0, len(leases), PART):
            self._slices.do(self, functools.partial(act, leases[at : at + PART]))

    def _join(self, leases: Iterable[Lease]) -> None:
        self._hub.join({lease.topic: lease for lease in leases}, clock.monotonic())

    def _leave(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._hub.leave(lease.topic, lease)
