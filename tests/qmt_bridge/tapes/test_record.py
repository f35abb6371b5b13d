"""qmt_bridge.tapes.record: what a real feeder publishes comes on a tape, and back from it as it was."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from feeder.app import Feeder
from feeder.source import DownloadRequest, Health, Sink
from qmt_bridge import silence
from qmt_bridge.config import Config
from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import BadCode, ConfigError, Refused
from qmt_bridge.tapes import record as record_module
from qmt_bridge.tapes.record import Recorder, next_rotation, tape_path
from qmt_bridge.tapes.survey import survey
from qmt_bridge.tapes.tape import SESSION_TOPIC, TapeReader, TapeWriter, read_tape
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import (
    STATUS_TOPIC,
    FormulaSpec,
    Kind,
    Topic,
    TopicParts,
    formula_topic,
    l2_topic,
    quote_topic,
    whole_topic,
)
from tests.support.ports import ANY_ADDRESSES
from tests.support.waiting import SLOWNESS, wait_for

DEADLINE = 30.0 * SLOWNESS
SECOND = 1_000_000_000
# 2023-02-01 23:59:59 in Shanghai
BEFORE_MIDNIGHT = 1_675_267_199 * SECOND
WHOLE = whole_topic("SH")
MAOTAI, BANK = quote_topic("600519.SH"), quote_topic("600000.SH")


class Greeter:
    """A source that publishes the messages of the test, and refuses one code."""

    name = "greeter"
    simulated = True
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.TRADE))
    lossless = False

    def __init__(self) -> None:
        self.sink: Sink
        self.topics: set[Topic] = set()

    def start(self, sink: Sink) -> None:
        self.sink = sink
        sink.set_state("up")

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        if parts.name == "999999.SH":
            raise Refused("unknown_symbol", "no such code")
        self.topics.add(topic)
        self.sink.accept(topic)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        self.topics.discard(topic)

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        raise Refused("upstream_refused", "no downloads")

    def health(self) -> Health:
        return Health()

    def upstream(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Recording:
    """A recorder in a thread of the test."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._before = set(threading.enumerate())
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.recorder.run(self._stop)
        except Exception as exc:
            self._failure = exc

    def frames(self, kind: str) -> int:
        count = self.recorder.tally.kinds.get(kind)
        return count.frames if count else 0

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        assert not [each for each in set(threading.enumerate()) - self._before if each.name == "recorder"]
        if self._failure is not None:
            raise self._failure

    def wait_end(self) -> None:
        self._thread.join(DEADLINE)
        self.stop()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a recorder wait for the end of its thread, which a heartbeat brings, however slow the machine is."""
    monkeypatch.setattr(record_module, "STOP_SECONDS", DEADLINE)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(**ANY_ADDRESSES, data_dir=str(tmp_path / "data"))


@contextmanager
def feeding(config: Config, source: Greeter | None = None) -> Iterator[Config]:
    """Run a feeder, and yield settings by which it is reached."""
    feeder = Feeder(config, source)
    feeder.start()
    publisher = feeder.publisher
    try:
        yield msgspec.structs.replace(
            config, market_addr=publisher.market_addr, trade_addr=publisher.trade_addr, ask_addr=publisher.ask_addr
        )
    finally:
        feeder.stop()


@contextmanager
def recording(config: Config, out: Path | str, *topics: str, rotate: record_module.Rotate | None = None) -> Iterator:
    one = Recording(Recorder(topics, str(out), rotate, config, "1.0"))
    try:
        yield one
    finally:
        one.stop()


def by_topic(frames: Iterator[Frame]) -> dict[str, list[bytes]]:
    """Return the bodies by topic; of trade events, whether pushed or fetched, what a replay keeps: type and data."""
    bodies = defaultdict(list)
    for frame in frames:
        if frame.topic.startswith("trade/"):
            event = msgspec.json.decode(frame.body, type=dict[str, msgspec.Raw])
            bodies["trade/"].append(bytes(event["type"]) + bytes(event["data"]))
        else:
            bodies[frame.topic].append(frame.body)
    return bodies


# -- Which tape


@pytest.mark.parametrize(
    ("out", "rotate", "expected"),
    [
        ("day.tape", None, "day.tape"),
        ("tapes/{date}.tape.zst", "day", "tapes/20230201.tape.zst"),
        ("day.tape.zst", "day", "day-20230201.tape.zst"),
        ("a.b/day", "day", "a.b/day-20230201"),
        ("{date}/day.tape", "hour", "20230201T23/day.tape"),
        ("day.tape", "hour", "day-20230201T23.tape"),
    ],
)
def test_a_tape_is_named_after_its_day_or_hour_in_shanghai(out: str, rotate, expected: str) -> None:
    assert tape_path(out, rotate, BEFORE_MIDNIGHT) == Path(expected)


def test_a_day_and_an_hour_end_in_shanghai() -> None:
    midnight = BEFORE_MIDNIGHT + SECOND
    assert next_rotation("day", BEFORE_MIDNIGHT) == midnight
    assert next_rotation("day", midnight) == midnight + 24 * 3600 * SECOND
    assert next_rotation("hour", midnight) == midnight + 3600 * SECOND
    assert next_rotation(None, midnight) == float("inf")


class Clock:
    """Replaces the module `clock`; the test moves it."""

    def __init__(self) -> None:
        self.now_ns = BEFORE_MIDNIGHT

    def time_ns(self) -> int:
        return self.now_ns


@pytest.mark.parametrize("out", ["day-{date}.tape", "day.tape"])
def test_a_new_day_begins_a_new_tape(config: Config, tmp_path: Path, monkeypatch, out: str) -> None:
    clock = Clock()
    monkeypatch.setattr(record_module, "clock", clock)
    source = Greeter()
    rotate = None if "{date}" in out else "day"
    with feeding(config, source) as here, recording(here, tmp_path / out, MAOTAI, rotate=rotate) as recorder:
        wait_for(lambda: MAOTAI in source.topics)
        # Backwards, to the last second, over midnight, and back again to a day that is over.
        for number, seconds in enumerate((-7200, 0, 1, 0), 1):
            clock.now_ns = BEFORE_MIDNIGHT + seconds * SECOND
            source.sink.publish(MAOTAI, {"n": number}, 1)
            wait_for(lambda number=number: recorder.frames("quote") == number)
        # The first is closed while the second is written.
        wait_for(lambda: newest(tmp_path / "day-20230201.tape", MAOTAI) == {"n": 2})
        wait_for(lambda: newest(tmp_path / "day-20230202.tape", MAOTAI) == {"n": 4})
    tapes = [tmp_path / "day-20230201.tape", tmp_path / "day-20230202.tape"]
    assert recorder.recorder.paths == tapes
    quotes = [[each.frame.data["n"] for each in read_tape(tape) if each.frame.topic == MAOTAI] for tape in tapes]
    assert quotes == [[1, 2], [3, 4]]
    for tape in tapes:
        first = next(iter(TapeReader(tape))).frame
        assert first.topic == SESSION_TOPIC
        assert first.data == {"topics": [MAOTAI, STATUS_TOPIC], "version": "1.0"}
    assert recorder.recorder.tally.gap_count == 0


def test_a_tape_that_has_just_ended_is_whole_at_the_end(config: Config, tmp_path: Path, monkeypatch) -> None:
    # Nothing is written before the end.
    monkeypatch.setattr(record_module, "FLUSH_SECONDS", 10 * DEADLINE)
    clock = Clock()
    monkeypatch.setattr(record_module, "clock", clock)
    source = Greeter()
    with feeding(config, source) as here, recording(here, tmp_path / "{date}.tape", MAOTAI) as recorder:
        wait_for(lambda: MAOTAI in source.topics)
        for number in (1, 2):
            source.sink.publish(MAOTAI, {"n": number}, 1)
            wait_for(lambda number=number: recorder.frames("quote") == number)
            clock.now_ns += 2 * SECOND
    assert newest(tmp_path / "20230201.tape", MAOTAI) == {"n": 1}
    assert newest(tmp_path / "20230202.tape", MAOTAI) == {"n": 2}


# -- What comes on it


def test_messages_come_with_their_stamps_and_the_time_of_arrival(config: Config, tmp_path: Path) -> None:
    source = Greeter()
    began = time.time_ns()
    with feeding(config, source) as here, recording(here, tmp_path / "day.tape", MAOTAI, "trade/") as recorder:
        wait_for(lambda: MAOTAI in source.topics and recorder.frames("status"))
        for number, account in enumerate("121", 1):
            source.sink.publish(MAOTAI, {"n": number}, 1000 + number)
            source.sink.publish_trade(account, "order", {"n": number}, 2000 + number)
        wait_for(lambda: (recorder.frames("quote"), recorder.frames("trade")) == (3, 3))
    tally = recorder.recorder.tally
    assert (tally.gaps, [session.topics for session in tally.sessions]) == ([], [(MAOTAI, "trade/", STATUS_TOPIC)])
    recorded = [each for each in read_tape(tmp_path / "day.tape") if each.frame.topic != STATUS_TOPIC]
    quotes = [frame for _, frame in recorded if frame.topic == MAOTAI]
    events = [frame for _, frame in recorded if frame.topic != MAOTAI]
    assert [(frame.seq, frame.received_ns, frame.data) for frame in quotes] == [
        (n, 1000 + n, {"n": n}) for n in (1, 2, 3)
    ]
    assert [(frame.topic, frame.seq, frame.received_ns, frame.data["seq"]) for frame in events] == [
        ("trade/1/", 1, 2001, 1),
        ("trade/2/", 1, 2002, 2),
        ("trade/1/", 2, 2003, 3),
    ]
    assert all(began < frame.epoch < frame.published_ns <= at < time.time_ns() for at, frame in recorded)
    found = survey(tmp_path / "day.tape")
    assert (found.faults, found.tally.sources, found.tally.simulated) == ([], ["greeter"], True)


def test_a_prefix_asks_for_nothing_and_records_what_others_ask_for(config: Config, tmp_path: Path) -> None:
    source = Greeter()
    with feeding(config, source) as here, recording(here, tmp_path / "all.tape", "quote/") as listener:
        # The subscriptions of the recorder were sent earlier, so they have arrived too.
        wait_for(lambda: listener.frames("status"))
        assert source.topics == set()
        with recording(here, tmp_path / "one.tape", BANK):
            wait_for(lambda: BANK in source.topics)
            source.sink.publish(BANK, {"n": 1}, 1)
            wait_for(lambda: listener.frames("quote") == 1)
    assert newest(tmp_path / "all.tape", BANK) == {"n": 1}


def test_silence_leaves_nothing_in_memory(config: Config, tmp_path: Path) -> None:
    source = Greeter()
    path = tmp_path / "day.tape"
    with feeding(config, source) as here, recording(here, path, MAOTAI):
        wait_for(lambda: MAOTAI in source.topics)
        source.sink.publish(MAOTAI, {"n": 1}, 1)
        wait_for(lambda: any(each.frame.topic == MAOTAI for each in read_tape(path)))


def test_a_recorder_goes_on_when_the_feeder_has_begun_anew(config: Config, tmp_path: Path) -> None:
    first, second = Greeter(), Greeter()
    with feeding(config, first) as here:
        recorder = Recording(Recorder([MAOTAI], str(tmp_path / "day.tape"), None, here, "1.0"))
        wait_for(lambda: MAOTAI in first.topics)
        first.sink.publish(MAOTAI, {"n": 1}, 1)
        wait_for(lambda: recorder.frames("quote") == 1)
    try:
        with feeding(here, second):
            wait_for(lambda: MAOTAI in second.topics)
            second.sink.publish(MAOTAI, {"n": 2}, 1)
            wait_for(lambda: recorder.frames("quote") == 2)
            recorder.stop()
    finally:
        recorder.stop()
    assert survey(tmp_path / "day.tape").faults == []


def test_a_recording_is_continued_and_what_was_missed_is_a_gap(config: Config, tmp_path: Path) -> None:
    source = Greeter()
    path = tmp_path / "day.tape"
    # The feeder keeps the topic for longer than the pause between the two recordings.
    with feeding(msgspec.structs.replace(config, grace=60.0), source) as here:
        for numbers in ((1, 2), (5, 6)):
            with recording(here, path, MAOTAI) as recorder:
                wait_for(lambda: MAOTAI in source.topics and recorder.frames("status"))
                for number in numbers:
                    source.sink.publish(MAOTAI, {"n": number}, 1)
                wait_for(lambda last=numbers[-1]: newest(path, MAOTAI) == {"n": last})
            for number in (3, 4):
                source.sink.publish(MAOTAI, {"n": number}, 1)
    found = survey(path)
    assert len(found.tally.sessions) == 2
    assert [(gap.after, gap.seq) for gap in found.tally.gaps if gap.topic == MAOTAI] == [(2, 4)]
    # The second began with the last value.
    assert [each.frame.data["n"] for each in read_tape(path) if each.frame.topic == MAOTAI] == [1, 2, 4, 5, 6]


def newest(path: Path, topic: str) -> object:
    found = [each.frame.data for each in read_tape(path) if each.frame.topic == topic]
    return found[-1] if found else None


# -- How it ends


def test_a_topic_that_is_refused_ends_the_recording(config: Config, tmp_path: Path) -> None:
    with feeding(config, Greeter()) as here:
        recorder = Recording(Recorder([quote_topic("999999.SH")], str(tmp_path / "day.tape"), None, here, "1.0"))
        with pytest.raises(Refused, match=r"quote/999999\.SH/tick/: no such code"):
            recorder.wait_end()


def test_what_cannot_be_recorded_is_named_before_anything_is_opened(config: Config, tmp_path: Path) -> None:
    with pytest.raises(BadCode):
        Recorder(["quote/600519/tick/"], str(tmp_path / "a" / "day.tape"), None, config, "1.0")
    assert not (tmp_path / "a").exists()
    (tmp_path / "ticks.csv").write_text("code,time\n")
    with pytest.raises(ConfigError, match=r"out: .*ticks\.csv is no tape"):
        Recorder([MAOTAI], str(tmp_path / "ticks.csv"), None, config, "1.0")


def test_a_torn_tape_is_mended_and_said(config: Config, tmp_path: Path, caplog) -> None:
    path = tmp_path / "day.tape"
    with feeding(config, Greeter()) as here:
        for _ in range(2):
            with recording(here, path, MAOTAI) as recorder:
                wait_for(lambda: recorder.frames("status"))
            assert survey(path).torn == 0
            with path.open("ab") as file:
                file.write(b"torn")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{path} ended within a block; the last 4 bytes were cut off"
    ]


@pytest.mark.parametrize("where", ["write", "flush"])
def test_a_disk_that_takes_no_more_ends_the_recording(config: Config, tmp_path: Path, monkeypatch, where: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with feeding(config, Greeter()) as here:
        recorder = Recorder([MAOTAI], str(tmp_path / "day.tape"), None, here, "1.0")
        with monkeypatch.context() as patched:
            patched.setattr(TapeWriter, where, fail)
            with pytest.raises(OSError, match="No space left"):
                recorder.run(threading.Event())


def test_the_summary_says_what_was_recorded_and_lost(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "day.tape"
    with feeding(config, Greeter()) as here, recording(here, path, MAOTAI) as recorder:
        wait_for(lambda: recorder.frames("status"))
    tally = recorder.recorder.tally
    said = f"recorded {tally.frames} messages, {tally.size} bytes, of 1 topics on {path} ({path.stat().st_size:,} B)"
    assert recorder.recorder.summary() == f"{said}; no gaps"
    tally.gap_count, tally.missed = 2, 1234
    assert recorder.recorder.summary() == f"{said}; 1,234 lost in 2 gaps"


def test_a_prefix_that_nothing_asks_for_is_told(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(silence, "FIRST_SECONDS", 0.0)
    path = tmp_path / "day.tape"
    with feeding(config, Greeter()) as here, recording(here, path, "quote/", WHOLE[:-1]) as recorder:
        wait_for(lambda: "nothing has come for quote/" in caplog.text)
    assert recorder.recorder.summary().splitlines()[1].startswith("nothing has come for quote/: a prefix asks for")
    # The tape has the corrected topic.
    assert survey(path).tally.sessions[0].topics == ("quote/", WHOLE, STATUS_TOPIC)


# -- And back


@pytest.mark.parametrize("name", ["day.tape", "day.tape.zst"])
def test_a_session_of_the_simulator_is_replayed_message_by_message(config: Config, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    topics = [
        MAOTAI,
        BANK,
        quote_topic("600519.SH", "1m"),
        quote_topic("600519.SH", "l2transaction"),
        whole_topic("BJ"),
        whole_topic("600519.SH"),
        l2_topic("600519.SH", 5),
        formula_topic(FormulaSpec("MA", "600519.SH", "1m", 50)),
    ]
    sim = msgspec.structs.replace(config, source="sim", sim_interval=0.3, sim_order_interval=0.05)
    with feeding(sim) as here, recording(here, path, *topics, "trade/") as recorder:
        wait_for(lambda: all(recorder.frames(kind) >= 5 for kind in ("quote", "whole", "l2", "formula", "trade")))
        wait_for(lambda: recorder.frames("quote") >= 20)
    recorded = by_topic(each.frame for each in read_tape(path) if each.frame.topic != STATUS_TOPIC)
    assert set(recorded) == {*topics, "trade/"}
    assert survey(path).faults == []

    replay = msgspec.structs.replace(config, source="replay", file=str(path), speed=0.0, delay=1.0)
    events = len(recorded["trade/"])
    frames = []
    ended = False
    with feeding(replay) as here:
        played = subscribe(
            *topics,
            "trade/",
            STATUS_TOPIC,
            market_addr=here.market_addr,
            trade_addr=here.trade_addr,
            ask_addr=here.ask_addr,
            timeout=DEADLINE,
        )
        with closing(played):
            for frame in played:
                if frame.topic == STATUS_TOPIC:
                    ended = ended or frame.data["state"] == "ended"
                    assert frame.data["simulated"]
                else:
                    frames.append(frame)
                if ended and sum(frame.topic.startswith("trade/") for frame in frames) == events:
                    break
    assert by_topic(iter(frames)) == recorded
    for topic in topics:
        seqs = [frame.seq for frame in frames if frame.topic == topic]
        assert seqs == list(range(1, len(seqs) + 1))
