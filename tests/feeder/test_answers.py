"""The answers alone: no sockets, time is a number, and the test makes the calls of the journal's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from feeder import answers as answers_module
from feeder.answers import MAX_ENVELOPE_BYTES, MAX_ENVELOPE_PARTS, TURN, TURN_BYTES, Answers, Outcome, Rights
from feeder.events import Event, Unsent
from feeder.journal.journal import Journal
from feeder.journal.thread import JournalThread
from feeder.registry import Registry
from feeder.source import DownloadRequest, Source
from qmt_bridge.answering.askers import ASKER_BYTES, Peer
from qmt_bridge.errors import BadRequest, Refused, WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.requests import (
    CatchUp,
    DownloadStarted,
    Reply,
    StartDownload,
    TopicState,
    decode_reply,
    encode_ask,
)
from qmt_bridge.wire.survey import Attend, Finding, Found, Question, Roll, Survey
from qmt_bridge.wire.topics import ALL_TRADES, Kind, Topic, quote_topic, trade_topic

QUOTE = quote_topic("600519.SH")
TRADE = trade_topic("1")
EPOCH = 7
A, B = (b"a", b""), (b"b", b"")


class Downloads:
    """The part of a source that starts downloads."""

    name = "downloads"

    def __init__(self) -> None:
        self.started: list[tuple[Topic, DownloadRequest]] = []
        self.raises: Exception | None = None

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        if self.raises is not None:
            raise self.raises
        self.started.append((topic, request))


class Calls:
    """The calls for the journal's thread, which the test makes."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[Journal], Callable[[], None]]] = []

    def ask(self, call: Callable[[Journal], Callable[[], None]]) -> None:
        self.waiting.append(call)


class Reporter:
    """What a feeder tells of itself."""

    def state(self) -> dict[str, Any]:
        return {"published": 7}

    def capabilities(self, told: Callable[[dict[str, Any]], None]) -> None:
        told({"kinds": ["quote"]})


class Asked:
    """The answers to questions about a journal that a test fills, and what was sent to whom."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.calls, self.source = Calls(), Downloads()
        self.kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.TRADE, Kind.DOWNLOAD))
        self.registry = Registry(EPOCH, "fake", self.kinds, grace=5.0)
        self.refused: list[tuple[bytes, str, object]] = []
        self.failures: list[Exception] = []
        self.answers = Answers(
            self.registry,
            cast("Source", self.source),
            cast("JournalThread", self.calls),
            journal.positions,
            lambda *refused: self.refused.append(refused),
            self.failures.append,
            Reporter(),
        )
        self.outcome: Outcome = "sent"

    def ask(self, *topics: str, peer: Peer = A, **fields: Any) -> None:
        self.answers.take(peer, encode_ask(CatchUp(1, list(topics), **fields)))

    def download(self, *stocks: str, period: str = "1d", peer: Peer = A) -> DownloadStarted:
        self.answers.take(peer, encode_ask(StartDownload(2, list(stocks), period)))
        [(_, started)] = self.send()
        assert isinstance(started, DownloadStarted)
        return started

    def send(self, now: float = 0.0) -> list[tuple[bytes, Reply]]:
        """Return what one turn sends, and to which connection."""
        sent: list[tuple[bytes, Reply]] = []

        def deliver(peer: Peer, payload: bytes) -> Outcome:
            if self.outcome == "sent":
                sent.append((peer[0], decode_reply(payload)))
            return self.outcome

        self.answers.send(now, deliver)
        return sent

    def states(self, now: float = 0.0) -> list[TopicState]:
        return [state for _, state in self.send(now) if isinstance(state, TopicState)]

    def read(self) -> int:
        """Make the calls of the journal's thread; return how many there were."""
        calls, self.calls.waiting = self.calls.waiting, []
        for call in calls:
            call(self.journal)()
        return len(calls)

    def replayed(self) -> list[TopicState]:
        """Return the replies of all replays, turn by turn."""
        states = []
        while self.answers.deadline(hung=False) == 0.0:
            self.answers.look_up(None)
            self.read()
            states += self.states()
        return states

    def trade(self, count: int, account: str = "1", text: str = "") -> list[Event]:
        data = msgspec.Raw(frames.encode({"text": text}))
        events = self.journal.positions.give([Unsent(account, "trade", data)] * count, 1000)
        self.journal.append(events)
        return events


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    journal = Journal(tmp_path / "journal.sqlite3", days=30)
    yield Asked(journal)
    journal.close()


def publish(asked: Asked, topic: Topic, body: object) -> None:
    entry = asked.registry.find(topic)
    assert entry is not None
    asked.registry.published(entry, frames.encode(body), None, 0.0)


# -- Topics


def test_a_topic_is_answered_once_however_often_it_is_named(asked: Asked) -> None:
    asked.registry.want(QUOTE)
    publish(asked, QUOTE, {"lastPrice": 1.0})
    asked.ask(QUOTE, "quote/nonsense/", QUOTE)
    live, refused = asked.states()
    assert live == TopicState(1, QUOTE, "live", epoch=EPOCH, seq=1, body=frames.encode({"lastPrice": 1.0}))
    assert (refused.topic, refused.state, refused.code) == ("quote/nonsense/", "refused", "bad_request")


def test_a_question_that_waited_is_answered_in_the_next_turn(asked: Asked) -> None:
    asked.registry.want(QUOTE)
    asked.ask(QUOTE)
    assert asked.states() == []
    assert asked.answers.deadline(hung=False) is None
    asked.registry.accept(QUOTE)
    assert asked.states() == [TopicState(1, QUOTE, "live", epoch=EPOCH)]


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param((b"a",) * (MAX_ENVELOPE_PARTS + 1), id="parts"),
        pytest.param((b"a" * (MAX_ENVELOPE_BYTES + 1),), id="bytes"),
    ],
)
def test_a_question_with_a_large_envelope_is_refused(asked: Asked, peer: Peer) -> None:
    with pytest.raises(BadRequest, match="an envelope of"):
        asked.ask(QUOTE, peer=peer)
    assert len(asked.answers.askers) == 0


@pytest.mark.parametrize("peer", [(b"a",) * MAX_ENVELOPE_PARTS, (b"a" * MAX_ENVELOPE_BYTES,)], ids=["parts", "bytes"])
def test_the_largest_envelope_is_taken(asked: Asked, peer: Peer) -> None:
    asked.ask(ALL_TRADES, peer=peer)
    assert [state.state for state in asked.states()] == ["live"]


def test_a_payload_that_is_no_question_is_refused(asked: Asked) -> None:
    with pytest.raises(WireError):
        asked.answers.take(A, b"\xc1")


def test_a_question_too_many_of_one_connection_is_refused(asked: Asked) -> None:
    topics = ["x" * (ASKER_BYTES // 2)]
    asked.ask(*topics)
    with pytest.raises(BadRequest, match="about 1 topics, while too many questions wait") as refused:
        asked.ask(*topics)
    assert refused.value.code == "rate_limited"


# -- Sending


def test_a_turn_sends_so_many_replies_and_leaves_the_rest(asked: Asked) -> None:
    asked.ask(*(f"unknown/{number}/" for number in range(TURN + 10)))
    assert len(asked.states()) == TURN
    assert asked.answers.deadline(hung=False) == 0.0
    assert len(asked.states()) == 10


def test_topics_without_an_answer_count_for_the_turn(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []

    def pending(peer: Peer, number: int, text: str, now: float) -> Iterator[TopicState]:
        looked_at.append(text)
        yield from ()

    monkeypatch.setattr(asked.registry, "ask", pending)
    asked.ask(*(quote_topic(f"{number:06}.SH") for number in range(TURN + 10)))
    asked.send()
    assert len(looked_at) == TURN
    asked.send()
    assert len(looked_at) == TURN + 10


def test_a_turn_ends_after_so_many_bytes(asked: Asked) -> None:
    asked.registry.want(QUOTE)
    publish(asked, QUOTE, "x" * (TURN_BYTES // 4))
    for _ in range(10):
        asked.ask(QUOTE)
    assert [len(asked.states()) for _ in range(3)] == [4, 4, 2]


def test_connections_are_answered_in_turns(asked: Asked) -> None:
    for peer in (A, B):
        asked.ask("unknown/1/", "unknown/2/", peer=peer)
    assert [name for name, _ in asked.send()] == [b"a", b"b", b"a", b"b"]


def test_a_reply_to_a_full_connection_is_sent_later(asked: Asked) -> None:
    asked.ask(ALL_TRADES)
    asked.outcome = "full"
    assert asked.send(1.0) == []
    again = asked.answers.deadline(hung=False)
    assert again is not None
    assert again > 1.0
    asked.outcome = "sent"
    assert [state.topic for state in asked.states(again)] == [ALL_TRADES]


def test_the_replies_to_a_closed_connection_are_dropped(asked: Asked) -> None:
    asked.ask(ALL_TRADES, TRADE)
    asked.outcome = "gone"
    assert asked.send() == []
    assert asked.answers.deadline(hung=False) is None
    assert asked.answers.askers.given_up == 1


def test_a_reply_that_finds_no_room_is_told(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmt_bridge.answering.askers.ASKER_BYTES", 0)
    asked.answers.take(A, encode_ask(StartDownload(2, ["600519.SH"], "1d")))
    assert asked.refused == [(b"a", "an answer", "too much waits for its asker, which does not read")]


# -- Downloads


def test_equal_downloads_share_a_job(asked: Asked) -> None:
    first = asked.download("600519.SH", "000001.SZ", "600519.SH")
    assert first == asked.download("600519.SH", "000001.SZ", peer=B)
    assert first.topic is not None
    request = DownloadRequest(("600519.SH", "000001.SZ"), "1d", "", "")
    assert asked.source.started == [(first.topic, request)]


def test_a_bad_download_does_not_reach_the_source(asked: Asked) -> None:
    started = asked.download("600519.SH", period="3x")
    assert (started.topic, started.code) == (None, "unsupported_period")
    assert asked.source.started == []


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        pytest.param(Refused("upstream_refused", "no data"), "upstream_refused", "no data", id="refused"),
        pytest.param(KeyError("x"), "internal", "source downloads failed: 'x'", id="failed"),
    ],
)
def test_a_download_that_does_not_start_may_be_tried_again(
    asked: Asked, error: Exception, code: str, reason: str
) -> None:
    asked.source.raises = error
    assert asked.download("600519.SH") == DownloadStarted(2, None, code, reason)  # type: ignore[arg-type]
    asked.source.raises = None
    assert asked.download("600519.SH").topic is not None
    assert len(asked.source.started) == 1


# -- The journal


@pytest.mark.parametrize(("topic", "seq"), [(ALL_TRADES, 5), (TRADE, 3), (trade_topic("3"), 0)])
def test_a_trade_topic_without_a_position_is_where_events_are(asked: Asked, topic: Topic, seq: int) -> None:
    asked.trade(3, "1")
    asked.trade(2, "2")
    asked.ask(topic)
    assert asked.states() == [TopicState(1, topic, "live", epoch=EPOCH, seq=seq)]
    assert asked.calls.waiting == []


def test_an_impossible_trade_topic_is_refused(asked: Asked) -> None:
    asked.ask("trade/1")
    [state] = asked.states()
    assert (state.state, state.code, state.epoch) == ("refused", "bad_request", EPOCH)


def test_a_replay_is_read_chunk_by_chunk(asked: Asked) -> None:
    asked.trade(30, text="x" * (TURN_BYTES // 8))
    asked.ask(ALL_TRADES, after=10)
    assert asked.states() == []
    states = asked.replayed()
    assert len(states) > 1
    assert [state.more for state in states] == [True] * (len(states) - 1) + [False]
    assert [each["seq"] for state in states for each in frames.decode(state.body or b"")] == list(range(11, 31))
    assert states[-1].seq == 30


def test_the_events_of_one_account_have_its_own_numbers(asked: Asked) -> None:
    asked.trade(2, "2")
    asked.trade(3, "1")
    asked.ask(TRADE, after=1)
    asked.send()
    [state] = asked.replayed()
    assert [each["seq"] for each in frames.decode(state.body or b"")] == [4, 5]
    assert state.seq == 3


def test_an_asker_with_little_room_gets_one_chunk_of_it(asked: Asked) -> None:
    asked.trade(30, text="x" * 1000)
    asked.ask(ALL_TRADES, after=0, room=5000)
    asked.send()
    [state] = asked.replayed()
    assert state.more
    assert 0 < len(state.body or b"") < 7000


@pytest.mark.parametrize(
    ("position", "error"),
    [
        pytest.param({"after": 4}, "events after 4 cannot be replayed, only those after 0 to 3", id="later"),
        pytest.param({"after": -1}, "events after -1 cannot be replayed, only those after 0 to 3", id="negative"),
        pytest.param(
            {"after": 2, "epoch": 9, "exact": True},
            "position 2 is not one of this journal, which has what follows 0 to 3",
            id="other-journal",
        ),
    ],
)
def test_a_position_that_the_journal_lacks_is_refused(asked: Asked, position: dict[str, Any], error: str) -> None:
    asked.trade(3)
    asked.ask(ALL_TRADES, **position)
    asked.send()
    assert asked.replayed() == [TopicState(1, ALL_TRADES, "refused", error, "resume_expired", EPOCH, 3)]


@pytest.mark.parametrize("limit", ["MAX_REPLAYS_OF_ONE", "MAX_REPLAYS"])
def test_a_replay_too_many_is_refused(asked: Asked, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(answers_module, limit, 1)
    other = A if limit == "MAX_REPLAYS_OF_ONE" else B
    asked.ask(TRADE, after=0)
    asked.ask(ALL_TRADES, after=0, peer=other)
    [state] = asked.states()
    assert (state.topic, state.state, state.code) == (ALL_TRADES, "refused", "rate_limited")
    assert [state.topic for state in asked.replayed()] == [TRADE]
    # The first one has ended, so there is room for another.
    asked.ask(ALL_TRADES, after=0, peer=other)
    asked.send()
    assert [state.state for state in asked.replayed()] == ["live"]


def test_replays_of_one_connection_leave_room_for_another(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "MAX_REPLAYS_OF_ONE", 1)
    asked.ask(TRADE, after=0)
    asked.ask(TRADE, after=0, peer=B)
    assert asked.states() == []
    assert len(asked.answers.replays) == 2


def test_one_chunk_is_read_at_a_time(asked: Asked) -> None:
    for peer in (A, B):
        asked.ask(TRADE, after=0, peer=peer)
    asked.send()
    for _ in range(3):
        asked.answers.look_up(None)
    assert asked.answers.deadline(hung=False) is None
    assert asked.read() == 1
    assert asked.answers.deadline(hung=False) == 0.0


def test_a_chunk_is_read_when_its_connection_has_taken_the_last(asked: Asked) -> None:
    asked.ask(TRADE, after=0)
    asked.send()
    # A connection that takes nothing, and whose replies wait.
    asked.ask("unknown/1/")
    asked.outcome = "full"
    asked.send(1.0)
    asked.answers.look_up(None)
    assert asked.calls.waiting == []
    again = asked.answers.deadline(hung=False)
    assert again is not None
    assert again > 1.0
    asked.outcome = "sent"
    asked.send(again)
    assert asked.answers.deadline(hung=False) == 0.0
    asked.answers.look_up(None)
    assert asked.read() == 1


def test_a_replay_whose_connection_is_full_lets_others_pass(asked: Asked) -> None:
    asked.ask(TRADE, after=0)
    asked.ask(ALL_TRADES, after=0, peer=B)
    asked.send()
    asked.ask("unknown/1/")
    asked.answers.look_up(None)
    asked.read()
    assert {(name, reply.topic) for name, reply in asked.send()} == {(b"a", "unknown/1/"), (b"b", ALL_TRADES)}


def test_a_replay_is_refused_while_the_disk_hangs(asked: Asked) -> None:
    asked.trade(2)
    asked.ask(TRADE, after=0)
    asked.ask(ALL_TRADES, after=0, peer=B)
    asked.send()
    asked.answers.look_up(None)
    # The first one is being read, and the disk hangs; the other one gets its answer.
    assert asked.answers.deadline(hung=True) == 0.0
    asked.answers.look_up("no answer for 5 s")
    error = "the trade journal cannot be read: no answer for 5 s"
    assert asked.send() == [(b"b", TopicState(1, ALL_TRADES, "refused", error, "internal", EPOCH, 2))]


def test_a_journal_that_cannot_be_read_is_told(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    asked.trade(2)
    monkeypatch.setattr(asked.journal, "read", fail)
    asked.ask(ALL_TRADES, after=0)
    asked.send()
    error = "the trade journal cannot be read: disk I/O error"
    assert asked.replayed() == [TopicState(1, ALL_TRADES, "refused", error, "internal", EPOCH, 2)]
    assert "trade journal cannot be read" in caplog.messages


def test_a_question_whose_answer_fails_is_told(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Iterator[TopicState]:
        raise KeyError("missing")

    monkeypatch.setattr(asked.registry, "ask", fail)
    asked.ask(QUOTE)
    assert asked.send() == []
    assert [type(exc) for exc in asked.failures] == [KeyError]


WORKER, OTHER = "aaaaaaaa", "bbbbbbbb"


def attend(asked: Asked, name: str, peer: Peer, **fields: Any) -> None:
    asked.answers.take(peer, encode_ask(Attend(1, name, **fields)))


def survey(asked: Asked, what: str = "state", terms: object = None, peer: Peer = A, **fields: Any) -> None:
    encoded = msgspec.Raw(msgspec.json.encode(terms))
    asked.answers.take(peer, encode_ask(Survey(3, what, encoded, **fields)))  # type: ignore[arg-type]


def found(reply: Reply) -> Any:
    assert isinstance(reply, Found)
    return msgspec.json.decode(reply.found)


def test_survey_reaches_the_others_and_comes_back(asked: Asked) -> None:
    attend(asked, WORKER, A)
    attend(asked, OTHER, B)
    survey(asked, "clients", {"limit": 3})
    (to_asker, roll), (to_other, question) = sorted(asked.send(), key=lambda sent: sent[0])
    assert (to_asker, roll) == (A[0], Roll(3, [OTHER]))
    assert isinstance(question, Question)
    assert (to_other, question.what, bytes(question.terms)) == (B[0], "clients", b'{"limit":3}')
    asked.answers.take(B, encode_ask(Finding(question.id, OTHER, msgspec.Raw(b'{"total":1}'))))
    [(back, reply)] = asked.send()
    assert isinstance(reply, Found)
    assert (back, reply.id, reply.worker, found(reply)) == (A[0], 3, OTHER, {"total": 1})


def test_feeder_has_a_part_in_some_surveys(asked: Asked) -> None:
    asked.registry.want(QUOTE)
    for what, terms, part in (
        ("state", None, {"published": 7}),
        ("capabilities", None, {"kinds": ["quote"]}),
        (
            "subscriptions",
            {"limit": 5},
            {"topics": [[QUOTE, "pending", None, None, 0, None]], "total": 1, "more": False},
        ),
    ):
        survey(asked, what, terms)
        replies = [reply for _, reply in (*asked.send(), *asked.send())]
        assert replies[0] == Roll(3, ["feeder"])
        assert found(replies[1]) == part
    survey(asked, worker=OTHER)
    assert [reply for _, reply in asked.send()] == [Roll(3, [])]


def test_survey_with_terms_that_cannot_be_read_is_refused(asked: Asked) -> None:
    with pytest.raises(WireError):
        survey(asked, "subscriptions", {"limit": "x"})


def test_finding_that_nobody_waits_for_is_dropped(asked: Asked) -> None:
    asked.answers.take(B, encode_ask(Finding(9, OTHER, msgspec.Raw(b"1"))))
    assert asked.send() == []


def test_asker_without_the_right_is_told_why(asked: Asked) -> None:
    rights = Rights(administers=False, advice="ask elsewhere")
    for ask in (Attend(3, WORKER), Survey(3, "state")):
        asked.answers.take(A, encode_ask(ask), rights)
        assert asked.send() == [(A[0], Roll(3, [], "surveys are not for this asker: ask elsewhere"))]
    assert len(asked.answers.roll) == 0
    with pytest.raises(BadRequest, match="may not survey"):
        asked.answers.take(A, encode_ask(Finding(1, WORKER, msgspec.Raw(b"1"))), rights)


def test_worker_that_leaves_or_is_gone_is_asked_no_more(asked: Asked) -> None:
    attend(asked, WORKER, A)
    attend(asked, OTHER, B)
    attend(asked, WORKER, A, leaves=True)
    survey(asked, "kick", peer=(b"c",))
    assert [peer for peer, _ in asked.send()] == [b"c", B[0]]
    survey(asked, "kick", peer=(b"c",))
    asked.outcome = "gone"
    asked.send()
    assert len(asked.answers.roll) == 0


@pytest.mark.parametrize("name", ["", "a" * 9, "AAAAAAAA", "feeder00"])
def test_strange_name_of_a_worker_is_refused(asked: Asked, name: str) -> None:
    with pytest.raises(WireError):
        attend(asked, name, A)
