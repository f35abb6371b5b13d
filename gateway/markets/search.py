"""Which codes of a request the store has only within their market. Runs on the event loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from gateway.streams.member import StoreQuestion
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.topics import Topic, parse_topic, whole_topic

# Codes of one socket that are read out of markets: for each of them the store looks through all of the market.
CODES_OF_CLIENT = 20
# Codes of one request of which the store is asked whether it has them.
CODES_ASKED_FOR = 200


class Store(Protocol):
    """What answers from the store of the day."""

    async def find(self, topics: list[Topic], start: int | str) -> dict[Topic, TopicHistory]:
        """Return what it has of topics; without those that it does not answer about in time."""


async def found_in_markets(
    store: Store, questions: Mapping[Topic, StoreQuestion], most: int
) -> dict[Topic, StoreQuestion]:
    """Return for at most `most` topics of ticks the question about their market.

    They are those that begin earlier there: their own topic is not stored for the time that was asked for.
    """
    by_place: dict[tuple[Topic, int | str], list[Topic]] = {}
    for topic, question in questions.items():
        if question.start is not None and question.code is None:
            market = whole_topic(parse_topic(topic).name.rpartition(".")[2])
            by_place.setdefault((market, question.start), []).append(topic)
    found: dict[Topic, StoreQuestion] = {}
    left = CODES_ASKED_FOR
    for (market, start), topics in by_place.items():
        topics = topics[: max(0, left)]
        left -= len(topics)
        if not topics or len(found) >= most:
            break
        of_market = (await store.find([market], start)).get(market)
        if of_market is None:
            # It does not answer, which is told with the first records.
            break
        if _complete_from(of_market) == math.inf:
            continue
        own = await store.find(topics, start)
        for topic in topics:
            if len(found) < most and topic in own and _has_more(of_market, own[topic]):
                found[topic] = questions[topic]._replace(code=parse_topic(topic).name)
    return found


def _has_more(of_market: TopicHistory, own: TopicHistory) -> bool:
    """Return whether a market is stored from an earlier moment on than a topic of its own, or on a later day."""
    if own.seq and of_market.start_ms != own.start_ms:
        # A time of day is of the newest day of each.
        return of_market.start_ms > own.start_ms
    return _complete_from(of_market) < _complete_from(own)


def _complete_from(answer: TopicHistory) -> float:
    """Return the time (ms) from which a topic is stored without a hole at its beginning; infinite if it is not."""
    if answer.state == "refused" or not answer.seq:
        return math.inf
    if not answer.holes:
        return answer.start_ms
    return math.inf if answer.holes[-1].until_ms is None else answer.holes[-1].until_ms
