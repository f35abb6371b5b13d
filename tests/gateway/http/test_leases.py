"""What clients without a connection hold, without sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from gateway.costs.shares import Shares, limits_of_worker
from gateway.costs.slices import Slices
from gateway.http.leases import HELD, Lease, Leases
from gateway.hub import Hub
from gateway.streams.member import Refusal
from qmt_bridge.errors import BadRequest
from qmt_bridge.system import clock
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic, l2_topic, quote_topic

TICK = quote_topic("600519.SH")
DEPTH = l2_topic("600519.SH", 20)
OTHER_DEPTH = l2_topic("000001.SZ", 20)


class FakeHub:
    """Notes who joins and leaves."""

    def __init__(self) -> None:
        self.members: dict[Topic, Lease] = {}
        self.joined: list[Topic] = []

    def join(self, members: Mapping[Topic, Lease], now: float) -> None:
        self.members |= members
        self.joined += members

    def leave(self, topic: Topic, member: Lease) -> None:
        if self.members.get(topic) is member:
            del self.members[topic]


class Rig:
    """Leases with a clock of their own, and one depth for all clients without a key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        self.hub = FakeHub()
        self.shares = Shares(limits_of_worker(2, 2, 1, 1), 0.0)
        # Its clock stands still, so nothing is put off to a later turn of the loop, whatever else the machine does.
        self.leases = Leases(cast(Hub, self.hub), Slices(lambda: 0.0), self.shares)

    def take(self, client: str, *topics: Topic, with_key: bool = False, most: int = 10) -> list[Lease]:
        return self.leases.take(client, topics, most, with_key=with_key, bounded=True)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.leases.expire(self.now)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Any:
    return Rig(monkeypatch)


async def test_topic_is_held_until_the_newest_request_is_old(rig: Rig) -> None:
    [lease] = rig.take("a", TICK)
    rig.pass_time(HELD - 1)
    assert rig.take("a", TICK) == [lease]
    rig.pass_time(HELD - 1)
    assert rig.hub.members == {TICK: lease}
    rig.pass_time(1)
    assert (rig.hub.members, len(rig.leases), rig.hub.joined) == ({}, 0, [TICK])


async def test_topic_of_two_clients_ends_with_the_last(rig: Rig) -> None:
    rig.take("a", TICK)
    rig.pass_time(5)
    rig.take("b", TICK)
    rig.pass_time(HELD - 5)
    assert TICK in rig.hub.members
    # What the first client held counts no longer.
    rig.take("a", DEPTH, most=1)
    rig.pass_time(5)
    assert TICK not in rig.hub.members


async def test_refused_topic_is_asked_for_again_after_a_while(rig: Rig) -> None:
    [lease] = rig.take("a", TICK)
    lease.settle("refused", Refusal("upstream_refused", "not now"))
    assert lease.decided.done()
    for _ in range(2):
        rig.pass_time(HELD / 2 - 1)
        rig.take("a", TICK)
    assert (rig.hub.joined, lease.refusal is not None) == ([TICK], True)
    rig.pass_time(2)
    rig.take("a", TICK)
    assert (rig.hub.joined, lease.refusal, lease.decided.done()) == ([TICK, TICK], None, False)
    lease.deliver(Frame(TICK, 1, 1, 0, 0, b"{}"))
    assert lease.decided.done()


async def test_share_of_what_is_scarce_is_given_back(rig: Rig) -> None:
    rig.take("a", DEPTH)
    with pytest.raises(BadRequest, match="hold at most 1 subscriptions of the kind l2"):
        rig.take("b", OTHER_DEPTH)
    # A client with a key has no share, and takes none.
    rig.take("key", OTHER_DEPTH, with_key=True)
    rig.pass_time(HELD)
    rig.take("b", OTHER_DEPTH)


async def test_refused_request_holds_nothing(rig: Rig) -> None:
    for most, topics in ((1, (TICK, DEPTH)), (10, (TICK, DEPTH, OTHER_DEPTH))):
        with pytest.raises(BadRequest):
            rig.take("a", *topics, most=most)
        assert (len(rig.leases), rig.hub.joined) == (0, [])
    rig.take("a", DEPTH, most=1)


async def test_topic_named_twice_counts_once(rig: Rig) -> None:
    assert len(rig.take("a", TICK, TICK, most=1)) == 2
    rig.pass_time(HELD)
    rig.take("a", DEPTH, most=1)
