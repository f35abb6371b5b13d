"""Only the registry: no sockets, and time is a number that the test sets."""

from __future__ import annotations

import random

import msgspec
import pytest

from feeder import registry as registry_module
from feeder import unplaced
from feeder.registry import ANSWER_WITHIN, DOWNLOAD_KEPT, PLACE_WITHIN, DownloadKey, Registry, SourceTopic
from qmt_bridge.errors import BadCode, BadRequest
from qmt_bridge.wire import frames
from qmt_bridge.wire.requests import StartDownload, TopicState
from qmt_bridge.wire.topics import STATUS_TOPIC, Kind, Topic, l2_topic, parse_topic, quote_topic

QUOTE = quote_topic("600519.SH")
WHOLE = Topic("whole/SH/")
PEER = (b"worker",)
DEPTH = Topic("l2/600519.SH/0/")


@pytest.fixture
def registry() -> Registry:
    return Registry(7, "fake", frozenset((Kind.QUOTE, Kind.WHOLE, Kind.DOWNLOAD)), grace=5.0)


def publish(registry: Registry, topic: Topic, body: object, now: float = 0.0) -> int | None:
    entry = registry.find(topic)
    if entry is None:
        return None
    encoded = frames.encode(body)
    pieces = frames.split(encoded) if entry.by_code is not None else None
    registry.published(entry, encoded, pieces, now)
    return entry.seq


def answers(registry: Registry) -> list[TopicState]:
    states = [state for _, number, text in registry.decided for state in registry.states(number, text)]
    registry.decided.clear()
    return states


def ask(registry: Registry, topic: str, now: float = 0.0) -> list[TopicState]:
    return [*registry.ask(PEER, 1, topic, now), *answers(registry)]


def upstream(topic: Topic) -> SourceTopic:
    return SourceTopic(topic, parse_topic(topic))


def download(*stocks: str, period: str = "1d", start: str = "", end: str = "") -> StartDownload:
    return StartDownload(1, list(stocks), period, start, end)


def begin(registry: Registry, asked: StartDownload, asker: bytes = PEER[0]) -> tuple[Topic, DownloadKey | None]:
    return registry.start_download(asked, asker, 0.0)


def test_the_first_subscriber_makes_the_source_subscribe(registry: Registry) -> None:
    assert registry.want(QUOTE) == upstream(QUOTE)
    assert registry.wanted == 1


@pytest.mark.parametrize(
    "text", ["", "quote/", "quote/600519.SH/", "trade/", "trade/1/", "status/feeder/", "x/y/", "q"]
)
def test_a_prefix_or_own_topic_does_not_reach_the_source(registry: Registry, text: str) -> None:
    assert registry.want(text) is None
    assert registry.leave(text, 0.0) is None
    assert registry.wanted == 0


def test_the_source_unsubscribes_at_the_end_of_the_grace_time(registry: Registry) -> None:
    registry.want(QUOTE)
    assert registry.leave(QUOTE, 10.0) is None
    assert registry.wanted == 0
    assert registry.deadline() == 15.0
    assert registry.expire(14.9) == []
    assert registry.expire(15.0) == [upstream(QUOTE)]
    assert registry.expire(100.0) == []
    assert registry.deadline() is None


def test_a_return_within_the_grace_time_changes_nothing_upstream(registry: Registry) -> None:
    registry.want(QUOTE)
    publish(registry, QUOTE, {"600519.SH": [1]})
    registry.leave(QUOTE, 10.0)
    assert registry.want(QUOTE) is None
    assert registry.wanted == 1
    assert registry.expire(100.0) == []
    assert frames.decode(ask(registry, QUOTE)[0].body or b"") == {"600519.SH": [1]}


def test_topics_are_removed_in_the_order_of_their_grace_times(registry: Registry) -> None:
    other = quote_topic("000001.SZ")
    for topic in (QUOTE, other):
        registry.want(topic)
    registry.leave(QUOTE, 1.0)
    registry.leave(other, 2.0)
    assert registry.expire(6.5) == [upstream(QUOTE)]
    assert registry.expire(7.0) == [upstream(other)]


def test_seq_continues_after_the_topic_was_removed(registry: Registry) -> None:
    registry.want(QUOTE)
    assert [publish(registry, QUOTE, {}) for _ in range(3)] == [1, 2, 3]
    registry.leave(QUOTE, 0.0)
    registry.expire(10.0)
    assert publish(registry, QUOTE, {}) is None
    registry.want(QUOTE)
    assert ask(registry, QUOTE, 20.0) == []
    assert publish(registry, QUOTE, {}) == 4


def test_a_last_value_is_removed_with_its_topic(registry: Registry) -> None:
    registry.want(WHOLE)
    publish(registry, WHOLE, {"600519.SH": 1})
    registry.leave(WHOLE, 0.0)
    registry.expire(10.0)
    registry.want(WHOLE)
    registry.accept(WHOLE)
    (state,) = ask(registry, WHOLE)
    assert (state.state, state.body, state.seq) == ("live", None, 1)


def test_a_topic_without_a_subscription_is_not_published(registry: Registry) -> None:
    assert registry.find(QUOTE) is None
    registry.accept(QUOTE)
    registry.refuse(QUOTE, "internal", "late")
    assert registry.want(QUOTE) == upstream(QUOTE)


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        pytest.param("quote/600519/tick/", "unknown_symbol", id="code"),
        pytest.param("quote/600519.SH/3x/", "unsupported_period", id="period"),
        pytest.param("l2/600519.SH/many/", "bad_request", id="gear"),
        pytest.param("formula/%7B%7D/", "bad_request", id="formula"),
    ],
)
def test_an_impossible_topic_does_not_reach_the_source(registry: Registry, topic: str, code: str) -> None:
    (before,) = ask(registry, topic)
    with pytest.raises(BadRequest):
        registry.want(topic)
    (state,) = ask(registry, topic)
    assert (state.state, state.code) == ("refused", code)
    assert (before.state, before.code, before.error) == ("refused", code, state.error)
    assert registry.leave(topic, 0.0) is None
    assert registry.wanted == 0


def test_a_kind_that_the_source_does_not_serve_is_refused_by_name(registry: Registry) -> None:
    with pytest.raises(BadRequest, match="does not serve l2"):
        registry.want(DEPTH)
    (state,) = ask(registry, DEPTH)
    assert (state.state, state.code, state.error) == ("refused", "upstream_refused", "source fake does not serve l2")


def test_a_refusal_is_removed_with_the_last_subscriber(registry: Registry) -> None:
    registry.want(QUOTE)
    registry.refuse(QUOTE, "not_entitled", "no level 2")
    (state,) = ask(registry, QUOTE)
    assert (state.state, state.code, state.error) == ("refused", "not_entitled", "no level 2")
    assert registry.leave(QUOTE, 0.0) == upstream(QUOTE)
    assert registry.want(QUOTE) == upstream(QUOTE)
    assert ask(registry, QUOTE) == []


def test_a_refused_topic_that_is_not_held_is_not_unsubscribed(registry: Registry) -> None:
    registry.want(QUOTE)
    registry.refuse(QUOTE, "not_entitled", "no", held=False)
    assert registry.leave(QUOTE, 0.0) is None
    assert registry.want(QUOTE) == upstream(QUOTE)


def test_a_refusal_in_the_grace_time_is_not_kept_for_the_next(registry: Registry) -> None:
    registry.want(QUOTE)
    registry.leave(QUOTE, 0.0)
    registry.refuse(QUOTE, "upstream_unavailable", "gone")
    assert registry.want(QUOTE) == upstream(QUOTE)
    assert registry.expire(100.0) == []


def test_a_refused_topic_is_live_again_when_published(registry: Registry) -> None:
    registry.want(QUOTE)
    registry.refuse(QUOTE, "upstream_unavailable", "terminal gone")
    publish(registry, QUOTE, {"600519.SH": [1]})
    (state,) = ask(registry, QUOTE)
    assert (state.state, state.code, state.error) == ("live", None, None)


def test_a_question_waits_until_the_source_accepts(registry: Registry) -> None:
    registry.want(QUOTE)
    assert ask(registry, QUOTE, 0.0) == []
    registry.accept(QUOTE)
    (state,) = answers(registry)
    assert state == TopicState(1, QUOTE, "live", epoch=7, seq=0)


def test_a_question_waits_until_the_source_refuses(registry: Registry) -> None:
    registry.want(QUOTE)
    assert ask(registry, QUOTE, 0.0) == []
    registry.refuse(QUOTE, "not_entitled", "no")
    (state,) = answers(registry)
    assert (state.state, state.code) == ("refused", "not_entitled")


def test_a_question_before_its_subscription_waits_for_a_value(registry: Registry) -> None:
    assert ask(registry, QUOTE, 0.0) == []
    registry.want(QUOTE)
    publish(registry, QUOTE, {"600519.SH": [1]})
    (state,) = answers(registry)
    assert (state.state, state.seq, frames.decode(state.body or b"")) == ("live", 1, {"600519.SH": [1]})


def test_a_question_ends_pending_if_the_source_is_slow(registry: Registry) -> None:
    registry.want(QUOTE)
    assert list(registry.ask(PEER, 1, QUOTE, 10.0)) == []
    assert list(registry.ask(PEER, 2, QUOTE, 10.5)) == []
    assert registry.deadline() == 10.0 + ANSWER_WITHIN
    registry.expire(10.0 + ANSWER_WITHIN)
    assert [(state.id, state.state) for state in answers(registry)] == [(1, "pending")]
    registry.accept(QUOTE)
    assert [(state.id, state.state) for state in answers(registry)] == [(2, "live")]
    registry.expire(100.0)
    assert answers(registry) == []


def test_a_question_about_an_unsubscribed_topic_ends_pending(registry: Registry) -> None:
    assert list(registry.ask(PEER, 1, QUOTE, 0.0)) == []
    registry.expire(1.0)
    assert [state.state for state in answers(registry)] == ["pending"]
    assert registry.wanted == 0


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("kept", [registry_module.MAX_FORGOTTEN_BYTES, 0], ids=["number-kept", "number-dropped"])
def test_pending_answer_has_the_number_before_the_next_message(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, wanted: bool, kept: int
) -> None:
    monkeypatch.setattr(registry_module, "MAX_FORGOTTEN_BYTES", kept)
    registry.want(QUOTE)
    assert [publish(registry, QUOTE, {"600519.SH": [number]}) for number in (1, 2, 3)] == [1, 2, 3]
    registry.leave(QUOTE, 0.0)
    registry.expire(100.0)
    if wanted:
        registry.want(QUOTE)
    assert list(registry.ask(PEER, 1, QUOTE, 100.0)) == []
    registry.expire(101.0)
    assert [(state.state, state.seq) for state in answers(registry)] == [("pending", 3)]
    registry.want(QUOTE)
    assert publish(registry, QUOTE, {"600519.SH": [4]}) == 4


@pytest.mark.parametrize("text", ["", "quote/", "no/topic/", "download/unknown-1/", "status/else/", "报价/x/"])
def test_a_question_about_an_unknown_topic_is_refused(registry: Registry, text: str) -> None:
    (state,) = ask(registry, text)
    assert (state.state, state.code) == ("refused", "bad_request")
    assert state.error


def test_a_snapshot_has_the_newest_tick_of_every_code(registry: Registry) -> None:
    registry.want(WHOLE)
    publish(registry, WHOLE, {"600519.SH": 1, "600000.SH": 1})
    publish(registry, WHOLE, {"600519.SH": 2})
    (state,) = ask(registry, WHOLE)
    assert frames.decode(state.body or b"") == {"600519.SH": 2, "600000.SH": 1}
    assert (state.seq, state.epoch, state.more) == (2, 7, False)


def test_the_batches_of_a_large_snapshot_have_the_same_seq(registry: Registry) -> None:
    registry.want(WHOLE)
    ticks = {f"{number:06}.SH": "x" * 1000 for number in range(1500)}
    entry = registry.find(WHOLE)
    assert entry is not None
    pieces = {code: msgspec.Raw(frames.encode(tick)) for code, tick in ticks.items()}
    registry.published(entry, b"", pieces, 0.0)
    states = ask(registry, WHOLE)
    assert len(states) > 2
    assert [state.more for state in states] == [True] * (len(states) - 1) + [False]
    assert {state.seq for state in states} == {1}
    assert all(len(state.body or b"") <= frames.BATCH_BYTES for state in states)
    merged: dict[str, str] = {}
    for state in states:
        merged |= frames.decode(state.body or b"")
    assert merged == ticks


def test_the_status_topic_is_always_live(registry: Registry) -> None:
    assert publish(registry, STATUS_TOPIC, {"state": "up"}) == 1
    (state,) = ask(registry, STATUS_TOPIC)
    assert frames.decode(state.body or b"") == {"state": "up"}


def test_equal_downloads_share_a_job_while_it_runs(registry: Registry) -> None:
    topic, key = begin(registry, download("600519.SH", "000001.SZ"))
    assert key is not None
    assert begin(registry, download("000001.SZ", "600519.SH", "600519.SH")) == (topic, None)
    assert begin(registry, download("600519.SH", "000001.SZ", start="20250101"))[0] != topic
    publish(registry, topic, {"finished": 1, "total": 2, "stockcode": "600519.SH", "message": ""})
    assert begin(registry, download("600519.SH", "000001.SZ")) == (topic, None)
    publish(registry, topic, {"status": "done"})
    again, key = begin(registry, download("600519.SH", "000001.SZ"))
    assert again != topic
    assert key is not None


def test_the_end_of_a_download_is_kept_for_five_minutes(registry: Registry) -> None:
    topic, _ = begin(registry, download("600519.SH"))
    (running,) = ask(registry, topic)
    assert (running.state, running.body) == ("live", None)
    publish(registry, topic, {"status": "error", "code": "internal", "error": "x", "failed": {}}, now=50.0)
    registry.expire(50.0 + DOWNLOAD_KEPT - 0.1)
    (ended,) = ask(registry, topic)
    assert frames.decode(ended.body or b"")["status"] == "error"
    registry.expire(50.0 + DOWNLOAD_KEPT)
    (gone,) = ask(registry, topic)
    assert (gone.state, gone.code) == ("refused", "bad_request")


def test_an_unsubscribed_download_is_cancelled_after_grace_time(registry: Registry) -> None:
    topic, key = begin(registry, download("600519.SH"))
    # The asker has not subscribed to it yet.
    assert registry.expire(100.0) == []
    registry.want(topic)
    assert registry.leave(topic, 100.0) is None
    assert registry.deadline() == 105.0
    assert registry.expire(104.9) == []
    assert registry.expire(105.0) == [upstream(topic)]
    assert registry.expire(200.0) == []
    # The next equal question starts another download, and the end of this one is still kept.
    again, again_key = begin(registry, download("600519.SH"))
    assert again != topic
    assert again_key == key
    publish(registry, topic, {"status": "error"}, now=201.0)
    assert frames.decode(ask(registry, topic)[0].body or b"") == {"status": "error"}
    assert begin(registry, download("600519.SH")) == (again, None)
    registry.expire(201.0 + DOWNLOAD_KEPT)
    assert ask(registry, topic)[0].state == "refused"


@pytest.mark.parametrize("how", ["subscribes", "asks for an equal one"])
def test_a_download_continues_if_subscribed_within_the_grace_time(registry: Registry, how: str) -> None:
    topic, _ = begin(registry, download("600519.SH"))
    registry.want(topic)
    registry.leave(topic, 0.0)
    if how == "subscribes":
        assert registry.want(topic) is None
    else:
        assert begin(registry, download("600519.SH")) == (topic, None)
    assert registry.expire(100.0) == []
    registry.want(topic)
    registry.leave(topic, 100.0)
    assert registry.expire(105.0) == [upstream(topic)]


def test_an_ended_download_is_not_cancelled_when_unsubscribed(registry: Registry) -> None:
    for leaves_first in (True, False):
        topic, _ = begin(registry, download("600519.SH"))
        registry.want(topic)
        if leaves_first:
            registry.leave(topic, 0.0)
        publish(registry, topic, {"status": "done"}, now=1.0)
        if not leaves_first:
            registry.leave(topic, 1.0)
        assert registry.expire(100.0) == []
        assert frames.decode(ask(registry, topic)[0].body or b"") == {"status": "done"}
    assert registry.wanted == 0


def test_a_download_that_the_source_refused_is_removed(registry: Registry) -> None:
    topic, key = begin(registry, download("600519.SH"))
    assert key is not None
    registry.drop_download(topic, key)
    assert ask(registry, topic)[0].state == "refused"
    assert begin(registry, download("600519.SH"))[1] is not None


def test_kept_downloads_are_bounded(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_DOWNLOADS", 2)
    first, _ = begin(registry, download("600519.SH"))
    begin(registry, download("000001.SZ"))
    with pytest.raises(BadRequest) as full:
        begin(registry, download("000002.SZ"))
    assert full.value.code == "rate_limited"
    publish(registry, first, {"status": "done"})
    begin(registry, download("000002.SZ"))
    assert ask(registry, first)[0].state == "refused"


@pytest.mark.parametrize(
    ("stocks", "period", "start", "code"),
    [
        pytest.param([], "1d", "", "bad_request", id="no-stocks"),
        pytest.param(["600519.SH"], "3x", "", "unsupported_period", id="period"),
        pytest.param(["600519.SH"], "1d", "yesterday", "bad_request", id="time"),
        pytest.param(["600519.SH"], "1d", "20250101\n", "bad_request", id="newline"),
    ],
)
def test_an_invalid_download_is_refused(
    registry: Registry, stocks: list[str], period: str, start: str, code: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        begin(registry, download(*stocks, period=period, start=start))
    assert refused.value.code == code


def test_a_malformed_code_of_a_download_is_named(registry: Registry) -> None:
    with pytest.raises(BadCode, match="600519"):
        begin(registry, download("000001.SZ", "600519"))


def test_a_source_without_downloads_refuses_them_by_name() -> None:
    registry = Registry(7, "live", frozenset((Kind.QUOTE,)), grace=5.0)
    with pytest.raises(BadRequest, match="source live does not serve download"):
        begin(registry, download("600519.SH"))


# -- Bounds


def test_refused_or_unpublished_topics_leave_no_entry(registry: Registry) -> None:
    before = registry._entry_bytes
    for number in range(100):
        with pytest.raises(BadRequest):
            registry.want(f"l2/600519.SH/{number}/")
        topic = quote_topic(f"{number:06}.SH")
        registry.want(topic)
        registry.leave(topic, 0.0)
    while registry.deadline() is not None:
        registry.expire(10.0)
    assert set(registry._entries) == {STATUS_TOPIC}
    assert (registry._numbers, registry._entry_bytes) == ({}, before)


def publish_and_remove(registry: Registry, topic: Topic, count: int, now: float) -> None:
    registry.want(topic)
    for _ in range(count):
        publish(registry, topic, {})
    registry.leave(topic, now)
    registry.expire(now + 5.0)


def test_a_sequence_number_is_not_reused_after_it_is_removed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MAX_FORGOTTEN_BYTES", 1000)
    topics = [quote_topic(f"{number:06}.SH") for number in range(50)]
    newest: dict[Topic, int] = {}
    chance = random.Random(7)
    for now in range(2000):
        topic = chance.choice(topics)
        registry.want(topic)
        for _ in range(chance.randrange(4)):
            seq = publish(registry, topic, {})
            assert seq is not None
            assert seq > newest.get(topic, 0)
            newest[topic] = seq
        registry.leave(topic, 10.0 * now)
        registry.expire(10.0 * now + 5.0)
        assert registry._number_bytes <= 1000
    assert set(registry._entries) == {STATUS_TOPIC}


def test_a_topic_whose_number_is_kept_continues_without_a_gap(registry: Registry) -> None:
    publish_and_remove(registry, QUOTE, 3, 0.0)
    registry.want(QUOTE)
    assert publish(registry, QUOTE, {}) == 4


@pytest.mark.parametrize(("limit", "value"), [("MAX_TOPICS", 4), ("MAX_TOPIC_BYTES", 2300)])
def test_the_number_of_subscribed_topics_is_bounded(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(registry_module, limit, value)
    topics = [quote_topic(f"{number:06}.SH") for number in range(5)]
    # The topic of the heartbeat counts as one of them.
    for topic in topics[:3]:
        assert registry.make_room(topic) == []
        assert registry.want(topic) is not None
    assert registry.waits(topics[3], 0.0)
    assert ask(registry, topics[3]) == []
    assert refused_at(registry, PLACE_WITHIN) == [topics[3]]
    # Topics that have an entry keep it, and are answered as before.
    assert ask(registry, topics[0]) == []
    # Topics that are only kept by their grace time make room, the oldest first.
    registry.leave(topics[1], 0.0)
    registry.leave(topics[0], 0.0)
    assert registry.make_room(topics[3]) == [upstream(topics[1])]
    assert registry.want(topics[3]) is not None
    assert registry.expire(100.0) == [upstream(topics[0])]


@pytest.mark.parametrize("limit", ["MAX_WAITING", "MAX_WAITING_OF_ONE"])
def test_questions_over_the_limit_are_answered_at_once(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(registry_module, limit, 2)
    registry.want(QUOTE)
    assert ask(registry, QUOTE) == []
    assert ask(registry, QUOTE) == []
    assert [state.state for state in ask(registry, QUOTE)] == ["pending"]
    others = list(registry.ask((b"other",), 2, QUOTE, 0.0))
    assert bool(others) == (limit == "MAX_WAITING")
    registry.expire(ANSWER_WITHIN)
    registry.accept(QUOTE)
    assert not registry._waiting_askers
    answers(registry)


def test_due_work_is_done_slice_by_slice(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_DUE", 10)
    topics = [quote_topic(f"{number:06}.SH") for number in range(25)]
    for topic in topics:
        registry.want(topic)
        registry.leave(topic, 0.0)
        assert ask(registry, topic) == []
    gone = []
    while (deadline := registry.deadline()) is not None and deadline <= 5.0:
        some = registry.expire(5.0)
        assert len(some) <= 10
        gone += some
    assert gone == [upstream(topic) for topic in topics]
    assert len(answers(registry)) == 25


def test_a_snapshot_taken_in_pieces_is_of_one_moment(registry: Registry) -> None:
    registry.want(WHOLE)
    ticks = {f"{number:06}.SH": "x" * 1000 for number in range(200)}
    publish(registry, WHOLE, ticks)
    states = registry.states(1, WHOLE)
    first = next(states)
    publish(registry, WHOLE, dict.fromkeys((*ticks, "999999.SH"), "later"))
    merged: dict[str, str] = {}
    for state in (first, *states):
        assert state.seq == 1
        merged |= frames.decode(state.body or b"")
    assert merged == ticks


@pytest.mark.parametrize(
    ("limit", "value", "asker"),
    [("MAX_DOWNLOADS_OF_ONE", 2, b"one"), ("MAX_DOWNLOAD_CODES", 4, b"two"), ("MAX_DOWNLOADS", 2, b"two")],
)
def test_running_downloads_are_bounded_until_they_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, asker: bytes
) -> None:
    monkeypatch.setattr(registry_module, limit, value)
    first, _ = begin(registry, download("600519.SH", "600000.SH"), b"one")
    second, key = begin(registry, download("000001.SZ", "000002.SZ"), b"one")
    with pytest.raises(BadRequest) as full:
        begin(registry, download("000004.SZ"), asker)
    assert full.value.code == "rate_limited"
    # An equal download does not count.
    assert begin(registry, download("600000.SH", "600519.SH"), asker) == (first, None)
    publish(registry, first, {"status": "done"})
    third, _ = begin(registry, download("000004.SZ"), asker)
    assert third != first
    # A cancelled download runs until the source reports its end; one that was not begun makes room at once.
    assert key is not None
    registry.drop_download(second, key)
    assert begin(registry, download("000005.SZ"), asker)[1] is not None


def full_of(registry: Registry, monkeypatch: pytest.MonkeyPatch, room: int) -> list[Topic]:
    """Subscribe to topics with large last values: as many as fit in `room`, and one more."""
    monkeypatch.setattr(registry_module, "MAX_VALUE_BYTES", room * 2000 + 100)
    topics = [quote_topic(f"{600000 + number}.SH", "1m") for number in range(room + 1)]
    for topic in topics:
        registry.want(topic)
        publish(registry, topic, "x" * 1997)
    return topics


def kept(registry: Registry, topic: Topic) -> bool:
    (state,) = registry.states(1, topic)
    return state.body is not None


def test_large_last_values_have_a_limit_in_bytes(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = full_of(registry, monkeypatch, 3)
    assert [kept(registry, topic) for topic in topics] == [True, True, True, False]
    assert registry.unkept == 1
    # A small value is always kept, and a value that grows does not leave an older one in the cache.
    publish(registry, topics[3], "x" * registry_module.SMALL_VALUE_BYTES)
    publish(registry, topics[3], "small")
    assert kept(registry, topics[3])
    publish(registry, topics[3], "x" * 1997)
    assert not kept(registry, topics[3])
    # A topic with a kept value also keeps its next values, and a smaller value makes room.
    publish(registry, topics[0], "y" * 1997)
    assert kept(registry, topics[0])
    publish(registry, topics[0], "small")
    publish(registry, topics[3], "x" * 1997)
    assert kept(registry, topics[3])


def test_the_oldest_unused_topic_makes_room_first(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = full_of(registry, monkeypatch, 3)
    registry.want(QUOTE)
    publish(registry, QUOTE, "small")
    # Removing this topic would make no room.
    registry.leave(QUOTE, 0.5)
    registry.leave(topics[1], 1.0)
    registry.leave(topics[0], 2.0)
    assert registry.expire(2.0) == [upstream(topics[1])]
    publish(registry, topics[3], "x" * 1997)
    assert [kept(registry, topic) for topic in (topics[0], topics[2], topics[3])] == [True, True, True]
    # There is room, so the other topic keeps its grace time.
    assert registry.expire(2.1) == []


def test_unused_topics_stay_while_there_is_room(registry: Registry) -> None:
    registry.want(QUOTE)
    publish(registry, QUOTE, "x" * 1997)
    registry.leave(QUOTE, 1.0)
    assert registry.expire(1.0) == []
    assert kept(registry, QUOTE)


def test_ends_of_downloads_make_room_for_values(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_VALUE_BYTES", 5000)
    ended, _ = begin(registry, download("600519.SH"))
    running, _ = begin(registry, download("000001.SZ"))
    publish(registry, ended, {"status": "error", "error": "x" * 3000})
    publish(registry, running, {"finished": 1, "stockcode": "y" * 1500})
    registry.want(QUOTE)
    publish(registry, QUOTE, "x" * 1997)
    assert not kept(registry, QUOTE)
    assert registry.expire(1.0) == []
    assert registry.find(ended) is None
    publish(registry, QUOTE, "x" * 1997)
    assert kept(registry, QUOTE)
    assert kept(registry, running)


def test_removed_topics_free_their_bytes(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = full_of(registry, monkeypatch, 3)
    for topic in topics:
        registry.leave(topic, 0.0)
    registry.expire(10.0)
    assert registry._value_bytes == 0


def test_scarce_kind_has_a_limit_of_its_own():
    registry = Registry(7, "fake", frozenset((Kind.QUOTE, Kind.L2)), grace=5.0, limits={Kind.L2: 2})
    quote = quote_topic("600519.SH")
    registry.want(quote)
    registry.leave(quote, 0.0)
    depths = [l2_topic(f"{number:06}.SZ") for number in range(1, 5)]
    for topic in depths[:2]:
        assert registry.want(topic) is not None
    assert registry.make_room(depths[2]) == []
    assert registry.waits(depths[2], 0.0)
    # A quote in its grace time makes no room for it.
    assert registry.next_in_line() is None
    assert ask(registry, depths[2]) == []
    assert refused_at(registry, PLACE_WITHIN) == [depths[2]]
    assert registry.want(quote_topic("000001.SZ")) is not None
    # One in its grace time makes room for another of its kind.
    registry.leave(depths[1], 1.0)
    [gone] = registry.make_room(depths[2])
    assert gone.topic == depths[1]
    assert not registry.waits(depths[2], 1.0)
    assert registry.want(depths[2]) is not None


# A subscription without a place


def refused_at(registry: Registry, now: float) -> list[str]:
    """Let the time pass; return the topics about which questions are refused for their number."""
    registry.refuse_unplaced(now)
    registry.expire(now)
    return [state.topic for state in answers(registry) if (state.state, state.code) == ("refused", "symbol_limit")]


def full_of_depths(*, grace: float = 0.0) -> tuple[Registry, list[Topic]]:
    """Return a registry with room for two depths, and four depths, of which it has the first two."""
    registry = Registry(7, "fake", frozenset((Kind.QUOTE, Kind.L2)), grace, limits={Kind.L2: 2})
    depths = [l2_topic(f"{number:06}.SZ") for number in range(1, 5)]
    for topic in depths[:2]:
        registry.want(topic)
        registry.accept(topic)
    return registry, depths


@pytest.mark.parametrize("asks", ["first", "second"])
@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_subscription_behind_a_departure_has_its_place(grace: float, asks: str) -> None:
    registry, depths = full_of_depths(grace=grace)
    if asks == "first":
        # It has overtaken both the departure and the subscription.
        assert ask(registry, depths[2]) == []
    assert registry.waits(depths[2], 0.0)
    if asks == "second":
        assert ask(registry, depths[2]) == []
    assert registry.next_in_line() is None
    registry.leave(depths[0], 0.1)
    assert registry.next_in_line() == depths[2]
    assert registry.next_in_line() is None
    assert [gone.topic for gone in registry.make_room(depths[2])] == [depths[0]]
    assert not registry.waits(depths[2], 0.1)
    assert registry.want(depths[2]) == upstream(depths[2])
    assert refused_at(registry, PLACE_WITHIN) == []
    registry.accept(depths[2])
    assert [state.state for state in answers(registry)] == ["live"]


def test_place_goes_to_the_subscription_that_waits_longest() -> None:
    registry, depths = full_of_depths()
    for topic in depths[2:]:
        assert registry.waits(topic, 0.0)
    registry.leave(depths[1], 0.0)
    registry.expire(0.0)
    assert registry.next_in_line() == depths[2]
    registry.want(depths[2])
    assert registry.next_in_line() is None
    # The second subscriber of a topic that waits is none for the feeder.
    assert registry.waits(depths[3], 0.1)
    assert registry.deadline() == PLACE_WITHIN


def test_refused_subscription_has_a_place_once_it_is_asked_for() -> None:
    registry, depths = full_of_depths()
    registry.waits(depths[2], 0.0)
    assert [refusal.code for refusal in registry.refuse_unplaced(PLACE_WITHIN)] == ["symbol_limit"]
    # Without a question it takes no place that another program has given back.
    registry.leave(depths[0], 1.0)
    assert registry.next_in_line() is None
    registry.expire(1.0)
    assert registry.next_in_line() is None
    # An XPUB does not report the next subscribers.
    assert ask(registry, depths[2], 2.0) == []
    assert registry.deadline() == 0.0
    assert registry.next_in_line() == depths[2]
    assert registry.want(depths[2]) == upstream(depths[2])


def test_each_question_waits_for_a_place_again() -> None:
    registry, depths = full_of_depths()
    registry.waits(depths[2], 0.0)
    registry.refuse_unplaced(PLACE_WITHIN)
    assert ask(registry, depths[2], 2.0) == []
    assert registry.next_in_line() is None
    assert registry.deadline() == 2.0 + PLACE_WITHIN
    assert refused_at(registry, 2.0) == []
    assert refused_at(registry, 2.0 + PLACE_WITHIN) == [depths[2]]


def test_answer_is_pending_while_a_subscription_waits() -> None:
    registry, depths = full_of_depths()
    registry.waits(depths[2], 1.0)
    ask(registry, depths[2], 0.5)
    # What may leave is still asked about, so nothing is refused.
    registry.expire(0.5 + ANSWER_WITHIN)
    assert [state.state for state in answers(registry)] == ["pending"]


@pytest.mark.parametrize("leave", ["one", "all"])
def test_subscription_that_left_waits_no_longer(leave: str) -> None:
    registry, depths = full_of_depths()
    registry.waits(depths[2], 0.0)
    assert registry.may_leave(depths[2])
    assert registry.leave(depths[2], 0.0) is None if leave == "one" else registry.leave_all(0.0) == []
    assert not registry.may_leave(depths[2])
    registry.leave(depths[0], 0.0)
    registry.expire(0.0)
    assert registry.next_in_line() is None
    assert registry.refuse_unplaced(100.0) == []
    assert registry.deadline() is None


def test_download_that_is_forgotten_makes_room(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_TOPICS", 2)
    ended, _ = begin(registry, download("600519.SH"))
    publish(registry, ended, {"status": "done"})
    assert registry.waits(QUOTE, DOWNLOAD_KEPT)
    assert registry.next_in_line() is None
    registry.expire(DOWNLOAD_KEPT)
    assert registry.next_in_line() == QUOTE


@pytest.mark.parametrize("bound", ["MAX_UNPLACED", "MAX_UNPLACED_BYTES"])
def test_subscriptions_without_a_place_are_bounded(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, depths = full_of_depths()
    monkeypatch.setattr(unplaced, bound, 1)
    assert registry.waits(depths[2], 0.0)
    assert not registry.waits(depths[3], 0.0)
    with pytest.raises(BadRequest) as full:
        registry.want(depths[3])
    assert full.value.code == "symbol_limit"
    [state] = registry.ask(PEER, 1, depths[3], 0.0)
    assert (state.state, state.code) == ("refused", "symbol_limit")
    # The first one still waits.
    assert registry.waits(depths[2], 0.0)
    registry.leave(depths[2], 0.0)
    assert registry.waits(depths[3], 0.0)


def test_impossible_subscription_waits_for_no_place() -> None:
    registry, _ = full_of_depths()
    for text in ("l2/", "l2/000009.SZ/"):
        assert not registry.waits(text, 0.0)
    with pytest.raises(BadRequest):
        registry.waits("l2/nonsense/0/", 0.0)
