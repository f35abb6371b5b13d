"""What waits for the client's caller: against a model with random conversations, and each rule by itself."""

from __future__ import annotations

import json
import random

import pytest

from qmt_bridge.reading import backlog as backlog_module
from qmt_bridge.reading.backlog import ALL_BYTES, NEWEST_BYTES, OVERHEAD, PATIENCE, TELL_EVERY, Backlog, Lag

LATE = PATIENCE + 0.01


def encoded(frame: object) -> bytes:
    return json.dumps(frame, separators=(",", ":")).encode()


def tick(code: str, number: int) -> dict:
    return {code: [{"time": number}]}


def drained(backlog: Backlog, now: float) -> tuple[list, list[Lag]]:
    frames: list = []
    told: list[Lag] = []
    while (taken := backlog.take(now)) is not None:
        if isinstance(taken, Lag):
            told.append(taken)
        else:
            frames.append(json.loads(taken))
    return frames, told


def behind(versions, *frames, joined: bool = False) -> tuple[list, list[Lag]]:
    """Return what a caller gets that fell behind after the first frame."""
    backlog = Backlog(versions, joined=joined)
    for frame in frames:
        backlog.put(encoded(frame), 0.0)
    taken = drained(backlog, LATE)
    assert backlog.size == 0
    assert not backlog.lagging
    return taken


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_the_newest_of_each_code_arrives_and_what_is_missing_was_told(seed, joined):
    dice = random.Random(seed)
    codes = [f"{number:06}.SZ" for number in range(dice.randint(1, 12))]
    backlog = Backlog("code", joined=joined)
    now, told = 0.0, 0
    put: dict[str, list[int]] = {code: [] for code in codes}
    got: dict[str, list[int]] = {code: [] for code in codes}
    controls: list[int] = []

    def take() -> bool:
        nonlocal told
        taken = backlog.take(now)
        if isinstance(taken, Lag):
            told += taken.skipped if taken.state == "skipped" else 0
            return True
        for code, value in json.loads(taken).items() if taken is not None else ():
            if code == "type":
                controls.append(json.loads(taken)["n"])
                break
            got[code] += [record["time"] for record in (value if isinstance(value, list) else [value])]
        return taken is not None

    for number in range(1, dice.randint(50, 400)):
        now += dice.choice([0.0, 0.01, PATIENCE / 3, 0.7])
        match dice.randint(0, 9):
            case 0 | 1:
                take()
            case 2:
                backlog.put(encoded({"type": "feed", "n": number}), now)
            case _:
                some = dice.sample(codes, dice.randint(1, len(codes)) if joined else 1)
                several = 1 if joined else dice.randint(0, 3)
                records = [{"time": 10 * number + part} for part in range(several)]
                for code in some:
                    put[code] += [record["time"] for record in records]
                backlog.put(encoded(dict.fromkeys(some, records[0] if joined else records)), now)
    while take():
        pass
    assert backlog.size == 0
    assert not backlog.lagging
    assert controls == sorted(controls)
    for code in codes:
        assert got[code] == sorted(got[code])
        assert set(got[code]) <= set(put[code])
        assert got[code][-1:] == put[code][-1:]
    assert told == sum(map(len, put.values())) - sum(map(len, got.values()))


def test_nothing_is_left_out_while_no_frame_has_waited_too_long():
    backlog = Backlog("code")
    for number in range(1000):
        backlog.put(encoded(tick("a.SZ", number)), 0.0)
    frames, told = drained(backlog, PATIENCE - 0.01)
    assert frames == [tick("a.SZ", number) for number in range(1000)]
    assert told == []


def test_a_caller_that_is_behind_is_told_first_and_gets_codes_in_turn():
    frames = [tick("a.SZ", 1), tick("b.SZ", 2), tick("a.SZ", 3), tick("b.SZ", 4), tick("a.SZ", 5)]
    assert behind("code", *frames) == (
        [tick("a.SZ", 5), tick("b.SZ", 4)],
        [Lag("lagging", 3), Lag("skipped", 3), Lag("caught_up", 3)],
    )


def test_codes_of_a_market_come_in_one_frame_between_notices():
    ended = {"type": "snapshot_end", "codes": ["SZ"], "count": 2}
    frames, _ = behind(
        "code", {"a.SZ": {"p": 1}, "b.SZ": {"p": 1}}, ended, {"a.SZ": {"p": 2}, "c.SZ": {"p": 2}}, joined=True
    )
    assert frames == [{"a.SZ": {"p": 2}, "b.SZ": {"p": 1}}, ended, {"c.SZ": {"p": 2}}]


def test_of_bars_the_newest_state_of_each_is_kept():
    first, state, following = ({"time": at, "close": close} for at, close in ((1, 1), (1, 2), (2, 3)))
    untimed = {"close": 4}
    frames, told = behind("bar", {"a.SZ": [first]}, {"a.SZ": [state, following]}, {"a.SZ": [untimed, untimed]})
    assert frames == [{"a.SZ": [record]} for record in (state, following, untimed, untimed)]
    assert told[-1].skipped == 1


def value(*times: int, names: str = "A") -> dict:
    outputs = {name: list(times) for name in names}
    return {"type": "formula_update", "seq_id": 1, "data": {"timelist": list(times), "outputs": outputs}}


@pytest.mark.parametrize(
    ("older", "newer", "replaces"),
    [
        (value(1), value(1), True),
        (value(1), value(1, 2), True),
        (value(1, 2), value(2), False),
        (value(1, names="AB"), value(1), False),
        (value(), value(1), False),
        (value(1), value(), False),
        (value(), value(), True),
    ],
)
def test_a_formulas_frame_replaces_one_whose_values_it_has(older, newer, replaces):
    frames, told = behind("values", older, newer)
    assert frames == ([newer] if replaces else [older, newer])
    assert told[-1] == Lag("caught_up", int(replaces))


def test_only_the_newest_progress_is_kept_and_the_end_always():
    assert behind("topic", {"finished": 1}, {"finished": 2}, {"status": "done"})[0] == [
        {"finished": 2},
        {"status": "done"},
    ]


STRANGE = [b"not json", b"[1]", b'{"n":1}', b'{"type":"error","a.SZ":[]}', b'{"a.SZ":[]}', b"\xff"]


@pytest.mark.parametrize("versions", ["code", "bar", "values"])
@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_not_understood_waits_in_its_order(versions, strange):
    backlog = Backlog(versions)
    backlog.put(strange, 0.0)
    backlog.put(strange + b" ", LATE)
    assert [backlog.take(LATE) for _ in range(3)] == [Lag("lagging", 0), strange, strange + b" "]


def test_what_no_newer_frame_replaces_waits_and_stops_the_reading():
    backlog = Backlog("none")
    number = 0
    while not backlog.full:
        backlog.put(encoded(tick("a.SZ", number)), 0.0)
        number += 1
    assert ALL_BYTES < backlog.size <= ALL_BYTES + OVERHEAD + 100
    assert backlog.take(0.0) == Lag("lagging", 0)
    frames, told = drained(backlog, 0.0)
    assert frames == [tick("a.SZ", each) for each in range(number)]
    assert told == [Lag("caught_up", 0)]
    assert not backlog.full


def test_what_is_kept_by_code_has_a_bound_in_bytes():
    backlog = Backlog("code")
    big = "x" * 1_000_000
    count = 0
    while not backlog.full:
        count += 1
        backlog.put(encoded({f"{count:06}.SZ": [{"pad": big}]}), 0.0)
    assert backlog.lagging
    assert NEWEST_BYTES < backlog.size <= NEWEST_BYTES + 1_100_000
    for _ in range(100):
        backlog.put(encoded({"000001.SZ": [{"pad": big}]}), 0.0)
    assert backlog.size <= NEWEST_BYTES + 1_100_000, "newer records of codes that wait take no more"
    assert len(drained(backlog, 0.0)[0]) == count
    assert backlog.size == 0


def test_a_late_caller_is_told_once_a_second_what_it_misses():
    backlog = Backlog("code")
    backlog.put(encoded(tick("a.SZ", 0)), 0.0)
    backlog.put(encoded(tick("b.SZ", 0)), 0.0)
    assert backlog.take(LATE) == Lag("lagging", 0)
    told = []
    for number in range(100):
        now = LATE + number * TELL_EVERY / 10
        backlog.put(encoded(tick("b.SZ", number)), now)
        backlog.put(encoded(tick("a.SZ", number)), now)
        taken = backlog.take(now)
        if isinstance(taken, Lag):
            told.append(taken)
            taken = backlog.take(now)
        assert isinstance(taken, bytes)
    assert 8 <= len(told) <= 10
    assert {each.state for each in told} == {"skipped"}


def test_what_the_gateway_left_out_is_added_while_the_caller_is_behind():
    backlog = Backlog("code")
    backlog.server_skipped(1000)
    for number in range(3):
        backlog.put(encoded(tick("a.SZ", number)), 0.0)
    assert backlog.take(LATE) == Lag("lagging", 2)
    backlog.server_skipped(40)
    assert drained(backlog, LATE)[1] == [Lag("skipped", 2), Lag("caught_up", 42)]


def test_a_caller_that_has_caught_up_gets_every_frame_again():
    backlog = Backlog("code")
    backlog.put(encoded(tick("a.SZ", 0)), 0.0)
    drained(backlog, LATE)
    for number in range(5):
        backlog.put(encoded(tick("a.SZ", number)), LATE)
    assert drained(backlog, LATE) == ([tick("a.SZ", number) for number in range(5)], [])


def test_bounds_leave_room_for_a_market():
    # 10,400 codes of 0.7 KB.
    assert 10_400 * (700 + backlog_module.OVERHEAD) < NEWEST_BYTES
