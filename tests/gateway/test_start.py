"""The day so far, then live: subscriptions with a `start`, over real sockets and with a small store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway.streams import stored
from qmt_bridge.config import Config
from qmt_bridge.wire.history import Hole, StoredFrame, TopicHistory
from qmt_bridge.wire.requests import CatchUp
from qmt_bridge.wire.topics import quote_topic, whole_topic
from tests.support.events import events
from tests.support.morning import CODE, OPEN, TICK, Market, market_of, tick
from tests.support.ports import free_port
from tests.support.rig import Client, Rig, running_rig
from tests.support.waiting import until


@pytest.fixture
def market(config: Config) -> Iterator[Market]:
    with market_of(config) as market:
        yield market


async def control(client: Client, kind: str) -> dict[str, Any]:
    """Return the next frame of that type."""
    while (frame := await client.receive()).get("type") != kind:
        pass
    return frame  # type: ignore[no-any-return]


async def volumes(client: Client, last: int) -> list[int]:
    """Return the numbers of the ticks up to `last`."""
    got: list[int] = []
    while not got or got[-1] != last:
        frame = await client.receive()
        body = frame.get("data", frame)
        if CODE in body:
            got.append(body[CODE][0]["volume"])
    return got


async def test_start_gives_the_day_so_far_and_then_live_ticks(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(200)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:03")
        assert ack["start"] == {CODE: {"from": "09:30:03.000", "complete": True}}
        market.publish(50)
        assert await volumes(client, 250) == list(range(2, 251))


async def test_start_after_a_position_goes_on_behind_it(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE], seq=True)
        market.publish(20)
        await market.stored()
        epoch = (await control(other, "data"))["epoch"]
        # As a browser rounds it.
        await client.subscribed(stocks=[CODE], start={CODE: {"epoch": int(float(epoch)), "seq": 7}})
        market.publish()
        assert await volumes(client, 21) == list(range(8, 22))


async def test_newest_position_as_start_gives_only_what_is_new(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE], seq=True)
        market.publish(20)
        await market.stored()
        epoch = (await control(other, "data"))["epoch"]
        ack = await client.subscribed(stocks=[CODE], start={"epoch": int(float(epoch)), "seq": 20})
        assert ack["start"][CODE]["complete"] is True
        market.publish(2)
        assert await volumes(client, 22) == [21, 22]


@pytest.mark.parametrize(("epochs", "seq"), [(0, 21), (0, 10**9), (1, 5), (10**15, 0)])
async def test_position_that_was_never_published_is_told(market: Market, epochs: int, seq: int) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE], seq=True)
        market.publish(20)
        await market.stored()
        epoch = (await control(other, "data"))["epoch"]
        # The nearest epoch that a browser does not take for the same one.
        claimed = int(float(epoch)) + epochs * 1024
        ack = await client.subscribed(stocks=[CODE], start={"epoch": claimed, "seq": seq})
        assert ack["start"][CODE] == {"from": None, "complete": False, "reason": "unknown_position"}
        market.publish(2)
        assert await volumes(client, 22) == [20, 21, 22]


async def test_position_of_an_earlier_epoch_is_answered_from_its_end(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(5)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start={"epoch": 1, "seq": 7})
        told = ack["start"][CODE]
        assert (told["complete"], told["reason"], told["before"]["seq"]) == (False, "restart", 1)
        assert told["after"] == {"epoch": 1, "seq": 7}
        assert await volumes(client, 5) == [1, 2, 3, 4, 5]


async def test_documented_client_gets_stored_ticks_without_an_ack(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(30)
        await market.stored()
        await client.send({"stocks": [CODE], "start": "09:30"})
        assert await volumes(client, 30) == list(range(1, 31))
        market.publish()
        assert (await client.receive())[CODE][0]["volume"] == 31


async def test_part_up_to_an_end_is_sent_and_its_end_told(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(30)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:06", end="09:30:15", id=5)
        assert (ack["added"], ack["active"]) == ([], 0)
        assert await volumes(client, 5) == [3, 4, 5]
        assert await client.receive() == {"type": "end", "id": 5}
        market.publish()
        await client.send({"action": "list", "id": 6})
        assert await client.receive() == {"type": "subscriptions", "id": 6, "stocks": []}
    await market.rig.unwanted(TICK)


async def test_part_of_the_day_makes_no_demand_at_the_source(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=[CODE], start="09:30", end="10:00")
        assert await client.receive() == {"type": "end", "id": 1}
        assert market.rig.source.wanted == []


async def test_gap_of_the_store_is_told_with_both_sides(market: Market) -> None:
    market.store.keeps = lambda frame: frame.seq not in (5, 6)
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(10)
        await market.stored()
        await client.subscribed(stocks=[CODE], start="09:30", seq=True)
        got = [await client.receive() for _ in range(9)]
        assert [frame["seq"] for frame in got if frame["type"] == "data"] == [1, 2, 3, 4, 7, 8, 9, 10]
        gap, epoch = got[4], got[0]["epoch"]
        assert gap["after"] == {"epoch": epoch, "seq": 4}
        assert gap == {
            "type": "gap",
            "code": CODE,
            "reason": "gap",
            "after": {"epoch": epoch, "seq": 4},
            "before": {"epoch": epoch, "seq": 7, "time": OPEN + 18_000},
        }


async def test_beginning_that_is_not_stored_is_told_in_the_ack(market: Market) -> None:
    market.store.keeps = lambda frame: frame.seq > 3
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(10)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30")
        told = ack["start"][CODE]
        assert (told["from"], told["complete"], told["reason"]) == ("09:30:09.000", False, "store_began")
        assert told["before"]["seq"] == 4
        assert await volumes(client, 10) == list(range(4, 11))


async def test_gap_across_the_start_makes_it_incomplete(market: Market) -> None:
    market.store.keeps = lambda frame: frame.seq not in (5, 6)
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(10)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:15")
        told = ack["start"][CODE]
        assert (told["from"], told["complete"], told["reason"]) == ("09:30:18.000", False, "gap")
        assert (told["after"]["seq"], told["before"]["seq"]) == (4, 7)
        assert await volumes(client, 10) == [7, 8, 9, 10]


async def test_documented_client_is_told_by_an_error_what_is_missing(market: Market) -> None:
    market.store.keeps = lambda frame: frame.seq > 3
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(10)
        await market.stored()
        await client.send({"stocks": [CODE], "start": "09:30"})
        told = await client.receive()
        assert (told["type"], told["code"], told["symbol"], told["retry"]) == ("error", "incomplete", CODE, False)


async def test_store_that_completes_the_day_is_waited_for(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than until a store counts as away.
    monkeypatch.setattr(stored, "PATIENCE", 0.6)
    asks: list[int] = []
    answer = market.store.day.answer

    def filling(ask: CatchUp) -> list[TopicHistory]:
        asks.append(ask.id)
        if len(asks) <= 6:
            return [TopicHistory(ask.id, topic, "filling") for topic in ask.topics]
        return [msgspec.structs.replace(each, source="history") for each in answer(ask)]

    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(20)
        await market.stored()
        monkeypatch.setattr(market.store.day, "answer", filling)
        ack = await client.subscribed(stocks=[CODE], start="09:30")
        assert ack["start"] == {CODE: {"from": "09:30:00.000", "complete": True, "source": "history"}}
        market.publish(5)
        assert await volumes(client, 25) == list(range(1, 26))
    assert len(set(asks)) > 6


async def test_reason_against_the_sources_history_is_told(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(ask: CatchUp) -> list[TopicHistory]:
        hole = Hole("not_stored", backfill="a hand has no history")
        return [TopicHistory(ask.id, topic, holes=[hole]) for topic in ask.topics]

    monkeypatch.setattr(market.store.day, "answer", nothing)
    async with market.rig.connect("/ws/realtime") as client:
        ack = await client.subscribed(stocks=[CODE], start="09:30")
        told = {"from": None, "complete": False, "reason": "not_stored", "backfill": "a hand has no history"}
        assert ack["start"] == {CODE: told}


async def test_history_leads_to_the_feeders_next_number(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has a history alone: the positions of the feeder that it covers are those of its answer."""
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE], seq=True)
        market.publish(4)
        await market.stored()
        [*kept] = market.store.day.kept[TICK]
        epoch = kept[0].epoch

        def history(ask: CatchUp) -> list[TopicHistory]:
            frames = [StoredFrame(epoch - 2**20, n, 1, 1, msgspec.Raw(frame.body)) for n, frame in enumerate(kept, 1)]
            return [TopicHistory(ask.id, TICK, frames=frames, epoch=epoch, seq=4, start_ms=OPEN, source="history")]

        monkeypatch.setattr(market.store.day, "answer", history)
        ack = await client.subscribed(stocks=[CODE], start="09:30", seq=True)
        assert ack["start"][CODE]["complete"] is True
        market.publish(3)
        told = [await client.receive() for _ in range(7)]
        assert [frame["type"] for frame in told] == ["data"] * 7
        assert [frame["seq"] for frame in told] == [1, 2, 3, 4, 5, 6, 7]
        assert [frame["data"][CODE][0]["volume"] for frame in told] == list(range(1, 8))


async def test_topic_that_is_not_stored_begins_with_its_last_value(market: Market) -> None:
    market.store.keeps = lambda frame: False
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(3)
        await volumes(other, 3)
        ack = await client.subscribed(stocks=[CODE], start="09:30")
        assert ack["start"] == {CODE: {"from": None, "complete": False, "reason": "not_stored"}}
        assert await volumes(client, 3) == [3]
        market.publish()
        assert await volumes(client, 4) == [4]


async def test_without_a_store_the_client_is_told_and_goes_live(config: Config) -> None:
    with running_rig(config) as rig:
        rig.serve(store_addr=f"tcp://127.0.0.1:{free_port()}")
        async with rig.connect("/ws/realtime") as client:
            await rig_publishes(rig, client)


async def rig_publishes(rig: Rig, client: Client) -> None:
    ack = await client.subscribed(stocks=[CODE], start="09:30")
    assert ack["start"] == {CODE: {"from": None, "complete": False, "reason": "store_away"}}
    rig.source.publish(TICK, tick(1))
    assert await volumes(client, 1) == [1]


async def test_store_that_dies_in_the_middle_leaves_a_told_gap(market: Market) -> None:
    market.store.answers = lambda ask: ask.after is None
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        # More than a chunk.
        for number in range(1, 41):
            market.number = number
            record = tick(number)[CODE][0] | {"pad": "x" * 40_000}
            market.rig.source.publish(TICK, {CODE: [record]})
        await market.stored()
        await volumes(other, 40)
        await client.subscribed(stocks=[CODE], start="09:30", seq=True)
        got: list[Any] = []
        while not got or got[-1].get("seq") != 40:
            got.append(await client.receive())
        gaps = [frame for frame in got if frame["type"] == "gap"]
        before = [frame["seq"] for frame in got[: got.index(gaps[0])]]
        assert [gap["reason"] for gap in gaps] == ["store_away"]
        assert before == list(range(1, len(before) + 1))
        assert (gaps[0]["after"]["seq"], gaps[0]["before"]["seq"]) == (len(before), 40)


async def test_stored_ticks_are_not_limited_by_the_rate_but_live_ones_are(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(100)
        await market.stored()
        await client.subscribed(stocks=[CODE], start="09:30", max_rate_ms=3_600_000)
        assert await volumes(client, 100) == list(range(1, 101))
        market.publish(5)
        await volumes(other, 105)
        await client.send({"action": "ping", "id": 2})
        got = [await client.receive()]
        while got[-1].get("type") != "pong":
            got.append(await client.receive())
        # The first one shows that the stream goes on where the store ended, the second one is due at once.
        assert [frame[CODE][0]["volume"] for frame in got if CODE in frame] == [101, 102]


async def test_refused_code_is_refused_with_a_start_too(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as client:
        ack = await client.subscribed(stocks=["999999.SZ"], start="09:30")
        assert (ack["added"], ack["rejected"][0]["error"], ack["start"]) == ([], "unknown_symbol", {})


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"start": "half past nine"}, "start is a time of day"),
        ({"start": True}, "Expected"),
        ({"start": 93000}, "milliseconds since 1970"),
        ({"start": "09:30", "end": "x"}, "end is a time of day"),
        ({"end": "09:30"}, "needs a start"),
        ({"start": "09:30", "resume": {"epoch": 1, "seq": 1}}, "choose one"),
        ({"start": {"epoch": 1, "seq": 1}, "stocks": [CODE, "000001.SZ"]}, "positions by code"),
        ({"start": {"000001.SZ": {"epoch": 1, "seq": 1}}}, "does not ask for"),
        ({"start": {"000001.SZ": "09:30"}}, "does not ask for"),
        ({"start": {CODE: "half past nine"}}, "start is a time of day"),
        ({"speed": 10}, "needs a start"),
        ({"start": "09:30", "speed": -1}, "speed is from 0.01 to 1000"),
        ({"start": "09:30", "speed": 1e6}, "speed is from 0.01 to 1000"),
        ({"start": "09:30", "speed": True}, "Expected"),
        ({"start": {"epoch": 1, "seq": -1}}, "from 0 to 2^62"),
        ({"start": {"epoch": -1, "seq": 1}}, "from 0 to 2^62"),
        ({"start": {"epoch": 1e300, "seq": 1}}, "from 0 to 2^62"),
        ({"start": {"epoch": 1, "seq": 2**63}}, "from 0 to 2^62"),
    ],
)
async def test_start_that_means_nothing_is_refused(market: Market, request_: dict[str, Any], told: str) -> None:
    async with market.rig.connect("/ws/realtime") as client:
        await client.send({"id": 1, "stocks": [CODE], **request_})
        error = await client.receive()
        assert error["code"] == "bad_request"
        assert told.lower() in error["error"].lower()


async def test_hundreds_of_codes_are_read_side_by_side(market: Market) -> None:
    codes = [f"{number:06}.SZ" for number in range(1, 301)]
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=codes)
        for code in codes:
            for number in (1, 2, 3):
                market.rig.source.publish(quote_topic(code), {code: tick(number)[CODE]})
        await until(lambda: len(market.store.day.kept) == len(codes), "the store")
        await until(lambda: all(len(kept) == 3 for kept in market.store.day.kept.values()), "the store")
        ack = await client.subscribed(stocks=codes, start="09:30:03")
        assert all(told["complete"] for told in ack["start"].values())
        assert list(ack["start"]) == codes
        got: dict[str, list[int]] = {}
        for _ in range(2 * len(codes)):
            [(code, [record])] = (await client.receive()).items()
            got.setdefault(code, []).append(record["volume"])
        assert got == {code: [2, 3] for code in codes}


async def test_market_is_read_from_the_store_too(market: Market) -> None:
    topic = whole_topic("SH")
    async with market.rig.connect("/ws/whole_quote") as other, market.rig.connect("/ws/whole_quote") as client:
        await other.subscribed(codes=["SH"])
        for number in range(1, 11):
            market.rig.source.publish(topic, {CODE: tick(number)[CODE][0]})
        await until(lambda: len(market.store.day.kept.get(topic, ())) == 10, "the store")
        ack = await client.subscribed(codes=["SH", CODE], start="09:30:15")
        assert ack["start"]["SH"] == {"from": "09:30:15.000", "complete": True}
        assert ack["start"][CODE]["reason"] == "market_subscribed"
        got = [(await client.receive())[CODE]["volume"] for _ in range(5)]
        assert got == [6, 7, 8, 9, 10]


async def test_formula_is_read_from_the_store_too(market: Market) -> None:
    async with market.rig.connect("/ws/formula") as other, market.rig.connect("/ws/formula") as client:
        await other.subscribed(formula_name="MA", stock_code=CODE)
        [topic] = market.rig.source.wanted
        for number in range(1, 6):
            market.rig.source.publish(topic, {"n": [{"time": OPEN + number}]})
        await until(lambda: len(market.store.day.kept.get(topic, ())) == 5, "the store")
        ack = await client.subscribed(formula_name="MA", stock_code=CODE, start=OPEN + 3)
        assert ack["start"] == {"from": "09:30:00.003", "complete": True}
        got = [(await control(client, "formula_update"))["n"][0]["time"] for _ in range(3)]
        assert got == [OPEN + 3, OPEN + 4, OPEN + 5]


async def test_played_ticks_are_followed_by_live_ones(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(100)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:03", speed=1000)
        assert ack["play"] == {"speed": 1000.0, "from": "09:30:03.000", "meets_live": True}
        assert await volumes(client, 100) == list(range(2, 101))
        market.publish(5)
        assert await volumes(client, 105) == list(range(101, 106))


async def test_played_ticks_never_meet_live_ones_at_their_own_pace(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(3)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:00", speed=1)
        assert ack["play"] == {"speed": 1.0, "from": "09:30:00.000", "meets_live": False}
        assert await volumes(client, 1) == [1]
        market.publish()
        await volumes(other, 4)
        await client.send({"action": "ping", "id": 2})
        # The second tick is due 3 s after the first one, and the live one 9 s after it.
        assert (await client.receive())["type"] == "pong"


async def test_part_that_is_played_is_told_its_end(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(30)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:06", end="09:30:15", speed=500, id=5)
        assert ack["play"]["meets_live"] is False
        assert await volumes(client, 5) == [3, 4, 5]
        assert await client.receive() == {"type": "end", "id": 5}


async def test_codes_of_a_request_are_played_in_one_time(market: Market) -> None:
    late = "000001.SZ"
    topic = quote_topic(late)
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE, late])
        market.publish(20)
        for number in range(11, 21):
            market.rig.source.publish(topic, {late: tick(number)[CODE]})
        await market.stored()
        await until(lambda: len(market.store.day.kept.get(topic, ())) == 10, "the store")
        # No ack: the clock is started once the first record of each code is known, too.
        await client.send({"stocks": [late, CODE], "start": "09:30", "speed": 300})
        got = [next(iter((await client.receive()).items())) for _ in range(30)]
        seen: set[str] = set()
        for code, [record] in got:
            if code == late and late not in seen:
                assert [each["volume"] for name, [each] in got[: got.index((code, [record]))] if name == CODE][-1] >= 10
            seen.add(code)


async def test_codes_may_begin_at_a_time_and_a_position(market: Market) -> None:
    other_code = "000001.SZ"
    topic = quote_topic(other_code)
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE, other_code], seq=True)
        market.publish(5)
        for number in range(1, 6):
            market.rig.source.publish(topic, {other_code: tick(number)[CODE]})
        await market.stored()
        await until(lambda: len(market.store.day.kept.get(topic, ())) == 5, "the store")
        epoch = (await control(other, "data"))["epoch"]
        start = {CODE: {"epoch": epoch, "seq": 4}, other_code: "09:30:09"}
        await client.subscribed(stocks=[CODE, other_code], start=start)
        got = [next(iter((await client.receive()).items())) for _ in range(3)]
        numbers = {code: [record["volume"] for name, [record] in got if name == code] for code in (CODE, other_code)}
        assert numbers == {CODE: [5], other_code: [4, 5]}


async def test_events_are_played_at_a_pace(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other:
        await other.subscribed(stocks=[CODE])
        market.publish(5)
        await market.stored()
        ack, *ticks = await events(market.rig, f"/sse/realtime?stocks={CODE}&start=09:30:03&speed=1000", 5)
        assert ack["play"] == {"speed": 1000.0, "from": "09:30:03.000", "meets_live": True}
        assert [body[CODE][0]["volume"] for body in ticks] == [2, 3, 4, 5]
