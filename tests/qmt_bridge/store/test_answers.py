"""What a store answers: messages from a moment or a position on, in chunks, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qmt_bridge.store import answers
from qmt_bridge.store.answers import CHUNK_BYTES, MOST_CHUNK_BYTES, Answers
from qmt_bridge.store.log import Log
from qmt_bridge.wire.frames import Frame, decode, encode
from qmt_bridge.wire.history import Hole, TopicHistory, decode_history, encode_history
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import CatchUp
from qmt_bridge.wire.topics import Topic, whole_topic
from tests.support.stored import EPOCH, OPEN, TOPIC, tick

DAY = "2026-11-27"
SECOND = 1000


class Asked:
    """A log, and questions about it."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.followed: dict[Topic, float] = {}
        self._answers = Answers(log, self.followed)

    def store(self, *seqs: int, epoch: int = EPOCH, day: str = DAY, first_ms: int = OPEN) -> None:
        """Store ticks with these numbers, each as many seconds after `first_ms` as its number says, from 1 on."""
        for seq in seqs:
            self.log.append(tick(seq, first_ms + (seq - 1) * SECOND, epoch=epoch), day)

    def ask(self, topic: str = TOPIC, **question: object) -> TopicHistory:
        ask = CatchUp(3, [topic], **question)  # type: ignore[arg-type]
        return decode_history(encode_history(self._answers.answer(ask, topic)))

    def refused(self, topic: str = TOPIC, **question: object) -> str:
        answer = self.ask(topic, **question)
        assert answer.state == "refused"
        assert not answer.frames
        return f"{answer.code}: {answer.error}"


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    with closing(Log(tmp_path / "store", 0)) as log:
        yield Asked(log)


def seqs(answer: TopicHistory) -> list[int]:
    return [frame.seq for frame in answer.frames]


def at(seq: int, epoch: int = EPOCH) -> Position:
    return Position(epoch, seq)


# From a moment on


def test_answer_begins_with_the_first_record_from_the_start_on(asked: Asked) -> None:
    asked.store(*range(1, 61))
    answer = asked.ask(start="09:30:10.500")
    assert seqs(answer) == list(range(12, 61))
    assert (answer.id, answer.topic, answer.state, answer.more, answer.holes) == (3, TOPIC, "stored", False, [])
    assert (answer.start_ms, answer.from_ms, answer.position) == (OPEN + 10_500, OPEN + 11_000, at(60))
    assert seqs(asked.ask(start=OPEN + 11_000)) == list(range(12, 61))
    assert seqs(asked.ask(start="2026-11-27T09:30:11")) == list(range(12, 61))


def test_messages_are_as_they_were_published(asked: Asked) -> None:
    asked.store(1)
    [frame] = asked.ask(start="09:30").frames
    sent = tick(1, OPEN)
    assert frame.frame(TOPIC).to_parts() == sent.to_parts()


def test_messages_that_are_not_committed_yet_are_answered(asked: Asked) -> None:
    asked.store(1)
    assert asked.log.waiting == 1
    assert seqs(asked.ask(start="09:30")) == [1]
    asked.store(2)
    assert seqs(asked.ask(epoch=EPOCH, after=1)) == [2]


def test_time_of_day_is_of_the_day_of_the_newest_record(asked: Asked) -> None:
    yesterday = OPEN - 86_400_000
    asked.store(1, 2, first_ms=yesterday, epoch=EPOCH - 10)
    asked.store(1, 2)
    answer = asked.ask(start="09:30:00")
    assert (seqs(answer), answer.start_ms) == ([1, 2], OPEN)
    assert seqs(asked.ask(start=yesterday)) == [1, 2, 1, 2]


def test_end_is_the_moment_before_which_messages_are_wanted(asked: Asked) -> None:
    asked.store(*range(1, 61))
    answer = asked.ask(start="09:30:10", end="09:30:20")
    assert (seqs(answer), answer.more, answer.end_ms) == (list(range(11, 21)), False, OPEN + 20_000)
    assert answer.position == at(20)
    assert seqs(asked.ask(epoch=EPOCH, after=15, end=OPEN + 20_000)) == [16, 17, 18, 19, 20]


def test_range_without_a_message_is_empty(asked: Asked) -> None:
    asked.store(1, 60)
    answer = asked.ask(start="09:30:10", end="09:30:20")
    assert (answer.frames, answer.more, answer.from_ms) == ([], False, None)


def test_start_behind_the_newest_says_where_the_topic_stands(asked: Asked) -> None:
    asked.store(1, 2)
    answer = asked.ask(start="10:00")
    assert (answer.frames, answer.holes, answer.position, answer.from_ms) == ([], [], at(2), None)


def test_question_without_a_place_says_where_the_topic_stands(asked: Asked) -> None:
    asked.store(1, 2)
    answer = asked.ask()
    assert (answer.frames, answer.holes, answer.position, answer.more) == ([], [], at(2), False)


# What is missing


def test_store_that_began_later_says_so(asked: Asked) -> None:
    asked.store(5, 6)
    answer = asked.ask(start="09:30:00")
    assert answer.holes == [Hole("store_began", None, at(5), None, OPEN + 4 * SECOND)]
    assert seqs(answer) == [5, 6]


def test_topic_is_complete_from_its_first_record_on(asked: Asked) -> None:
    asked.store(5, 6)
    assert asked.ask(start="09:30:04").holes == []


def test_own_topic_is_complete_since_it_was_followed(asked: Asked) -> None:
    asked.followed[TOPIC] = OPEN - 60_000
    asked.store(1, 2, first_ms=OPEN + 30_000)
    assert asked.ask(start="09:30:00").holes == []
    assert [hole.reason for hole in asked.ask(start="09:20:00").holes] == ["store_began"]


def test_own_topic_is_not_complete_before_its_feeder_was_started(asked: Asked) -> None:
    asked.followed[TOPIC] = OPEN - 3_600_000
    asked.store(1, 2, first_ms=OPEN + 30_000, epoch=(OPEN + 20_000) * 10**6)
    assert [hole.reason for hole in asked.ask(start="09:30:00").holes] == ["store_began"]
    assert asked.ask(start="09:30:25").holes == []


def test_first_numbers_of_an_own_topic_are_a_gap(asked: Asked) -> None:
    asked.followed[TOPIC] = OPEN - 60_000
    asked.store(3)
    assert asked.ask(start="09:30:00").holes == [Hole("gap", at(0), at(3), OPEN, OPEN + 2 * SECOND)]


def test_own_topic_of_a_replay_is_compared_in_its_time(asked: Asked) -> None:
    """The first record was received 100 days after its time, five seconds after the store had subscribed."""
    late = 100 * 86_400_000
    asked.followed[TOPIC] = OPEN + late - 5000
    asked.log.append(tick(1, OPEN, late_ms=late), DAY)
    assert asked.ask(start=OPEN - 5000).holes == []
    assert [hole.reason for hole in asked.ask(start=OPEN - 5001).holes] == ["store_began"]


def test_gap_is_told_with_both_sides(asked: Asked) -> None:
    asked.store(1, 2, 5, 6, 9)
    assert asked.ask(start="09:30").holes == [
        Hole("gap", at(2), at(5), OPEN + SECOND, OPEN + 4 * SECOND),
        Hole("gap", at(6), at(9), OPEN + 5 * SECOND, OPEN + 8 * SECOND),
    ]


def test_gap_around_the_start_is_told(asked: Asked) -> None:
    asked.store(1, 2, 9)
    answer = asked.ask(start="09:30:05")
    assert (seqs(answer), answer.holes) == ([9], [Hole("gap", at(2), at(9), OPEN + SECOND, OPEN + 8 * SECOND)])


def test_gap_after_a_position_is_told(asked: Asked) -> None:
    asked.store(1, 2, 5)
    assert asked.ask(epoch=EPOCH, after=2).holes == [Hole("gap", at(2), at(5), None, OPEN + 4 * SECOND)]
    assert asked.ask(epoch=EPOCH, after=4).holes == []


def test_restart_of_the_feeder_is_told(asked: Asked) -> None:
    newer = EPOCH + 60 * 10**9
    asked.store(1, 2)
    asked.store(1, epoch=newer, first_ms=OPEN + 60_000)
    answer = asked.ask(start="09:30")
    assert answer.holes == [Hole("restart", at(2), at(1, newer), OPEN + SECOND, OPEN + 60_000)]
    assert answer.position == at(1, newer)
    assert [hole.reason for hole in asked.ask(epoch=EPOCH, after=2).holes] == ["restart"]


def test_restart_without_its_first_messages_is_a_gap_too(asked: Asked) -> None:
    newer = EPOCH + 60 * 10**9
    asked.store(1, 2)
    asked.store(4, epoch=newer, first_ms=OPEN + 60_000)
    assert [hole.reason for hole in asked.ask(start="09:30").holes] == ["restart", "gap"]


def test_removed_days_are_told(asked: Asked) -> None:
    asked.store(1, 2, day="2026-11-26")
    asked.store(3, 4)
    asked.ask()
    asked.log.trim(DAY)
    hole = Hole("removed", None, at(3), None, OPEN + 2 * SECOND)
    answer = asked.ask(start="09:30")
    assert (seqs(answer), answer.holes) == ([3, 4], [hole])
    assert asked.ask(epoch=EPOCH, after=1).holes == [Hole("removed", at(1), at(3), None, OPEN + 2 * SECOND)]
    assert asked.ask(epoch=EPOCH, after=2).holes == []
    assert asked.ask(start="09:30:02").holes == []


def test_topic_whose_messages_were_all_removed_says_so(asked: Asked) -> None:
    asked.store(1, day="2026-11-26")
    asked.log.append(tick(1, OPEN, topic=Topic("quote/000001.SZ/tick/")), DAY)
    asked.ask()
    asked.log.trim(DAY)
    answer = asked.ask(start="09:30")
    assert (answer.frames, answer.holes, answer.position) == ([], [Hole("removed")], Position(0, 0))


def test_topic_without_a_message_is_not_stored(asked: Asked) -> None:
    answer = asked.ask(start="09:30")
    assert (answer.state, answer.frames, answer.holes) == ("stored", [], [Hole("not_stored")])
    assert (answer.start_ms, answer.position) == (0, Position(0, 0))


def test_own_topic_without_a_message_is_complete_since_followed(asked: Asked) -> None:
    asked.followed[TOPIC] = OPEN
    assert asked.ask(start=OPEN).holes == []
    assert asked.ask(start=OPEN - 1).holes == [Hole("store_began")]


# Chunks


def test_chunks_add_up_to_all_messages(asked: Asked) -> None:
    asked.store(*range(1, 41), *range(50, 81))
    answer = asked.ask(start="09:30:05", room=1000, end="09:31:10")
    found, holes = seqs(answer), list(answer.holes)
    rounds = 0
    while answer.more:
        assert 0 < sum(len(bytes(frame.body)) for frame in answer.frames) <= 1000
        answer = asked.ask(epoch=answer.epoch, after=answer.seq, room=1000, end=answer.end_ms)
        found += seqs(answer)
        holes += answer.holes
        rounds += 1
    assert found == [*range(6, 41), *range(50, 71)]
    assert [(hole.after, hole.before) for hole in holes] == [(at(40), at(50))]
    assert rounds > 5


@pytest.mark.parametrize(("room", "most"), [(0, CHUNK_BYTES), (2**40, MOST_CHUNK_BYTES), (5000, 5000)])
def test_answer_is_bounded_in_bytes(asked: Asked, room: int, most: int) -> None:
    for seq in range(1, 600):
        asked.log.append(tick(seq, OPEN, size=3000), DAY)
    answer = asked.ask(start=OPEN, room=room)
    assert most / 3 < len(encode_history(answer)) < most + 1000
    assert answer.more


def test_message_beyond_the_room_has_an_answer_of_its_own(asked: Asked) -> None:
    for seq in (1, 2):
        asked.log.append(tick(seq, OPEN, size=5000), DAY)
    answer = asked.ask(start=OPEN, room=1)
    assert (seqs(answer), answer.more) == ([1], True)
    answer = asked.ask(epoch=answer.epoch, after=answer.seq, room=1)
    assert (seqs(answer), answer.more) == ([2], False)


# Positions


# JavaScript writes the shortest digits that read as the same number, and zeros behind them.
@pytest.mark.parametrize("rounded", [1795741200000000301.0, 1795741200000000256, 1795741200000000300])
def test_position_may_have_an_epoch_that_a_browser_has_rounded(asked: Asked, rounded: float) -> None:
    asked.store(1, 2, 3, epoch=1795741200000000301)
    answer = asked.ask(epoch=rounded, after=2)
    assert (seqs(answer), answer.holes) == ([3], [])


def test_position_at_the_newest_message_is_answered_with_itself(asked: Asked) -> None:
    asked.store(1, 2)
    answer = asked.ask(epoch=EPOCH, after=2)
    assert (answer.frames, answer.holes, answer.position, answer.more) == ([], [], at(2), False)


# Refusals


@pytest.mark.parametrize(
    ("topic", "question", "said"),
    [
        ("quote/", {}, "not a whole topic"),
        ("nonsense/x/", {}, "unknown topic"),
        ("trade/1000000365/", {}, "keeps no trade topics"),
        ("status/feeder/", {}, "keeps no status topics"),
        (TOPIC, {"start": "soon"}, "start is a time of day"),
        (TOPIC, {"end": -1}, "end is in milliseconds"),
        (TOPIC, {"start": 34_200}, "start is in milliseconds"),
        (TOPIC, {"start": OPEN, "end": OPEN - 1}, "end is before start"),
        (TOPIC, {"start": OPEN, "after": 1, "epoch": 1}, "give one"),
        (TOPIC, {"after": 1}, "a position is an epoch and a sequence number"),
        (TOPIC, {"after": -1, "epoch": 1}, "neither below zero|from 0"),
        (TOPIC, {"after": 1, "epoch": -1}, "from 0"),
        (TOPIC, {"after": 2**63, "epoch": 1}, "from 0"),
        (TOPIC, {"after": 1, "epoch": 1e300}, "from 0"),
    ],
)  # fmt: skip
def test_question_that_makes_no_sense_is_refused_in_words(
    asked: Asked, topic: str, question: dict[str, object], said: str
) -> None:
    asked.store(1)
    refused = asked.refused(topic, **question)
    assert refused.startswith("bad_request: ")
    assert any(part in refused for part in said.split("|"))


# One code of a market

SH = whole_topic("SH")
CODE = "600519.SH"


def batch(seq: int, ms: int, **seconds: float) -> Frame:
    """Return a batch of `ms` in which codes (by their numbers) have records that are so many seconds older."""
    ticks = {f"{code[1:]}.SH": {"time": ms - int(1000 * older), "seq": seq} for code, older in seconds.items()}
    return Frame(SH, EPOCH, seq, (ms + 100) * 1_000_000, (ms + 101) * 1_000_000, encode(ticks))


def of_code(answer: TopicHistory) -> list[tuple[int, int]]:
    """Return sequence numbers and times of the records, which have the form of the code's own topic."""
    found = []
    for frame, ms in zip(answer.frames, answer.times, strict=True):
        [record] = decode(bytes(frame.body))[CODE]
        assert record["seq"] == frame.seq
        assert record["time"] <= ms
        found.append((frame.seq, ms))
    return found


def test_code_of_a_market_has_the_positions_of_its_batches(asked: Asked) -> None:
    for seq in range(1, 31):
        codes = {"c600519": 0.0} if seq % 3 == 0 else {}
        asked.log.append(batch(seq, OPEN + seq * SECOND, c600000=0.0, **codes), DAY)
    answer = asked.ask(SH, start="09:30:10", code=CODE)
    assert of_code(answer) == [(seq, OPEN + seq * SECOND) for seq in (12, 15, 18, 21, 24, 27, 30)]
    assert (answer.from_ms, answer.more, answer.position, answer.holes) == (OPEN + 12 * SECOND, False, at(30), [])
    assert of_code(asked.ask(SH, epoch=EPOCH, after=24, code=CODE)) == [(27, OPEN + 27_000), (30, OPEN + 30_000)]


def test_one_answer_looks_through_a_part_of_a_market(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LOOKED_BYTES", 200)
    for seq in range(1, 101):
        codes = {"c600519": 0.0} if seq in (2, 99) else {}
        asked.log.append(batch(seq, OPEN + seq * SECOND, c600000=0.0, **codes), DAY)
    answer = asked.ask(SH, start="09:30", code=CODE)
    got, empty = of_code(answer), 0
    while answer.more:
        before = answer.position
        answer = asked.ask(SH, epoch=EPOCH, after=before.seq, code=CODE)
        assert answer.position > before
        empty += not answer.frames
        got += of_code(answer)
    assert [seq for seq, _ in got] == [2, 99]
    assert empty > 10
    assert answer.position == at(100)


def test_older_record_of_a_code_is_at_its_own_time(asked: Asked) -> None:
    for seq in range(1, 21):
        asked.log.append(batch(seq, OPEN + seq * SECOND, c600000=0.0, c600519=2.0), DAY)
    answer = asked.ask(SH, start="09:30:10", end="09:30:15", code=CODE)
    # Those with a time of 10 to 14 s come in batches of 12 to 16 s.
    assert [seq for seq, _ in of_code(answer)] == [12, 13, 14, 15, 16]
    assert answer.more is False


def test_hole_of_a_market_is_one_of_its_codes(asked: Asked) -> None:
    for seq in (1, 2, 5, 6):
        asked.log.append(batch(seq, OPEN + seq * SECOND, c600519=0.0), DAY)
    answer = asked.ask(SH, start="09:30:01", code=CODE)
    assert answer.holes == [Hole("gap", at(2), at(5), OPEN + 2000, OPEN + 5000)]


def test_batch_that_is_no_map_of_codes_is_looked_over(asked: Asked) -> None:
    asked.log.append(batch(1, OPEN, c600519=0.0), DAY)
    asked.log.append(Frame(SH, EPOCH, 2, OPEN * 1_000_000, OPEN * 1_000_000, b'["600519.SH"]'), DAY)
    asked.log.append(Frame(SH, EPOCH, 3, OPEN * 1_000_000, OPEN * 1_000_000, b'[{"600519.SH":1}]'), DAY)
    assert of_code(asked.ask(SH, start="09:30", code=CODE)) == [(1, OPEN)]


@pytest.mark.parametrize(
    ("topic", "code", "told"),
    [
        (SH, "000001.SZ", "whole/SH/ is not the market of '000001.SZ'"),
        (TOPIC, CODE, "is not the market of"),
        (SH, "moutai", "is not a code like"),
    ],
)
def test_code_of_another_topic_is_refused(asked: Asked, topic: str, code: str, told: str) -> None:
    assert told in asked.refused(topic, start="09:30", code=code)


def test_answer_has_the_time_of_each_message(asked: Asked) -> None:
    asked.store(1, 2, 3)
    assert asked.ask(start="09:30:01").times == [OPEN + SECOND, OPEN + 2 * SECOND]
