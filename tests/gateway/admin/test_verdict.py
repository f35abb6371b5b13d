"""What is said of a code, of what workers and feeder have seen."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.admin.verdict import HOPS, Why, judge
from gateway.admin.watch import Passed, WhyPart
from qmt_bridge.wire.messages import FeedStatus
from qmt_bridge.wire.survey import TopicFound

TOPIC = "quote/600519.SH/tick/"
WORKER = "aaaaaaaa"
UP = FeedStatus("sim", True, "up", 1, 1)
LIVE = TopicFound(TOPIC, "live", None, None, 7, 0.1)


def part(late: str = "", seconds: float = 0.05, **changes: Any) -> WhyPart:
    hops = {hop: Passed(seconds if hop == late else 0.001, seconds, 20) for hop in HOPS}
    return msgspec.structs.replace(WhyPart(TOPIC, 1, 20, 0, hops, f"{WORKER}-1", 0, 0), **changes)


def why(*parts: WhyPart, known: TopicFound | None = LIVE, status: FeedStatus | None = UP) -> Why:
    named = {f"{number:08x}": each for number, each in enumerate(parts)}
    return judge("600519.SH", named, known, status, "feeder_absent", [])


@pytest.mark.parametrize("hop", HOPS)
def test_hop_that_takes_long_is_named(hop: str) -> None:
    found = why(part(), part(hop), part())
    assert (found.late, found.lost) == (hop, None)
    assert found.verdict.startswith("50 ms late ")
    assert next(each for each in found.hops if each.hop == hop).worker == "00000001"


def test_nothing_late_is_said_so() -> None:
    found = why(part(), part())
    assert (found.late, found.lost, found.verdict) == (None, None, "nothing is late or lost")
    assert [each.hop for each in found.hops] == list(HOPS)
    assert (found.topic, found.state, found.messages) == (TOPIC, "live", 20)


def test_exchange_has_a_second_more_where_data_is_not_invented() -> None:
    real = msgspec.structs.replace(UP, simulated=False)
    assert why(part("exchange_to_callback", 0.9), status=real).late is None
    assert why(part("exchange_to_callback", 1.1), status=real).late == "exchange_to_callback"
    # A shorter delay elsewhere is beyond what is allowed there.
    slow = part("exchange_to_callback", 0.9)
    slow.hops["publish_to_worker"] = Passed(0.05, 0.05, 20)
    assert why(slow, status=real).late == "publish_to_worker"


@pytest.mark.parametrize(
    ("arguments", "lost", "words"),
    [
        ({"status": None}, "publish_to_worker", "no data comes from the feeder: feeder_absent"),
        (
            {"status": msgspec.structs.replace(UP, state="down", reason="terminal_hung")},
            "exchange_to_callback",
            "the source is down: terminal_hung",
        ),
        (
            {"known": TopicFound(TOPIC, "refused", "not_entitled", "no level 2", 0, None)},
            "exchange_to_callback",
            "the source refuses it: not_entitled: no level 2",
        ),
        ({"known": TopicFound(TOPIC, "pending", None, None, 0, None)}, "exchange_to_callback", "has not decided"),
    ],
)
def test_what_prevents_data_is_said_first(arguments: dict[str, Any], lost: str, words: str) -> None:
    found = why(part("worker_to_socket"), **arguments)
    assert found.lost == lost
    assert words in found.verdict


def test_slow_worker_is_not_taken_for_its_client() -> None:
    slow = part("worker_to_socket")
    slow.hops["socket_to_client"] = Passed(0.09, 0.1, 20)
    assert why(slow).late == "worker_to_socket"
    slow.hops["socket_to_client"] = Passed(0.2, 0.2, 20)
    assert why(slow).late == "socket_to_client"


def test_code_without_a_client_is_said_so() -> None:
    nothing = WhyPart("", 0, 0, 0, {}, None, 0, 0)
    found = why(nothing, nothing)
    assert (found.late, found.lost, found.topic, found.verdict) == (None, None, None, "no client has subscribed it")


def test_lost_messages_are_said_before_late_ones() -> None:
    found = why(part("worker_to_socket", missed=3))
    assert (found.late, found.lost, found.missed) == (None, "publish_to_worker", 3)


def test_client_that_is_skipped_frames_is_the_reason() -> None:
    found = why(part(skipped=7, waiting=1000))
    assert (found.late, found.lost, found.skipped, found.waiting) == ("socket_to_client", "socket_to_client", 7, 1000)


@pytest.mark.parametrize(
    ("age", "lost", "words"),
    [
        (None, "exchange_to_callback", "there was none"),
        (90.0, "exchange_to_callback", "the newest is 90 s old"),
        (4.0, None, "no message came while this looked; the newest is 4.0 s old"),
    ],
)
def test_silent_source_is_told_from_a_slow_one(age: float | None, lost: str | None, words: str) -> None:
    found = why(part(messages=0), known=msgspec.structs.replace(LIVE, age=age))
    assert found.lost == lost
    assert words in found.verdict
