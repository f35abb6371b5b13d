"""What version 1 of the wire has left is read as its gateway rendered it, and its programs are refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.events import Unsent
from feeder.journal.journal import Journal
from feeder.replay.recording import Tape
from qmt_bridge.journal_file import Reader, to_line
from qmt_bridge.tapes.survey import survey
from qmt_bridge.tapes.tape import Recorded, TapeReader, TapeWriter, is_tape, session_frame
from qmt_bridge.wire import earlier, frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.topics import STATUS_TOPIC, quote_topic
from tests.support.paths import EARLIER

TAPES = pytest.mark.parametrize("name", ["wire-1.tape", "wire-1.tape.zst"])
EPOCHS = (1795904066368280443, 1795904070000000123)

Line = tuple[list[Any], bytes]


def recorded(path: Path) -> list[Line]:
    frames = [(at, frame) for at, frame in TapeReader(path)]
    return [([at, f.topic, f.epoch, f.seq, f.received_ns, f.published_ns], f.body) for at, f in frames]


def rendered() -> list[Line]:
    """Return the records of the tape, each body as the gateway of its time rendered it."""
    lines = (EARLIER / "wire-1.tape.jsonl").read_bytes().split(b"\n")
    return [(json.loads(head), body) for head, body in zip(lines[::2], lines[1::2], strict=False)]


@TAPES
def test_a_tape_of_version_1_is_read_as_it_was_rendered(name: str) -> None:
    found = recorded(EARLIER / name)
    assert found == rendered()
    assert {head[1].partition("/")[0] for head, _ in found} == {
        "tape", "quote", "whole", "l2", "formula", "trade", "status",
    }  # fmt: skip


@TAPES
def test_a_tape_of_version_1_is_continued_and_played(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copy(EARLIER / name, path)
    assert is_tape(path)
    new = Recorded(9, Frame(quote_topic("600519.SH"), 8, 1, 2, 3, frames.encode({"600519.SH": [{"n": 1}]})))
    tape = TapeWriter(path, Recorded(8, session_frame(["quote/"], "2.0")))
    assert tape.cut == 0
    tape.write(*new)
    tape.close()
    *before, _, last = recorded(path)
    assert (before, last[1]) == (rendered(), new.frame.body)
    assert survey(path).damages == []
    assert not Tape(path).damaged


@pytest.fixture
def journal_file(tmp_path: Path) -> Path:
    path = tmp_path / "journal-sim.sqlite3"
    shutil.copy(EARLIER / "wire-1-journal.sqlite3", path)
    return path


def bodies() -> list[bytes]:
    """Return the events of the journal as the gateway of its time rendered them."""
    found = []
    for line in (EARLIER / "wire-1-journal.jsonl").read_bytes().splitlines():
        event, data = json.loads(line), line.partition(b',"data":')[2]
        found.append(b'{"type":"%b","seq":%d,"data":%b' % (event["type"].encode(), event["seq"], data))
    return found


def events(journal: Journal) -> Iterator[dict[str, Any]]:
    chunk = journal.read(0)
    yield from frames.decode(chunk.body)
    assert not chunk.more


def test_a_reader_of_a_journal_of_version_1_shows_it_as_before(journal_file: Path) -> None:
    with Reader(journal_file) as reader:
        lines = b"".join(map(to_line, reader.rows()))
        assert list(reader.faults()) == []
    assert lines == (EARLIER / "wire-1-journal.jsonl").read_bytes()


def test_events_and_positions_of_a_journal_of_version_1_stay(journal_file: Path) -> None:
    journal = Journal(journal_file, days=100_000)
    try:
        epoch = journal.begin_epoch(1)
        assert epoch > EPOCHS[1]
        assert (journal.newest, journal.oldest(), journal.newest_of("2000")) == (31, 0, 1)
        assert journal.has(JournalPosition(21, EPOCHS[0], exact=True), None)
        assert not journal.has(JournalPosition(22, EPOCHS[0], exact=True), None)
        assert journal.has(JournalPosition(1, EPOCHS[0], exact=True), "2000")
        assert journal.has(JournalPosition(31, EPOCHS[1], exact=True), None)
        expected = [json.loads(body) for body in bodies()]
        assert list(events(journal)) == expected
        given = journal.positions.give([Unsent("2000", "order", msgspec.Raw(b'{"n":1}'))], 2_000_000_000_000)
        assert (given[0].seq, given[0].number) == (32, 2)
        journal.append(given)
        assert list(events(journal)) == [*expected, {"type": "order", "seq": 32, "data": {"n": 1}}]
    finally:
        journal.close()
    with closing(sqlite3.connect(journal_file)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
    with Reader(journal_file) as reader:
        assert [row.seq for row in reader.rows()] == list(range(1, 33))
        assert list(reader.faults()) == []


def test_a_replayed_event_of_version_1_is_the_json_of_its_time(journal_file: Path) -> None:
    journal = Journal(journal_file, days=100_000)
    chunk = journal.read(0)
    journal.close()
    assert chunk.body == frames.join_records(bodies())


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x81\xa1a", b"{", b"\x91" * 5000])
def test_a_body_that_cannot_be_converted_stays_as_it_is(body: bytes) -> None:
    assert earlier.modern(body) is body


def test_a_body_is_converted_to_what_the_gateway_rendered() -> None:
    odd = {"a": float("nan"), "b": b"\xff", 7: [1.0, 1e16, 2**64 - 1], "c": msgspec.msgpack.Ext(5, b"x"), "d": "茅"}
    assert earlier.modern(msgspec.msgpack.encode(odd)) == (
        '{"a":null,"b":"ff","7":[1.0,1e+16,18446744073709551615],"c":"78","d":"茅"}'.encode()
    )


def test_a_question_of_version_1_is_refused_in_words() -> None:
    asked = {"ask": "catch_up", "id": 3, "topics": ["quote/600519.SH/tick/", STATUS_TOPIC], "after": None}
    refused, live = map(msgspec.msgpack.decode, earlier.refusals(msgspec.msgpack.encode(asked), 7))
    told = "the feeder speaks version 2 of the wire, and this program version 1: update this program"
    assert refused == {
        "reply": "topic_state", "id": 3, "topic": "quote/600519.SH/tick/", "state": "refused",
        "code": "upstream_unavailable", "error": told,
    }  # fmt: skip
    status = msgspec.msgpack.decode(live["body"])
    assert (live["state"], status["state"], status["reason"], status["epoch"]) == ("live", "down", told, 7)
    asked = {"ask": "start_download", "id": 4, "stocks": ["600519.SH"], "period": "1d"}
    [started] = map(msgspec.msgpack.decode, earlier.refusals(msgspec.msgpack.encode(asked), 7))
    assert (started["reply"], started["id"], started["topic"], started["error"]) == ("download_started", 4, None, told)


@pytest.mark.parametrize("question", [b"", b"\xc1", b"{}", b'{"ask":"catch_up","id":1,"topics":[]}', b"\x91" * 9000])
def test_what_is_no_question_of_version_1_has_no_answer(question: bytes) -> None:
    assert earlier.refusals(question, 7) == []
