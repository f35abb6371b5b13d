"""Questions about the past of a topic that the source looks for, and their limits (docs/wire.md, "history").

The publisher's thread drives it; it has no sockets and no clock. A source looks on a thread, or in a process, of its
own. Every user of the machine may ask, so what the source can be made to do has limits: so many questions at once, and
so many in a time, that nobody can have it download a whole market.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from feeder.registry import Entry, Registry
from feeder.source import Source
from qmt_bridge.answering.askers import Peer
from qmt_bridge.errors import BadRequest, ErrorCode, Refused
from qmt_bridge.wire.requests import AskHistory
from qmt_bridge.wire.source_history import PART_BYTES, SourceHistory, encode_source_history
from qmt_bridge.wire.topics import Kind

logger = logging.getLogger(__name__)

# Questions that the source works on or that wait for it: of all connections, and of one.
MOST = 64
MOST_OF_ONE = 32
# Questions at once, and the seconds after which there may be one more: a whole market takes 15 hours.
BURST = 400
REFILL_SECONDS = 10.0


class _Question(NamedTuple):
    peer: Peer
    ask: AskHistory
    # The newest message of the topic when the question came.
    seq: int
    last: msgspec.Raw


class Found(NamedTuple):
    """The answers to a question, their bytes, and what is answered if there is no room for them."""

    peer: Peer
    parts: Iterator[bytes]
    size: int
    instead: bytes


class Budget:
    """A number of things that may be done at once, and one more after each pause; time is an argument (seconds)."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._burst = burst
        self._seconds = seconds
        self._left = float(burst)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Return whether one more may be done, and count it."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) / self._seconds)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Histories:
    """The questions that are being answered; `on_refused` is called with the reason for each that is over a limit."""

    def __init__(self, registry: Registry, source: Source, on_refused: Callable[[bytes, str, object], None]) -> None:
        self._registry = registry
        self._source = source
        self._on_refused = on_refused
        self._budget = Budget(BURST, REFILL_SECONDS)
        self._questions: dict[int, _Question] = {}
        self._askers: Counter[bytes] = Counter()
        self._number = 0

    def __len__(self) -> int:
        return len(self._questions)

    def take(self, peer: Peer, ask: AskHistory, now: float) -> bytes:
        """Have the source look, if it may; return the first answer."""
        try:
            return self._take(peer, ask, now)
        except BadRequest as exc:
            return self._refusal(ask, exc.code, exc.reason)

    def found(self, number: int, bodies: Sequence[bytes], from_ms: int) -> Found | None:
        """Return the answers to a question; None if it is none that waits."""
        question = self._forget(number)
        if question is None:
            return None
        entry = self._registry.entry(question.ask.topic)
        newest = question.seq if entry is None else entry.seq
        instead = self._refusal(question.ask, "rate_limited", "too much waits for its asker, which does not read")
        return Found(question.peer, self._parts(question, bodies, from_ms, newest), sum(map(len, bodies)), instead)

    def refused(self, number: int, code: ErrorCode, reason: str) -> tuple[Peer, Iterator[bytes], int] | None:
        """Return the answer to a question that the source could not answer; None if it is none that waits."""
        question = self._forget(number)
        if question is None:
            return None
        answer = self._refusal(question.ask, code, reason)
        return question.peer, iter((answer,)), len(answer)

    def _take(self, peer: Peer, ask: AskHistory, now: float) -> bytes:
        entry = self._registry.entry(ask.topic)
        if entry is None:
            self._registry.check(ask.topic)
        if entry is None or entry.state == "pending":
            # What is published before the source serves the topic would be missing between the two.
            return encode_source_history(SourceHistory(ask.id, ask.topic, "pending", epoch=self._registry.epoch))
        if entry.state == "refused":
            raise BadRequest(entry.code or "upstream_refused", entry.reason or "the source does not serve it")
        if entry.parts.kind is not Kind.QUOTE:
            raise BadRequest("upstream_refused", f"there is a history of quotes alone, and none of {entry.parts.kind}")
        if len(self._questions) >= MOST or self._askers[peer[0]] >= MOST_OF_ONE:
            self._over(peer, f"{len(self._questions)} questions for the history of a code wait already")
        if not self._budget.take(now):
            self._over(peer, f"the history of {BURST} codes was asked for; one more in {REFILL_SECONDS:g} s")
        self._look(peer, ask, entry)
        return encode_source_history(SourceHistory(ask.id, ask.topic, "taken", epoch=self._registry.epoch))

    def _over(self, peer: Peer, reason: str) -> None:
        self._on_refused(peer[0], "a question for a history", reason)
        raise BadRequest("rate_limited", reason)

    def _look(self, peer: Peer, ask: AskHistory, entry: Entry) -> None:
        self._number += 1
        last = msgspec.Raw(b"null" if entry.body is None else entry.body)
        self._questions[self._number] = _Question(peer, ask, entry.seq, last)
        self._askers[peer[0]] += 1
        try:
            self._source.history(self._number, entry.topic, entry.parts, ask.day_ms)
        except Refused as exc:
            self._forget(self._number)
            raise BadRequest(exc.code, exc.reason) from exc
        except Exception as exc:
            self._forget(self._number)
            logger.exception("source %s failed to look for a history", self._source.name)
            raise BadRequest("internal", f"source {self._source.name} failed: {exc}") from exc

    def _forget(self, number: int) -> _Question | None:
        question = self._questions.pop(number, None)
        if question is not None:
            name = question.peer[0]
            self._askers[name] -= 1
            if not self._askers[name]:
                del self._askers[name]
        return question

    def _refusal(self, ask: AskHistory, code: ErrorCode, reason: str) -> bytes:
        answer = SourceHistory(ask.id, ask.topic, "refused", reason, code, self._registry.epoch)
        return encode_source_history(answer)

    def _parts(self, question: _Question, bodies: Sequence[bytes], from_ms: int, newest: int) -> Iterator[bytes]:
        """Yield the parts of a history, each made when the one before was sent."""
        part: list[msgspec.Raw] = []
        size = 0

        def made(more: bool) -> bytes:
            ask = question.ask
            answer = SourceHistory(ask.id, ask.topic, "history", None, None, self._registry.epoch, question.seq)
            whole = {"last": question.last, "newest": newest, "from_ms": from_ms, "bodies": part, "more": more}
            return encode_source_history(msgspec.structs.replace(answer, **whole))

        for body in bodies:
            if part and size + len(body) > PART_BYTES:
                yield made(True)
                part, size = [], 0
            part.append(msgspec.Raw(body))
            size += len(body)
        yield made(False)
