"""Questions to all workers through the feeder, and this worker's answers to those of others. Runs on the event loop.

Each worker answers for itself, so none keeps what another one knows. One that does not answer in time is named.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.requests import Surveyed
from qmt_bridge.wire.survey import FEEDER, FINDING_BYTES, Attend, Finding, Found, Question, Roll, Survey, What

logger = logging.getLogger(__name__)

# Seconds that a survey waits for findings.
TIMEOUT = 2.0
# Surveys of this worker that may be under way.
MOST = 20
# Questions of other workers that are being answered.
MOST_ANSWERS = 100

Shape = TypeVar("Shape", bound=msgspec.Struct)
# Answers a question: given what it is about and its terms; returns a finding that can be encoded as JSON.
Answer = Callable[[What, msgspec.Raw], Awaitable[object]]


class TooMany(Exception):
    """Too many surveys are under way."""


class Link(Protocol):
    """The connection to the feeder (gateway.feed.Feed)."""

    def survey(self, ask: Attend | Survey | Finding) -> bool:
        """Send a part of a survey; return False while there is no connection."""


class Findings(NamedTuple):
    """What a survey has found, by the name of the worker, and the names of those that have not answered."""

    found: dict[str, msgspec.Raw]
    missing: list[str]

    @property
    def complete(self) -> bool:
        """Return whether all have answered."""
        return not self.missing

    def read(self, shape: type[Shape]) -> dict[str, Shape]:
        """Return what the workers have found, ordered by their names; one that cannot be read becomes a missing one."""
        read: dict[str, Shape] = {}
        for name in sorted(self.found.keys() - {FEEDER}):
            part = self._read(name, shape)
            if part is not None:
                read[name] = part
        return read

    def of_feeder(self, shape: type[Shape]) -> Shape | None:
        """Return what the feeder has found; None if it has not answered."""
        return self._read(FEEDER, shape) if FEEDER in self.found else None

    def _read(self, name: str, shape: type[Shape]) -> Shape | None:
        try:
            found: Shape = frames.read(_decoder(shape), self.found[name])
        except WireError as exc:
            # A worker or a feeder of another version.
            logger.warning("what %s has found cannot be read: %s", name, exc)
            self.missing.append(name)
            return None
        return found


class _Open:
    """A survey of this worker that waits for findings."""

    def __init__(self) -> None:
        self.asked: list[str] | None = None
        self.found: dict[str, msgspec.Raw] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look(self) -> None:
        """End the waiting if all that were asked have answered."""
        if self.asked is not None and self.found.keys() >= set(self.asked) and not self.done.done():
            self.done.set_result(None)


class Surveys:
    """The surveys of one worker, which is called `name`."""

    def __init__(self, name: str, link: Link, answer: Answer) -> None:
        self.name = name
        self._link = link
        self._answer = answer
        self._open: dict[int, _Open] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._numbers = 0
        # Why the feeder takes no surveys from this worker; None as far as is known.
        self._refused: str | None = None

    async def ask(self, what: What, terms: object, worker: str | None = None, takes: float = 0.0) -> Findings:
        """Ask everybody, this worker included, or one `worker` alone; raise `TooMany`.

        Without the feeder only this worker answers, and `missing` names the feeder. `takes` is for how many seconds
        those that are asked look before they answer.
        """
        encoded = msgspec.Raw(msgspec.json.encode(terms))
        if len(self._open) >= MOST:
            raise TooMany
        if worker == self.name:
            return await self._ask_itself(what, encoded)
        if worker is not None:
            return await self._ask(what, encoded, worker, TIMEOUT + takes)
        # At the same time, because each of them may look for some seconds.
        own, others = await asyncio.gather(
            self._ask_itself(what, encoded), self._ask(what, encoded, None, TIMEOUT + takes)
        )
        return Findings(own.found | others.found, others.missing)

    async def _ask_itself(self, what: What, terms: msgspec.Raw) -> Findings:
        return Findings({self.name: _encoded(await self._answer(what, terms))}, [])

    async def _ask(self, what: What, encoded: msgspec.Raw, worker: str | None, seconds: float) -> Findings:
        found: dict[str, msgspec.Raw] = {}
        self._numbers += 1
        number = self._numbers
        waiting = self._open[number] = _Open()
        try:
            if self._link.survey(Survey(number, what, encoded, worker)):
                await asyncio.wait([waiting.done], timeout=seconds)
        finally:
            del self._open[number]
        if waiting.asked is None:
            # It has not answered, or takes no surveys.
            return Findings(found | waiting.found, [FEEDER])
        missing = [name for name in waiting.asked if name not in waiting.found]
        return Findings(found | waiting.found, missing)

    def attend(self) -> None:
        """Tell the feeder that this worker answers; called once a second, and when a new feeder is seen."""
        if self._refused is None:
            self._link.survey(Attend(0, self.name))

    def begin_anew(self) -> None:
        """Take that the feeder is a new one, which may admit this worker."""
        self._refused = None
        self.attend()

    def leave(self) -> None:
        """Tell the feeder that this worker answers no more."""
        self._link.survey(Attend(0, self.name, leaves=True))
        for task in self._answers:
            task.cancel()

    def take(self, said: Surveyed) -> None:
        """Take what the feeder says of a survey."""
        match said:
            case Question():
                if len(self._answers) < MOST_ANSWERS:
                    task = asyncio.get_running_loop().create_task(self._find(said))
                    self._answers.add(task)
                    task.add_done_callback(self._answers.discard)
            case Roll():
                self._take_roll(said)
            case Found():
                waiting = self._open.get(said.id)
                if waiting is not None:
                    waiting.found[said.worker] = msgspec.Raw(bytes(said.found))
                    waiting.look()

    def _take_roll(self, roll: Roll) -> None:
        waiting = self._open.get(roll.id)
        if roll.error is not None:
            if self._refused is None:
                self._refused = roll.error
                logger.warning("this worker cannot ask the others, nor they it: %s", roll.error)
            if waiting is not None and not waiting.done.done():
                waiting.done.set_result(None)
        elif waiting is not None:
            waiting.asked = roll.asked
            waiting.look()

    async def _find(self, question: Question) -> None:
        try:
            found = _encoded(await self._answer(question.what, question.terms))
        except WireError as exc:
            logger.warning("a question of another worker cannot be read: %s", exc)
            return
        except Exception:
            # A bug of ours, of which the asker learns by the missing answer.
            logger.exception("a survey about %s failed", question.what)
            return
        self._link.survey(Finding(question.id, self.name, found))


@functools.cache
def _decoder(shape: type[Shape]) -> msgspec.json.Decoder[Shape]:
    return msgspec.json.Decoder(shape)


def _encoded(found: object) -> msgspec.Raw:
    encoded = msgspec.json.encode(found)
    # Beyond this the feeder would end the connection of the worker.
    assert len(encoded) <= FINDING_BYTES + 32 * 1024, len(encoded)
    return msgspec.Raw(encoded)
