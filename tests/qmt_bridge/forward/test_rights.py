"""What of a question is passed on, by the roles of a client's key."""

from __future__ import annotations

from typing import Any

import pytest

from qmt_bridge.errors import BadRequest, WireError
from qmt_bridge.forward.rights import admit
from qmt_bridge.wire.requests import (
    Ask,
    AskHistory,
    CatchUp,
    DownloadStarted,
    StartDownload,
    TopicState,
    decode_ask,
    encode_ask,
)
from qmt_bridge.wire.survey import Attend, Roll, Survey

TICK = "quote/600519.SH/tick/"
EPOCH = 7
DOWNLOAD = StartDownload(2, ["000001.SZ"], "1d")
ATTEND = Attend(0, "a3f09c1d")


def judged(ask: Ask, *roles: str) -> Any:
    return admit(encode_ask(ask), "desk", frozenset(roles), EPOCH)


@pytest.mark.parametrize(
    ("ask", "roles"),
    [
        pytest.param(CatchUp(1, [TICK]), ("market",), id="market data"),
        pytest.param(AskHistory(1, TICK), ("market",), id="history"),
        pytest.param(CatchUp(1, ["trade/", TICK], after=3), ("ask",), id="journal"),
        pytest.param(DOWNLOAD, ("download",), id="download"),
        pytest.param(ATTEND, ("admin",), id="attend"),
        pytest.param(Survey(3, "state"), ("admin",), id="survey"),
    ],
)
def test_question_passes_as_it_is_with_its_role(ask: Ask, roles: tuple[str, ...]) -> None:
    assert judged(ask, *roles) == (encode_ask(ask), [])


def test_what_cannot_be_read_passes_with_every_role_alone() -> None:
    """A newer feeder may know questions that this forwarder does not, and decides by the forwarder's key."""
    assert admit(b"\x93", "desk", frozenset(("ask", "download", "admin")), EPOCH) == (b"\x93", [])
    with pytest.raises(WireError):
        admit(b"\x93", "desk", frozenset(("market", "trade", "ask", "download")), EPOCH)


@pytest.mark.parametrize("topic", ["trade/", "trade/1000000365/", "trade", "trade/%"])
def test_trade_topic_without_the_role_is_refused_and_left_out(topic: str) -> None:
    question, replies = judged(CatchUp(5, [TICK, topic, topic], room=9), "market", "download", "admin", "trade")
    assert decode_ask(question) == CatchUp(5, [TICK], room=9)
    [refused] = replies
    assert isinstance(refused, TopicState)
    assert (refused.id, refused.topic, refused.state, refused.code) == (5, topic, "refused", "forbidden")
    assert refused.epoch == EPOCH
    assert "desk lacks the role" in str(refused.error)


def test_question_about_trade_events_alone_is_not_passed_on() -> None:
    assert judged(CatchUp(5, ["trade/"], after=0), "market").question is None


def test_download_without_the_role_is_refused() -> None:
    question, [refused] = judged(DOWNLOAD, "market", "ask", "admin")
    assert question is None
    assert isinstance(refused, DownloadStarted)
    assert (refused.id, refused.topic, refused.code) == (2, None, "forbidden")


@pytest.mark.parametrize("ask", [ATTEND, Survey(3, "clients")])
def test_survey_without_the_role_is_refused(ask: Attend | Survey) -> None:
    question, [refused] = judged(ask, "market", "ask", "download")
    assert question is None
    assert isinstance(refused, Roll)
    assert (refused.id, refused.asked) == (ask.id, [])
    assert "surveys are not for this asker" in str(refused.error)


def test_finding_without_the_role_is_refused_without_an_answer() -> None:
    with pytest.raises(BadRequest):
        admit(b'{"ask":"finding","id":1,"worker":"a3f09c1d","found":{}}', "desk", frozenset(("ask",)), EPOCH)
