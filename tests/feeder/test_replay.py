"""feeder.replay.player: every recorded row, in its order, at its pace."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from feeder.replay import lookback
from feeder.replay import player as replay_module
from feeder.replay.player import Replay
from feeder.replay.recording import Index, index, moments
from feeder.source import DownloadRequest
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, ErrorCode, Refused
from qmt_bridge.tapes.ticks_csv import TickRow, read_csv
from qmt_bridge.wire import frames
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import Topic, parse_topic, quote_topic, whole_topic
from tests.support.paths import RECORDED
from tests.support.sink import Recording

recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="recorded ticks are not beside the project")

T = 1638321301000
HOUR = 3_600_000
MAOTAI, BANK, PING_AN = "600519.SH", "600000.SH", "000001.SZ"


class Recorder(Recording):
    """A sink that records its calls, and has room for `room` more calls of `wait_room`."""

    def __init__(self, room: float = float("inf")) -> None:
        super().__init__()
        self.said: list[tuple[str, str, object]] = []
        self.room = room
        self.waits_in_vain = 0
        self._states: list[str] = []

    def _say(self, what: str, topic: str, body: object = None) -> None:
        self.note(self.said, (what, topic, frames.decode(frames.encode(body))))

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        assert received_ns > 0
        self._say("publish", topic, body)

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        assert received_ns > 0
        self._say("publish", topic, ticks)

    def accept(self, topic: Topic) -> None:
        self._say("accept", topic)

    def refuse(self, topic, code, reason) -> None:
        self._say("refuse", topic, reason)

    def set_state(self, state, reason=None, *, data_lost=False) -> None:
        self._states.append(state)
        self._say("state", state, reason)

    def give_history(self, number: int, bodies: Iterable[object], from_ms: int) -> None:
        self._say("history", str(number), list(bodies))
        self.from_ms = from_ms

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        self._say("no history", str(number), reason)

    def history(self, number: int) -> list:
        """Wait for the answer to a question; return its bodies."""
        self.wait_for(lambda: any(where == str(number) for _, where, _ in self.said))
        [(what, body)] = [(what, body) for what, where, body in self.said if where == str(number)]
        assert what == "history", body
        return body

    def wait_room(self, limit: int, timeout: float) -> bool:
        assert limit > 0
        with self.changed:
            if not self.changed.wait_for(lambda: self.room > 0, timeout):
                self.waits_in_vain += 1
                self.changed.notify_all()
                return False
            self.room -= 1
            self.changed.notify_all()
            return True

    def make_room(self, calls: float = float("inf")) -> None:
        with self.changed:
            self.room += calls
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 20) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout), self.said[-20:]

    def wait_state(self, state: str) -> None:
        self.wait_for(lambda: state in self._states)

    def bodies(self, topic: str) -> list:
        return [body for what, where, body in self.said if what == "publish" and where == topic]


@pytest.fixture
def make(tmp_path):
    """Start a replay of (code, time, volume) rows, or of a file; it is closed at the end."""
    open_replays: list[Replay] = []

    def make(sink: Recorder, rows: list[tuple[str, int, int]] | Path, **settings) -> Replay:
        if not isinstance(rows, Path):
            path = tmp_path / "ticks.csv"
            path.write_text("\n".join(("code,time,volume", *(f"{c},{t},{v}" for c, t, v in rows), "")))
            rows = path
        replay = Replay(Config(source="replay", file=str(rows), **{"speed": 0, "delay": 0, **settings}))
        open_replays.append(replay)
        replay.start(sink)
        return replay

    yield make
    for replay in open_replays:
        replay.close()
    assert not players()


def players() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "replay"]


def join(replay: Replay, *topics: Topic) -> None:
    for topic in topics:
        replay.subscribe(topic, parse_topic(topic))


def leave(replay: Replay, topic: Topic) -> None:
    replay.unsubscribe(topic, parse_topic(topic))


def tick(row_time: int, volume: int) -> dict[str, int]:
    return {"time": row_time, "volume": volume}


def volumes(bodies: list) -> list[int]:
    """Return the `volume` of every record, message by message."""
    found = []
    for body in bodies:
        for value in body.values():
            found.extend(record["volume"] for record in (value if isinstance(value, list) else [value]))
    return found


class Clock:
    """Replace the module `clock` by a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return time.time_ns()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(replay_module, "clock", clock)
    return clock


def settle(sink: Recorder, replay: Replay, topic: Topic) -> None:
    """Wait until the player has done all due work: it answers a subscription after that."""
    accepted = sink.said.count(("accept", topic, None))
    join(replay, topic)
    sink.wait_for(lambda: sink.said.count(("accept", topic, None)) > accepted)


# -- Pure


def row(code: str, row_time: int, volume: int = 0) -> TickRow:
    return TickRow(code, row_time, {"time": row_time, "volume": volume})


def test_a_moment_joins_rows_of_one_time_but_one_of_each_code():
    rows = [row(MAOTAI, T, 1), row(BANK, T, 2), row(MAOTAI, T, 3), row(BANK, T, 4), row(BANK, T + 1), row(MAOTAI, T)]
    assert list(moments(rows)) == [rows[:2], rows[2:4], rows[4:5], rows[5:]]
    assert list(moments([])) == []


def test_index_counts_rows_codes_times_and_steps_back():
    rows = [row(MAOTAI, 0), row(MAOTAI, T), row(BANK, T + 5000), row(MAOTAI, T + 2000), row(BANK, 0)]
    assert index(rows) == Index(frozenset((MAOTAI, BANK)), 5, T, T + 5000, 3000)


# -- Every row, in order


@recorded
def test_every_recorded_row_is_played_in_order_at_full_speed(make):
    path = RECORDED / "ticks_30stocks_sse_20211201.csv.gz"
    rows = list(read_csv(path))
    assert len(rows) == 32_972
    codes = {row.code for row in rows}
    sink = Recorder(room=0)
    replay = make(sink, path)
    join(replay, whole_topic("SH"), whole_topic(rows[0].code), *(quote_topic(code) for code in codes))
    sink.wait_for(lambda: sum(what == "accept" for what, *_ in sink.said) == len(codes) + 2)
    sink.make_room()
    sink.wait_state("ended")

    order = [body for what, topic, body in sink.said if what == "publish" and topic.startswith("quote/")]
    assert order == [{row.code: [row.record]} for row in rows]
    for code in codes:
        assert sink.bodies(quote_topic(code)) == [{code: [row.record]} for row in rows if row.code == code]
    market = [(code, record) for body in sink.bodies(whole_topic("SH")) for code, record in body.items()]
    assert market == [(row.code, row.record) for row in rows]
    first = rows[0].code
    assert sink.bodies(whole_topic(first)) == [{first: row.record} for row in rows if row.code == first]
    assert sink.said[-1] == ("state", "ended", None)


@recorded
def test_every_recorded_row_comes_in_order_at_a_pace(make):
    path = RECORDED / "ticks_2stocks_20230201.csv.gz"
    sink = Recorder()
    replay = make(sink, path, speed=1e9, delay=0.1)
    join(replay, whole_topic("SH"), whole_topic("SZ"))
    sink.wait_state("ended")
    rows = list(read_csv(path))
    for market in ("SH", "SZ"):
        played = [item for body in sink.bodies(whole_topic(market)) for item in body.items()]
        assert played == [(row.code, row.record) for row in rows if row.code.endswith(market)]


@pytest.mark.parametrize("speed", [0, 1])
def test_rows_with_the_same_code_and_time_are_all_delivered(make, speed):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1), (MAOTAI, T, 2), (BANK, T, 3), (MAOTAI, T, 2)], speed=speed, delay=0.1)
    join(replay, quote_topic(MAOTAI), whole_topic("SH"))
    sink.wait_state("ended")
    assert sink.bodies(quote_topic(MAOTAI)) == [{MAOTAI: [tick(T, volume)]} for volume in (1, 2, 2)]
    assert sink.bodies(whole_topic("SH")) == [
        {MAOTAI: tick(T, 1)},
        {MAOTAI: tick(T, 2), BANK: tick(T, 3)},
        {MAOTAI: tick(T, 2)},
    ]


def test_rows_that_step_back_in_time_keep_their_place(make):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1), (BANK, T - 2000, 2), (MAOTAI, T - HOUR, 3)], speed=1)
    join(replay, whole_topic("SH"))
    sink.wait_state("ended")
    assert sink.bodies(whole_topic("SH")) == [
        {MAOTAI: tick(T, 1)},
        {BANK: tick(T - 2000, 2)},
        {MAOTAI: tick(T - HOUR, 3)},
    ]


def test_only_subscribed_codes_are_published(make):
    sink = Recorder(room=0)
    replay = make(sink, [(MAOTAI, T, 1), (BANK, T, 2), (PING_AN, T, 3)])
    join(replay, quote_topic(BANK), whole_topic("SZ"), whole_topic(MAOTAI))
    sink.wait_for(lambda: len(sink.said) == 4)
    assert replay.upstream() == 3
    leave(replay, whole_topic(MAOTAI))
    settle(sink, replay, quote_topic(BANK))
    assert replay.upstream() == 2
    sink.make_room()
    sink.wait_state("ended")
    assert [said for said in sink.said if said[0] == "publish"] == [
        ("publish", quote_topic(BANK), {BANK: [tick(T, 2)]}),
        ("publish", whole_topic("SZ"), {PING_AN: tick(T, 3)}),
    ]


def test_late_subscriber_gets_the_newest_row_and_all_later_ones(make):
    sink = Recorder(room=2)
    rows = [(MAOTAI, T, 1), (BANK, T, 2), (MAOTAI, T + 1, 3), (BANK, T + 2, 4), (MAOTAI, T + 3, 5), (PING_AN, T + 3, 6)]
    replay = make(sink, rows)
    join(replay, quote_topic(MAOTAI))
    sink.wait_for(lambda: len(sink.bodies(quote_topic(MAOTAI))) == 2)
    join(replay, quote_topic(BANK), whole_topic("SH"), whole_topic(BANK), quote_topic(PING_AN), whole_topic("SZ"))
    sink.wait_for(lambda: ("accept", whole_topic("SZ"), None) in sink.said)
    sink.make_room()
    sink.wait_state("ended")
    assert sink.bodies(quote_topic(BANK)) == [{BANK: [tick(T, 2)]}, {BANK: [tick(T + 2, 4)]}]
    assert sink.bodies(whole_topic(BANK)) == [{BANK: tick(T, 2)}, {BANK: tick(T + 2, 4)}]
    assert sink.bodies(whole_topic("SH")) == [
        {MAOTAI: tick(T + 1, 3), BANK: tick(T, 2)},
        {BANK: tick(T + 2, 4)},
        {MAOTAI: tick(T + 3, 5)},
    ]
    assert sink.bodies(quote_topic(PING_AN)) == [{PING_AN: [tick(T + 3, 6)]}]
    assert sink.bodies(whole_topic("SZ")) == [{PING_AN: tick(T + 3, 6)}]


# -- Beginning and end


def test_state_is_up_from_the_start_and_ended_after_the_last_row(make):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1), (MAOTAI, T + 1, 2)])
    assert sink.said == [("state", "up", None)]
    join(replay, quote_topic(MAOTAI))
    sink.wait_state("ended")
    assert [said[:2] for said in sink.said] == [
        ("state", "up"),
        ("accept", quote_topic(MAOTAI)),
        ("publish", quote_topic(MAOTAI)),
        ("publish", quote_topic(MAOTAI)),
        ("state", "ended"),
    ]


def test_ended_waits_until_the_last_row_is_sent(make):
    sink = Recorder(room=1)
    replay = make(sink, [(MAOTAI, T, 1)])
    join(replay, quote_topic(MAOTAI))
    sink.wait_for(lambda: len(sink.bodies(quote_topic(MAOTAI))) == 1)
    settle(sink, replay, whole_topic("SH"))
    assert ("state", "ended", None) not in sink.said
    sink.make_room()
    sink.wait_state("ended")


def test_subscriber_after_the_end_gets_the_last_value(make):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1), (MAOTAI, T + 1, 2)])
    join(replay, quote_topic(MAOTAI))
    sink.wait_state("ended")
    join(replay, whole_topic("SH"))
    sink.wait_for(lambda: sink.bodies(whole_topic("SH")) == [{MAOTAI: tick(T + 1, 2)}])


def test_delay_counts_from_the_first_subscription(make, clock):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1)], delay=5)
    clock.now = 1000.0
    settle(sink, replay, quote_topic(MAOTAI))
    clock.now = 1004.9
    settle(sink, replay, whole_topic("SH"))
    assert not sink.bodies(quote_topic(MAOTAI))
    clock.now = 1005.0
    sink.wait_state("ended")
    assert volumes(sink.bodies(quote_topic(MAOTAI))) == volumes(sink.bodies(whole_topic("SH"))) == [1]


def test_rows_wait_for_their_time(make, clock):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1), (BANK, T + 3000, 2), (MAOTAI, T + 30_000, 3)], speed=3)
    join(replay, whole_topic("SH"))
    sink.wait_for(lambda: volumes(sink.bodies(whole_topic("SH"))) == [1])
    clock.now = 100.9
    settle(sink, replay, quote_topic(MAOTAI))
    assert volumes(sink.bodies(whole_topic("SH"))) == [1]
    clock.now = 101.0
    sink.wait_for(lambda: volumes(sink.bodies(whole_topic("SH"))) == [1, 2])
    clock.now = 109.9
    settle(sink, replay, quote_topic(MAOTAI))
    assert volumes(sink.bodies(whole_topic("SH"))) == [1, 2]
    clock.now = 110.0
    sink.wait_state("ended")
    assert volumes(sink.bodies(whole_topic("SH"))) == [1, 2, 3]


@pytest.mark.parametrize("speed", [0, 1000])
def test_loop_restarts_at_the_first_row_with_the_same_times(make, speed):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1), (MAOTAI, T + 1, 2)], loop=True, speed=speed)
    join(replay, quote_topic(MAOTAI))
    sink.wait_for(lambda: len(sink.bodies(quote_topic(MAOTAI))) >= 6)
    leave(replay, quote_topic(MAOTAI))
    assert sink.bodies(quote_topic(MAOTAI))[:6] == [{MAOTAI: [tick(T, 1)]}, {MAOTAI: [tick(T + 1, 2)]}] * 3
    assert ("state", "ended", None) not in sink.said


def test_loop_without_subscription_waits_for_one_and_the_delay(make, clock):
    topic = quote_topic(MAOTAI)
    sink = Recorder(room=2)
    replay = make(sink, [(MAOTAI, T, 1), (MAOTAI, T + 1, 2)], loop=True, delay=0.05)
    settle(sink, replay, topic)
    leave(replay, topic)
    clock.now = 100.05
    sink.wait_for(lambda: sink.room == 0)
    sink.make_room(5)
    clock.now = 1000.0
    settle(sink, replay, topic)
    clock.now = 1000.04
    settle(sink, replay, topic)
    settle(sink, replay, topic)
    assert sink.room == 5
    last_values = len(sink.bodies(topic))
    clock.now = 1000.05
    sink.wait_for(lambda: volumes(sink.bodies(topic))[last_values : last_values + 2] == [1, 2])


def test_loop_with_a_subscriber_restarts_without_a_delay(make, clock):
    sink = Recorder(room=1)
    replay = make(sink, [(MAOTAI, T, 1)], loop=True, delay=0.05)
    settle(sink, replay, quote_topic(MAOTAI))
    clock.now = 100.05
    sink.wait_for(lambda: sink.room == 0)
    clock.now = 200.0
    settle(sink, replay, whole_topic("SH"))
    sink.make_room()
    sink.wait_for(lambda: len(sink.bodies(quote_topic(MAOTAI))) > 3)


def test_loop_at_a_pace_pauses_a_second_between_two_passes(make, clock):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1)], loop=True, speed=20)
    join(replay, quote_topic(MAOTAI))
    sink.wait_for(lambda: len(sink.bodies(quote_topic(MAOTAI))) == 1)
    clock.now = 100.04
    for _ in range(3):
        settle(sink, replay, whole_topic(MAOTAI))
    assert len(sink.bodies(quote_topic(MAOTAI))) == 1
    clock.now = 100.06
    sink.wait_for(lambda: len(sink.bodies(quote_topic(MAOTAI))) == 2)


# -- Refused topics and files


def test_replay_is_lossless_only_at_full_speed():
    assert Replay(Config(file="x.csv", speed=0)).lossless
    assert not Replay(Config(file="x.csv", speed=300)).lossless
    assert not Replay(Config(file="x.csv")).simulated


@pytest.mark.parametrize(
    ("topic", "code", "named"),
    [
        (quote_topic(BANK), "unknown_symbol", BANK),
        (whole_topic(BANK), "unknown_symbol", BANK),
        (whole_topic("SZ"), "unknown_symbol", "'SZ'"),
        (quote_topic(MAOTAI, "1m"), "unsupported_period", "'1m'"),
        (quote_topic(MAOTAI, "l2quote"), "unsupported_period", "'l2quote'"),
    ],
)
def test_a_topic_that_the_file_does_not_have_is_refused(make, topic, code, named):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1)])
    with pytest.raises(Refused, match=named) as caught:
        join(replay, topic)
    assert caught.value.code == code
    assert sink.said == [("state", "up", None)]


def test_download_is_refused(make):
    replay = make(Recorder(), [(MAOTAI, T, 1)])
    with pytest.raises(Refused, match="no history"):
        replay.download(Topic("download/1/"), DownloadRequest((MAOTAI,), "1d", "", ""))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot read", id="missing"),
        pytest.param("code,time\n", "has no rows", id="header-only"),
        pytest.param(f"code,time\n{MAOTAI},x\n{MAOTAI},y\n", "line 2, column time", id="malformed"),
    ],
)
def test_file_that_cannot_be_played_is_named_at_the_start(tmp_path, content, message):
    path = tmp_path / "ticks.csv"
    if content is not None:
        path.write_text(content)
    replay = Replay(Config(file=str(path)))
    with pytest.raises(ConfigError, match=message) as caught:
        replay.start(Recorder())
    assert caught.value.setting == "file"
    assert not players()
    replay.close()


def test_replay_without_a_file_asks_for_one():
    with pytest.raises(ConfigError, match="needs the file to play"):
        Replay(Config(source="replay")).start(Recorder())


def test_a_file_removed_before_its_start_brings_the_feed_down(make, tmp_path, caplog):
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1)])
    (tmp_path / "ticks.csv").unlink()
    join(replay, quote_topic(MAOTAI))
    sink.wait_state("down")
    assert "cannot read" in str(sink.said[-1][2])
    with pytest.raises(Refused, match="the replay failed") as caught:
        join(replay, quote_topic(MAOTAI))
    assert caught.value.code == "upstream_unavailable"
    (said,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    # The file is at fault, not the program: its name is told, and no traceback.
    assert "ticks.csv" in said.getMessage()
    assert said.exc_info is None


def test_a_file_sorted_by_code_logs_a_warning_at_a_pace(make, caplog):
    rows = [(MAOTAI, T, 1), (MAOTAI, T + HOUR, 2), (BANK, T, 3)]
    make(Recorder(), rows, speed=0)
    assert "go back" not in caplog.text
    make(Recorder(), rows, speed=1)
    assert "go back by up to 3600 s" in caplog.text


def test_falling_behind_the_pace_logs_one_warning(make, caplog):
    sink = Recorder(room=0)
    replay = make(sink, [(MAOTAI, T, 1), (MAOTAI, T + 1, 2)], speed=1e6)
    join(replay, quote_topic(MAOTAI))
    for volume in (1, 2):
        before = sink.waits_in_vain
        sink.wait_for(lambda before=before: sink.waits_in_vain > before)
        # The player answers between two waits for room, after what it logs.
        settle(sink, replay, whole_topic("SH"))
        assert "falls behind" in caplog.text
        sink.make_room(1)
        sink.wait_for(lambda last=volume: volumes(sink.bodies(quote_topic(MAOTAI)))[-1:] == [last])
    sink.make_room()
    sink.wait_state("ended")
    assert caplog.text.count("falls behind") == 1


# -- Close


def test_close_ends_the_wait_for_a_subscription(make):
    make(Recorder(), [(MAOTAI, T, 1)]).close()
    assert not players()


@pytest.mark.parametrize(
    ("settings", "room", "rows_before"),
    [
        pytest.param({"delay": 3600}, 9, 0, id="delay"),
        pytest.param({"speed": 1}, 9, 1, id="next-row"),
        pytest.param({}, 1, 1, id="room"),
        pytest.param({"speed": 1}, 0, 0, id="room-at-a-pace"),
        pytest.param({}, 9, 2, id="ended"),
    ],
)
def test_close_ends_every_other_wait(make, settings, room, rows_before):
    sink = Recorder(room)
    replay = make(sink, [(MAOTAI, T, 1), (MAOTAI, T + HOUR, 2)], **settings)
    join(replay, quote_topic(MAOTAI))
    sink.wait_for(
        lambda: (
            len(sink.bodies(quote_topic(MAOTAI))) == rows_before and ("accept", quote_topic(MAOTAI), None) in sink.said
        )
    )
    assert len(players()) == 1
    replay.close()
    assert not players()
    assert len(sink.bodies(quote_topic(MAOTAI))) == rows_before
    assert not any(said[:2] == ("state", "down") for said in sink.said)


# -- What was played so far


def look_back(replay: Replay, number: int, topic: Topic, day_ms: int = 0) -> None:
    replay.history(number, topic, parse_topic(topic), day_ms)


def test_history_has_what_was_played_and_nothing_else(make) -> None:
    rows = [(code, T + 1000 * n, n) for n in range(40) for code in (MAOTAI, BANK)]
    sink = Recorder(room=0)
    replay = make(sink, rows)
    join(replay, quote_topic(BANK))
    # A moment has a row of each code.
    sink.make_room(10)
    sink.wait_for(lambda: len(sink.bodies(quote_topic(BANK))) == 10)
    join(replay, quote_topic(MAOTAI))
    sink.wait_for(lambda: ("accept", quote_topic(MAOTAI), None) in sink.said)
    look_back(replay, 1, quote_topic(MAOTAI))
    assert volumes(sink.history(1)) == list(range(10))
    assert sink.from_ms == midnight(T)
    sink.make_room()
    sink.wait_state("ended")
    look_back(replay, 2, quote_topic(MAOTAI), T)
    assert volumes(sink.history(2)) == list(range(40))
    # Another day has nothing.
    look_back(replay, 3, quote_topic(MAOTAI), T + 24 * HOUR)
    assert sink.history(3) == []
    with pytest.raises(Refused, match="no row"):
        look_back(replay, 4, quote_topic(PING_AN))


def test_history_of_a_file_that_vanished_is_refused(make, tmp_path: Path) -> None:
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1)])
    join(replay, quote_topic(MAOTAI))
    sink.wait_state("ended")
    (tmp_path / "ticks.csv").unlink()
    look_back(replay, 1, quote_topic(MAOTAI))
    sink.wait_for(lambda: any(what == "no history" for what, _, _ in sink.said))


def test_look_that_takes_too_long_is_refused(make, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Recorder()
    replay = make(sink, [(MAOTAI, T, 1)])
    join(replay, quote_topic(MAOTAI))
    sink.wait_state("ended")
    monkeypatch.setattr(lookback, "LOOK_SECONDS", -1.0)
    look_back(replay, 1, quote_topic(MAOTAI))
    sink.wait_for(lambda: any(what == "no history" for what, _, _ in sink.said))
    assert "was not read in" in str(sink.said[-1][2])


@recorded
def test_recorded_history_and_live_rows_are_the_files_rows(make) -> None:
    path = RECORDED / "ticks_30stocks_sse_20211201.csv.gz"
    rows = list(read_csv(path, lambda _: None))
    code, other = rows[0].code, next(row.code for row in rows if row.code != rows[0].code)
    expected = [row.record for row in rows if row.code == code]
    sink = Recorder(room=0)
    replay = make(sink, path)
    join(replay, quote_topic(other))
    sink.make_room(1500)
    sink.wait_for(lambda: sink.waits_in_vain > 0)
    join(replay, quote_topic(code))
    look_back(replay, 1, quote_topic(code))
    past = [record for body in sink.history(1) for record in body[code]]
    sink.make_room()
    sink.wait_state("ended")
    live = [record for body in sink.bodies(quote_topic(code)) for record in body[code]]
    # The first live one is the newest of the history.
    assert 0 < len(past) < len(expected)
    assert past + live[live.index(past[-1]) + 1 :] == expected
