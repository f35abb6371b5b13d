"""What a client may cost: requests, codes and answers, alone and together with others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from gateway.costs import budget, slices
from gateway.costs.budget import (
    ABUSE,
    LONGEST_WAIT,
    MAX_ADDRESSES,
    NAMED_REJECTIONS,
    UNREAD_ANSWERS,
    Bucket,
    Budget,
    Purse,
    Refusals,
    codes_named,
)
from gateway.costs.slices import Slices
from gateway.endpoints.realtime import Realtime
from gateway.endpoints.rejections import CODES_A_TURN, Rejection, shown_rejections, topics_of
from gateway.hub import Hub
from gateway.session import PART
from gateway.streams.member import Member
from gateway.writer import PreparedFrames
from qmt_bridge.config import Config
from qmt_bridge.keys.key import SIMPLE_NAME
from qmt_bridge.wire import codes
from qmt_bridge.wire.topics import Topic, quote_topic
from tests.support.rig import KEY, Rig, metrics, running_rig
from tests.support.waiting import until


def test_bucket_allows_a_burst_then_the_rate() -> None:
    bucket = Bucket(10, 40, 0.0)
    assert sum(bucket.take(0.0) for _ in range(100)) == 40
    assert sum(bucket.take(1.0) for _ in range(100)) == 10
    assert sum(bucket.take(100.0) for _ in range(100)) == 40


def test_what_was_charged_has_to_be_paid_for() -> None:
    bucket = Bucket(10, 40, 0.0)
    bucket.charge(0.0, 60)
    assert (bucket.wait(0.0), bucket.wait(1.0), bucket.wait(2.0)) == (2.0, 1.0, 0.0)


def test_request_is_paid_by_the_codes_that_it_names() -> None:
    purse = Purse(50, 1000, 2000, 0.0)
    assert [purse.name(0.0, 4000) for _ in range(3)] == [True, True, False]
    assert [purse.name(4.0, 4000) for _ in range(2)] == [True, False]
    # All that a socket may hold can always be named at once.
    assert Purse(50, 1, 6000, 0.0).name(0.0, 6000)


def test_long_answers_are_paid_like_codes() -> None:
    purse = Purse(50, 1000, 1000, 0.0)
    answered = 0
    while purse.name(0.0, 1):
        purse.charge(0.0, 64_000)
        answered += 1
    assert answered == 8


def test_refusals_add_up_although_single_requests_pass() -> None:
    purse = Purse(10, 1, 1, 0.0)
    refused, now = 0, 0.0
    while True:
        now += 0.001
        if not purse.ask(now):
            refused += 1
            if purse.abused(now):
                break
    assert ABUSE * 10 <= refused < 1.1 * ABUSE * 10


def test_slightly_too_many_requests_close_no_client() -> None:
    purse = Purse(50, 1, 1, 0.0)
    for number in range(100_000):
        now = number / 90
        assert purse.ask(now) or not purse.abused(now)


def test_address_waits_for_its_budget_and_others_do_not() -> None:
    shared = Budget(100, 1000, 0.0)
    waits = [shared.spend("10.0.0.1", 0.0, 4000) for _ in range(5)]
    assert waits[:4] == [0.0] * 4
    assert waits[4] == LONGEST_WAIT
    assert shared.spend("10.0.0.1", 0.0, 4000) is None
    assert shared.spend("10.0.0.2", 0.0, 4000) == 0.0
    assert shared.spend("10.0.0.1", 100.0, 4000) == 0.0


def test_key_has_a_budget_from_all_its_addresses() -> None:
    shared = Budget(100, 1000, 0.0)
    waits = [shared.spend(f"10.0.0.{number}", 0.0, 4000, "one") for number in range(5)]
    assert waits[:4] == [0.0] * 4
    assert waits[4] == 10.0
    assert shared.spend("10.0.1.1", 0.0, 4000, "other") == 0.0
    assert shared.spend("10.0.1.2", 0.0, 4000) == 0.0


def test_worker_has_a_budget_for_all_addresses() -> None:
    shared = Budget(100, 1000, 0.0)
    waits = [shared.spend(f"10.0.0.{number}", 0.0, 4000) for number in range(25)]
    assert waits[:21] == [0.0] * 21
    assert waits[21] == 8.0
    assert None in waits


def test_budgets_of_addresses_do_not_grow_without_end() -> None:
    shared = Budget(100, 1000, 0.0)
    for number in range(3 * MAX_ADDRESSES):
        shared.spend(str(number), float(number), 1)
    assert len(shared._addresses) <= MAX_ADDRESSES


@pytest.mark.parametrize(
    ("request_", "count"),
    [({"stocks": ["a", "b"]}, 2), ({"codes": ["a"]}, 1), ({"stocks": "abc"}, 0), ({}, 0)],
)
def test_codes_of_a_request_are_counted(request_: dict[str, object], count: int) -> None:
    assert codes_named(request_) == count


@pytest.mark.parametrize("count", [0, 1, NAMED_REJECTIONS, NAMED_REJECTIONS + 1, 5000])
def test_answer_names_a_limited_number_of_rejections(count: int) -> None:
    cut = shown_rejections((Rejection(str(number), "unknown_symbol", "") for number in range(count)), count)
    assert len(cut["rejected"]) + cut.get("rejected_more", 0) == count
    assert len(cut["rejected"]) <= NAMED_REJECTIONS
    assert ("rejected_more" in cut) is (count > NAMED_REJECTIONS)


@pytest.mark.parametrize("wrong", ["", "99", 1, True, None, 1.5, "x" * 1000])
async def test_suggestions_are_made_for_the_named_rejections_only(
    wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(codes, "_hint", lambda text: made.append(text) or "")
    topics, rejected = await topics_of([wrong] * 5000 + ["600519.SH"], quote_topic)
    assert list(topics.values()) == ["600519.SH"]
    assert len(rejected) == 5000
    assert len(made) <= NAMED_REJECTIONS


async def test_codes_are_read_in_several_turns_of_the_loop() -> None:
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    count()
    await topics_of(["600519.SH"] * (10 * CODES_A_TURN), quote_topic)
    assert turns == 10


@pytest.fixture
def rig(config: Config) -> Iterator[Rig]:
    with running_rig(config, PreparedFrames) as rig:
        rig.serve()
        yield rig


def limited(rig: Rig, limit: str) -> float:
    # Counted over all workers that this process has had, so those of earlier tests are among them.
    return metrics(rig.servers[-1].port)[f'limited_total{{limit="{limit}"}}']


async def test_request_of_wrong_codes_has_a_short_answer(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        for action in ("subscribe", "unsubscribe"):
            await client.send({"action": action, "id": 1, "stocks": ["99"] * 10_000})
            answer = await client.receive()
            assert len(answer["rejected"]) == NAMED_REJECTIONS
            assert answer["rejected_more"] == 10_000 - NAMED_REJECTIONS
            assert len(json.dumps(answer)) < 32_000


@pytest.mark.parametrize(
    "request_",
    [{"action": "subscribe", "id": 1, "stocks": ["99"] * 10_000}, {"action": "list"}],
    ids=["wrong-codes", "list"],
)
async def test_no_request_is_taken_while_answers_wait_unread(rig: Rig, request_: object) -> None:
    server = rig.serve(max_code_rate=10**9)
    before = limited(rig, "unread_answers")
    async with rig.connect("/ws/realtime", server, max_queue=1) as client:
        codes_ = [f"{number:06}.SZ" for number in range(4000)]
        await client.subscribed(stocks=codes_)
        for number in range(90):
            await client.send(request_)
            await client.send({"action": "ping", "id": number})
        await until(lambda: limited(rig, "unread_answers") > before, "answers that wait")
        assert metrics(server.port)["waiting_bytes"] < 4 * UNREAD_ANSWERS
        # All are taken once the client reads.
        pongs: list[int] = []
        while len(pongs) < 90:
            answer = await client.receive()
            if answer["type"] == "pong":
                pongs.append(answer["id"])
        assert pongs == list(range(90))


async def test_codes_beyond_the_budget_are_refused(rig: Rig) -> None:
    server = rig.serve(max_code_rate=1, max_topics=100)
    before = limited(rig, "codes")
    async with rig.connect("/ws/realtime", server) as client:
        stocks = [f"{number:06}.SZ" for number in range(100)]
        answers: list[dict[str, object]] = []
        while not answers or "active" in answers[-1]:
            action = "unsubscribe" if len(answers) % 2 else "subscribe"
            await client.send({"action": action, "id": len(answers), "stocks": stocks})
            answers.append(await client.receive())
        assert 3 <= len(answers) <= 5
        refused = answers[-1]
        assert (refused["id"], refused["code"], refused["retry"]) == (len(answers) - 1, "rate_limited", True)
        assert limited(rig, "codes") == before + 1


async def test_codes_of_all_sockets_of_an_address_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LONGEST_WAIT", 0.0)
    monkeypatch.setattr(budget, "BURST_OF_ADDRESS", 1)
    server = rig.serve(max_code_rate=1, max_topics=10)
    before = limited(rig, "codes_of_all")
    request = {"action": "subscribe", "id": 1, "stocks": [f"{number:06}.SZ" for number in range(10)]}
    async with rig.connect("/ws/realtime", server) as first:
        await first.send(request)
        await first.receive()
        for _ in range(4):
            async with rig.connect("/ws/realtime", server) as other:
                await other.send(request)
                assert (await other.receive())["type"] == "subscribed"
        await first.send(request)
        assert (await first.receive())["code"] == "rate_limited"
        async with rig.connect("/ws/realtime", server) as late:
            await late.send(request)
            # It may succeed later, so a client is to connect again.
            assert (await late.closed())[0] == 1013
    assert limited(rig, "codes_of_all") == before + 2


def test_refusals_are_told_once_a_second_with_their_number() -> None:
    refusals = Refusals(50, 0.0)
    told = []
    for step in range(300):
        refusals.note(step / 100)
        told.append(refusals.untold(step / 100))
    assert [count for count in told if count] == [1, 100, 100]
    assert sum(told) == 201
    # What is left is told although no request comes any more.
    assert (refusals.untold(2.9), refusals.untold(3.0), refusals.untold(5.0)) == (0, 99, 0)


async def test_request_of_many_codes_is_worked_off_in_parts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []
    join = Hub.join

    def counted(self: Hub, members: Mapping[Topic, Member], *rest: Any) -> None:
        joined.append(len(members))
        join(self, members, *rest)

    monkeypatch.setattr(Hub, "join", counted)
    stocks = [f"{number:06}.SZ" for number in range(2000)]
    async with rig.connect("/ws/realtime") as client:
        for _ in range(2):
            ack = await client.subscribed(stocks=stocks)
            assert ack["added"] == stocks
            await client.send({"action": "unsubscribe", "id": 2, "stocks": stocks})
            assert (await client.receive())["removed"] == stocks
        assert max(joined) <= PART
        await until(lambda: not rig.source.wanted, "the end of all subscriptions")


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "unsubscribes"])
async def test_request_that_is_under_way_leaves_nothing(rig: Rig, leaves: bool) -> None:
    stocks = [f"{number:06}.SZ" for number in range(4000)]
    async with rig.connect("/ws/realtime") as client:
        await client.send({"action": "subscribe", "id": 1, "stocks": stocks})
        if not leaves:
            await client.send({"action": "unsubscribe", "id": 2, "stocks": stocks})
            answered: set[object] = set()
            while answered != {1, 2}:
                # The first data may come between the two.
                answered |= {(await client.receive()).get("id")} - {None}
    async with rig.connect("/ws/realtime") as other:
        await other.subscribed(stocks=["600519.SH"])
        await until(lambda: rig.source.wanted == [quote_topic("600519.SH")], "the end of all other subscriptions")


async def test_next_request_of_a_socket_waits_until_all_topics_are_joined(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    handle = Realtime.handle

    async def noted(self: Realtime, request: dict[str, Any]) -> None:
        found.append(len(self.session.host.feed.hub.streams))
        await handle(self, request)

    monkeypatch.setattr(Realtime, "handle", noted)
    # One piece of work in a turn of the loop.
    monkeypatch.setattr(slices, "SLICE", 0.0)
    async with rig.connect("/ws/realtime") as client:
        await client.send({"action": "subscribe", "id": 1, "stocks": [f"{number:06}.SZ" for number in range(4000)]})
        await client.send({"action": "list", "id": 2})
        answered: set[object] = set()
        while answered != {1, 2}:
            # On a busy machine a heartbeat may come before the answers.
            answered |= {(await client.receive()).get("id")} - {None}
    assert found[1] - found[0] == 4000


async def test_socket_that_has_shown_a_key_spends_its_budget(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []
    spend = Budget.spend

    def noted(self: Budget, address: str, now: float, cost: float, key: str | None = None) -> float | None:
        keys.append(key)
        return spend(self, address, now, cost, key)

    monkeypatch.setattr(Budget, "spend", noted)
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"])
    async with rig.connect("/ws/realtime", rig.serve(require_key=True)) as client:
        await client.send({"action": "auth", "key": KEY})
        assert [(await client.receive())["type"] for _ in range(2)] == ["authenticated", "welcome"]
        await client.subscribed(stocks=["600519.SH"])
    assert keys == [None, SIMPLE_NAME]
    assert KEY not in str(keys)


async def test_ended_subscription_sends_nothing_while_it_waits_to_leave(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[Callable[[], None]] = []
    async with rig.connect("/ws/realtime") as client, rig.connect("/ws/realtime") as other:
        for each in (client, other):
            await each.subscribed(stocks=["600519.SH"])
        monkeypatch.setattr(Slices, "do", lambda self, owner, work: waiting.append(work))
        await client.send({"action": "unsubscribe", "id": 2, "stocks": ["600519.SH"]})
        assert (await client.receive())["type"] == "unsubscribed"
        rig.source.publish(quote_topic("600519.SH"), {"600519.SH": [{}]})
        assert await other.receive() == {"600519.SH": [{}]}
        await client.send({"action": "ping", "id": 3})
        assert (await client.receive())["type"] == "pong"
        assert len(waiting) == 1
        monkeypatch.undo()
