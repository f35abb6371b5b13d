"""How many different views the sockets of an address may use: counted by topic, freed by what ends."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gateway.costs.views import SocketViews, Views
from gateway.sending.view import View
from gateway.subscription import Terms, reduced_view
from qmt_bridge.wire.topics import Topic, l2_topic, quote_topic
from tests.support.rig import Rig, metrics
from tests.support.waiting import until

TICK = quote_topic("600519.SH")


def view(number: int) -> View:
    return View(levels=number)


def test_views_are_counted_by_address() -> None:
    views = Views(2)
    first, second, other = (SocketViews(views, address) for address in ("a", "a", "b"))
    first.add(view(1))
    second.add(view(2))
    assert not first.admits(view(3))
    assert first.admits(view(2))
    assert other.admits(view(3))
    second.remove(view(2))
    assert first.admits(view(3))


@pytest.mark.parametrize("seed", range(5))
def test_views_follow_a_model(seed: int) -> None:
    """Sockets that add, remove and close at random: what is counted is what they hold."""
    dice = random.Random(seed)
    views = Views(3)
    held: list[tuple[SocketViews, Counter[View]]] = [(SocketViews(views, "a"), Counter()) for _ in range(4)]
    for _ in range(2000):
        place = dice.randrange(len(held))
        socket, own = held[place]
        chosen = view(dice.randrange(6))
        used = set().union(*(set(+each) for _, each in held))
        assert socket.admits(chosen) == (chosen in used or len(used) < 3)
        if dice.random() < 0.1:
            socket.close()
            # What its topics still say changes nothing.
            socket.remove(chosen)
            held[place] = SocketViews(views, "a"), Counter()
        elif dice.random() < 0.5 and socket.admits(chosen):
            socket.add(chosen)
            own[chosen] += 1
        elif own[chosen]:
            socket.remove(chosen)
            own[chosen] -= 1
    for socket, _ in held:
        socket.close()
    assert not views._used


@pytest.mark.parametrize(
    ("topic", "terms", "reduced"),
    [
        pytest.param(TICK, Terms(), None, id="default"),
        pytest.param(TICK, Terms(stamped=True, interval=1.0), None, id="stamped"),
        pytest.param(TICK, Terms(("b", "a", "b"), stamped=True), View(fields=("a", "b")), id="fields"),
        pytest.param(l2_topic("600519.SH", 0), Terms(), None, id="all-levels"),
        pytest.param(l2_topic("600519.SH", 20), Terms(), None, id="size-of-the-feeder"),
        pytest.param(l2_topic("600519.SH", 7), Terms(), View(levels=7), id="levels"),
    ],
)
def test_view_counts_if_it_leaves_out_fields_or_levels(topic: Topic, terms: Terms, reduced: View | None) -> None:
    assert reduced_view(topic, terms) == reduced


def limited(port: int) -> float:
    return metrics(port).get('limited_total{limit="views"}', 0.0)


async def test_more_views_than_an_address_may_use_are_refused(rig: Rig) -> None:
    server = rig.serve(max_views=2)
    before = limited(server.port)
    async with rig.connect("/ws/realtime", server) as client, rig.connect("/ws/l2_thousand", server) as other:
        await client.subscribed(stocks=["600519.SH", "000001.SZ"], fields=["lastPrice", "volume"])
        await other.subscribed(stocks=["600519.SH"], gear_num=7)
        # The same fields in another order are the same view.
        await client.subscribed(stocks=["000002.SZ"], fields=["volume", "lastPrice"])
        for number in range(3):
            await client.send({"id": number, "stocks": ["000003.SZ"], "fields": ["lastPrice"]})
            refused = await client.receive()
            assert (refused["id"], refused["code"], refused["retry"]) == (number, "symbol_limit", False)
        assert limited(server.port) == before + 3
        # Other options of the same codes free what they had before.
        await client.subscribed(stocks=["600519.SH", "000001.SZ"], fields=["volume", "lastPrice"])
        await client.send({"action": "unsubscribe", "id": 9, "stocks": ["600519.SH", "000001.SZ", "000002.SZ"]})
        assert (await client.receive())["type"] == "unsubscribed"
        await client.subscribed(stocks=["000003.SZ"], fields=["lastPrice"])
    async with rig.connect("/ws/realtime", server) as late:
        await until(lambda: metrics(server.port)['connections{path="/ws/l2_thousand"}'] == 0, "the end of the others")
        for name in ("volume", "amount"):
            await late.subscribed(stocks=["000003.SZ"], fields=[name])
