"""Which codes are read out of their market: by what a store says of both topics."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.markets import search
from gateway.markets.search import CODES_ASKED_FOR, found_in_markets
from gateway.streams.member import StoreQuestion
from qmt_bridge.wire.history import Hole, TopicHistory
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.topics import Topic, quote_topic, whole_topic

TICK, SH = quote_topic("600519.SH"), whole_topic("SH")
AT, DAY = 1_764_300_000_000, 86_400_000
BEFORE = Position(7, 2)


class Store:
    """A store that has what it is given, and notes what it is asked."""

    def __init__(self, **of: TopicHistory) -> None:
        self.has = {{"market": SH, "own": TICK}[name]: history for name, history in of.items()}
        self.asked: list[list[Topic]] = []
        self.answers: Callable[[Topic], TopicHistory | None] = self.has.get

    async def find(self, topics: list[Topic], start: int | str) -> dict[Topic, TopicHistory]:
        self.asked.append(topics)
        return {topic: answer for topic in topics if (answer := self.answers(topic)) is not None}


def stored(start_ms: int = AT, *holes: Hole) -> TopicHistory:
    return TopicHistory(1, "", epoch=7, seq=9, start_ms=start_ms, holes=list(holes))


NOT_STORED = TopicHistory(1, "", holes=[Hole("not_stored")])
LATER = Hole("store_began", None, BEFORE, None, AT + 5000)
LATEST = Hole("store_began", None, BEFORE, None, AT + 9000)
REFUSED = TopicHistory(1, "", "refused", seq=9)


@pytest.mark.parametrize(
    ("market", "own", "is_found"),
    [
        (stored(), NOT_STORED, True),
        (stored(), stored(), False),
        (stored(), stored(AT, LATER), True),
        (stored(AT, LATER), stored(AT, LATEST), True),
        (stored(AT, LATEST), stored(AT, LATER), False),
        (stored(AT, Hole("not_stored")), NOT_STORED, False),
        (NOT_STORED, NOT_STORED, False),
        (REFUSED, NOT_STORED, False),
        # A time of day is one of the newest day of each.
        (stored(AT + DAY), stored(), True),
        (stored(AT), stored(AT + DAY, LATER), False),
    ],
)
async def test_code_is_read_where_it_is_stored_from_earlier_on(
    market: TopicHistory, own: TopicHistory, is_found: bool
) -> None:
    found = await found_in_markets(Store(market=market, own=own), {TICK: StoreQuestion("09:30", room=5)}, 20)
    assert found == ({TICK: StoreQuestion("09:30", room=5, code="600519.SH")} if is_found else {})


async def test_market_that_is_not_stored_costs_one_question() -> None:
    store = Store(market=NOT_STORED)
    codes = {quote_topic(f"6000{number:02}.SH"): StoreQuestion("09:30") for number in range(50)}
    assert await found_in_markets(store, codes, 20) == {}
    assert store.asked == [[SH]]


async def test_store_that_does_not_answer_is_asked_once() -> None:
    store = Store()
    codes = {quote_topic(code): StoreQuestion("09:30") for code in ("600519.SH", "000001.SZ", "430047.BJ")}
    assert await found_in_markets(store, codes, 20) == {}
    assert len(store.asked) == 1


async def test_answer_about_a_code_that_is_late_changes_nothing() -> None:
    assert await found_in_markets(Store(market=stored()), {TICK: StoreQuestion("09:30")}, 20) == {}


async def test_codes_and_questions_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(market=stored())
    store.answers = lambda topic: stored() if topic == SH else NOT_STORED
    codes = [quote_topic(f"60{number:04}.SH") for number in range(CODES_ASKED_FOR + 50)]
    assert len(await found_in_markets(store, dict.fromkeys(codes, StoreQuestion("09:30")), 20)) == 20
    assert [len(topics) for topics in store.asked] == [1, CODES_ASKED_FOR]
    monkeypatch.setattr(search, "CODES_ASKED_FOR", 3)
    store.asked.clear()
    each = {topic: StoreQuestion(AT + number) for number, topic in enumerate(codes)}
    assert len(await found_in_markets(store, each, 20)) == 3
    assert len(store.asked) == 6


async def test_position_is_no_question_about_a_market() -> None:
    store = Store(market=stored(), own=NOT_STORED)
    assert await found_in_markets(store, {TICK: StoreQuestion(None, BEFORE)}, 20) == {}
    assert store.asked == []
