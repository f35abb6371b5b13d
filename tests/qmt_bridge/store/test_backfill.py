"""A store that completes days from the source's history: a log on the disk, and a feeder that the test plays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qmt_bridge.store import backfill as backfill_module
from qmt_bridge.store.answers import Answers
from qmt_bridge.store.backfill import Backfill
from qmt_bridge.store.filled import EPOCH_STEP
from qmt_bridge.store.log import Log
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import Hole, TopicHistory, decode_history, encode_history
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import AskHistory, CatchUp
from qmt_bridge.wire.source_history import SourceHistory
from qmt_bridge.wire.topics import Topic, quote_topic, whole_topic
from tests.support.stored import EPOCH, OPEN, TOPIC

DAY = "2026-11-27"
CODE = "600519.SH"
MIDNIGHT = midnight(OPEN)
DAY_MS = 86_400_000


def body(number: int, day: int = 0) -> bytes:
    """Return the tick `number` of the day: one a second from 09:30 on."""
    ms = OPEN + day * DAY_MS + (number - 1) * 1000
    return frames.encode({CODE: [{"time": ms, "volume": number, "lastPrice": 9.5}]})


class Side:
    """A store without sockets, and a feeder whose source has the ticks 1 to `played`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 100.0
        self.epoch = EPOCH
        self.played = 0
        self.seq = 0
        self.day = DAY
        self.asks: list[AskHistory] = []
        self.followed: list[Topic] = []
        self.connected = True
        self._open()

    def _open(self) -> None:
        self.log = Log(self.folder, 0)
        self.fill = Backfill(self.log, self._ask, self.followed.append, self.followed.remove)
        self.answers = Answers(self.log, {}, self.fill.want)

    def reopen(self) -> None:
        self.log.close()
        self.followed.clear()
        self._open()

    def _ask(self, ask: AskHistory) -> bool:
        if self.connected:
            self.asks.append(ask)
        return self.connected

    # The feeder

    def restart_feeder(self) -> None:
        self.epoch += 3_600 * 10**9
        self.seq = 0

    def live(self, *numbers: int, day: int = 0, stored: bool = True) -> None:
        """Publish these ticks."""
        for number in numbers:
            self.seq += 1
            self.last = body(number, day)
            ns = (OPEN + day * DAY_MS + number * 1000) * 10**6
            if stored:
                self.log.append(Frame(TOPIC, self.epoch, self.seq, ns, ns, self.last), self.day)
        self.log.commit()

    def history(self, numbers: Any, *, day: int = 0, **fields: Any) -> None:
        """Answer the newest question with the ticks `numbers` in two parts."""
        ask = self.asks[-1]
        bodies = [msgspec.Raw(body(number, day)) for number in numbers]
        last = msgspec.Raw(self.last if self.seq else b"null")
        whole = SourceHistory(ask.id, ask.topic, "history", None, None, self.epoch, self.seq, last, self.seq)
        whole = msgspec.structs.replace(whole, from_ms=MIDNIGHT + day * DAY_MS, **fields)
        half = len(bodies) // 2
        self.fill.take(SourceHistory(ask.id, ask.topic, "taken"))
        self.fill.take(msgspec.structs.replace(whole, bodies=bodies[:half], more=True))
        self.fill.take(msgspec.structs.replace(whole, bodies=bodies[half:]))

    def step(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.fill.step(self.now, (OPEN + 3_600_000) * 10**6, self.day)

    # The asker

    def ask(self, topic: Topic = TOPIC, **question: Any) -> TopicHistory:
        answer = self.answers.answer(CatchUp(3, [topic], **question), topic)
        return decode_history(encode_history(answer))

    def filled(self, *numbers: int, **question: Any) -> TopicHistory:
        """Ask, let the source answer with these ticks, and ask again."""
        question = question or {"start": "09:30"}
        assert self.ask(**question).state == "filling"
        self.step()
        self.history(numbers)
        self.step(backfill_module.ARRIVAL_SECONDS)
        return self.ask(**question)


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    side = Side(tmp_path / "store")
    yield side
    side.log.close()


def volumes(answer: TopicHistory) -> list[tuple[int, str]]:
    records = [record for frame in answer.frames for record in frames.decode(bytes(frame.body))[CODE]]
    return [(record["volume"], record.get("source", "live")) for record in records]


def past(*numbers: int) -> list[tuple[int, str]]:
    return [(number, "history") for number in numbers]


def now(*numbers: int) -> list[tuple[int, str]]:
    return [(number, "live") for number in numbers]


def test_morning_is_put_in_front_of_what_is_live(side: Side) -> None:
    side.live(5, 6)
    answer = side.filled(1, 2, 3, 4, 5, 6)
    assert (answer.state, answer.holes, answer.source) == ("stored", [], "history")
    assert volumes(answer) == past(1, 2, 3, 4) + now(5, 6)
    assert (answer.start_ms, answer.from_ms, answer.position) == (OPEN, OPEN, Position(EPOCH, 2))
    [ask] = side.asks
    assert (ask.topic, midnight(ask.day_ms)) == (TOPIC, MIDNIGHT)
    # From the middle of it, across the seam, and from live on.
    assert volumes(side.ask(start="09:30:02")) == past(3, 4) + now(5, 6)
    assert side.ask(start="09:30:02").holes == []
    assert (side.ask(start="09:30:04").holes, side.ask(start="09:30:04").source) == ([], None)
    # The source has nothing before the first one.
    assert side.ask(start="09:00").holes == []
    side.live(7)
    assert volumes(side.ask(start="09:30")) == past(1, 2, 3, 4) + now(5, 6, 7)
    assert len(side.asks) == 1


def test_positions_of_a_history_lead_to_what_is_live(side: Side) -> None:
    side.live(5, 6)
    frames_ = side.filled(1, 2, 3, 4, 5, 6).frames
    places = [(frame.epoch, frame.seq) for frame in frames_]
    assert places == sorted(set(places))
    for n, (epoch, seq) in enumerate(places):
        answer = side.ask(epoch=epoch, after=seq)
        assert [frame.seq for frame in answer.frames] == [frame.seq for frame in frames_[n + 1 :]]
        assert (answer.holes, answer.state) == ([], "stored")
        # As a browser names it.
        rounded = side.ask(epoch=float(epoch), after=seq)
        assert [(frame.epoch, frame.seq) for frame in rounded.frames] == places[n + 1 :]
    chunk = side.ask(start="09:30", room=1)
    read = list(chunk.frames)
    while chunk.more:
        chunk = side.ask(epoch=chunk.epoch, after=chunk.seq, room=1)
        assert chunk.holes == []
        read += chunk.frames
    assert [(frame.epoch, frame.seq) for frame in read] == places


def test_history_alone_leads_to_the_next_live_message(side: Side) -> None:
    side.live(4, stored=False)
    answer = side.filled(1, 2, 3, 4)
    assert volumes(answer) == past(1, 2, 3, 4)
    assert (answer.holes, answer.more, answer.position) == ([], False, Position(EPOCH, 1))
    side.live(5)
    answer = side.ask(epoch=EPOCH, after=1)
    assert (volumes(answer), answer.holes) == (now(5), [])
    answer = side.ask(start="09:30")
    assert (volumes(answer), answer.holes) == (past(1, 2, 3, 4) + now(5), [])


def test_what_was_published_while_it_was_looked_for_comes_once(side: Side) -> None:
    side.live(4, stored=False)
    assert side.ask(start="09:30").state == "filling"
    side.step()
    seq, last = side.seq, side.last
    side.live(5, 6)
    side.history((1, 2, 3, 4, 5), seq=seq, last=msgspec.Raw(last), newest=3)
    side.step()
    answer = side.ask(start="09:30")
    assert (volumes(answer), answer.holes) == (past(1, 2, 3, 4) + now(5, 6), [])


def test_history_of_a_day_without_a_tick_is_complete(side: Side) -> None:
    assert side.ask(start="09:30").state == "filling"
    side.step()
    side.history(())
    side.step(backfill_module.ARRIVAL_SECONDS)
    answer = side.ask(start="09:30")
    assert (answer.state, answer.holes, answer.frames, answer.position) == ("stored", [], [], Position(EPOCH, 0))
    side.live(1, 2)
    answer = side.ask(start="09:30")
    assert (volumes(answer), answer.holes) == (now(1, 2), [])
    assert volumes(side.ask(epoch=EPOCH, after=0)) == now(1, 2)


def test_history_behind_the_stream_is_asked_for_again(side: Side) -> None:
    side.live(5)
    assert side.ask(start="09:30").state == "filling"
    side.step()
    side.history((1, 2, 3))
    side.step()
    assert side.ask(start="09:30").state == "filling"
    side.step(backfill_module.LATE_SECONDS)
    side.history((1, 2, 3, 4, 5))
    side.step()
    answer = side.ask(start="09:30")
    assert (volumes(answer), answer.holes) == (past(1, 2, 3, 4) + now(5), [])


def test_history_that_stays_behind_is_a_gap_with_both_sides(side: Side) -> None:
    side.live(5)
    assert side.ask(start="09:30").state == "filling"
    for _ in range(backfill_module.ATTEMPTS):
        assert side.ask(start="09:30").state == "filling"
        side.step()
        side.history((1, 2, 3))
        side.step()
        side.step(backfill_module.LATE_SECONDS)
    answer = side.ask(start="09:30")
    assert volumes(answer) == past(1, 2, 3) + now(5)
    left, right = Position(EPOCH - EPOCH_STEP, 3), Position(EPOCH, 1)
    assert answer.holes == [Hole("gap", left, right, OPEN + 2000, OPEN + 4000)]


def test_feeder_that_was_restarted_is_completed_between(side: Side) -> None:
    side.live(1, 2, 3)
    side.restart_feeder()
    side.live(7, 8)
    # The morning itself is there.
    assert [hole.reason for hole in side.ask(start="09:30").holes] == ["restart"]
    answer = side.filled(*range(1, 9), start="09:30:04")
    assert (volumes(answer), answer.holes) == (past(5, 6) + now(7, 8), [])
    answer = side.ask(start="09:30")
    assert (volumes(answer), answer.holes) == (now(1, 2, 3) + past(4, 5, 6) + now(7, 8), [])
    assert volumes(side.ask(epoch=EPOCH, after=2)) == now(3) + past(4, 5, 6) + now(7, 8)


def test_yesterday_is_no_part_of_the_day(side: Side) -> None:
    side.live(1, 2, day=-1)
    side.restart_feeder()
    side.live(5)
    answer = side.filled(1, 2, 3, 4, 5)
    assert (volumes(answer), answer.holes) == (past(1, 2, 3, 4) + now(5), [])
    answer = side.ask(start=OPEN - DAY_MS)
    assert volumes(answer) == now(1, 2) + past(1, 2, 3, 4) + now(5)
    # Of what was after the last record of yesterday nothing is known.
    assert [hole.reason for hole in answer.holes] == ["restart"]


def test_failure_is_told_with_its_reason_and_remembered(side: Side) -> None:
    side.live(5)
    assert side.ask(start="09:30").state == "filling"
    side.step()
    side.fill.take(SourceHistory(side.asks[-1].id, TOPIC, "refused", "a hand has no history", "upstream_refused"))
    answer = side.ask(start="09:30")
    assert answer.holes == [
        Hole("store_began", None, Position(EPOCH, 1), None, OPEN + 4000, "a hand has no history"),
    ]
    assert (volumes(answer), answer.source, side.followed) == (now(5), None, [])
    side.step(1.0)
    assert side.ask(start="09:30").state == "stored"
    side.step(backfill_module.FAILED_SECONDS)
    assert side.ask(start="09:30").state == "filling"
    assert (side.fill.filled, side.fill.unfilled) == (0, 1)


def test_topic_of_which_nothing_is_stored_says_why(side: Side) -> None:
    assert side.ask(start="09:30").state == "filling"
    side.step()
    side.fill.take(SourceHistory(side.asks[-1].id, TOPIC, "refused", "unknown code", "unknown_symbol"))
    assert side.ask(start="09:30").holes == [Hole("not_stored", backfill="unknown code")]


def test_many_askers_of_one_code_cause_one_question(side: Side) -> None:
    side.live(5)
    for _ in range(50):
        assert side.ask(start="09:30").state == "filling"
        assert side.ask(start="09:29").state == "filling"
        side.step(0.01)
    assert (len(side.asks), side.followed) == (1, [TOPIC])
    side.history((1, 2, 3, 4, 5))
    side.step()
    assert side.ask(start="09:29").holes == []
    # It stays subscribed until the day is over.
    assert side.followed == [TOPIC]
    side.day = "2026-11-28"
    side.step()
    assert side.followed == []


def test_topic_that_is_not_served_yet_is_asked_again(side: Side) -> None:
    assert side.ask(start="09:30").state == "filling"
    side.step()
    side.fill.take(SourceHistory(side.asks[-1].id, TOPIC, "pending"))
    side.step()
    assert len(side.asks) == 1
    side.step(backfill_module.AGAIN_SECONDS)
    assert len(side.asks) == 2
    # An answer to the first question is late.
    side.fill.take(SourceHistory(side.asks[0].id, TOPIC, "refused", "late"))
    assert side.ask(start="09:30").state == "filling"


def test_feeder_that_does_not_answer_is_given_up(side: Side) -> None:
    assert side.ask(start="09:30").state == "filling"
    for _ in range(3):
        side.step(backfill_module.UNANSWERED_SECONDS)
    assert side.ask(start="09:30").holes == [Hole("not_stored", backfill="the feeder does not answer")]
    side.connected = False
    side.step(backfill_module.FAILED_SECONDS)
    assert side.ask(start="09:30").state == "filling"
    for _ in range(4):
        side.step(backfill_module.UNANSWERED_SECONDS)
    assert side.ask(start="09:30").holes == [Hole("not_stored", backfill="there is no connection to the feeder")]


def test_source_that_never_finds_it_is_given_up(side: Side) -> None:
    assert side.ask(start="09:30").state == "filling"
    side.step()
    side.fill.take(SourceHistory(side.asks[-1].id, TOPIC, "taken"))
    side.step(backfill_module.SECONDS - 1)
    assert side.ask(start="09:30").state == "filling"
    side.step(1)
    [hole] = side.ask(start="09:30").holes
    assert hole.backfill == "the source has not given its history in 60 s"
    assert side.followed == []


def test_number_of_codes_at_a_time_is_limited(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_module, "MOST_ASKED", 2)
    monkeypatch.setattr(backfill_module, "MOST_WAITING", 3)
    topics = [quote_topic(f"60000{n}.SH") for n in range(5)]
    answers = [side.ask(topic, start="09:30") for topic in topics]
    assert [answer.state for answer in answers] == ["filling"] * 3 + ["stored"] * 2
    assert answers[-1].holes == [
        Hole("not_stored", backfill="the history of 3 codes is looked for, and 0 are completed")
    ]
    side.step()
    assert [ask.topic for ask in side.asks] == topics[:2]
    side.fill.take(SourceHistory(side.asks[0].id, topics[0], "refused", "none"))
    side.step()
    assert [ask.topic for ask in side.asks] == topics[:3]
    assert side.fill.unfilled == 3


def test_history_beyond_the_limit_of_bytes_is_refused(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_module, "HISTORY_BYTES", 100)
    side.live(5)
    assert side.filled(1, 2, 3, 4, 5).holes[0].backfill == "its history has more than 100 bytes"


def test_store_that_cannot_write_says_so(side: Side) -> None:
    assert side.ask(start="09:30").state == "filling"
    side.step()
    side.fill.stop("the disk has only 3 MiB left")
    assert side.ask(start="09:30").holes == [Hole("not_stored", backfill="the disk has only 3 MiB left")]
    assert (side.followed, len(side.fill)) == ([], 0)


def test_history_that_cannot_be_read_is_told(side: Side) -> None:
    assert side.ask(start="09:30").state == "filling"
    side.step()
    number = side.asks[-1].id
    side.fill.take(SourceHistory(number, TOPIC, "taken"))
    side.fill.take(SourceHistory(number, TOPIC, "history", bodies=[msgspec.Raw(b"[1]")]))
    [hole] = side.ask(start="09:30").holes
    assert str(hole.backfill).startswith("what the feeder has answered cannot be read")


def test_whole_markets_are_never_completed(side: Side) -> None:
    topic = whole_topic("SH")
    answer = side.ask(topic, start="09:30")
    assert answer.holes == [
        Hole("not_stored", backfill="only quotes of single codes are completed from the source's history")
    ]
    side.step()
    assert side.asks == []


def test_what_was_completed_is_there_after_a_restart(side: Side) -> None:
    side.live(5, 6)
    before = side.filled(1, 2, 3, 4, 5, 6)
    side.reopen()
    after = side.ask(start="09:30")
    assert (after.frames, after.holes, after.source) == (before.frames, [], "history")


def test_history_without_live_messages_is_not_joined_later(side: Side) -> None:
    side.live(4, stored=False)
    side.filled(1, 2, 3, 4)
    side.reopen()
    # Nobody has subscribed it while the store was away.
    side.live(9)
    answer = side.ask(start="09:30")
    assert volumes(answer) == past(1, 2, 3, 4) + now(9)
    assert [hole.reason for hole in answer.holes] == ["gap"]
    side.reopen()
    assert [hole.reason for hole in side.ask(start="09:30").holes] == ["gap"]


def test_history_goes_with_the_day_that_it_belongs_to(side: Side) -> None:
    side.live(5, 6)
    side.filled(1, 2, 3, 4, 5, 6)
    side.day = "2026-11-28"
    side.live(7, day=1)
    assert side.log.trim("2026-11-28") == [DAY]
    answer = side.ask(start=OPEN)
    assert volumes(answer) == now(7)
    assert [hole.reason for hole in answer.holes] == ["removed"]
