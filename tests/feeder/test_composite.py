"""Several sources as one: the worst state of them, each loss once, and all of their accounts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import pytest

from feeder.composite import Composite, Member
from feeder.source import DownloadRequest, FeedState, Health, Sink, Source
from feeder.sources.said import known_state
from feeder.sources.thread_errors import ThreadErrors
from qmt_bridge.errors import Refused
from qmt_bridge.observation.delays import Delays
from qmt_bridge.wire.messages import AccountState, PusherState
from qmt_bridge.wire.topics import Kind, Topic, TopicParts, parse_topic
from tests.support.sink import Recording


class Told(Recording):
    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[FeedState, str | None, bool]] = []
        self.accounts: list[str] = []

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        self.states.append((state, reason, data_lost))

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        self.accounts = [each.account for each in accounts]


class Part:
    """A source that keeps the sink that it is started with."""

    name, simulated, lossless = "part", False, False

    def __init__(self, *kinds: Kind) -> None:
        self.kinds = frozenset(kinds)
        self.calls: list[str] = []

    def start(self, sink: Sink) -> None:
        self.sink = sink

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        self.calls.append(f"subscribe {topic}")

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        self.calls.append(f"unsubscribe {topic}")

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        self.calls.append(f"download {topic}")

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        self.calls.append(f"history {topic}")


def two() -> tuple[Told, Sink, Sink]:
    told, one, other = Told(), Part(), Part()
    members = [Member(cast(Source, part), lambda parts: True) for part in (one, other)]
    Composite("one+other", members).start(cast(Sink, told))
    return told, one.sink, other.sink


def test_state_is_the_worst_of_the_sources() -> None:
    told, one, other = two()
    one.set_state("up")
    other.set_state("up")
    one.set_state("stale", "market_silent")
    other.set_state("down", "pusher_gone")
    one.set_state("up")
    other.set_state("up")
    assert told.states == [
        ("connecting", None, False),
        ("up", None, False),
        ("stale", "market_silent", False),
        ("down", "pusher_gone", False),
        ("down", "pusher_gone", False),
        ("up", None, False),
    ]


def test_loss_is_told_once_with_the_report_that_says_it() -> None:
    told, one, other = two()
    other.set_state("down", "terminal_hung")
    one.set_state("up", data_lost=True)
    one.set_accounts([AccountState("1", "STOCK", "up", since=1)])
    one.set_state("up", data_lost=True)
    other.set_state("up")
    assert told.states == [
        ("down", "terminal_hung", False),
        ("down", "terminal_hung", True),
        ("up", None, False),
    ]


def test_accounts_of_all_sources_are_told_together() -> None:
    told, one, other = two()
    one.set_accounts([AccountState("1", "STOCK", "up", since=1)])
    other.set_accounts([AccountState("2", "STOCK", "down", since=1)])
    assert told.accounts == ["1", "2"]
    one.set_accounts([])
    assert told.accounts == ["2"]


def test_each_call_reaches_the_source_of_its_topic() -> None:
    first, last = Part(Kind.QUOTE, Kind.L2), Part(Kind.QUOTE, Kind.DOWNLOAD)
    members = [
        Member(cast(Source, first), lambda parts: parts.name.endswith(".SF")),
        Member(cast(Source, last), lambda parts: True),
    ]
    both = Composite("first+last", members)
    for topic in (Topic("quote/rb2510.SF/tick/"), Topic("quote/600519.SH/tick/")):
        parts = parse_topic(topic)
        both.subscribe(topic, parts)
        both.history(1, topic, parts, 0)
        both.unsubscribe(topic, parts)
    both.download(Topic("download/1/"), DownloadRequest((), "1d", "", ""))
    for calls, code in ((first.calls, "rb2510.SF"), (last.calls, "600519.SH")):
        assert calls[:3] == [f"{call} quote/{code}/tick/" for call in ("subscribe", "history", "unsubscribe")]
    assert (first.calls[3:], last.calls[3:]) == ([], ["download download/1/"])


def test_no_source_gets_a_kind_that_it_lacks() -> None:
    first, last = Part(Kind.L2), Part(Kind.QUOTE)
    members = [Member(cast(Source, first), lambda parts: False), Member(cast(Source, last), lambda parts: True)]
    both, topic = Composite("first+last", members), Topic("l2/600519.SH/0/")
    with pytest.raises(Refused) as raised:
        both.subscribe(topic, parse_topic(topic))
    assert raised.value.code == "upstream_refused"
    both.unsubscribe(topic, parse_topic(topic))
    assert first.calls == last.calls == []


class Asked(Part):
    """A source with answers of its own to what other threads ask."""

    def __init__(self, health: Health, hung: str | None, lacks: dict[str, str], lossless: bool) -> None:
        super().__init__()
        self.answers = health, hung, lacks
        self.lossless = lossless

    def health(self) -> Health:
        return self.answers[0]

    def hung(self) -> str | None:
        return self.answers[1]

    def capabilities(self) -> dict[str, str]:
        return self.answers[2]

    def upstream(self) -> int:
        return 2


def test_condition_is_that_of_all_sources() -> None:
    pusher = PusherState("ctp", "up", None, 1, (), (), (), 0, 0, 0, None)
    first = Asked(
        Health(pushers=(pusher,), pushers_refused={"taken": 0, "forbidden": 2}),
        None,
        {"quote": "none is connected"},
        lossless=False,
    )
    sdk = Health("240613.1.0", "subscribe_quote", 1.5, True, {"connect": Delays()})
    last = Asked(sdk, "connect does not return", {"quote": "", "l2": ""}, lossless=True)
    both = Composite("first+last", [Member(cast(Source, each), lambda parts: True) for each in (first, last)])
    assert both.health() == sdk._replace(pushers=[pusher], pushers_refused={"taken": 0, "forbidden": 2})
    assert both.hung() == "connect does not return"
    assert both.capabilities() == {"quote": "none is connected", "l2": ""}
    assert (both.upstream(), both.lossless, both.simulated) == (4, True, False)


def test_thread_that_fails_is_that_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", others.append)
    both = Composite("one+other", [Member(cast(Source, Part()), lambda parts: True)])

    def fails() -> None:
        raise ValueError("of this package")

    with ThreadErrors(both) as errors:
        # An error of the feeder is none of its source, although Composite is of the feeder.
        for target, arguments, told in ((known_state, ("fine",), False), (fails, (), True)):
            thread = threading.Thread(target=target, args=arguments, name="of-a-test")
            thread.start()
            thread.join()
            assert (errors.told is not None) == told
    assert len(others) == 1
