"""What sockets without a key may hold of what is scarce: a part is kept for those with one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from feeder.source import DownloadRequest
from gateway.costs.shares import CANCELLING, Download, Limits, Shares, SocketShares, limits_of_worker
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import FormulaSpec, Topic, formula_topic, l2_topic
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import KEY, Client, Rig, metrics, running_rig
from tests.support.waiting import until

# So many of the limits of `rig` are for sockets without a key.
SHARE = 9
LIMITS = Limits({"l2": 2, "formula": 1}, 2, 10)


def code(number: int) -> str:
    return f"{number:06}.SZ"


def depth(number: int) -> Topic:
    return l2_topic(code(number))


def download(number: int, codes: int = 1) -> Download:
    return Download(frozenset(map(code, range(number, number + codes))), "1d", "", "")


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(1, ({"l2": 900, "formula": 450}, 16, 90_000)), (4, ({"l2": 225, "formula": 112}, 4, 22_500))],
)
def test_workers_share_nine_tenths_of_each_limit(workers: int, expected: tuple[Any, ...]) -> None:
    limits = limits_of_worker(1000, 500, 16, workers)
    assert (dict(limits.topics), *limits[1:]) == expected


def test_each_worker_may_hold_one_of_everything() -> None:
    limits = limits_of_worker(1, 1, 1, 64)
    assert (set(limits.topics.values()), limits.downloads) == ({1}, 1)


def test_downloads_are_bounded_by_what_the_feeder_takes() -> None:
    assert limits_of_worker(1, 1, 10_000, 1).downloads == 180
    assert limits_of_worker(1, 1, 10_000, 10).downloads == 90


def test_topics_are_counted_once_for_all_sockets() -> None:
    shares = Shares(LIMITS, 0.0)
    first, second = SocketShares(shares), SocketShares(shares)
    assert [bool(first.take(depth(number), bounded=True)) for number in (1, 2, 3)] == [False, False, True]
    assert second.take(depth(1), bounded=True) == ""
    assert "at most 2" in second.take(depth(3), bounded=True)
    assert second.take(depth(3), bounded=False) == ""
    second.clear()
    first.give_back(depth(2))
    assert second.take(depth(3), bounded=True) == ""


def test_a_download_that_its_socket_left_counts_until_its_end() -> None:
    shares = Shares(LIMITS, 5.0)
    for number in (1, 2):
        left = SocketShares(shares)
        assert left.download(download(number), 0.0, bounded=True) == ""
        left.leave(float(number))
    assert "at most 2" in SocketShares(shares).download(download(3), 5.9 + CANCELLING, bounded=True)
    # Who comes again for the same one may have it.
    assert SocketShares(shares).download(download(2), 5.9 + CANCELLING, bounded=True) == ""
    assert SocketShares(shares).download(download(3), 6.0 + CANCELLING, bounded=True) == ""


def test_the_codes_of_downloads_are_bounded_too() -> None:
    shares = Shares(LIMITS, 0.0)
    first = SocketShares(shares)
    assert first.download(download(1, codes=6), 0.0, bounded=True) == ""
    assert "at most 10 codes" in SocketShares(shares).download(download(50, codes=5), 0.0, bounded=True)
    first.download_ended()
    assert SocketShares(shares).download(download(50, codes=5), 0.0, bounded=True) == ""


@pytest.mark.parametrize("seed", range(5))
def test_shares_follow_a_model(seed: int) -> None:
    """Sockets that take, give back, show a key and leave at random: what is counted is what they hold."""
    dice = random.Random(seed)
    shares = Shares(LIMITS._replace(topics={"l2": 4, "formula": 1}), 0.0)
    held: list[tuple[SocketShares, Counter[Topic]]] = [(SocketShares(shares), Counter()) for _ in range(4)]
    for _ in range(2000):
        place = dice.randrange(len(held))
        socket, own = held[place]
        topic = depth(dice.randrange(8))
        used = set().union(*(set(+each) for _, each in held))
        act = dice.random()
        if act < 0.1:
            dice.choice((socket.clear, lambda of=socket: of.leave(0.0)))()
            # What its subscriptions still say changes nothing.
            socket.give_back(topic)
            held[place] = SocketShares(shares), Counter()
        elif act < 0.5:
            admitted = topic in used or len(used) < 4
            assert (socket.take(topic, bounded=True) == "") == admitted
            own[topic] += admitted
        elif own[topic]:
            socket.give_back(topic)
            own[topic] -= 1
        assert set(shares._topics["l2"]) == set().union(*(set(+each) for _, each in held))


class Downloads:
    """Downloads of a source that run until the test ends them."""

    def __init__(self, rig: Rig) -> None:
        self._source = rig.source
        self.running: list[Topic] = []
        rig.source.download = self._start  # type: ignore[method-assign]

    def _start(self, topic: Topic, request: DownloadRequest) -> None:
        self.running.append(topic)

    def finish(self) -> None:
        self._source.publish(self.running.pop(), {"status": "done"})


@pytest.fixture
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Return a feeder and a gateway with room for ten of everything."""
    config = Config(
        **ANY_ADDRESSES,
        api_key=getattr(request, "param", KEY),
        data_dir=str(tmp_path),
        grace=0.0,
        lag_target=30.0,
        max_depths=10,
        max_formulas=10,
        xt_download_queue=8,
    )
    with running_rig(config) as rig:
        rig.serve()
        yield rig


def with_key(rig: Rig, path: str) -> Any:
    return rig.connect(f"{path}?api_key={quote(KEY)}")


def limited(rig: Rig) -> float:
    return metrics(rig.servers[0].port).get('limited_total{limit="without_key"}', 0.0)


async def take_formula(client: Client, number: int) -> Any:
    await client.send({"id": number, "formula_name": "MA", "stock_code": code(number)})
    return await client.receive()


async def test_sockets_without_a_key_leave_depths_to_the_owner(rig: Rig) -> None:
    before = limited(rig)
    async with rig.connect("/ws/l2_thousand") as one, rig.connect("/ws/l2_thousand") as two:
        await one.subscribed(stocks=[code(number) for number in range(SHARE - 1)])
        # Two depths of the same code that one subscription serves count once.
        assert (await two.subscribed(stocks=[code(8)], gear_num=50))["rejected"] == []
        ack = await two.subscribed(stocks=[code(8), code(9)], gear_num=70)
        assert ack["added"] == [code(8)]
        [rejected] = ack["rejected"]
        assert (rejected["code"], rejected["error"]) == (code(9), "symbol_limit")
        assert "without an API key" in rejected["reason"]
        assert limited(rig) == before + 1
        async with with_key(rig, "/ws/l2_thousand") as owner:
            assert (await owner.subscribed(stocks=[code(10)]))["rejected"] == []
            await rig.wanted(depth(10))
        # What one gives back is for any of them.
        await one.send({"action": "unsubscribe", "id": 2, "stocks": [code(0)]})
        await one.receive()
        assert (await two.subscribed(stocks=[code(11)]))["rejected"] == []
        assert (await one.subscribed(stocks=[code(12)]))["added"] == []
    async with rig.connect("/ws/l2_thousand") as late:
        await until(lambda: metrics(rig.servers[0].port)['connections{path="/ws/l2_thousand"}'] == 1, "their end")
        assert len((await late.subscribed(stocks=[code(number) for number in range(20)]))["added"]) == SHARE


async def test_depths_that_the_source_refuses_do_not_count(rig: Rig) -> None:
    async with rig.connect("/ws/l2_thousand") as client:
        for _ in range(SHARE + 1):
            ack = await client.subscribed(stocks=["999999.SZ"])
            assert ack["rejected"][0]["error"] == "unknown_symbol"
        assert len((await client.subscribed(stocks=[code(number) for number in range(20)]))["added"]) == SHARE


async def test_sockets_without_a_key_leave_formulas_to_the_owner(rig: Rig) -> None:
    before = limited(rig)
    async with rig.connect("/ws/formula") as one, rig.connect("/ws/formula") as two:
        for number in range(SHARE):
            assert (await take_formula(one, number))["action"] == "subscribed"
        # Also as the first request of a socket.
        refused = await take_formula(two, SHARE)
        assert (refused["id"], refused["code"], refused["stock_code"]) == (SHARE, "symbol_limit", code(SHARE))
        assert limited(rig) == before + 1
        # A second subscription of the same formula takes nothing from the source.
        assert (await take_formula(two, 0))["action"] == "subscribed"
        async with with_key(rig, "/ws/formula") as owner:
            assert (await take_formula(owner, SHARE))["action"] == "subscribed"
            await rig.wanted(formula_topic(FormulaSpec("MA", code(SHARE))))
        await one.send({"action": "unsubscribe", "id": 50, "seq_id": 2})
        assert (await one.receive())["action"] == "unsubscribed"
        assert (await take_formula(two, 60))["action"] == "subscribed"
        assert (await take_formula(two, 61))["code"] == "symbol_limit"


async def test_formulas_that_the_source_refuses_do_not_count(rig: Rig) -> None:
    async with rig.connect("/ws/formula") as client:
        for number in range(SHARE + 1):
            await client.send({"id": number, "formula_name": "MA", "stock_code": "999999.SZ"})
            assert (await client.receive())["code"] == "unknown_symbol"
        assert (await take_formula(client, 1))["action"] == "subscribed"


async def test_sockets_without_a_key_leave_downloads_to_the_owner(rig: Rig) -> None:
    before, downloads = limited(rig), Downloads(rig)
    path = "/ws/download_progress"
    started: list[Any] = [rig.connect(path) for _ in range(SHARE)]
    clients = [await each.__aenter__() for each in started]
    for number, client in enumerate(clients):
        await client.send({"stocks": [code(number)]})
    await until(lambda: len(downloads.running) == SHARE, "the downloads")
    async with rig.connect(path) as late, rig.connect(path) as joining, with_key(rig, path) as owner:
        await late.send({"stocks": [code(50)]})
        refused = await late.receive()
        assert (refused["code"], refused["status"], refused["retry"]) == ("rate_limited", "error", True)
        assert "without an API key" in refused["error"]
        assert (await late.closed())[0] == 1011
        assert limited(rig) == before + 1
        await owner.send({"stocks": [code(51)]})
        await until(lambda: len(downloads.running) == SHARE + 1, "the download of the owner")
        # An equal download is the one that runs.
        await joining.send({"stocks": [code(0)]})
        downloads.finish()
        assert await owner.receive() == {"status": "done"}
        downloads.finish()
        assert (await clients[-1].closed())[0] == 1000
        async with rig.connect(path) as next_one:
            await next_one.send({"stocks": [code(52)]})
            await until(lambda: len(downloads.running) == SHARE, "a download in the place of the one that has ended")
    while downloads.running:
        downloads.finish()
    for each in started:
        await each.__aexit__(None, None, None)


async def test_a_key_that_is_shown_later_gives_everything_back(rig: Rig) -> None:
    async with rig.connect("/ws/l2_thousand") as owner, rig.connect("/ws/l2_thousand") as other:
        await owner.subscribed(stocks=[code(number) for number in range(SHARE)])
        assert (await other.subscribed(stocks=[code(20)]))["rejected"] != []
        await owner.send({"action": "auth", "id": 2, "key": KEY})
        assert (await owner.receive())["type"] == "authenticated"
        # What the owner holds does not count any more, and the source has one left.
        assert (await other.subscribed(stocks=[code(20)]))["rejected"] == []
        await owner.send({"action": "unsubscribe", "id": 3, "stocks": [code(number) for number in range(SHARE)]})
        await owner.receive()
        # The feeder refuses more than the source may make, until it has given these back.
        await until(lambda: len(rig.source.wanted) == 1, "the end of what the owner held")
        taken = [code(number) for number in range(20, 40)]
        assert (await other.subscribed(stocks=taken))["active"] == SHARE


async def test_a_download_is_given_back_when_a_key_is_shown(rig: Rig) -> None:
    downloads, path = Downloads(rig), "/ws/download_progress"
    async with rig.connect(path) as owner:
        await owner.send({"stocks": [code(0)]})
        await until(lambda: len(downloads.running) == 1, "the download")
        await owner.send({"action": "auth", "id": 2, "key": KEY})
        assert (await owner.receive())["type"] == "authenticated"
        started: list[Any] = [rig.connect(path) for _ in range(SHARE)]
        for number, each in enumerate(started, 1):
            await (await each.__aenter__()).send({"stocks": [code(number)]})
        await until(lambda: len(downloads.running) == SHARE + 1, "the downloads of the others")
        while downloads.running:
            downloads.finish()
        for each in started:
            await each.__aexit__(None, None, None)


@pytest.mark.parametrize("rig", [""], indirect=True, ids=["no-key"])
async def test_without_any_key_nothing_is_kept(rig: Rig) -> None:
    downloads = Downloads(rig)
    async with rig.connect("/ws/l2_thousand") as depths, rig.connect("/ws/formula") as formulas:
        assert len((await depths.subscribed(stocks=[code(number) for number in range(10)]))["added"]) == 10
        for number in range(10):
            assert (await take_formula(formulas, number))["action"] == "subscribed"
        started: list[Any] = [rig.connect("/ws/download_progress") for _ in range(10)]
        for number, each in enumerate(started):
            await (await each.__aenter__()).send({"stocks": [code(number)]})
        await until(lambda: len(downloads.running) == 10, "the downloads")
        while downloads.running:
            downloads.finish()
        for each in started:
            await each.__aexit__(None, None, None)
