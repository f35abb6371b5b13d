"""What is said of topics and prefixes that bring nothing, and how often."""

from __future__ import annotations

import pytest

from qmt_bridge.silence import AGAIN_SECONDS, FIRST_SECONDS, Silence
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic

TICK, WHOLE = Topic("quote/600519.SH/tick/"), Topic("whole/SH/")


def frame(topic: Topic) -> Frame:
    return Frame(topic, 1, 1, 1, 1, b"")


def remarks(silence: Silence, *moments: float) -> list[bool]:
    return [silence.remark(at) is not None for at in moments]


def test_silence_is_told_after_some_seconds_and_then_rarely() -> None:
    silence = Silence([Topic("quote/")])
    told = FIRST_SECONDS + 1
    moments = (0.0, FIRST_SECONDS - 1, told, told + 1, told + AGAIN_SECONDS - 1, told + AGAIN_SECONDS)
    assert remarks(silence, *moments) == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("wanted", "heard", "said"),
    [
        pytest.param(["quote/"], [], "for quote/: a prefix asks for nothing", id="prefix"),
        pytest.param(["quote/", "whole/"], [WHOLE], "for quote/: a prefix", id="one-of-two-prefixes"),
        pytest.param(["quote/", TICK], [TICK], None, id="prefix-of-what-is-asked-for"),
        pytest.param(["quote/"], [TICK], None, id="others-asked"),
        pytest.param(["trade/"], [], "no trade events yet", id="trade"),
        pytest.param([TICK], [], "outside trading hours", id="topic"),
        pytest.param(["trade/1000000365/"], [], "for trade/******0365/: outside", id="account-is-masked"),
        pytest.param([TICK, WHOLE], [WHOLE], None, id="one-of-two-topics"),
        pytest.param([], [], None, id="nothing-wanted"),
    ],
)
def test_what_is_silent_is_named_with_what_to_do(wanted: list[str], heard: list[Topic], said: str | None) -> None:
    silence = Silence(Topic(topic) for topic in wanted)
    silence.note(frame(topic) for topic in heard)
    found = silence.summary()
    assert (found is None) if said is None else (found is not None and said in found)


def test_of_thousands_of_topics_three_are_named() -> None:
    said = Silence(Topic(f"quote/{number:06}.SZ/tick/") for number in range(6000)).summary()
    assert said is not None
    assert "and 5997 more" in said
    assert len(said) < 400
