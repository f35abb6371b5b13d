"""Calls: a call that does not return is noticed, with the time as an argument."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest

from feeder.xt.call_times import MOST_NAMES, CallTimes
from feeder.xt.calls import Calls

LIMIT = 60.0


class Watch:
    """Check five times a second, as the feeder does."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.calls = Calls(limit)
        self.now = 1000.0

    def look(self, seconds: float) -> str | None:
        """Check for `seconds`; return the last result."""
        said = None
        for _ in range(round(seconds * 5)):
            self.now += 0.2
            said = self.calls.hung(self.now)
        return said


@pytest.fixture
def watch() -> Watch:
    watch = Watch()
    watch.look(1)
    return watch


def test_a_call_that_runs_for_the_limit_is_named_with_its_age(watch: Watch) -> None:
    watch.calls.begin("subscribe_quote")
    assert watch.look(LIMIT) is None
    assert watch.look(0.4) == "subscribe_quote has not returned for 60 s"


def test_the_call_that_runs_is_known_with_its_age(watch: Watch) -> None:
    assert watch.calls.under_way() is None
    watch.calls.begin("subscribe_quote")
    assert watch.calls.under_way() == ("subscribe_quote", 0.0)
    watch.look(3)
    name, age = watch.calls.under_way() or ("", 0.0)
    assert (name, round(age)) == ("subscribe_quote", 3)
    watch.calls.begin("get_full_tick")
    assert watch.calls.under_way() == ("get_full_tick", 0.0)
    watch.calls.rest()
    assert watch.calls.under_way() is None


def test_many_short_calls_do_not_count_as_one_long_call(watch: Watch) -> None:
    for _ in range(50):
        watch.calls.begin("subscribe_quote")
        assert watch.look(LIMIT / 2) is None


def test_waiting_for_work_does_not_count_as_a_call(watch: Watch) -> None:
    watch.calls.begin("subscribe_quote")
    watch.look(LIMIT / 2)
    watch.calls.rest()
    assert watch.look(10 * LIMIT) is None


@pytest.mark.parametrize("jump", [3600.0, 86_400.0, -3600.0])
def test_the_time_of_a_frozen_process_does_not_count(watch: Watch, jump: float) -> None:
    watch.calls.begin("subscribe_quote")
    watch.look(LIMIT / 2)
    watch.now += jump
    assert watch.look(LIMIT / 2 - 2) is None
    assert watch.look(3) is not None


def test_a_limit_of_zero_turns_the_check_off() -> None:
    watch = Watch(0.0)
    watch.calls.begin("subscribe_quote")
    assert watch.look(10 * LIMIT) is None


def test_each_function_of_an_object_is_noted_during_its_call(watch: Watch) -> None:
    numbers = count(1)
    seen: list[str | None] = []

    def subscribe(code: str, *, period: str) -> tuple[str, str, int]:
        seen.append(watch.look(LIMIT + 1))
        return code, period, next(numbers)

    noted = watch.calls.through(SimpleNamespace(subscribe=subscribe, version=7))
    assert noted.version == 7
    assert noted.subscribe("600519.SH", period="tick") == ("600519.SH", "tick", 1)
    assert seen == ["subscribe has not returned for 61 s"]
    # Our own code, blocked by a lock, does not count as a call.
    assert watch.look(LIMIT + 1) == "work after subscribe has not returned for 61 s"


def test_a_function_that_raises_counts_as_ended(watch: Watch) -> None:
    noted = watch.calls.through(SimpleNamespace(fail=lambda: 1 // 0))
    with pytest.raises(ZeroDivisionError):
        noted.fail()
    watch.calls.rest()
    assert watch.look(2 * LIMIT) is None


def test_time_of_each_call_is_counted_however_it_ends(watch: Watch) -> None:
    noted = watch.calls.through(SimpleNamespace(fail=lambda: 1 // 0, subscribe=int, version=7))
    assert (noted.version, noted.subscribe(), noted.subscribe()) == (7, 0, 0)
    with pytest.raises(ZeroDivisionError):
        noted.fail()
    counts = {name: times.buckets()[-1][1] for name, times in watch.calls.times.shown().items()}
    assert counts == {"xtdata.subscribe": 2, "xtdata.fail": 1}


def test_time_of_a_call_is_in_its_bucket() -> None:
    times = CallTimes("xttrader")
    times.add("connect", 0.3)
    times.add("connect", 20.0)
    connect = times.shown()["xttrader.connect"]
    assert dict(connect.buckets())["0.25"] == 0
    assert dict(connect.buckets())["0.5"] == 1
    assert (dict(connect.buckets())["+Inf"], connect.total) == (2, 20.3)


def test_names_of_calls_are_bounded() -> None:
    times = CallTimes("xtdata")
    for number in range(MOST_NAMES + 1):
        times.add(f"call{number}", 0.0)
    times.add("call0", 0.0)
    assert len(times.shown()) == MOST_NAMES
    assert times.shown()["xtdata.call0"].buckets()[-1][1] == 2
