"""A feeder without room for more, over real ZeroMQ: a place that was given up is free for another topic at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq

from feeder import registry
from feeder.publisher import Publisher
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.wire.requests import CatchUp, TopicState, decode_reply, encode_ask
from qmt_bridge.wire.topics import FormulaSpec, Topic, formula_topic, l2_topic, quote_topic, whole_topic
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import HandDriven, Rig
from tests.support.waiting import SLOWNESS, wait_for

MILLISECONDS = int(20_000 * SLOWNESS)
CODES = [f"{number:06}.SZ" for number in range(1, 7)]
TOPICS = {
    "quote": [quote_topic(code) for code in CODES],
    "whole": [whole_topic(code) for code in CODES],
    "l2": [l2_topic(code) for code in CODES],
    "formula": [formula_topic(FormulaSpec("MA", code)) for code in CODES],
}
# Of each kind.
ROOM = 2


class Consumer:
    """A SUB and a DEALER, as a worker has them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], rig: Rig) -> None:
        self.market = sockets.connect_subscriber(context, rig.config.market_addr, None)
        self.dealer = sockets.connect_dealer(context, rig.config.ask_addr, None)

    def subscribe(self, *topics: Topic) -> None:
        for topic in topics:
            self.market.subscribe(topic.encode())

    def leave(self, *topics: Topic) -> None:
        for topic in topics:
            self.market.unsubscribe(topic.encode())

    def ask(self, topic: Topic) -> None:
        self.dealer.send(encode_ask(CatchUp(1, [topic])))

    def answer(self) -> TopicState:
        assert self.dealer.poll(MILLISECONDS), "no answer in time"
        reply = decode_reply(self.dealer.recv())
        assert isinstance(reply, TopicState)
        return reply

    def state(self, topic: Topic) -> tuple[str, str | None]:
        """Return the state of a topic, once it is decided, and the code of its refusal."""
        for _ in range(30):
            self.ask(topic)
            answer = self.answer()
            if answer.state != "pending":
                break
        return answer.state, answer.code


@pytest.fixture(params=[0.0, 60.0], ids=["no-grace", "grace"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Return a feeder with room for two topics of scarce kinds, and for two others beside its heartbeat."""
    monkeypatch.setattr(registry, "MAX_TOPICS", ROOM + 1)
    config = Config(**ANY_ADDRESSES, data_dir=str(tmp_path), grace=request.param, max_depths=ROOM, max_formulas=ROOM)
    rig = Rig(config)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture
def consumers(rig: Rig) -> Iterator[list[Consumer]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield [Consumer(context, rig) for _ in range(2)]
    finally:
        context.destroy(linger=0)


def fill(consumer: Consumer, topics: list[Topic]) -> None:
    consumer.subscribe(*topics[:ROOM])
    for topic in topics[:ROOM]:
        assert consumer.state(topic) == ("live", None)


@pytest.mark.parametrize("kind", TOPICS)
def test_subscription_behind_a_departure_is_served(
    rig: Rig, consumers: list[Consumer], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is asked about is waited for, however long that takes.
    monkeypatch.setattr(registry, "PLACE_WITHIN", -1.0)
    consumer, topics = consumers[0], TOPICS[kind]
    fill(consumer, topics)
    for number in range(20):
        old, new = topics[number % len(topics)], topics[(number + ROOM) % len(topics)]
        consumer.leave(old)
        consumer.subscribe(new)
        assert consumer.state(new) == ("live", None)
    assert len(rig.source.wanted) == ROOM
    numbers = rig.feeder.publisher.numbers()
    assert numbers is not None
    assert numbers.counted["refused"] == 0


def test_topic_that_waits_longest_has_the_next_place() -> None:
    source, topics = HandDriven(), TOPICS["l2"]
    source.sink = SimpleNamespace(accept=lambda topic: None)  # type: ignore[assignment]
    publisher = Publisher(Config(max_depths=1), source)
    departures = SimpleNamespace(is_mark=lambda said: False, are_answers=False)
    publisher._doors = SimpleNamespace(departures=departures)  # type: ignore[assignment]
    for topic in topics[:2]:
        publisher._take_demand(b"\1" + topic.encode())
    # Read in one turn: the first one has left, and a third one is subscribed.
    departures.are_answers = True
    publisher._take_demand(b"\0" + topics[0].encode())
    departures.are_answers = False
    publisher._take_demand(b"\1" + topics[2].encode())
    assert source.wanted == [topics[1]]


@pytest.mark.parametrize("kind", ["whole", "formula"])
def test_question_that_overtakes_its_subscription_waits(rig: Rig, consumers: list[Consumer], kind: str) -> None:
    consumer, topics = consumers[0], TOPICS[kind]
    fill(consumer, topics)
    consumer.ask(topics[2])
    # The answer to a later question: the first one was taken.
    assert consumer.state(topics[0]) == ("live", None)
    consumer.leave(topics[1])
    consumer.subscribe(topics[2])
    answer = consumer.answer()
    assert (answer.topic, answer.state) == (topics[2], "live")


@pytest.mark.parametrize("kind", ["quote", "l2"])
def test_place_that_another_connection_gives_back_is_taken(
    rig: Rig, consumers: list[Consumer], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PLACE_WITHIN", 60.0)
    (one, other), topics = consumers, TOPICS[kind]
    fill(one, topics)
    other.subscribe(topics[2])
    other.ask(topics[2])
    assert other.state(topics[0]) == ("live", None)
    one.market.close(linger=0)
    answer = other.answer()
    while answer.state == "pending":
        other.ask(topics[2])
        answer = other.answer()
    assert (answer.topic, answer.state) == (topics[2], "live")


@pytest.mark.parametrize("kind", ["quote", "formula"])
def test_without_a_place_a_subscription_is_refused(rig: Rig, consumers: list[Consumer], kind: str) -> None:
    (one, other), topics = consumers, TOPICS[kind]
    fill(one, topics)
    other.subscribe(topics[2])
    assert other.state(topics[2]) == ("refused", "symbol_limit")
    assert sorted(rig.source.wanted) == sorted(topics[:ROOM])
    # The feeder is not told of a further subscriber, whose question has it look for a place again.
    one.leave(topics[0])
    wait_for(lambda: (told := rig.feeder.publisher.numbers()) and told.gauges["topics"] == ROOM - 1)
    one.subscribe(topics[2])
    assert one.state(topics[2]) == ("live", None)
    wait_for(lambda: sorted(rig.source.wanted) == sorted(topics[1:3]))
    # And one more is refused, now that what was asked about is known.
    other.subscribe(topics[3])
    assert other.state(topics[3]) == ("refused", "symbol_limit")
