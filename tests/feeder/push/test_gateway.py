"""Pushed data at WebSocket clients of a real gateway, and pushers beside the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from feeder.app import Feeder, make_source
from feeder.composite import Composite
from feeder.push.source import PushSource
from qmt_bridge.errors import ConfigError
from tests.support.pushing import ACCOUNT, CODE, SPOKEN, TRADE, Pushed, PushRig, config_in
from tests.support.rig import KEY as API_KEY
from tests.support.rig import readiness


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
