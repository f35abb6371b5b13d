"""Newest: an older record never follows a newer one of the same thing, with the time as an argument."""

from __future__ import annotations

import random
from itertools import pairwise, permutations
from typing import Any

import pytest

from feeder.xt.quotes.newest import FUTURE_MS, SETTLE_NS, Moment, Newest
from qmt_bridge.wire.topics import FormulaSpec, formula_topic, l2_topic, parse_topic, quote_topic, whole_topic

NOW_MS = 1_795_485_600_000
MOUTAI = "600519.SH"


def moment(entered_ms: float = 0) -> Moment:
    """Return the moment of a callback that was entered `entered_ms` after the first."""
    ns = round(entered_ms * 1_000_000)
    return Moment(NOW_MS * 1_000_000 + ns, 5_000_000_000 + ns)


def tick(seconds: float, volume: object = 0) -> dict[str, Any]:
    return {"time": NOW_MS + round(seconds * 1000), "volume": volume}


@pytest.fixture
def newest() -> Newest:
    return Newest("code")


def test_an_older_tick_is_left_out_and_a_newer_one_passes(newest: Newest) -> None:
    assert newest.admit(MOUTAI, tick(3), moment(1))
    assert not newest.admit(MOUTAI, tick(0), moment(2))
    assert newest.records == {MOUTAI: tick(3)}
    assert newest.admit(MOUTAI, tick(6), moment(3))


def test_codes_are_independent(newest: Newest) -> None:
    assert newest.admit(MOUTAI, tick(3), moment(1))
    assert newest.admit("600000.SH", tick(0), moment(2))


@pytest.mark.parametrize(
    ("first", "second", "passes"),
    [
        pytest.param(tick(0, 5), tick(0, 6), True, id="more-volume"),
        pytest.param(tick(0, 6), tick(0, 5), False, id="less-volume"),
        pytest.param(tick(0, 6), tick(0, 6), True, id="the-same"),
        pytest.param(tick(0, 6.0), tick(0, 5), False, id="float-volume"),
        pytest.param(tick(0, 6), tick(0, float("nan")), True, id="nan-volume"),
        pytest.param(tick(0, 6), tick(0, None), True, id="no-volume"),
        pytest.param(tick(0, 6), tick(3, 5), True, id="newer-with-less-volume"),
        pytest.param({"time": 0, "volume": 6}, {"time": 0, "volume": 5}, False, id="time-0"),
        pytest.param({"time": None, "volume": 6}, tick(0, 5), False, id="time-none"),
        pytest.param({"volume": 6}, {"volume": 7}, True, id="without-time"),
        pytest.param({"time": "10:00"}, {"time": "09:59"}, True, id="text"),
        pytest.param({"time": True}, {"time": False}, True, id="bool"),
        pytest.param({"time": NOW_MS + 2 * FUTURE_MS}, tick(0), True, id="far-future-first"),
        pytest.param(tick(0, 1), {"time": 2**62, "volume": 2}, True, id="far-future-second"),
        pytest.param(tick(0), {"time": NOW_MS // 1000}, False, id="seconds-instead-of-ms"),
        pytest.param({"time": NOW_MS + 3e3}, {"time": float(NOW_MS)}, False, id="float-time"),
        pytest.param(tick(3), {"time": float(NOW_MS), "volume": 0}, False, id="float-time-after-an-int"),
        pytest.param(tick(0), {"time": float("nan")}, True, id="nan-time"),
        pytest.param([1], [2], True, id="no-map"),
    ],
)
def test_newer_is_decided_by_time_then_volume_then_entry(newest: Newest, first: Any, second: Any, passes: bool) -> None:
    assert newest.admit(MOUTAI, first, moment(0))
    assert newest.admit(MOUTAI, second, moment(1)) is passes


def test_without_time_and_volume_the_order_of_callbacks_decides(newest: Newest) -> None:
    assert newest.admit(MOUTAI, {"price": 2}, moment(2))
    assert not newest.admit(MOUTAI, {"price": 1}, moment(1))
    assert newest.admit(MOUTAI, {"price": 2.5}, moment(2))


def test_an_invalid_time_does_not_silence_a_code(newest: Newest) -> None:
    assert newest.admit(MOUTAI, {"time": 2**62, "volume": 5}, moment(0))
    assert newest.admit(MOUTAI, tick(0, 6), moment(1))
    assert not newest.admit(MOUTAI, tick(-3, 5), moment(2))


def test_a_clock_set_back_for_good_is_accepted_after_some_seconds(newest: Newest) -> None:
    assert newest.admit(MOUTAI, tick(0), moment(0))
    settle_ms = SETTLE_NS // 1_000_000
    assert not newest.admit(MOUTAI, tick(-3600), moment(settle_ms - 1))
    assert newest.admit(MOUTAI, tick(-3597), moment(settle_ms))
    # From here on this time is accepted as the clock.
    assert newest.admit(MOUTAI, tick(-3594), moment(settle_ms + 1))
    assert not newest.admit(MOUTAI, tick(-3595), moment(settle_ms + 2))


def test_older_records_stay_out_while_newer_ones_keep_coming(newest: Newest) -> None:
    for number in range(100):
        assert newest.admit(MOUTAI, tick(3 * number), moment(3000 * number))
        assert not newest.admit(MOUTAI, tick(3 * number - 1), moment(3000 * number + 1))


def test_a_callback_that_waited_long_is_still_late(newest: Newest) -> None:
    assert newest.admit(MOUTAI, tick(3), moment(60_000))
    assert newest.admit(MOUTAI, tick(6), moment(10))
    # The last record entered long before it, so this one has not waited for a newer one.
    assert not newest.admit(MOUTAI, tick(0), moment(59_000))


def test_the_wall_clock_of_this_machine_has_no_effect(newest: Newest) -> None:
    assert newest.admit(MOUTAI, tick(0), Moment(NOW_MS * 1_000_000, 1))
    # The clock is set back 90 minutes: the tick's time is in the future, but the order of entry is unchanged.
    back = (NOW_MS - 5_400_000) * 1_000_000
    assert newest.admit(MOUTAI, tick(3), Moment(back, 2))
    assert newest.admit(MOUTAI, tick(6), Moment(back, 3))


@pytest.mark.parametrize(
    ("topic", "versions"),
    [
        (quote_topic(MOUTAI), True),
        (whole_topic("SH"), True),
        (whole_topic(MOUTAI), True),
        (l2_topic(MOUTAI, 20), True),
        (quote_topic(MOUTAI, "l2quote"), True),
        (quote_topic(MOUTAI, "l2order"), False),
        (quote_topic(MOUTAI, "l2transaction"), False),
        (quote_topic(MOUTAI, "announcement"), False),
    ],
)
def test_events_always_pass(topic: str, versions: bool) -> None:
    newest = Newest(parse_topic(topic).behaviour.versions)
    assert newest.admit(MOUTAI, tick(3), moment(2))
    assert newest.admit(MOUTAI, tick(0), moment(1)) is not versions


def test_a_bar_replaces_only_the_bar_of_its_own_time() -> None:
    newest = Newest("bar")
    assert newest.admit(MOUTAI, tick(60, 5), moment(1))
    assert newest.admit(MOUTAI, tick(120, 1), moment(3))
    # The last state of the previous bar passes although the next bar has begun; an older state of it does not.
    assert newest.admit(MOUTAI, tick(60, 9), moment(2))
    assert not newest.admit(MOUTAI, tick(60, 7), moment(4))
    assert newest.admit(MOUTAI, tick(120, 2), moment(5))
    assert not newest.admit(MOUTAI, {"time": float(NOW_MS + 120_000), "volume": 1}, moment(6))
    assert newest.admit(MOUTAI, {"time": None}, moment(1))
    assert newest.admit(MOUTAI, {"time": []}, moment(1))


def test_the_bars_of_a_year_use_no_memory() -> None:
    newest = Newest("bar")
    for number in range(100_000):
        newest.admit(MOUTAI, tick(60 * number), moment(60_000 * number))
    assert len(newest._marks) <= 3


def test_values_of_a_formula_replace_those_of_the_same_bars() -> None:
    newest = Newest(parse_topic(formula_topic(FormulaSpec("MA", MOUTAI))).behaviour.versions)

    def values(last: int, name: str = "ma") -> dict[str, Any]:
        return {"timelist": [1, last], "outputs": {name: [1.0, 2.0]}}

    assert newest.admit(MOUTAI, values(2), moment(2))
    assert not newest.admit(MOUTAI, values(2), moment(1))
    assert newest.admit(MOUTAI, values(3), moment(1))
    assert newest.admit(MOUTAI, values(2, "ema"), moment(1))
    assert newest.admit(MOUTAI, {"dbt": 0}, moment(1))
    for number in range(1000):
        newest.admit(MOUTAI, values(number), moment(number))
    assert len(newest._marks) <= 4


@pytest.mark.parametrize("nan", [False, True])
def test_new_records_are_recognised_by_their_content(newest: Newest, nan: bool) -> None:
    record = {**tick(0), **({"pe": float("nan")} if nan else {})}
    assert newest.is_new(MOUTAI, record)
    newest.admit(MOUTAI, record, moment())
    assert not newest.is_new(MOUTAI, {**record, **({"pe": float("nan")} if nan else {})})
    assert newest.is_new(MOUTAI, {**record, "lastPrice": 1.0})


def test_the_last_served_record_is_the_newest_in_any_order() -> None:
    for order in permutations(range(6)):
        newest = Newest("code")
        passed = [number for number in order if newest.admit(MOUTAI, tick(3 * number), moment(order.index(number)))]
        assert passed[-1] == 5
        assert all(later > earlier for earlier, later in pairwise(passed))


@pytest.mark.parametrize("versions", ["code", "bar", "none"])
@pytest.mark.parametrize("seed", range(10))
def test_many_records_are_admitted_like_single_ones(versions: Any, seed: int) -> None:
    chance = random.Random(seed)
    together, single = Newest(versions), Newest(versions)
    for number in range(300):
        records: dict[str, Any] = {}
        for code in chance.sample(["1.SH", "2.SH", "3.SH", "4.SH"], chance.randint(1, 4)):
            time = chance.choice(
                [None, 0, True, 2**62, "x", *[NOW_MS + 1000 * chance.randint(-5, number) for _ in "x" * 9]]
            )
            volume = chance.choice([None, True, 1.5, float("nan"), chance.randint(0, 9)])
            records[code] = {"time": time, "volume": volume}
        at = moment(chance.randint(0, 100) * number)
        passed = {code for code, record in records.items() if single.admit(code, record, at)}
        assert set(together.admit_all(records, at)) == passed
        assert together.records == single.records


@pytest.mark.parametrize("seed", range(20))
def test_random_clocks_silence_no_code(seed: int) -> None:
    """A clock jumps at random: the passed records are in order between jumps, and no code is silent for long."""
    chance = random.Random(seed)
    newest, entered, clock, last = Newest("code"), 0.0, 0.0, 0.0
    for _ in range(2000):
        step = chance.uniform(0, 3000)
        entered += step
        clock += step / 1000
        if chance.random() < 0.01:
            clock += chance.choice([-7200, -3600, -60, 60, 3000])
        late = chance.random() < 0.2
        record = tick(clock - 1 if late else clock)
        if newest.admit(MOUTAI, record, moment(entered)):
            last = entered
        assert entered - last <= SETTLE_NS // 1_000_000 + 3000


@pytest.mark.parametrize(
    ("record", "is_new"),
    [
        pytest.param({"tickvol": 0}, False, id="fields-of-the-answer"),
        pytest.param({"amount": 862}, False, id="amount-as-an-integer"),
        pytest.param({"amount": 863}, True, id="other-amount"),
        pytest.param({"amount": float("inf")}, True, id="amount-that-is-no-number"),
        pytest.param({"pe": float("nan")}, False, id="nan"),
        pytest.param({"volume": 6}, True, id="other-volume"),
        pytest.param({"askVol": [1, 3]}, True, id="other-depth"),
    ],
)
def test_an_answer_of_get_full_tick_is_compared_by_common_fields(newest: Newest, record: Any, is_new: bool) -> None:
    pushed = tick(0, 5) | {"amount": 862.75, "pe": float("nan"), "askVol": [1, 2]}
    assert newest.is_new(MOUTAI, pushed)
    assert newest.admit(MOUTAI, pushed, moment(0))
    answer = pushed | {"timetag": "20250331 14:52:15"} | record
    assert newest.is_new(MOUTAI, answer) is is_new
    # Also in the other order: first the answer, then the push of the same snapshot.
    assert newest.admit(MOUTAI, answer, moment(1))
    assert newest.is_new(MOUTAI, pushed) is is_new


@pytest.mark.parametrize("record", [{"lastPrice": 1.0}, {"timetag": "20250331 14:52:15"}, [1], None])
def test_records_without_a_common_field_differ(newest: Newest, record: Any) -> None:
    assert newest.admit(MOUTAI, tick(0, 5), moment(0))
    assert newest.is_new(MOUTAI, record)
