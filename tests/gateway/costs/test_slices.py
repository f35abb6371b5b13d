"""Work in slices: in order, a few milliseconds in one turn of the loop."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from gateway.costs.slices import SLICE, Slices


class Clock:
    """A clock that each piece of work moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_little_work_is_done_at_once() -> None:
    done: list[int] = []
    slices = Slices(Clock())
    for number in range(100):
        slices.do("one", lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == list(range(100))


async def test_much_work_is_spread_over_turns_in_order() -> None:
    clock, done, turns = Clock(), [], []
    slices = Slices(clock)

    def work(number: int) -> None:
        clock.now += SLICE / 2
        done.append(number)

    for number in range(20):
        slices.do("one", lambda number=number: work(number))  # type: ignore[misc]
    for _ in range(20):
        turns.append(len(done))
        await asyncio.sleep(0)
    assert done == list(range(20))
    assert turns[0] == 2
    # Three where the clock's rounding leaves a moment of the slice.
    assert all(later - earlier <= 3 for earlier, later in pairwise(turns))


async def test_small_work_waits_for_earlier_work_of_its_owner() -> None:
    clock, done = Clock(), []
    slices = Slices(clock)

    def long() -> None:
        clock.now += 2 * SLICE
        done.append("long")

    slices.do("one", long)
    slices.do("one", long)
    slices.do("one", lambda: done.append("small"))
    assert done == ["long"]
    for _ in range(4):
        await asyncio.sleep(0)
    assert done == ["long", "long", "small"]


async def test_owners_take_turns() -> None:
    clock, done = Clock(), []
    slices = Slices(clock)

    def work(owner: str) -> None:
        clock.now += 2 * SLICE
        done.append(owner)

    for owner in ("large", "large", "large", "small", "large"):
        slices.do(owner, lambda owner=owner: work(owner))  # type: ignore[misc]
    await slices.done("small")
    assert done[:3] == ["large", "large", "small"]
    await slices.done("large")
    assert done == ["large", "large", "small", "large", "large"]
    # There is nothing to wait for.
    await slices.done("large")


async def test_failure_does_not_stop_the_work_of_others() -> None:
    clock, done = Clock(), []
    slices = Slices(clock)
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))

    def work(owner: str) -> None:
        clock.now += 2 * SLICE
        if owner == "broken":
            raise ValueError(owner)
        done.append(owner)

    for owner in ("first", "broken", "other"):
        slices.do(owner, lambda owner=owner: work(owner))  # type: ignore[misc]
    await slices.done("other")
    assert done == ["first", "other"]
    assert [str(failure) for failure in failures] == ["broken"]
