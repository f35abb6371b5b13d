"""QMTClient with a `start`: stored quotes and then live ones, also across lost connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from qmt_bridge import QMTClient
from qmt_bridge.clients.stream import StreamState
from qmt_bridge.config import Config
from qmt_bridge.errors import BadRequest
from qmt_bridge.reading.places import CODES_A_REQUEST, Places
from qmt_bridge.system import clock
from qmt_bridge.wire.topics import quote_topic, whole_topic
from tests.support.morning import CODE, OPEN, TICK, Market, demand, market_of, tick
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import DEADLINE, KEY, metrics
from tests.support.waiting import until


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Market]:
    with market_of(Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(tmp_path), lag_target=30.0)) as market:
        yield market


def client_of(market: Market, **options: Any) -> QMTClient:
    return QMTClient("127.0.0.1", market.rig.servers[-1].port, **options)


async def volumes(frames: Any, last: int) -> list[int]:
    got: list[int] = []
    async with asyncio.timeout(DEADLINE):
        async for frame in frames:
            got.append(frame[CODE][0]["volume"])
            if got[-1] == last:
                break
    return got


async def test_client_gets_the_day_so_far_and_then_live_quotes(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other:
        await other.subscribed(stocks=[CODE])
        market.publish(50)
        await market.stored()
        async with aclosing(client_of(market).realtime([CODE], start="09:30:00")) as frames:
            assert await volumes(frames, 50) == list(range(1, 51))
            market.publish(5)
            assert await volumes(frames, 55) == list(range(51, 56))


async def test_client_goes_on_after_a_lost_connection(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other:
        await other.subscribed(stocks=[CODE])
        market.publish(10)
        await market.stored()
        states: list[StreamState] = []
        client = client_of(market, on_state=states.append)
        second = market.rig.serve(store_addr=market.store.address)
        async with aclosing(client.realtime([CODE], start="09:30:00")) as frames:
            assert await volumes(frames, 10) == list(range(1, 11))
            # The address leads to another worker from now on.
            client._base = f"ws://127.0.0.1:{second.port}"
            market.rig.servers[0].stop()
            market.publish(20)
            await market.stored()
            assert await volumes(frames, 30) == list(range(11, 31))
            market.publish(2)
            assert await volumes(frames, 32) == [31, 32]
        assert "resumed" in [state.state for state in states]
        assert [state for state in states if state.state == "gap"] == []


async def test_part_up_to_an_end_ends_the_stream(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other:
        await other.subscribed(stocks=[CODE])
        market.publish(10)
        await market.stored()
        frames = client_of(market).realtime([CODE], start="09:30:03", end="09:30:12")
        async with asyncio.timeout(DEADLINE):
            assert [frame[CODE][0]["volume"] async for frame in frames] == [2, 3, 4]


async def test_what_is_not_stored_is_told_as_a_gap(market: Market) -> None:
    market.store.keeps = lambda frame: frame.seq not in (3, 4)
    async with market.rig.connect("/ws/realtime") as other:
        await other.subscribed(stocks=[CODE])
        market.publish(6)
        await market.stored()
        states: list[StreamState] = []
        async with aclosing(client_of(market, on_state=states.append).realtime([CODE], start="09:30")) as frames:
            assert await volumes(frames, 6) == [1, 2, 5, 6]
        [gap] = [state for state in states if state.state == "gap"]
        assert (gap.reason, gap.codes) == ("gap", (CODE,))
        assert gap.gap is not None
        assert (gap.gap["after"]["seq"], gap.gap["before"]["seq"]) == (2, 5)


async def test_complete_client_misses_nothing_that_is_lost_before_the_gateway(market: Market) -> None:
    states: list[StreamState] = []
    async with aclosing(client_of(market, on_state=states.append).realtime([CODE], complete=True)) as frames:
        reading = asyncio.ensure_future(volumes(frames, 3))
        await market.rig.wanted(TICK)
        market.publish(3)
        assert (await reading)[-1] == 3
        await market.stored()
        market.lose(4)
        market.publish()
        assert await volumes(frames, 8) == [4, 5, 6, 7, 8]
    assert [state for state in states if state.state in ("gap", "skipped")] == []


async def test_complete_client_gets_what_came_first_while_it_was_away(market: Market) -> None:
    states: list[StreamState] = []
    client = client_of(market, on_state=states.append)
    second = market.rig.serve(store_addr=market.store.address)
    client._base = f"ws://127.0.0.1:{market.rig.servers[0].port}"
    with demand(market):
        async with aclosing(client.realtime([CODE, "000001.SZ"], complete=True)) as frames:
            reading = asyncio.ensure_future(volumes(frames, 3))
            await market.rig.wanted(quote_topic("000001.SZ"))
            client._base = f"ws://127.0.0.1:{second.port}"
            market.rig.servers[0].stop()
            await until(lambda: "disconnected" in [state.state for state in states], "the loss")
            market.publish(3)
            await market.stored()
            assert await reading == [1, 2, 3]
    # Of the other code nothing was ever published.
    assert [state for state in states if state.state in ("gap", "skipped")] == []


async def test_complete_client_is_told_both_sides_of_a_restart(market: Market) -> None:
    states: list[StreamState] = []
    async with (
        market.rig.connect("/ws/realtime") as other,
        aclosing(client_of(market, on_state=states.append).realtime([CODE], complete=True)) as frames,
    ):
        reading = asyncio.ensure_future(volumes(frames, 3))
        await market.rig.wanted(TICK)
        market.publish(3)
        assert (await reading)[-1] == 3
        await market.stored()
        await other.subscribed(stocks=["000001.SZ"])
        market.rig.feeder.stop()
        market.rig.start_feeder()
        await market.rig.wanted(TICK)
        await market.rig.wanted(quote_topic("000001.SZ"))
        # Until gateway and store are connected.
        await until(lambda: market.reaches_store("000001.SZ"), "the store")
        while "000001.SZ" not in await other.receive():
            pass
        market.publish(2)
        assert await volumes(frames, 5) == [4, 5]
    [gap] = [state.gap for state in states if state.state == "gap"]
    assert gap is not None
    assert (gap["reason"], gap["after"]["seq"], gap["before"]["seq"]) == ("restart", 3, 1)


async def test_complete_client_that_reads_too_slowly_goes_on_where_it_was(tmp_path: Path) -> None:
    config = Config(**ANY_ADDRESSES, data_dir=str(tmp_path), outbox_bytes=64 * 1024)
    with market_of(config) as market:
        states: list[StreamState] = []
        async with aclosing(client_of(market, on_state=states.append).realtime([CODE], complete=True)) as frames:
            reading = asyncio.ensure_future(volumes(frames, 1))
            await market.rig.wanted(TICK)
            market.publish()
            assert await reading == [1]
            # More than the client keeps, the system takes, and the outbox holds.
            for _ in range(400):
                market.number += 1
                record = tick(market.number)[CODE][0] | {"pad": "x" * 40_000}
                market.rig.source.publish(TICK, {CODE: [record]})
            await market.stored()
            async with asyncio.timeout(DEADLINE):
                got: list[int] = []
                while not got or got[-1] != market.number:
                    got.append((await anext(frames))[CODE][0]["volume"])
                    # What it keeps is bounded, so it reads no more meanwhile.
                    if len(got) == 1:
                        await until(lambda: sockets(market) == 0, "the gateway to close the socket")
        assert got == list(range(2, market.number + 1))
        assert "resumed" in [state.state for state in states]
        assert [state for state in states if state.state in ("gap", "skipped")] == []


def sockets(market: Market) -> float:
    """Return how many sockets of quotes the gateway has."""
    return metrics(market.rig.servers[-1].port)['connections{path="/ws/realtime"}']


async def test_trade_events_begin_at_a_moment(market: Market) -> None:
    client = client_of(market, api_key=KEY)
    async with aclosing(client.trade_events(after=0)) as events:
        for number in range(5):
            market.rig.source.trade("order", n=number)
        await reach(events, 5)
        moment = await next_ms()
        market.rig.source.trade("order", n=5)
        await reach(events, 6)
        end = await next_ms()
        market.rig.source.trade("order", n=6)
        await reach(events, 7)
    states: list[StreamState] = []
    client = client_of(market, api_key=KEY, on_state=states.append)
    async with aclosing(client.trade_events(start=moment)) as events:
        assert await reach(events, 7) == [6, 7]
    async with asyncio.timeout(DEADLINE):
        assert [event["seq"] async for event in client.trade_events(start=moment, end=end)] == [6]
    assert [state for state in states if state.state == "gap"] == []
    async with aclosing(client.trade_events(start="2020-01-02T09:30:00")) as events:
        assert await reach(events, 7) == [1, 2, 3, 4, 5, 6, 7]
    assert [state.reason for state in states if state.state == "gap"] == ["store_began"]


async def test_trade_events_from_a_moment_go_on_after_a_lost_connection(market: Market) -> None:
    client = client_of(market, api_key=KEY)
    second = market.rig.serve(store_addr=market.store.address)
    client._base = f"ws://127.0.0.1:{market.rig.servers[0].port}"
    for number in range(3):
        market.rig.source.trade("order", n=number)
    async with aclosing(client.trade_events(start="2020-01-02T09:30:00")) as events:
        assert await reach(events, 3) == [1, 2, 3]
        client._base = f"ws://127.0.0.1:{second.port}"
        market.rig.servers[0].stop()
        market.rig.source.trade("order", n=3)
        assert await reach(events, 4) == [4]


async def reach(events: Any, last: int) -> list[int]:
    """Return the positions of events up to `last`."""
    got: list[int] = []
    async with asyncio.timeout(DEADLINE):
        async for event in events:
            got.append(event["seq"])
            if got[-1] == last:
                break
    return got


async def next_ms() -> int:
    """Return a time in ms that is later than that of all that was published, once it has come."""
    moment = clock.time_ns() // 10**6 + 1
    await until(lambda: clock.time_ns() // 10**6 >= moment, "the next millisecond")
    return moment


@pytest.mark.parametrize("options", [{"after": 1, "start": "09:30"}, {"end": "10:00"}])
def test_moments_of_trade_events_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        QMTClient("127.0.0.1").trade_events(**options)


@pytest.mark.parametrize("options", [{"complete": True, "max_rate_ms": 100}, {"end": "10:00"}, {"speed": 2.0}])
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        QMTClient("127.0.0.1").realtime([CODE], **options)


# Places.


def data(epoch: int, seq: int, *codes: str) -> dict[str, Any]:
    return {"type": "data", "epoch": epoch, "seq": seq, "data": {code: [{}] for code in codes}}


def test_codes_with_a_position_are_asked_for_behind_it() -> None:
    places = Places(["A.SH", "B.SH"])
    assert places.resume({"stocks": ["A.SH", "B.SH"], "start": "09:30"}) == [
        {"stocks": ["A.SH", "B.SH"], "start": "09:30"}
    ]
    assert places.take(data(7, 3, "A.SH"))
    assert places.resume({"stocks": ["A.SH", "B.SH"], "start": "09:30"}) == [
        {"stocks": ["A.SH"], "start": {"A.SH": {"epoch": 7, "seq": 3}}},
        {"stocks": ["B.SH"], "start": "09:30"},
    ]


def test_codes_without_a_message_begin_where_the_stream_began() -> None:
    places = Places(["A.SH", "B.SH"])
    places.began(0)
    request = {"stocks": ["A.SH", "B.SH"], "complete": True}
    assert places.resume(request) == [request]
    places.began(7)
    places.began(8)
    assert places.take(data(8, 3, "A.SH"))
    start = {"A.SH": {"epoch": 8, "seq": 3}, "B.SH": {"epoch": 7, "seq": 0}}
    assert places.resume(request) == [{**request, "start": start}]
    without = {**request, "snapshot": False}
    assert places.resume(without)[1] == {**without, "stocks": ["B.SH"]}


def test_message_that_comes_again_is_left_out() -> None:
    places = Places(["A.SH"])
    assert [places.take(data(*at, "A.SH")) for at in ((7, 3), (7, 3), (7, 2), (7, 4), (6, 9), (8, 1))] == [
        True, False, False, True, False, True,
    ]  # fmt: skip


def test_codes_of_a_market_have_the_position_of_the_market() -> None:
    places = Places(["SH", "A.SH", "B.SZ"])
    # Two parts of one snapshot.
    assert places.take(data(7, 3, "A.SH"))
    assert places.take(data(7, 3, "C.SH"))
    assert places.take(data(7, 1, "B.SZ"))
    again = places.resume({"codes": ["SH", "A.SH", "B.SZ"]})
    assert again == [
        {"codes": ["SH", "B.SZ"], "start": {"SH": {"epoch": 7, "seq": 3}, "B.SZ": {"epoch": 7, "seq": 1}}},
        {"codes": ["A.SH"]},
    ]


def test_requests_with_positions_stay_below_the_limit_of_a_request() -> None:
    codes = [f"{number:06}.SZ" for number in range(1000)]
    places = Places(codes)
    for code in codes:
        places.take(data(1_764_300_000_000_000_000, 10**9, code))
    again = places.resume({"stocks": codes})
    assert [len(request["stocks"]) for request in again] == [CODES_A_REQUEST, CODES_A_REQUEST, 200]
    assert max(len(str(request)) for request in again) < 64 * 1024


async def test_client_plays_the_day_and_goes_on_in_one_request(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other:
        await other.subscribed(stocks=[CODE])
        market.publish(20)
        await market.stored()
        async with aclosing(client_of(market).realtime([CODE], start="09:30:00", speed=1000)) as frames:
            assert await volumes(frames, 20) == list(range(1, 21))
            market.publish(3)
            assert await volumes(frames, 23) == [21, 22, 23]


def test_codes_that_are_played_together_stay_in_one_request() -> None:
    places = Places(["A.SH", "B.SH"])
    asked = {"stocks": ["A.SH", "B.SH"], "start": "09:30", "speed": 10}
    assert places.resume(asked) == [asked]
    places.take(data(7, 3, "A.SH"))
    assert places.resume(asked) == [{**asked, "start": {"A.SH": {"epoch": 7, "seq": 3}, "B.SH": "09:30"}}]


def test_more_codes_than_a_request_has_room_for_are_not_played() -> None:
    codes = [f"{number:06}.SZ" for number in range(CODES_A_REQUEST + 1)]
    with pytest.raises(BadRequest, match="at most 400 codes are played together"):
        QMTClient("127.0.0.1").realtime(codes, start="09:30", speed=1)


def test_position_of_a_market_is_given_back_as_one() -> None:
    places = Places(["A.SH", "B.SH"])
    assert places.take({**data(7, 3, "A.SH"), "market": "SH"})
    assert places.take(data(7, 3, "B.SH"))
    [again] = places.resume({"stocks": ["A.SH", "B.SH"], "start": "09:30"})
    assert again["start"] == {"A.SH": {"epoch": 7, "seq": 3, "market": "SH"}, "B.SH": {"epoch": 7, "seq": 3}}


async def test_client_goes_on_in_the_market_after_a_lost_connection(market: Market) -> None:
    sh = whole_topic("SH")

    def publish(*numbers: int) -> None:
        for number in numbers:
            time = OPEN + 3000 * (number - 1)
            market.rig.source.publish(sh, {"688981.SH": {"time": time}, CODE: {"time": time, "volume": number}})

    async with market.rig.connect("/ws/whole_quote") as other:
        await other.subscribed(codes=["SH"])
        publish(*range(1, 11))
        await until(lambda: len(market.store.day.kept.get(sh, ())) == 10, "the store")
        states: list[StreamState] = []
        client = client_of(market, on_state=states.append)
        second = market.rig.serve(store_addr=market.store.address)
        async with aclosing(client.realtime([CODE], start="09:30:00")) as frames:
            assert await volumes(frames, 10) == list(range(1, 11))
            client._base = f"ws://127.0.0.1:{second.port}"
            for server in market.rig.servers[:-1]:
                server.stop()
            publish(11, 12)
            await until(lambda: len(market.store.day.kept.get(sh, ())) == 12, "the store")
            assert await volumes(frames, 12) == [11, 12]
            publish(13)
            assert await volumes(frames, 13) == [13]
        assert [state.gap for state in states if state.state == "gap"] == []
