"""The workers that answer surveys, and the surveys under way (docs/wire.md, "Surveys"). Pure; time is an argument."""

from __future__ import annotations

from typing import NamedTuple

from qmt_bridge.answering.askers import Peer
from qmt_bridge.errors import BadRequest

# Seconds after which a worker that has not said that it attends is forgotten. They say it once a second; one that is
# frozen is known that long, so that a survey names it.
FORGOTTEN_AFTER = 60.0
# Seconds after which nobody waits for findings any more; the askers wait for two.
ENDED_AFTER = 10.0
# Workers of all gateways, 64 each, and surveys of all of them.
MOST_WORKERS = 1000
MOST_SURVEYS = 1000


class _Worker(NamedTuple):
    peer: Peer
    said_at: float


class Asker(NamedTuple):
    """Who began a survey: its connection, and its own number of the survey."""

    peer: Peer
    number: int
    began: float


class Roll:
    """Which workers attend, by name, and who waits for what they find."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        # By the feeder's own number, the oldest first.
        self._surveys: dict[int, Asker] = {}
        self._numbers = 0

    def __len__(self) -> int:
        """Return how many workers attend."""
        return len(self._workers)

    def attend(self, name: str, peer: Peer, now: float) -> bool:
        """Take that a worker attends; return whether it has not before. Raise `BadRequest` beyond the limit."""
        before = self._workers.pop(name, None)
        if before is None:
            self._expire(now)
            if len(self._workers) >= MOST_WORKERS:
                raise BadRequest("rate_limited", f"more than {MOST_WORKERS} workers")
        # Behind the others: the one that has been silent longest comes first.
        self._workers[name] = _Worker(peer, now)
        return before is None

    def leave(self, name: str) -> None:
        """Take that a worker attends no longer."""
        self._workers.pop(name, None)

    def gone(self, connection: bytes) -> None:
        """Take that a connection has ended: its worker has too, or says again that it attends."""
        for name in [name for name, worker in self._workers.items() if worker.peer[0] == connection]:
            del self._workers[name]

    def begin(self, asker: Peer, number: int, only: str | None, now: float) -> tuple[int, dict[str, Peer]]:
        """Begin a survey of all workers but the one that asks, or of `only` one; return our number, and whom to ask.

        Raise `BadRequest` if too many are under way.
        """
        self._expire(now)
        if len(self._surveys) >= MOST_SURVEYS:
            raise BadRequest("rate_limited", f"more than {MOST_SURVEYS} surveys are under way")
        self._numbers += 1
        self._surveys[self._numbers] = Asker(asker, number, now)
        asked = {
            name: worker.peer
            for name, worker in self._workers.items()
            if worker.peer[0] != asker[0] and only in (None, name)
        }
        return self._numbers, dict(sorted(asked.items()))

    def asker(self, number: int, now: float) -> Asker | None:
        """Return who waits for what is found for our number of a survey; None if nobody does any more."""
        self._expire(now)
        return self._surveys.get(number)

    def _expire(self, now: float) -> None:
        for name, worker in list(self._workers.items()):
            if now - worker.said_at < FORGOTTEN_AFTER:
                break
            del self._workers[name]
        for number, asker in list(self._surveys.items()):
            if now - asker.began < ENDED_AFTER:
                break
            del self._surveys[number]
