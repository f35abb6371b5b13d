"""Surveys of one worker: whom it waits for, whom it names, and what it answers. The feeder is the test."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.admin import surveys as surveys_module
from gateway.admin.surveys import Surveys, TooMany
from qmt_bridge.errors import WireError
from qmt_bridge.wire.survey import Attend, Finding, Found, Question, Roll, Survey
from tests.support.waiting import until

OWN, OTHER, THIRD = "aaaaaaaa", "bbbbbbbb", "cccccccc"


class Part(msgspec.Struct):
    number: int


class Link:
    """What was sent to the feeder."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.connected = True

    def survey(self, ask: Attend | Survey | Finding) -> bool:
        self.sent.append(ask)
        return self.connected


async def answer(what: str, terms: msgspec.Raw) -> Part:
    if what == "end":
        raise WireError("no terms")
    if what == "kick":
        raise LookupError
    return Part(1)


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def surveys(link: Link) -> Surveys:
    return Surveys(OWN, link, answer)


def found(number: int, worker: str, value: object) -> Found:
    return Found(number, worker, msgspec.Raw(msgspec.json.encode(value)))


async def asked(surveys: Surveys, link: Link, worker: str | None = None) -> asyncio.Task[Any]:
    task = asyncio.create_task(surveys.ask("state", None, worker))
    before = len(link.sent)
    await until(lambda: len(link.sent) > before)
    return task


async def test_all_that_are_asked_are_waited_for(surveys: Surveys, link: Link) -> None:
    task = await asked(surveys, link)
    assert link.sent == [Survey(1, "state", msgspec.Raw(b"null"))]
    surveys.take(found(1, OTHER, Part(2)))
    surveys.take(Roll(1, [OTHER, THIRD, "feeder"]))
    surveys.take(found(1, "feeder", Part(4)))
    assert not task.done()
    surveys.take(found(1, THIRD, Part(3)))
    findings = await task
    assert (findings.complete, findings.missing) == (True, [])
    assert {name: part.number for name, part in findings.read(Part).items()} == {OWN: 1, OTHER: 2, THIRD: 3}
    feeder = findings.of_feeder(Part)
    assert feeder is not None
    assert feeder.number == 4


async def test_worker_that_does_not_answer_is_named(
    surveys: Surveys, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys_module, "TIMEOUT", 0.05)
    task = await asked(surveys, link)
    surveys.take(Roll(1, [OTHER, THIRD]))
    surveys.take(found(1, THIRD, Part(3)))
    findings = await task
    assert findings.missing == [OTHER]
    assert findings.read(Part).keys() == {OWN, THIRD}
    # What comes too late is of no survey.
    surveys.take(found(1, OTHER, Part(2)))


async def test_without_a_feeder_this_worker_answers_alone(surveys: Surveys, link: Link) -> None:
    link.connected = False
    findings = await surveys.ask("state", None)
    assert (findings.missing, findings.read(Part).keys()) == (["feeder"], {OWN})


async def test_feeder_that_takes_no_surveys_ends_the_waiting(surveys: Surveys, link: Link) -> None:
    task = await asked(surveys, link)
    surveys.take(Roll(1, [], "not for this asker"))
    assert (await task).missing == ["feeder"]
    before = len(link.sent)
    surveys.attend()
    assert len(link.sent) == before
    # Another feeder may admit it.
    surveys.begin_anew()
    assert link.sent[-1] == Attend(0, OWN)


async def test_question_to_itself_needs_no_feeder(surveys: Surveys, link: Link) -> None:
    assert (await surveys.ask("state", None, OWN)).read(Part)[OWN].number == 1
    assert link.sent == []


async def test_question_to_one_worker_asks_no_other(surveys: Surveys, link: Link) -> None:
    task = await asked(surveys, link, OTHER)
    assert link.sent == [Survey(1, "state", msgspec.Raw(b"null"), OTHER)]
    surveys.take(Roll(1, [OTHER]))
    surveys.take(found(1, OTHER, Part(2)))
    assert (await task).read(Part).keys() == {OTHER}


async def test_worker_that_is_not_there_is_not_waited_for(surveys: Surveys, link: Link) -> None:
    task = await asked(surveys, link, OTHER)
    surveys.take(Roll(1, []))
    findings = await task
    assert (findings.found, findings.missing) == ({}, [])


async def test_finding_that_cannot_be_read_is_one_that_is_missing(surveys: Surveys, link: Link) -> None:
    task = await asked(surveys, link)
    surveys.take(found(1, OTHER, {"strange": True}))
    surveys.take(Roll(1, [OTHER]))
    findings = await task
    assert findings.read(Part).keys() == {OWN}
    assert findings.missing == [OTHER]


async def test_surveys_under_way_are_bounded(surveys: Surveys, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys_module, "MOST", 1)
    task = await asked(surveys, link)
    with pytest.raises(TooMany):
        await surveys.ask("state", None)
    surveys.take(Roll(1, []))
    await task
    link.connected = False
    await surveys.ask("state", None)


async def test_question_of_another_worker_is_answered(surveys: Surveys, link: Link) -> None:
    surveys.take(Question(9, "state"))
    await until(lambda: link.sent)
    assert link.sent == [Finding(9, OWN, msgspec.Raw(b'{"number":1}'))]


async def test_question_that_fails_is_logged_and_not_answered(
    surveys: Surveys, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    surveys.take(Question(9, "end"))
    surveys.take(Question(10, "kick"))
    surveys.take(Question(11, "state"))
    await until(lambda: link.sent)
    assert [finding.id for finding in link.sent] == [11]
    assert "cannot be read" in caplog.text
    assert "a survey about kick failed" in caplog.text
