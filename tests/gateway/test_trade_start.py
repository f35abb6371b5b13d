"""Trade events from a moment on, then live ones, and parts of the day, over real sockets and a real journal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from feeder.journal import journal as journal_module
from qmt_bridge.config import Config
from qmt_bridge.system import clock
from qmt_bridge.wire.moments import shown_moment
from tests.support.rig import KEY, Client, Rig, running_rig
from tests.support.waiting import until

URL = f"/ws/trade?api_key={quote(KEY)}"


@pytest.fixture
def rig(config: Config) -> Iterator[Rig]:
    with running_rig(config) as rig:
        rig.serve()
        yield rig


class Trader:
    """Publishes events, and knows moments between them."""

    def __init__(self, rig: Rig, client: Client) -> None:
        self.rig = rig
        self.client = client
        self.number = 0

    async def trade(self, count: int, text: str = "") -> int:
        """Publish events; return a moment after them in ms."""
        for _ in range(count):
            self.number += 1
            self.rig.source.trade("order", n=self.number, text=text)
        await events(self.client, self.number)
        after = clock.time_ns() // 10**6 + 1
        await until(lambda: clock.time_ns() // 10**6 >= after, "the next millisecond")
        return after


async def events(client: Client, last: int) -> list[int]:
    """Return the positions of the events up to `last`."""
    got: list[int] = []
    while not got or got[-1] != last:
        frame = await client.receive()
        if frame["type"] == "order":
            got.append(frame["seq"])
    return got


async def asked(client: Client, **request: Any) -> dict[str, Any]:
    """Return the answer to a request."""
    await client.send({"id": 7, **request})
    while (frame := await client.receive()).get("id") != 7:
        pass
    return frame  # type: ignore[no-any-return]


async def test_start_gives_the_events_since_then_and_live_ones(rig: Rig) -> None:
    async with rig.connect(URL) as other, rig.connect(URL) as client:
        trader = Trader(rig, other)
        await trader.trade(5)
        moment = await trader.trade(5)
        await trader.trade(30)
        ack = await asked(client, start=moment)
        assert (ack["type"], ack["seq"], ack["after"]) == ("subscribed", 40, 10)
        assert ack["start"] == {"from": shown_moment(moment), "complete": True}
        await trader.trade(10)
        assert await events(client, 50) == list(range(11, 51))


async def test_start_may_be_a_parameter_of_the_url(rig: Rig) -> None:
    async with rig.connect(URL) as other:
        trader = Trader(rig, other)
        moment = await trader.trade(5)
        await trader.trade(5)
        for start in (str(moment), shown_moment(moment)):
            async with rig.connect(f"{URL}&ctl=1&start={start}") as client:
                assert (await client.receive())["type"] == "welcome"
                ack = await client.receive()
                assert (ack["after"], ack["start"]) == (5, {"from": shown_moment(moment), "complete": True})
                assert await events(client, 10) == [6, 7, 8, 9, 10]


async def test_documented_client_gets_events_from_a_start(rig: Rig) -> None:
    async with rig.connect(URL) as other:
        trader = Trader(rig, other)
        moment = await trader.trade(5)
        await trader.trade(1)
        async with rig.connect(f"{URL}&start={moment}") as client:
            frame = await client.receive()
            assert (frame["type"], frame["seq"]) == ("order", 6)


async def test_events_published_meanwhile_come_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that the replay takes many questions, between which events are published.
    monkeypatch.setattr(journal_module, "CHUNK_EVENTS", 3)
    async with rig.connect(URL) as other:
        trader = Trader(rig, other)
        moment = await trader.trade(1)
        await trader.trade(100)
        async with rig.connect(f"{URL}&start={moment}") as client:
            for _ in range(20):
                await trader.trade(10)
            assert await events(client, 301) == list(range(2, 302))


async def test_part_of_the_day_ends_without_live_events(rig: Rig) -> None:
    async with rig.connect(URL) as other, rig.connect(URL) as client:
        trader = Trader(rig, other)
        start = await trader.trade(5)
        end = await trader.trade(5)
        await trader.trade(5)
        ack = await asked(client, start=start, end=end)
        assert ack["start"]["complete"] is True
        assert await events(client, 10) == [6, 7, 8, 9, 10]
        assert await client.receive() == {"type": "end", "id": 7}
        await trader.trade(5)
        assert (await asked(client, action="ping"))["type"] == "pong"
        # It goes on where the client wants.
        await client.send({"resume": {"seq": 18}})
        assert await events(client, 20) == [19, 20]


async def test_url_with_an_end_is_a_question(rig: Rig) -> None:
    async with rig.connect(URL) as other:
        trader = Trader(rig, other)
        await trader.trade(3)
        end = await trader.trade(3)
        await trader.trade(3)
        async with rig.connect(f"{URL}&after=2&end={end}") as client:
            assert await events(client, 6) == [3, 4, 5, 6]
            assert await client.receive() == {"type": "end"}


async def test_start_may_be_a_position(rig: Rig) -> None:
    async with rig.connect(URL) as other, rig.connect(URL) as client:
        trader = Trader(rig, other)
        await trader.trade(5)
        ack = await asked(client, start={"seq": 3})
        assert (ack["type"], ack["after"]) == ("subscribed", 3)
        assert await events(client, 5) == [4, 5]


async def test_start_before_the_journal_began_is_told(rig: Rig) -> None:
    async with rig.connect(URL) as other, rig.connect(URL) as client:
        await Trader(rig, other).trade(2)
        ack = await asked(client, start="2020-01-02T09:30:00")
        told = ack["start"]
        assert (ack["after"], told["complete"], told["reason"]) == (0, False, "store_began")
        assert told["from"] == shown_moment(told["before"]["time"])
        assert told["before"]["seq"] == 1
        assert await events(client, 2) == [1, 2]


async def test_documented_client_is_told_that_the_journal_began_later(rig: Rig) -> None:
    async with rig.connect(URL) as other:
        await Trader(rig, other).trade(2)
        async with rig.connect(f"{URL}&start=2020-01-02T09:30:00") as client:
            told = await client.receive()
            assert (told["type"], told["code"], told["reason"]) == ("error", "incomplete", "store_began")
            assert await events(client, 2) == [1, 2]


async def test_start_without_any_event_goes_on_live(rig: Rig) -> None:
    async with rig.connect(URL) as other, rig.connect(URL) as client:
        trader = Trader(rig, other)
        moment = await trader.trade(3)
        ack = await asked(client, start=moment)
        assert (ack["after"], ack["start"]["complete"]) == (3, True)
        await trader.trade(2)
        assert await events(client, 5) == [4, 5]


async def test_replay_from_a_moment_goes_on_over_a_restart(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "CHUNK_EVENTS", 3)
    async with rig.connect(URL) as other:
        trader = Trader(rig, other)
        moment = await trader.trade(1)
        await trader.trade(60)
        async with rig.connect(f"{URL}&start={moment}") as client:
            assert await events(client, 2) == [2]
            rig.feeder.stop()
            rig.start_feeder()
            rig.source.trade("order", n=62)
            assert await events(client, 62) == list(range(3, 63))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"start": "half past nine"}, "start is a time of day"),
        ({"start": True}, "expected"),
        ({"start": 93000}, "milliseconds since 1970"),
        ({"start": "09:30", "end": "x"}, "end is a time of day"),
        ({"start": "09:30", "end": "09:00"}, "end is before start"),
        ({"start": {"seq": -1}}, "expected"),
        ({"start": {"epoch": 1}}, "seq"),
    ],
)
async def test_start_that_means_nothing_is_refused(rig: Rig, request_: dict[str, Any], told: str) -> None:
    async with rig.connect(URL) as client:
        error = await asked(client, **request_)
        assert error["code"] == "bad_request"
        assert told in error["error"].lower()
        # The events that it was sent before still come.
        rig.source.trade("order", n=1)
        assert await events(client, 1) == [1]


async def test_end_that_turns_out_to_be_before_the_start_has_no_events(rig: Rig) -> None:
    async with rig.connect(URL) as other, rig.connect(URL) as client:
        await Trader(rig, other).trade(2)
        await events(client, 2)
        assert (await asked(client, start="00:00", end=1_000_000_000_000))["type"] == "subscribed"
        assert await client.receive() == {"type": "end", "id": 7}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("start=x", "start is a time of day"),
        ("start=09:30&after=1", "choose one"),
        ("end=09:30", "needs a start"),
        ("start=09:30&end=09:00", "end is before start"),
        ("start=99999999999999999999", "start is a time of day"),
    ],
)
async def test_url_with_a_senseless_start_is_closed(rig: Rig, query: str, told: str) -> None:
    async with rig.connect(f"{URL}&{query}") as client:
        code, reason = await client.closed()
        assert code == 1008
        assert re.search(told, reason)
