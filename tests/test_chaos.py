"""The verdict of the chaos runs: it has to count every lost, repeated and reordered event."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.chaos import program
from tests.chaos.leaks import Memory
from tests.chaos.mornings import Arrival, Place, Published, Visit
from tests.chaos.readers import Reader, Streams
from tests.chaos.verdict import Received, Verdict, digest, journaled, judge, received

JOURNAL = {seq: 100 + seq for seq in range(1, 6)}


def events(*seqs: int) -> list[Received]:
    return [Received(seq, JOURNAL.get(seq, 0)) for seq in seqs]


@pytest.mark.parametrize(
    ("got", "verdict"),
    [
        pytest.param((1, 2, 3, 4, 5), Verdict(0, 0, 0, 0), id="all"),
        pytest.param((1, 2, 3, 4), Verdict(0, 0, 0, 0), id="up-to-the-last"),
        pytest.param((1, 2, 4), Verdict(1, 0, 0, 0), id="lost"),
        pytest.param((), Verdict(4, 0, 0, 0), id="all-lost"),
        pytest.param((1, 2, 2, 3, 4), Verdict(0, 1, 0, 0), id="twice"),
        pytest.param((1, 3, 2, 4), Verdict(0, 0, 1, 0), id="late"),
        pytest.param((1, 2, 3, 4, 9), Verdict(0, 0, 0, 1), id="not-in-the-journal"),
    ],
)
def test_each_difference_is_counted_by_its_kind(got: tuple[int, ...], verdict: Verdict) -> None:
    assert judge(events(*got), JOURNAL, last=4) == verdict
    assert verdict.is_clean == (verdict == (0, 0, 0, 0))


def test_other_content_at_the_same_position_is_foreign() -> None:
    assert judge([Received(1, 1)], {1: 2}, last=1) == Verdict(0, 0, 0, 1)


def test_checksum_depends_on_the_content_not_on_the_encoding() -> None:
    event = {"type": "order", "seq": 7, "data": {"price": 1.5, "b": None, "a": "字"}}
    shuffled = {"seq": 7, "data": {"a": "字", "b": None, "price": 1.5}, "type": "order"}
    assert journaled([(7, msgspec.json.encode(event))]) == {7: digest(shuffled)}
    assert received(shuffled) == (7, digest(event))
    assert digest({**event, "data": {"price": 1.6}}) != digest(event)
    assert digest({**event, "type": "trade"}) != digest(event)


def test_line_that_was_cut_short_by_a_kill_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert program.read(path) == []
    path.write_bytes(b"1 11\n2 22\n3 3")
    assert program.read(path) == [Received(1, 11), Received(2, 22)]
    assert path.read_bytes() == b"1 11\n2 22\n"
    path.write_bytes(b"1 1")
    assert program.read(path) == []
    assert path.read_bytes() == b""


def test_growing_process_is_found_and_a_new_one_is_not_judged() -> None:
    memory = Memory()
    for second in range(0, 1000, 2):
        # The first minutes do not count, and neither does a short peak.
        memory.note("leaky", 1, second, 10.0 + second / 10 if second > 100 else 1.0)
        memory.note("flat", 2, second, 500.0 if second == 500 else 50.0)
        if second > 800:
            memory.note("young", 3, second, second)
    leaky, flat = memory.processes()
    assert (leaky.name, flat.name, flat.growth) == ("leaky", "flat", 0.0)
    assert leaky.growth > 1.0


STARTED = 7
EPOCH = 100


def visited(start: int | dict[str, Place], *seqs: int, complete: bool = True, ended_at: float | None = None) -> Visit:
    """Return a visit that received these messages of the code "A", one in ten seconds."""
    visit = Visit(start)
    visit.arrivals["A"] = [Arrival(Place(EPOCH, seq), 10.0 * number) for number, seq in enumerate(seqs)]
    visit.acknowledged({"A": {"complete": complete, "reason": "gap"}})
    visit.ended_at = ended_at
    return visit


def of_day() -> Published:
    """Return ten messages of the code "A", and two of the feeder's next run."""
    published = Published()
    for seq in range(1, 11):
        published.add("A", Place(EPOCH, seq), seq)
    for seq in (1, 2):
        published.add("A", Place(EPOCH + 1, seq), 10 + seq)
    return published


@pytest.mark.parametrize(
    ("visit", "untold"),
    [
        pytest.param(visited(STARTED, 7, 8, 9), 0, id="all"),
        pytest.param(visited(STARTED, 7, 9), 1, id="lost"),
        pytest.param(visited(STARTED, 8, 9), 1, id="lost-at-the-start"),
        pytest.param(visited(STARTED, 8, 9, complete=False), 0, id="told-that-the-start-is-missing"),
        pytest.param(visited({"A": Place(EPOCH, 5)}, 6, 7), 0, id="after-a-position"),
        pytest.param(visited({"A": Place(EPOCH, 5)}, 7, 8), 1, id="lost-after-a-position"),
        pytest.param(visited(STARTED, 7, 9, ended_at=17.9), 0, id="a-notice-may-be-lost-with-the-connection"),
        pytest.param(visited(STARTED, 7, 9, ended_at=18.1), 1, id="time-for-a-notice"),
    ],
)
def test_day_with_a_hole_of_which_nothing_told_is_found(visit: Visit, untold: int) -> None:
    assert len(visit.untold(of_day())) == untold
    assert list(visit.misplaced(of_day())) == []


def test_notices_explain_as_much_as_they_say() -> None:
    visit = visited(STARTED, 7, 10)
    visit.told({"type": "skipped", "count": 1})
    assert len(visit.untold(of_day())) == 1
    side = {"epoch": EPOCH, "time": 1}
    visit.told({"type": "gap", "code": "A", "reason": "gap", "after": side | {"seq": 8}, "before": side | {"seq": 10}})
    assert len(visit.untold(of_day())) == 0


def test_lost_data_explains_only_where_the_feeder_was_another() -> None:
    visit = visited(STARTED, 7, 9)
    visit.arrivals["A"].append(Arrival(Place(EPOCH + 1, 2), 20.0))
    # 8 and 10 of the first run, and 1 of the second.
    assert len(visit.untold(of_day())) == 3
    visit.told({"type": "feed", "data_lost": True})
    assert len(visit.untold(of_day())) == 1


@pytest.mark.parametrize("seqs", [(7, 8, 8), (7, 9, 8), (6, 7, 8)], ids=["twice", "late", "before-the-start"])
def test_message_at_a_wrong_place_is_found(seqs: tuple[int, ...]) -> None:
    assert len(list(visited(STARTED, *seqs).misplaced(of_day()))) == 1


class Listener(Reader):
    """A reader of the code "A" that gets its messages from the test."""

    def __init__(self, published: Published, streams: Streams) -> None:
        super().__init__("reader", ["A"], published, streams)
        self.visits.append(Visit({"A": Place(EPOCH, 0)}, 0.0))
        self._codes = ["A"]

    def take(self, *seqs: int, epoch: int = EPOCH) -> None:
        for seq in seqs:
            self._take({"type": "data", "epoch": epoch, "seq": seq, "data": {"A": [{"time": seq}]}}, self.visits[-1])

    def take_notice(self) -> None:
        self.visits[-1].told({"type": "gap", "code": "A", "reason": "restart", "after": {"epoch": EPOCH, "seq": 100}})


def long_day() -> Published:
    published = Published()
    for seq in range(1, 101):
        published.add("A", Place(EPOCH, seq), seq)
    return published


def test_only_a_reader_with_much_to_come_is_in_the_middle() -> None:
    reader = Listener(long_day(), Streams())
    assert reader.in_the_middle() == []
    reader.take(*range(1, 51))
    assert reader.in_the_middle() == ["A"]
    reader.take(*range(51, 91))
    assert reader.in_the_middle() == []


def test_stream_ends_complete_beyond_the_moment_of_the_kill() -> None:
    published, streams = long_day(), Streams()
    reader = Listener(published, streams)
    reader.take(*range(1, 51))
    streams.killed("store", reader.mark("store"))
    assert (streams.found["store"], streams.unended("store")) == (1, 1)
    reader.take(*range(51, 101))
    assert not reader.has_passed()
    reader.take(101)
    assert reader.has_passed()
    reader.judge()
    assert (streams.complete["store"], streams.told["store"], streams.unended("store")) == (1, 0, 0)
    assert not any(streams.wrong.values())


def test_stream_that_was_told_what_is_missing_counts_so() -> None:
    streams = Streams()
    reader = Listener(long_day(), streams)
    reader.take(*range(1, 51))
    reader.mark("feeder")
    reader.take(*range(51, 101))
    reader.take_notice()
    reader.take(2, epoch=EPOCH + 1)
    reader.judge()
    assert (streams.complete["feeder"], streams.told["feeder"]) == (0, 1)
    assert not any(streams.wrong.values())


def test_hole_that_a_reader_was_not_told_counts_against_the_kill() -> None:
    streams = Streams()
    reader = Listener(long_day(), streams)
    reader.take(*range(1, 51))
    reader.mark("worker")
    reader.take(*range(52, 102))
    reader.judge()
    assert len(streams.wrong["worker"]) == 1
    assert "seq=51" in streams.wrong["worker"][0]
