"""The log on disk: what was committed is there after a new start, and old days go as a whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.store import log as logs
from qmt_bridge.store.layout import Record
from qmt_bridge.store.log import Log
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.topics import Topic, trade_topic
from tests.support.stored import EPOCH, OPEN, TOPIC, tick

DAY = "2026-11-27"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with closing(Log(tmp_path / "store", 0)) as opened:
        yield opened


def stored(log: Log, topic: Topic = TOPIC) -> list[Record]:
    found = log.find(topic)
    return [] if found is None else list(log.view(found).records(0, 0))


def seqs(log: Log, topic: Topic = TOPIC) -> list[int]:
    return [record.seq for record in stored(log, topic)]


def test_message_is_stored_as_it_was_published(log: Log) -> None:
    frame = tick(1, OPEN)
    log.append(frame, DAY)
    log.commit()
    assert stored(log) == [Record(EPOCH, 1, OPEN, frame.received_ns, frame.published_ns, frame.body)]


def test_topics_do_not_mix(log: Log) -> None:
    whole = Frame(Topic("whole/SH/"), EPOCH, 1, OPEN * 10**6, 0, b'{"600519.SH":{"time":%d}}' % OPEN)
    other = tick(1, OPEN, topic=Topic("quote/000001.SZ/tick/"))
    for frame in (tick(1, OPEN), whole, other, tick(2, OPEN + 3000)):
        log.append(frame, DAY)
    log.commit()
    assert seqs(log) == [1, 2]
    assert [record.body for record in stored(log, whole.topic)] == [whole.body]
    assert [record.body for record in stored(log, other.topic)] == [other.body]


def test_committed_messages_are_there_after_a_new_start(tmp_path: Path) -> None:
    with closing(Log(tmp_path, 0)) as log:
        for seq in range(1, 4):
            log.append(tick(seq, OPEN), DAY)
    with closing(Log(tmp_path, 0)) as log:
        assert seqs(log) == [1, 2, 3]
        # It knows the newest one, and the topic's number.
        log.append(tick(3, OPEN), DAY)
        log.append(tick(4, OPEN), DAY)
        log.append(tick(1, OPEN, topic=Topic("quote/000001.SZ/tick/")), DAY)
        log.commit()
        assert seqs(log) == [1, 2, 3, 4]
        assert log.left_out == 1


@pytest.mark.parametrize(("epoch", "seq"), [(EPOCH, 5), (EPOCH, 4), (EPOCH - 1, 9)])
def test_message_that_is_not_newer_is_left_out(log: Log, epoch: int, seq: int) -> None:
    log.append(tick(5, OPEN), DAY)
    log.append(tick(seq, OPEN, epoch=epoch), DAY)
    log.commit()
    assert (seqs(log), log.left_out, log.stored) == ([5], 1, 1)


def test_times_never_go_back_within_an_epoch(log: Log) -> None:
    for seq, ms, epoch in ((1, 0, 0), (2, 9000, 0), (3, 6000, 0), (1, 3000, 1)):
        log.append(tick(seq, OPEN + ms, epoch=EPOCH + epoch), DAY)
    log.commit()
    assert [record.ms - OPEN for record in stored(log)] == [0, 9000, 9000, 3000]


def test_times_never_go_back_after_a_new_start_either(tmp_path: Path) -> None:
    for seq, ms in ((1, 9000), (2, 3000)):
        with closing(Log(tmp_path, 0)) as log:
            log.append(tick(seq, OPEN + ms), DAY)
            log.commit()
            assert [record.ms - OPEN for record in stored(log)] == [9000] * seq


@pytest.mark.parametrize(
    ("topic", "body"),
    [(TOPIC, b"no JSON"), (trade_topic("1"), b"{}"), (Topic("status/feeder/"), b"{}"), (Topic("quote/"), b"{}")],
)
def test_what_cannot_be_stored_is_a_wire_error(log: Log, topic: Topic, body: bytes) -> None:
    with pytest.raises(WireError):
        log.append(Frame(topic, EPOCH, 1, OPEN, OPEN, body), DAY)
    assert len(log) == 0


def test_topics_are_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_TOPICS", 1)
    log.append(tick(1, OPEN), DAY)
    with pytest.raises(WireError, match="more topics"):
        log.append(tick(1, OPEN, topic=Topic("quote/000001.SZ/tick/")), DAY)


def test_names_of_topics_are_bounded_in_bytes(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_NAME_BYTES", len(TOPIC))
    log.append(tick(1, OPEN), DAY)
    with pytest.raises(WireError, match="more topics"):
        log.append(tick(1, OPEN, topic=Topic("quote/000001.SZ/tick/")), DAY)


def test_old_days_are_removed_as_a_whole(log: Log) -> None:
    for seq, day in enumerate(("2026-11-25", "2026-11-26", "2026-11-27"), 1):
        log.append(tick(seq, OPEN), day)
        log.commit()
    assert log.days == ["2026-11-25", "2026-11-26", "2026-11-27"]
    assert log.trim("2026-11-26") == ["2026-11-25"]
    assert (seqs(log), log.days) == ([2, 3], ["2026-11-26", "2026-11-27"])
    found = log.find(TOPIC)
    assert found is not None
    assert found.first == Position(EPOCH, 1)


def test_removed_days_stay_removed_after_a_new_start(tmp_path: Path) -> None:
    with closing(Log(tmp_path, 0)) as log:
        for seq, day in enumerate(("2026-11-25", "2026-11-26"), 1):
            log.append(tick(seq, OPEN), day)
            log.commit()
        log.trim("2026-11-26")
    with closing(Log(tmp_path, 0)) as log:
        assert (seqs(log), log.days) == ([2], ["2026-11-26"])
        found = log.find(TOPIC)
        assert found is not None
        assert found.first == Position(EPOCH, 1)


def test_files_of_a_removed_day_are_gone(tmp_path: Path) -> None:
    with closing(Log(tmp_path, 0)) as log:
        for seq, day in enumerate(("2026-11-25", "2026-11-26"), 1):
            log.append(tick(seq, OPEN), day)
            log.commit()
        log.trim("2026-11-26")
    columns = Rdict.list_cf(str(tmp_path), Options(raw_mode=True))
    assert sorted(columns) == ["batches-000002", "default", "messages-000002"]


def test_the_newest_day_is_kept_whatever_its_age(log: Log) -> None:
    log.append(tick(1, OPEN), DAY)
    log.commit()
    assert log.trim("2030-01-01") == []
    assert seqs(log) == [1]


def test_oldest_messages_go_beyond_the_limit_of_bytes(tmp_path: Path) -> None:
    with closing(Log(tmp_path, 2)) as log:
        for seq in range(1, 41):
            log.append(tick(seq, OPEN, size=256 * 1024), DAY)
            log.commit()
            log.trim(DAY)
            assert log.size <= 2 * 2**20
        kept = seqs(log)
        assert kept == list(range(kept[0], 41))
        # Compressed they have half of their bytes.
        assert 4 <= len(kept) <= 16


def test_without_a_limit_nothing_goes(tmp_path: Path) -> None:
    with closing(Log(tmp_path, 0)) as log:
        for seq in range(1, 101):
            log.append(tick(seq, OPEN, size=64 * 1024), DAY)
            log.commit()
            log.trim(DAY)
        assert seqs(log) == list(range(1, 101))


def test_clock_that_is_set_back_begins_no_day(log: Log) -> None:
    log.append(tick(1, OPEN), "2026-11-27")
    log.append(tick(2, OPEN), "2026-11-26")
    log.commit()
    assert (seqs(log), log.days) == ([1, 2], ["2026-11-27"])


def test_second_log_in_a_folder_is_refused(log: Log, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another store has its messages"):
        Log(tmp_path / "store", 0)


def test_damaged_log_is_set_aside_and_a_new_one_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "store"
    with closing(Log(folder, 0)) as log:
        log.append(tick(1, OPEN), DAY)
    (folder / "CURRENT").write_bytes(b"junk")
    with closing(Log(folder, 0)) as log:
        assert stored(log) == []
    assert "is damaged" in caplog.text
    assert len(list(tmp_path.glob("store.damaged-*"))) == 1


def test_folder_that_is_a_file_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(ConfigError, match="data_dir"):
        Log(tmp_path / "store", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="rights of Windows are no mode")
def test_folder_is_for_its_owner_alone(log: Log, tmp_path: Path) -> None:
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
