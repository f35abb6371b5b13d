"""Questions for histories: what the source is asked, in which parts it answers, and the limits of all that."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from feeder import histories as histories_module
from feeder.histories import BURST, MOST, MOST_OF_ONE, REFILL_SECONDS, Budget, Found, Histories
from feeder.registry import Registry
from feeder.source import Source
from qmt_bridge.answering.askers import Peer
from qmt_bridge.errors import Refused
from qmt_bridge.wire.requests import AskHistory
from qmt_bridge.wire.source_history import PART_BYTES, SourceHistory, decode_source_history
from qmt_bridge.wire.topics import Kind, Topic, TopicParts, quote_topic, whole_topic

EPOCH = 7
TOPIC = quote_topic("600519.SH")
A, B = (b"a", b""), (b"b", b"")


class Asked:
    """A source that notes the questions, and a registry in which the topics of the test are served."""

    name = "fake"

    def __init__(self) -> None:
        self.registry = Registry(EPOCH, "fake", frozenset((Kind.QUOTE, Kind.WHOLE)), grace=5.0)
        self.questions: list[tuple[int, Topic, int]] = []
        self.raises: Exception | None = None
        self.refused: list[tuple[bytes, str, object]] = []
        self.histories = Histories(self.registry, cast("Source", self), lambda *told: self.refused.append(told))

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        if self.raises is not None:
            raise self.raises
        self.questions.append((number, topic, day_ms))

    def serve(self, topic: Topic, *bodies: bytes) -> None:
        self.registry.want(topic)
        self.registry.accept(topic)
        for body in bodies:
            entry = self.registry.find(topic)
            assert entry is not None
            self.registry.published(entry, body, None, 0.0)

    def ask(self, topic: str = TOPIC, peer: Peer = A, number: int = 1, now: float = 0.0) -> SourceHistory:
        return decode_source_history(self.histories.take(peer, AskHistory(number, topic, 9), now))


@pytest.fixture
def asked() -> Asked:
    asked = Asked()
    asked.serve(TOPIC, b'{"a":1}', b'{"a":2}')
    return asked


def parts(found: Found | None) -> list[SourceHistory]:
    assert found is not None
    return [decode_source_history(part) for part in found.parts]


def test_history_says_where_the_topic_was_when_it_was_asked_for(asked: Asked) -> None:
    assert asked.ask() == SourceHistory(1, TOPIC, "taken", epoch=EPOCH)
    assert asked.questions == [(1, TOPIC, 9)]
    asked.serve(TOPIC, b'{"a":3}')
    found = asked.histories.found(1, [b'{"a":0}', b'{"a":1}'], 5)
    assert found is not None
    assert (found.peer, found.size) == (A, 14)
    assert decode_source_history(found.instead).code == "rate_limited"
    [part] = parts(found)
    assert (part.state, part.id, part.epoch, part.seq, part.newest) == ("history", 1, EPOCH, 2, 3)
    assert (part.from_ms, part.more) == (5, False)
    assert [bytes(part.last), *map(bytes, part.bodies)] == [b'{"a":2}', b'{"a":0}', b'{"a":1}']
    assert (len(asked.histories), asked.histories.found(1, [], 5)) == (0, None)


def test_history_comes_in_parts_that_are_made_one_by_one(asked: Asked) -> None:
    asked.ask()
    body = msgspec.json.encode("x" * (PART_BYTES // 3))
    found = parts(asked.histories.found(1, [body] * 7, 0))
    assert [(len(part.bodies), part.more) for part in found] == [(2, True), (2, True), (2, True), (1, False)]


def test_topic_that_the_source_does_not_serve_yet_is_pending(asked: Asked) -> None:
    other = quote_topic("000001.SZ")
    assert asked.ask(other).state == "pending"
    asked.registry.want(other)
    assert asked.ask(other).state == "pending"
    asked.registry.refuse(other, "unknown_symbol", "no such code")
    assert (asked.ask(other).code, asked.ask(other).error) == ("unknown_symbol", "no such code")
    assert asked.questions == []


def test_what_has_no_history_is_refused(asked: Asked) -> None:
    market = whole_topic("SH")
    asked.serve(market)
    assert "quotes alone" in str(asked.ask(market).error)
    assert asked.ask("trade/").code == "bad_request"
    asked.raises = Refused("upstream_refused", "none here")
    assert (asked.ask().code, asked.ask().error) == ("upstream_refused", "none here")
    asked.raises = ValueError("broken")
    assert (asked.ask().code, asked.ask().error) == ("internal", "source fake failed: broken")
    assert len(asked.histories) == 0


def test_refusal_of_the_source_is_passed_on(asked: Asked) -> None:
    asked.ask()
    refused = asked.histories.refused(1, "upstream_refused", "the file is damaged")
    assert refused is not None
    assert refused[0] == A
    [answer] = map(decode_source_history, refused[1])
    assert (answer.state, answer.error, answer.id) == ("refused", "the file is damaged", 1)


def test_number_of_questions_is_limited_for_one_and_for_all(asked: Asked) -> None:
    answers = [asked.ask(peer=A, number=n).state for n in range(MOST_OF_ONE + 2)]
    assert answers == ["taken"] * MOST_OF_ONE + ["refused"] * 2
    others = [asked.ask(peer=(b"%d" % n, b"")).state for n in range(MOST)]
    assert others.count("taken") == MOST - MOST_OF_ONE
    assert len(asked.refused) == 2 + MOST_OF_ONE
    asked.histories.found(1, [], 0)
    assert asked.ask(peer=B).state == "taken"


def test_number_of_questions_in_a_time_is_limited(asked: Asked) -> None:
    for number in range(1, BURST + 1):
        assert asked.ask().state == "taken"
        asked.histories.found(number, [], 0)
    answer = asked.ask()
    assert (answer.state, answer.code) == ("refused", "rate_limited")
    assert asked.ask(now=REFILL_SECONDS).state == "taken"
    assert asked.ask(now=REFILL_SECONDS).state == "refused"


def test_budget_is_never_more_than_its_burst() -> None:
    budget = Budget(2, 10.0)
    assert [budget.take(1e6) for _ in range(3)] == [True, True, False]
    assert [budget.take(1e6 + 10), budget.take(1e6 + 10)] == [True, False]


def test_limits_leave_room_for_a_store() -> None:
    from qmt_bridge.store import backfill

    assert backfill.MOST_ASKED <= histories_module.MOST_OF_ONE
