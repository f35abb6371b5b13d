"""The topics of the feeder for a survey: in order, a page at a time, within bounds."""

from __future__ import annotations

import msgspec
import pytest

from feeder import listing
from feeder.listing import listed
from feeder.registry import Registry
from qmt_bridge.wire.survey import SubscriptionTerms, TopicsFound
from qmt_bridge.wire.topics import Kind, quote_topic

CODES = [f"{number:06}.SZ" for number in range(450)]
TOPICS = [quote_topic(code) for code in CODES]


@pytest.fixture
def registry() -> Registry:
    registry = Registry(7, "fake", frozenset((Kind.QUOTE,)), grace=5.0)
    for topic in reversed(TOPICS):
        registry.want(topic)
    registry.refuse(TOPICS[1], "unknown_symbol", "no such code")
    entry = registry.find(TOPICS[0])
    assert entry is not None
    registry.published(entry, b"{}", None, 10.0)
    return registry


def answer(registry: Registry, **terms: object) -> TopicsFound:
    [*parts, last] = listed(registry.entries, msgspec.convert({"limit": 100, **terms}, SubscriptionTerms), 12.5)
    assert all(part is None for part in parts)
    assert last is not None
    return last


def test_first_topics_come_in_order_with_their_states(registry: Registry) -> None:
    found = answer(registry, limit=3)
    assert [each.topic for each in found.topics] == TOPICS[:3]
    assert (found.total, found.more) == (450, True)
    assert [each.state for each in found.topics] == ["live", "refused", "pending"]
    assert [(each.seq, each.age) for each in found.topics] == [(1, 2.5), (0, None), (0, None)]
    assert (found.topics[1].code, found.topics[1].reason) == ("unknown_symbol", "no such code")


def test_pages_have_every_topic_once(registry: Registry) -> None:
    seen: list[str] = []
    while True:
        found = answer(registry, after=seen[-1] if seen else "")
        seen += [each.topic for each in found.topics]
        if not found.more:
            break
    assert seen == TOPICS


def test_prefix_and_names_choose(registry: Registry) -> None:
    assert answer(registry, prefix="quote/00000").total == 10
    named = answer(registry, topics=[TOPICS[3], TOPICS[3], "whole/SH/", TOPICS[2]])
    assert [each.topic for each in named.topics] == [TOPICS[2], TOPICS[3]]
    assert (named.total, named.more) == (2, False)


def test_work_is_done_in_parts(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "AT_A_TIME", 50)
    parts = list(listed(registry.entries, SubscriptionTerms(10), 0.0))
    assert len(parts) == 451 // 50 + 2


def test_answer_is_bounded_in_bytes(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "FEEDER_BYTES", 1000)
    found = answer(registry)
    assert 0 < len(found.topics) < 10
    assert found.more


def test_topic_that_ends_meanwhile_is_left_out(registry: Registry) -> None:
    parts = listed(registry.entries, SubscriptionTerms(3), 0.0)
    next(parts)
    registry.leave(TOPICS[1], 0.0)
    [*_, found] = parts
    assert found is not None
    assert [each.topic for each in found.topics] == [TOPICS[0], TOPICS[2]]
