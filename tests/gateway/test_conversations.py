"""Random conversations against a model: requests of all kinds, refusals, slow clients, losses, and leaving.

Every id is answered once, no data comes before its ack or after the ack that ends it, values never go back, what acks
say is what is held, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from gateway import session as session_module
from gateway.sending import sender as sender_module
from qmt_bridge.wire.topics import Topic
from tests.support.conversation import CODES, MARKETS, PERIODS, SLOW, TOPICS, Talker, VirtualLoop, World, codes_of

STEPS = 3000
SEEDS = 12


def names(rng: random.Random, known: list[str]) -> list[str]:
    chosen = rng.sample(known, rng.randint(1, 3))
    # A wrong code, and one twice.
    return [*chosen, *rng.choice(([], [], ["junk"], chosen[:1]))]


def options(rng: random.Random, talker: Talker, asked: list[str]) -> dict[str, Any]:
    if talker.wants_all:
        # From its first request on: what waits when the mode is switched may show a value that comes once more.
        return {"mode": "all", "seq": rng.random() < 0.5}
    if rng.random() < 0.5:
        return {}
    chosen: dict[str, Any] = rng.choice(
        ({"seq": True}, {"fields": ["t", "n"]}, {"max_rate_ms": rng.choice((1, 40, 300))},
         {"snapshot": False}, {"seq": True, "fields": ["n", "t", "what"]})
    )  # fmt: skip
    if rng.random() < 0.4:
        good = [name for name in asked if name != "junk"]
        position = {"epoch": 1, "seq": rng.randint(0, 20)}
        chosen = chosen | {"resume": dict.fromkeys(good[:2], position)}
    return dict(chosen)


def request(rng: random.Random, talker: Talker) -> dict[str, Any]:
    if rng.random() < 0.1:
        return rng.choice(({"action": "list"}, {"action": "ping"}, {"action": "dance"}, {"stocks": [], "codes": 7}))
    is_whole = talker.field == "codes"
    asked = names(rng, [*MARKETS, *CODES] if is_whole else CODES)
    found: dict[str, Any] = {talker.field: asked}
    if not is_whole and rng.random() < 0.6:
        found["period"] = rng.choice(PERIODS)
    if rng.random() < 0.4:
        return found | {"action": "unsubscribe"}
    return found | options(rng, talker, asked)


async def walk(world: World, steps: int) -> None:
    """Take random steps."""
    rng, feeder = world.rng, world.feeder
    for _ in range(steps):
        here = [talker for talker in world.talkers if not talker.gone]
        chance = rng.random()
        if len(here) < 2 or (chance < 0.01 and len(here) < 5):
            arrived = world.arrive(rng.choice(("/ws/realtime", "/ws/whole_quote")))
            arrived.ask({"stocks": ["600519.SH"], "codes": ["SZ"], **options(rng, arrived, [])})
        elif chance < 0.3:
            talker = rng.choice(here)
            talker.ask(request(rng, talker))
        elif chance < 0.5:
            if feeder.questions:
                feeder.answer(world.loop.now, undecided=rng.random() < 0.1)
        elif chance < 0.8:
            topic = rng.choice(sorted(feeder.subscribed) or TOPICS)
            if topic not in feeder.refused:
                # A lost quote is only counted; a lost message of a market is repaired.
                feeder.publish(topic, world.loop.now, lost=topic.startswith("whole") and rng.random() < 0.1)
        elif chance < 0.84:
            feeder.refused ^= {rng.choice(TOPICS)}
        elif chance < 0.85:
            feeder.hub.recheck(world.loop.now)
        elif chance < 0.86:
            feeder.connected = not feeder.connected
        elif chance < 0.93:
            talker = rng.choice(here)
            talker.reads = not talker.reads
        elif chance < 0.935:
            rng.choice(here).leave()
        await world.step(rng.choice((0.0, 0.0, 0.01, 0.1)))


def check_end(talker: Talker) -> None:
    """Check that every request was answered, unless a client of what is never left out did not read."""
    if talker.close_code is not None:
        assert (talker.close_code, talker.lossless) == (SLOW, True)
    elif not talker.gone:
        assert sorted(talker.answered) == sorted(talker.requests)


async def converse(world: World) -> None:
    """Have a random conversation, let it settle, and check it."""
    await walk(world, STEPS)
    await world.settle()
    serving = [talker for talker in world.talkers if not talker.gone]
    held: dict[Talker, set[Topic]] = {}
    for talker in serving:
        check_end(talker)
        endpoint: Any = talker.session.on_refused.__self__  # type: ignore[union-attr]
        assert set(endpoint.wanted) == talker.held
        held[talker] = set(endpoint.needed())
    feeder = world.feeder
    # Nothing is refused from here on: a quiet topic may still be asked about.
    feeder.refused.clear()
    assert feeder.subscribed == set().union(*held.values())
    for topic in sorted(feeder.subscribed):
        feeder.publish_codes(topic, codes_of(topic), world.loop.now)
    await world.settle()
    for talker, topics in held.items():
        for topic in topics:
            for code in codes_of(topic):
                newest = feeder.values[topic][code]
                record = newest[0] if isinstance(newest, list) else newest
                assert talker.newest[topic, code] == record["n"], f"{topic}\n{talker.story()}"
        talker.leave()
    await world.settle()
    assert all(talker.gone for talker in world.talkers)
    for talker in world.talkers:
        # A failure in a session's task would be lost otherwise.
        talker.task.result()
        check_end(talker)
    assert not world.host.sessions
    assert not feeder.hub.streams
    assert not feeder.subscribed
    assert not world.failures


@pytest.mark.parametrize("seed", range(SEEDS))
def test_conversation_is_answered_in_order_and_leaves_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = VirtualLoop()
    for module in (session_module, sender_module):
        monkeypatch.setattr(module, "clock", loop)
    # Some worlds have sockets that hold few codes, and outboxes that hold little.
    settings = ({}, {"max_topics": 4}, {"outbox_bytes": 20_000}, {"lag_target": 0.05})[seed % 4]
    world = World(loop, seed, **{"lag_target": 0.2, **settings})
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(converse(world))
