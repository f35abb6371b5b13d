"""QMTClient with a `start`: stored quotes and then live ones, also across lost connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from qmt_bridge import QMTClient
from qmt_bridge.config import Config
from qmt_bridge.errors import BadRequest
from qmt_bridge.reading.places import CODES_A_REQUEST, Places
from qmt_bridge.stream import StreamState
from qmt_bridge.wire.topics import whole_topic
from tests.support.morning import CODE, OPEN, Market, market_of
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import DEADLINE, KEY
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
