"""Pushed data at WebSocket clients of a real gateway, and pushers beside the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from msgspec.structs import replace

from feeder.app import Feeder, make_source
from feeder.composite import Composite
from feeder.push.mixed import with_push
from feeder.push.source import PushSource
from qmt_bridge.errors import ConfigError
from qmt_bridge.journal_file import journal_path
from tests.support.push_feeder import Pushed, PushRig, config_in
from tests.support.pusher import ACCOUNT, CODE, SPOKEN, TRADE
from tests.support.rig import KEY as API_KEY
from tests.support.rig import Client, HandDriven, Rig, readiness


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PushRig]:
    found = PushRig(config_in(tmp_path, api_key=API_KEY))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def desk(rig: PushRig) -> Iterator[Pushed]:
    found = Pushed(rig.feeder, rig.push)
    yield found
    found.close()


async def test_a_client_gets_what_is_pushed(rig: PushRig, desk: Pushed) -> None:
    pusher = desk.pusher(kinds=["quote", "trade"], accounts=[ACCOUNT])
    server = rig.serve()
    assert readiness(server.port)["source"] == "push"
    async with rig.connect("/ws/realtime") as client, rig.connect(f"/ws/trade?api_key={quote(API_KEY)}") as trades:
        await client.send({"stocks": [CODE], "period": "tick"})
        assert (await asyncio.to_thread(pusher.until, "subscribe"))["topic"] == SPOKEN
        pusher.push({"time": 1795904107604, "lastPrice": 1416.05})
        assert await client.receive() == {CODE: [{"time": 1795904107604, "lastPrice": 1416.05}]}
        event = {"topic": TRADE, "id": "o1", "event": "order", "data": {"order_id": 5}}
        pusher.say(event, event)
        frame = await trades.receive()
        assert frame["data"] == {"order_id": 5, "account_id": ACCOUNT, "push_id": "o1"}


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Pushed]:
    """Run the simulator, with quotes of one market and trade events from pushers."""
    config = config_in(tmp_path, source="sim+push", pushers=("ctp:quote:SH", "desk:trade"), sim_interval=0.1)
    source = make_source(config)
    assert isinstance(source, Composite)
    push = source.members[0].source
    assert isinstance(push, PushSource)
    found = Pushed(Feeder(config, source), push)
    found.feeder.start()
    try:
        yield found
    finally:
        found.close()
        found.feeder.stop()


def test_pushers_serve_their_part_beside_the_simulator(beside: Pushed) -> None:
    consumer = beside.consumer("quote/600519.SH/tick/", "quote/000001.SZ/tick/")
    status = consumer.status(state="connecting", reason="waiting for ctp")
    assert (status["source"], status["simulated"]) == ("sim+push", True)
    ctp = beside.pusher(name="ctp", kinds=["quote"])
    desk = beside.pusher(name="desk", kinds=["trade"], accounts=["77777"])
    assert consumer.status(state="up")["reason"] is None
    consumer.until(lambda: len(consumer.status(state="up")["accounts"]) == 2)
    # Of the simulator and of a pusher.
    assert ctp.until("subscribe")["topic"] == SPOKEN
    consumer.until(lambda: any(topic == "quote/000001.SZ/tick/" for topic, _ in consumer.bodies))
    assert not any(topic == "quote/600519.SH/tick/" for topic, _ in consumer.bodies)
    ctp.push({"time": 1})
    consumer.until(lambda: ("quote/600519.SH/tick/", {CODE: [{"time": 1}]}) in consumer.bodies)
    # The simulator has published before the feeder counts the subscription.
    consumer.until(lambda: beside.feeder.source.upstream() == 2)
    assert beside.feeder.source.hung() is None
    assert dict(beside.feeder.source.capabilities())["whole"] == ""
    assert [each.name for each in beside.feeder.source.health().pushers] == ["ctp", "desk"]
    # The death of a pusher is that of a part: the whole is down, and comes back with a loss.
    desk.close()
    assert consumer.status(state="down")["reason"] == "pusher_gone"
    beside.pusher(name="desk", kinds=["trade"])
    assert consumer.status(state="up")["data_lost"]


async def next_of(client: Client, type_: str) -> dict[str, Any]:
    """Return the next frame of a type; only notices of the feed may come before it."""
    frame: dict[str, Any] = await client.receive()
    while frame["type"] != type_:
        assert frame["type"] in ("feed", "heartbeat", "subscribed"), frame
        frame = await client.receive()
    return frame


class Real(HandDriven):
    """A source whose trade events are real."""

    simulated = False


class MixedRig(Rig):
    """A feeder that takes trade events from a source and, if `pushers` says so, from a pusher too."""

    def start_feeder(self) -> None:
        self.source = Real()
        mixed = with_push(self.config, self.source) if self.config.pushers else self.source
        self.feeder = Feeder(self.config, mixed)
        self.feeder.start()
        self.note_addresses()
        if isinstance(mixed, Composite):
            push = mixed.members[0].source
            assert isinstance(push, PushSource)
            self.pushed = Pushed(self.feeder, push)


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[MixedRig]:
    found = MixedRig(config_in(tmp_path, api_key=API_KEY))
    try:
        yield found
    finally:
        found.close()


async def test_trade_events_go_on_when_pushers_come_and_go(mixed: MixedRig) -> None:
    """One client stays; another comes back after each restart with the position and the epoch of its last event."""
    mixed.serve()
    url = f"/ws/trade?ctl=1&api_key={quote(API_KEY)}"
    bookmark, expected = "", 0
    async with mixed.connect(url) as stays:
        await next_of(stays, "welcome")
        for pushers in ((), ("desk:trade",), (), ("desk:trade",)):
            mixed.feeder.stop()
            if expected == 2:
                # As an earlier version named it, beside pushers.
                name = journal_path(mixed.config.data_path, "hand")
                name.rename(journal_path(mixed.config.data_path, "hand+push"))
            mixed.config = replace(mixed.config, pushers=pushers)
            mixed.start_feeder()
            if pushers:
                pusher = mixed.pushed.pusher(kinds=["trade"], accounts=[ACCOUNT])
                pusher.say({"topic": TRADE, "id": f"o{expected}", "event": "order", "data": {"order_id": 5}})
            else:
                mixed.source.trade("order", order_id=5)
            expected += 1
            assert (await next_of(stays, "order"))["seq"] == expected
            async with mixed.connect(f"{url}{bookmark}") as comes:
                epoch = (await next_of(comes, "welcome"))["epoch"]
                if bookmark:
                    assert (await next_of(comes, "order"))["seq"] == expected
            bookmark = f"&after={expected}&epoch={epoch}"
            if pushers:
                mixed.pushed.close()
    assert [path.name for path in mixed.config.data_path.glob("journal-*.sqlite3")] == ["journal-hand.sqlite3"]


def test_no_invented_trade_events_beside_real_ones(mixed: MixedRig) -> None:
    mixed.feeder.stop()
    mixed.config = replace(mixed.config, pushers=("desk:trade+quote",))
    mixed.start_feeder()
    invented = mixed.pushed.connect()
    assert invented.hello(kinds=["trade", "quote"], simulated=True)["code"] == "forbidden"
    mixed.pushed.pusher(kinds=["quote"], simulated=True).close()
    mixed.pushed.pusher(kinds=["trade"])
    mixed.pushed.close()


def test_a_mixed_source_needs_to_know_what_is_pushed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it says what comes from the pushers"):
        make_source(config_in(tmp_path, source="sim+push"))


def test_a_source_that_cannot_start_closes_the_others(tmp_path: Path) -> None:
    config = config_in(tmp_path, source="sim+push", pushers=("ctp:quote",))
    first = make_source(config)
    assert isinstance(first, Composite)
    push = first.members[0].source
    assert isinstance(push, PushSource)

    def fail(sink: object) -> None:
        raise ImportError("xtquant")

    first.members[1].source.start = fail  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="xtquant"):
        Feeder(config, first).start()
    assert not push._thread.is_alive()
