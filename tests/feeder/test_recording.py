"""feeder.replay.recording: a tape is played as it was recorded; topics that it does not have are refused."""

from __future__ import annotations

import gzip
import logging
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from feeder.app import Feeder
from feeder.replay import player as replay_module
from feeder.replay.player import Replay
from feeder.replay.recording import Tape, Ticks, open_recording
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Refused, WireError
from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import (
    STATUS_TOPIC,
    FormulaSpec,
    Kind,
    Topic,
    formula_topic,
    l2_topic,
    parse_topic,
    quote_topic,
    trade_topic,
    whole_topic,
)
from tests.support.ports import ANY_ADDRESSES
from tests.support.waiting import wait_for

MAOTAI, BANK = "600519.SH", "600000.SH"
QUOTE, BARS, WHOLE, DEPTH = quote_topic(MAOTAI), quote_topic(MAOTAI, "1m"), whole_topic("SH"), l2_topic(MAOTAI, 20)
FORMULA = formula_topic(FormulaSpec("MA", MAOTAI))
TRADES = trade_topic("1")
ALL = {QUOTE, BARS, WHOLE, DEPTH, FORMULA}
SECOND = 1_000_000_000
T = 1_675_215_000 * SECOND
NOW = 5

Message = tuple[str, object] | tuple[str, object, int]


class Told:
    """A sink that records its calls; bodies as they are sent."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.trades: list[tuple[str, str, bytes]] = []
        self.states: list[str] = []
        self.reason: str | None = None
        self.accepted: list[str] = []
        self._changed = threading.Condition()

    def _note(self, where: list, what: object) -> None:
        with self._changed:
            where.append(what)
            self._changed.notify_all()

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        assert topic.partition("/")[0] != Kind.WHOLE
        assert received_ns > 0
        self._note(self.published, (topic, frames.encode(body)))

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        assert received_ns > 0
        for body in frames.join({code: msgspec.Raw(frames.encode(tick)) for code, tick in ticks.items()}):
            self._note(self.published, (topic, body))

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        assert received_ns > 0
        self._note(self.trades, (account, event, frames.encode(data)))

    def past_trades(self, since_ms: int) -> Iterator:
        raise AssertionError("a replay has no past")

    def accept(self, topic: Topic) -> None:
        self._note(self.accepted, topic)

    def refuse(self, topic, code, reason) -> None:
        raise AssertionError("a replay refuses at once")

    def set_state(self, state, reason=None, *, data_lost=False) -> None:
        self.reason = reason
        self._note(self.states, state)

    def wait_room(self, limit: int, timeout: float) -> bool:
        return True

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 20), (self.states, self.published[-5:])


@pytest.fixture
def tape(tmp_path: Path):
    """Write a tape of messages (topic, body, seconds after the first or None for a last value)."""

    def tape(*messages: Message, name: str = "day.tape") -> Path:
        writer = TapeWriter(tmp_path / name, Recorded(T, session_frame(["quote/"], "1.0")))
        seqs = Counter[str]()
        for topic, body, *second in messages:
            seqs[topic] += 1
            published = T + int((second[0] if second else 0) * SECOND) if second != [None] else 0
            encoded = body if isinstance(body, bytes) else frames.encode(body)
            received = published and published - SECOND
            writer.write(T, Frame(Topic(topic), 7, seqs[topic], received, published, encoded))
        writer.close()
        return tmp_path / name

    return tape


@pytest.fixture
def start(tape):
    """Start a replay of messages; it is closed at the end."""
    replays: list[Replay] = []

    def start(sink: Told, *messages: Message, **settings) -> Replay:
        replay = Replay(Config(source="replay", file=str(tape(*messages)), **{"speed": 0, "delay": 0, **settings}))
        replays.append(replay)
        replay.start(sink)
        return replay

    yield start
    for replay in replays:
        replay.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "replay"]


def play(recording: Tape, wanted: set[Topic]) -> Told:
    sink = Told()
    for _, moment in recording.moments():
        recording.publish(moment, wanted, sink, NOW)
    return sink


def join(replay: Replay, *topics: Topic) -> None:
    for topic in topics:
        replay.subscribe(topic, parse_topic(topic))


DAY: list[Message] = [
    (WHOLE, {MAOTAI: {"time": 1}, BANK: {"time": 2}}),
    (QUOTE, {MAOTAI: [{"time": 1, "n": 1.0}]}),
    (BARS, {MAOTAI: [{"time": 1}, {"time": 2}]}),
    (DEPTH, {MAOTAI: [{"askPrice": [1.0]}]}),
    (FORMULA, {"formula_name": "MA", "stock_code": MAOTAI, "data": {}}),
    (WHOLE, {BANK: {"time": 3}}),
    (QUOTE, {MAOTAI: [{"time": 2}]}),
]


def published(messages: list[Message], *topics: Topic) -> list[tuple[str, bytes]]:
    return [(topic, frames.encode(body)) for topic, body, *_ in messages if topic in topics]


# -- Played messages


def test_every_message_is_played_in_order_byte_for_byte(tape) -> None:
    assert play(Tape(tape(*DAY)), ALL).published == published(DAY, *ALL)


def test_past_of_a_topic_is_what_was_played_of_it(tape) -> None:
    recording = Tape(tape(*DAY))
    for topic in ALL:
        past = [body for _, moment in recording.moments() for body in recording.past(moment, topic)]
        assert [(topic, frames.encode(body)) for body in past] == published(DAY, topic)


def test_another_encoding_of_a_message_is_played_unchanged(tape) -> None:
    body = b'{"a":1.00}'
    quote = b'{"600519.SH":[%b]}' % body
    whole = b'{"600519.SH":%b}' % body
    event = b'{"type": "order", "data": %b}' % body
    sink = play(Tape(tape((QUOTE, quote), (WHOLE, whole), (TRADES, event))), ALL)
    assert sink.published == [(QUOTE, quote), (WHOLE, whole)]
    assert sink.trades == [("1", "order", body)]


def test_only_subscribed_topics_are_played(tape) -> None:
    assert play(Tape(tape(*DAY)), {QUOTE, WHOLE}).published == published(DAY, QUOTE, WHOLE)
    assert play(Tape(tape(*DAY)), set()).published == []


def test_late_subscriber_gets_last_value_or_that_of_each_code(tape) -> None:
    recording = Tape(tape(*DAY))
    play(recording, set())
    sink = Told()
    for topic in (QUOTE, WHOLE, whole_topic("SZ")):
        recording.publish_newest(topic, sink, NOW)
    assert sink.published == [
        (QUOTE, frames.encode({MAOTAI: [{"time": 2}]})),
        (WHOLE, frames.encode({MAOTAI: {"time": 1}, BANK: {"time": 3}})),
    ]


def test_a_last_value_does_not_keep_its_batch_in_memory(tape) -> None:
    day = [(WHOLE, {f"{600000 + number}.SH": {"time": number}, MAOTAI: "x" * 100_000}) for number in range(50)]
    recording = Tape(tape(*day))
    tracemalloc.start()
    try:
        play(recording, set())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(recording._newest_by_code[WHOLE]) == 51
    assert held < 1_000_000


def test_trade_events_are_played_without_a_subscription(tape) -> None:
    order = {"type": "order", "seq": 8812, "data": {"order_id": 5, "account_id": "x"}}
    fill = {"type": "trade", "seq": 8813, "data": {}, "journaled": False}
    sink = play(Tape(tape((TRADES, order), (trade_topic("账户/2"), fill))), set())
    assert sink.trades == [
        ("1", "order", frames.encode(order["data"])),
        ("账户/2", "trade", frames.encode({})),
    ]


def test_replayed_events_of_all_accounts_keep_their_account(tape) -> None:
    bodies = [
        {"type": "order", "data": data} for data in ({"account_id": "2"}, {"account_id": 5}, {}, {"account_id": ""})
    ]
    sink = play(Tape(tape(*(("trade/", body, None) for body in bodies))), set())
    assert [account for account, *_ in sink.trades] == ["2", "unknown", "unknown", "unknown"]


def test_downloads_heartbeats_and_unknown_topics_are_not_played(tape) -> None:
    skipped = [
        (STATUS_TOPIC, {"source": "xtquant", "simulated": False}),
        ("download/1/", {"status": "done"}),
        ("news/1/", {}),
    ]
    sink = play(Tape(tape(*skipped, DAY[1])), {*ALL, STATUS_TOPIC, Topic("download/1/"), Topic("news/1/")})
    assert sink.published == published(DAY[1:2], QUOTE)


def test_last_values_have_the_time_of_the_message_before_them(tape) -> None:
    recording = Tape(tape((WHOLE, {}, None), (QUOTE, {}, 2), (QUOTE, {}, 1.5), (WHOLE, {}, None), (QUOTE, {}, 4)))
    first = T / 1e6 + 2000
    assert recording.first == first
    assert [at - first for at, _ in recording.moments()] == [0, 0, -500, -500, 2000]


def test_playing_continues_where_the_clock_was_set_back(tape) -> None:
    seconds = (0, 3600, 3590, 1, 4, 2, 3600, 7200)
    recording = Tape(tape(*((QUOTE, {}, second) for second in seconds)))
    passed = [(at - recording.first) / 1000 for at, _ in recording.moments()]
    assert passed == [0, 3600, 3590, 3590, 3593, 3591, 7189, 10789]


def test_a_body_that_cannot_be_read_is_named(tape) -> None:
    with pytest.raises(WireError, match=r"a message of trade/\*/ cannot be read"):
        play(Tape(tape((TRADES, b"\xc1"))), set())
    with pytest.raises(WireError, match="a message of status/feeder/ cannot be read"):
        Tape(tape((STATUS_TOPIC, b"\xc1"), name="other.tape"))


# -- Properties of a tape


def test_a_tape_of_a_simulator_is_marked_as_simulated(tape) -> None:
    real, invented = ((STATUS_TOPIC, {"source": "x", "simulated": simulated}) for simulated in (False, True))
    assert not Tape(tape(real, *DAY, name="1")).simulated
    assert Tape(tape(real, invented, real, *DAY, name="2")).simulated
    assert not Tape(tape(*DAY, name="3")).simulated


def test_a_tape_reports_its_size(tape, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tape(
        (STATUS_TOPIC, {"simulated": True}), (WHOLE, {}, None), (QUOTE, {}, 1), (QUOTE, {}, 5), (WHOLE, {}, None)
    )
    Tape(path)
    assert caplog.messages == [f"{path}: 4 messages of 2 topics over 4 s"]


def test_a_tape_of_trade_events_needs_no_demand(tape) -> None:
    event = (TRADES, {"type": "order", "data": {}})
    assert not Tape(tape(event, name="1")).on_demand
    assert Tape(tape(event, *DAY, name="2")).on_demand


def test_a_tape_without_anything_to_play_is_refused_at_the_start(tape) -> None:
    with pytest.raises(ConfigError, match="has nothing to play"):
        Tape(tape((STATUS_TOPIC, {"simulated": True})))


def test_the_type_of_a_file_is_found_without_its_name(tape, tmp_path: Path) -> None:
    ticks = tmp_path / "day.csv"
    ticks.write_text(f"code,time\n{MAOTAI},1638321301000\n")
    assert isinstance(open_recording(tape(*DAY, name="ticks.csv"), 1), Tape)
    assert isinstance(open_recording(tape(*DAY, name="day.tape.zst"), 1), Tape)
    assert isinstance(open_recording(ticks.rename(tmp_path / "day.tape"), 1), Ticks)


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        (quote_topic(BANK), "unknown_symbol"),
        (whole_topic("SZ"), "unknown_symbol"),
        (quote_topic(MAOTAI, "5m"), "unsupported_period"),
        (whole_topic(MAOTAI), "upstream_refused"),
        (l2_topic(MAOTAI), "upstream_refused"),
        (formula_topic(FormulaSpec("KDJ", MAOTAI)), "upstream_refused"),
    ],
)
def test_a_topic_that_a_tape_does_not_have_is_refused(tape, topic: Topic, code: str) -> None:
    recording = Tape(tape(*DAY))
    with pytest.raises(Refused, match=r"day\.tape has no") as refused:
        recording.check(parse_topic(topic), topic)
    assert refused.value.code == code


@pytest.mark.parametrize("topic", [DEPTH, FORMULA])
def test_a_file_of_ticks_serves_only_ticks(tmp_path: Path, topic: Topic) -> None:
    path = tmp_path / "ticks.csv"
    path.write_text(f"code,time\n{MAOTAI},1638321301000\n")
    with pytest.raises(Refused, match="has ticks only") as refused:
        Ticks(path, 1).check(parse_topic(topic), topic)
    assert refused.value.code == "upstream_refused"


# -- Played by a replay


def test_a_replay_starts_a_tape_at_the_first_subscription(start) -> None:
    sink = Told()
    replay = start(sink, (STATUS_TOPIC, {"simulated": True}), *DAY, delay=0.2)
    assert replay.simulated
    join(replay, *sorted(ALL))
    sink.wait_for(lambda: "ended" in sink.states)
    assert sink.published == published(DAY, *ALL)
    assert sink.accepted == sorted(ALL)


def test_a_replay_refuses_a_topic_that_the_tape_does_not_have(start) -> None:
    replay = start(Told(), *DAY)
    with pytest.raises(Refused, match="has nothing of"):
        join(replay, quote_topic(BANK))


def test_a_replay_of_trade_events_begins_without_a_subscription(start) -> None:
    sink = Told()
    start(sink, *((TRADES, {"type": "order", "data": {"n": n}}) for n in range(3)))
    sink.wait_for(lambda: "ended" in sink.states)
    assert sink.trades == [("1", "order", frames.encode({"n": n})) for n in range(3)]


class Clock:
    """Replace the module `clock` by a clock that the test sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return NOW


def test_the_delay_of_trade_events_counts_from_the_start(start, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(-1000.0)
    monkeypatch.setattr(replay_module, "clock", clock)
    sink = Told()
    replay = start(sink, (TRADES, {"type": "order", "data": {}}), delay=5)
    clock.now = -995.0
    # Make the player read the clock.
    replay.unsubscribe(QUOTE, parse_topic(QUOTE))
    sink.wait_for(lambda: "ended" in sink.states)


def test_a_replay_keeps_the_pace_of_the_stamps(start, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(100.0)
    monkeypatch.setattr(replay_module, "clock", clock)
    sink = Told()
    replay = start(sink, *((QUOTE, {"n": n}, 3 * n) for n in range(3)), (BARS, {}, 9), speed=3)

    def settle() -> None:
        told = len(sink.accepted)
        join(replay, BARS)
        sink.wait_for(lambda: len(sink.accepted) > told)

    join(replay, QUOTE)
    for now, number in ((100.0, 1), (100.9, 1), (101.0, 2), (101.9, 2), (102.0, 3)):
        clock.now = now
        settle()
        sink.wait_for(lambda number=number: len(sink.published) >= number)
        assert sink.published == [(QUOTE, frames.encode({"n": n})) for n in range(number)]
    clock.now = 103.0
    sink.wait_for(lambda: "ended" in sink.states)


def test_a_tape_that_fails_before_its_end_brings_the_feed_down(start) -> None:
    sink = Told()
    replay = start(sink, DAY[1], (WHOLE, b"\xc1"))
    join(replay, QUOTE)
    sink.wait_for(lambda: "down" in sink.states)


# -- Damaged tapes


def blocks(path: Path, count: int) -> list[tuple[int, int]]:
    """Write a tape with one message per block, and return the start and end of each block."""
    writer = TapeWriter(path, Recorded(T, session_frame(["quote/"], "1.0")))
    writer.flush()
    places = []
    for number in range(1, count + 1):
        begin = writer.size
        writer.write(T, Frame(QUOTE, 7, number, T, T + number, frames.encode({MAOTAI: [{"n": number}]})))
        writer.flush()
        places.append((begin, writer.size))
    writer.close()
    return places


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 0x55,)) + data[at + 1 :]


Damage = Callable[[bytes, list[tuple[int, int]]], bytes]
DAMAGES: dict[str, tuple[Damage, list[int]]] = {
    "truncated": (lambda data, places: data[: places[3][0] + 20], [1, 2, 3]),
    "flipped": (lambda data, places: flip(data, places[1][1] - 3), [1, 3, 4]),
    "flipped-beginning": (lambda data, places: flip(data, 3), [1, 2, 3, 4]),
    "missing-chunk": (lambda data, places: data[: places[1][0] + 9] + data[places[2][0] + 30 :], [1, 4]),
    "zeros-behind": (lambda data, places: data + bytes(512), [1, 2, 3, 4]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["day.tape", "day.tape.zst"])
def test_a_damaged_tape_is_played_in_part_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, name: str
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / name
    places = blocks(path, 4)
    change, left = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes(), places))
    sink = Told()
    replay = Replay(Config(source="replay", file=str(path), speed=0, delay=0))
    replay.start(sink)
    join(replay, QUOTE)
    sink.wait_for(lambda: "ended" in sink.states)
    replay.close()
    assert [frames.decode(body)[MAOTAI][0]["n"] for _, body in sink.published] == left
    assert sink.reason is not None
    assert sink.reason.startswith(f"damaged: {len(left)} messages can be read")
    assert "bytes" in sink.reason
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [f"{path} is {sink.reason}", f"replay of {path} ended, but it is {sink.reason}"]


def test_the_end_of_a_tape_with_gaps_reports_their_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "day.tape"
    places = blocks(path, 6)
    data = path.read_bytes()
    path.write_bytes(data[: places[1][0]] + data[places[3][0] :])
    assert not Tape(path).damaged
    assert "the messages have 1 gaps, in which 2 are missing; qmt-bridge tape verify names them" in caplog.text


def test_replay_of_a_whole_tape_ends_without_a_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocks(tmp_path / "day.tape", 4)
    tape = Tape(tmp_path / "day.tape")
    assert (tape.damaged, tape.missing) == (False, "")
    assert caplog.records == []


@pytest.mark.parametrize(("damage", "state", "code"), [("torn", "ended", 1), ("body", "down", 1), ("", "ended", 0)])
def test_feeder_that_played_a_damaged_tape_exits_with_1(
    tape, tmp_path: Path, damage: str, state: str, code: int
) -> None:
    events: list[tuple[str, object]] = [(TRADES, {"type": "order", "data": {"n": n}}) for n in range(3)]
    path = tape(*events, *([(TRADES, b"\xc1")] if damage == "body" else []))
    if damage == "torn":
        path.write_bytes(path.read_bytes() + b"torn")
    places = {**ANY_ADDRESSES, "data_dir": str(tmp_path / "data")}
    feeder = Feeder(Config(source="replay", file=str(path), speed=0, delay=0, **places))
    stop = threading.Event()
    codes: list[int] = []
    began = feeder.publisher._state
    running = threading.Thread(target=lambda: codes.append(feeder.run(stop)))
    running.start()
    try:
        # Before the source has started the state is "down" too, but without a reason.
        wait_for(lambda: began != feeder.publisher._state and feeder.publisher._state[0] == state, f"the state {state}")
    finally:
        stop.set()
        running.join(20)
    assert codes == [code]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda data: data.replace(b"QMT2", b"QMT3"), "made by a later version of qmt-bridge", id="later"),
        pytest.param(lambda data: gzip.compress(data), "a tape that was compressed by gzip: unpack it", id="gzip"),
        pytest.param(lambda data: b"\x28\xb5\x2f\xfd" + data[50:], "compressed by zstd: unpack it", id="zstd"),
        pytest.param(lambda data: b"", "is empty", id="empty"),
        pytest.param(lambda data: b"SQLite format 3\0" + data[50:], "qmt-bridge journal export", id="journal"),
    ],
)
def test_a_file_that_is_not_a_tape_is_named(tape, change: Callable[[bytes], bytes], said: str) -> None:
    path = tape(*DAY)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConfigError, match=said) as caught:
        open_recording(path, 1)
    assert caught.value.setting == "file"


@pytest.mark.parametrize("strange", ["quote/600519%2ESH/tick/", "quote/600519.SH", "trade/1"])
def test_an_invalid_topic_drops_only_its_own_messages(tape, caplog: pytest.LogCaptureFixture, strange: str) -> None:
    bad = (Topic(strange), {MAOTAI: [{"time": 1}]})
    found = Tape(tape(*DAY, bad, bad))
    assert play(found, ALL).published == published(DAY, *ALL)
    assert ["are not played" in record.getMessage() for record in caplog.records] == [True]


def test_a_folder_instead_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        open_recording(tmp_path, 1)


# -- Rows that cannot be played


def test_unplayable_rows_are_logged_once_and_the_others_played(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "ticks.csv"
    at = T // 1_000_000
    bad = "".join(f"600519.sh,{at},1\n" for _ in range(300)) + f"{MAOTAI},{at},--,\n{MAOTAI},soon,1\n"
    good = f"SHRQ88.SH,{at},5\n430047.NEEQ,{at},5\nSP a2501&a2505.DF,{at},5\n{MAOTAI},{at},5\n"
    path.write_text(f"code,time,volume\n{bad}{good}")
    sink = Told()
    replay = Replay(Config(source="replay", file=str(path), speed=0, delay=0))
    replay.start(sink)
    codes = (MAOTAI, "SHRQ88.SH", "430047.NEEQ", "SP a2501&a2505.DF")
    join(replay, *map(quote_topic, codes))
    sink.wait_for(lambda: "ended" in sink.states)
    replay.close()
    assert {topic for topic, _ in sink.published} == set(map(quote_topic, codes))
    assert sink.reason is None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    assert warnings[0] == (
        f"{path}, line 2, column code: unknown market 'sh' in '600519.sh'; did you mean '600519.SH'? "
        "(300 such rows are left out)"
    )
    assert f"replay of {path} ended; 302 of 306 rows are left out" in caplog.messages


def test_file_without_a_row_that_can_be_played_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ticks.csv"
    path.write_text("code,time\n600519,1751338260123\n1,1751338260123\n")
    with pytest.raises(ConfigError, match=r"line 2, column code: '600519' is not a code .* did you mean '600519.SH'"):
        open_recording(path, 1)
