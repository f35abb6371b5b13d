"""Clients that are read their morning again and again, so that a kill finds them in the middle of it."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter, defaultdict

from tests.chaos.joiners import Joiner
from tests.chaos.mornings import Place, Published

# A kill has a victim; in turn.
VICTIMS = ("store", "feeder", "worker")
# Seconds for each frame: the morning of some codes is read in some seconds.
_PAUSE = 0.002
# So many ms in the past a client begins, at least and at most; and of how many codes.
_PAST_MS = (8_000, 16_000)
_CODES = (2, 3)
# A stream is in the middle of its morning while so many messages are still to come, and live with fewer than these.
_MIDDLE, _LIVE = 20, 5
# Seconds that a client stays when all its codes are live: notices come once a second.
_LIVE_SECONDS = 1.5


class Streams:
    """The streams that kills have found in the middle of their mornings, by the victim."""

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        # How they have ended: live without a hole, or live and told what is missing; the others have not ended.
        self.complete: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        # What was wrong with what was received after a kill.
        self.wrong: dict[str, list[str]] = defaultdict(list)

    def killed(self, victim: str, streams: int) -> None:
        """Note a kill that found so many streams in the middle."""
        self.kills[victim] += 1
        self.found[victim] += streams

    def ended(self, victim: str, notices: int) -> None:
        """Note a stream that has gone on to the live one, after so many notices since the kill."""
        if notices:
            self.told[victim] += 1
        else:
            self.complete[victim] += 1

    def unended(self, victim: str) -> int:
        """Return how many streams have not gone on."""
        return self.found[victim] - self.complete[victim] - self.told[victim]

    def shown(self, victim: str) -> str:
        """Return the line of a victim."""
        return (
            f"{self.kills[victim]} times, {self.found[victim]} streams in the middle: {self.complete[victim]} ended "
            f"complete, {self.told[victim]} were told what is missing, {self.unended(victim)} did not go on, "
            f"{len(self.wrong.get(victim, ()))} faults"
        )


class Reader(Joiner):
    """Reads some codes from a moment on until all of them are live, goes on after a cut, and then begins anew."""

    def __init__(self, name: str, stocks: list[str], published: Published, streams: Streams) -> None:
        super().__init__(name, stocks, published, stays=True, pause=_PAUSE, untold_seconds=0.0)
        # How often it was read a morning up to the live stream.
        self.mornings = 0
        self._streams = streams
        self._victim = "none"
        # Of each code that was in the middle when the victim was killed: the newest message then, beyond which it has
        # to get, and how many notices there had been.
        self._marks: dict[str, tuple[Place, int]] = {}
        self._live_since: float | None = None
        # The run of the feeder in which it is live.
        self._live_epoch = 0
        self._is_done = False

    async def _listen(self, port: int, key: str) -> None:
        while True:
            if not self._codes or self._is_done:
                self.judge()
                self._begin(random.randint(*_CODES), random.randint(*_PAST_MS))
            await self._visit(port, 0.0)
            self.reconnects += 1
            await asyncio.sleep(random.uniform(0.1, 0.3))

    def in_the_middle(self) -> list[str]:
        """Return the codes of which it has some messages and waits for many."""
        return [code for code in self._places if not self._is_done and self._behind(code) >= _MIDDLE]

    def mark(self, victim: str) -> int:
        """Note that a victim is killed now; return how many streams are in the middle."""
        self._settle()
        streams = self.in_the_middle()
        if streams:
            self._victim = victim
        self._marks = {code: (self._published.newest[code], self._notices(code)) for code in streams}
        return len(streams)

    def has_passed(self) -> bool:
        """Return whether all that was in the middle has got beyond the newest messages of the moment of the kill."""
        return all(self._places.get(code, Place(0, 0)) > mark for code, (mark, _) in self._marks.items())

    def judge(self) -> None:
        """Compare what it has received with what was published, and forget it."""
        self._settle()
        self._streams.wrong[self._victim] += self.faults()
        self.mornings += self._is_done
        self.visits.clear()
        self._victim, self._live_since, self._is_done = "none", None, False

    def _settle(self) -> None:
        """Note how the streams have gone on that the last kill found in the middle."""
        for code, (mark, notices) in self._marks.items():
            if self._places.get(code, Place(0, 0)) > mark:
                self._streams.ended(self._victim, self._notices(code) - notices)
        self._marks = {}

    def _notices(self, code: str) -> int:
        return sum(visit.notices(code) for visit in self.visits)

    def _behind(self, code: str) -> float:
        place, newest = self._places[code], self._published.newest[code]
        return newest.seq - place.seq if newest.epoch == place.epoch else math.inf

    def _is_over(self) -> bool:
        epoch = max((place.epoch for place in self._places.values()), default=0)
        is_live = self._places.keys() >= set(self._codes) and all(self._behind(code) <= _LIVE for code in self._codes)
        if not (is_live and self.has_passed()):
            self._live_since = None
        elif self._live_since is None or epoch != self._live_epoch:
            # The notice that the feeder is another one comes after its first frames.
            self._live_since, self._live_epoch = time.monotonic(), epoch
        self._is_done = self._live_since is not None and time.monotonic() - self._live_since >= _LIVE_SECONDS
        return self._is_done
