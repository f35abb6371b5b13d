"""Clients that begin in the past: each asks for the day so far, and then goes on live. They run on the event loop."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Any

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from qmt_bridge.wire.moments import midnight, shown_moment
from tests.chaos.mornings import UNTOLD_SECONDS, Arrival, Place, Published, Visit
from tests.chaos.watchers import Watcher

_OPEN_SECONDS = 5.0
# The least and the most seconds that a client stays which leaves by itself.
_STAY_SECONDS = (2.0, 15.0)
# So many ms in the past a client begins at most.
_PAST_MS = 30_000
# So many missing messages are shown of a client.
_SHOWN = 5


class Joiner(Watcher):
    """Joins with a start in the past; `stays` until it is cut and then goes on from its positions, or leaves at random.

    With `pause` it reads a frame in so many seconds. Of `untold_seconds` see `Visit`.
    """

    def __init__(
        self,
        name: str,
        stocks: list[str],
        published: Published,
        *,
        stays: bool = False,
        pause: float = 0.0,
        untold_seconds: float = UNTOLD_SECONDS,
    ) -> None:
        super().__init__(name)
        self.visits: list[Visit] = []
        # Set when no more client is to leave.
        self.staying = stays
        self._stocks = stocks
        self._published = published
        self._stays = stays
        self._pause = pause
        self._untold_seconds = untold_seconds
        self._codes: list[str] = []
        # From when on, in ms since 1970, and up to where it has them.
        self._past = 0
        self._places: dict[str, Place] = {}
        self._heard_of: dict[str, float] = {}

    def silent(self, since: float) -> list[str]:
        """Return the codes without a message since then (time.monotonic()); one that has just joined has none."""
        return [code for code in self._codes if self._heard_of.get(code, 0.0) < since] or ["any"] * (not self._codes)

    @property
    def frames(self) -> int:
        """Return how many messages it has received."""
        return sum(len(arrivals) for visit in self.visits for arrivals in visit.arrivals.values())

    def faults(self) -> list[str]:
        """Return what differs from what was published, where it was not told so."""
        found = [f"{self.name} received {fault}" for visit in self.visits for fault in visit.misplaced(self._published)]
        untold = [missing for visit in self.visits for missing in visit.untold(self._published)]
        found += [f"{self.name} misses, and was not told, {missing}" for missing in untold[:_SHOWN]]
        if len(untold) > _SHOWN:
            found.append(f"{self.name} misses {len(untold) - _SHOWN} more")
        return found

    async def _listen(self, port: int, key: str) -> None:
        while True:
            if not self._codes or not self._stays:
                self._begin(random.randint(1, 4), random.randint(0, _PAST_MS))
            stay = math.inf if self.staying else random.uniform(*_STAY_SECONDS)
            await self._visit(port, stay)
            self.reconnects += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))

    def _begin(self, codes: int, past_ms: int) -> None:
        """Choose so many codes, and to begin so long ago."""
        self._codes = random.sample(self._stocks, codes)
        self._past = time.time_ns() // 1_000_000 - past_ms
        self._places = {}

    async def _visit(self, port: int, stay: float) -> None:
        start: int | dict[str, Place] = dict(self._places) if self._places.keys() >= set(self._codes) else self._past
        shown: Any = start
        if isinstance(start, int):
            # At midnight the time of day would be one of the day that has begun.
            of_today = midnight(start) == midnight(time.time_ns() // 1_000_000)
            shown = shown_moment(start) if of_today and random.random() < 0.5 else start
        elif start:
            shown = {code: place._asdict() for code, place in start.items()}
        request = {"id": 1, "stocks": self._codes, "start": shown, "seq": True, "mode": "all"}
        visit = Visit(start, self._untold_seconds)
        self.visits.append(visit)
        until = time.monotonic() + stay
        try:
            url = f"ws://127.0.0.1:{port}/ws/realtime"
            async with connect(url, proxy=None, compression=None, open_timeout=_OPEN_SECONDS) as socket:
                await socket.send(orjson.dumps(request).decode())
                async for text in socket:
                    if not self._take(orjson.loads(text), visit):
                        break
                    if self._is_over() or (time.monotonic() > until and not self.staying):
                        break
                    await self.reading.wait()
                    if self._pause:
                        await asyncio.sleep(self._pause)
        except (OSError, WebSocketException, TimeoutError):
            pass
        visit.ended_at = time.monotonic()

    def _is_over(self) -> bool:
        """Return whether it has what it came for."""
        return False

    def _take(self, frame: dict[str, Any], visit: Visit) -> bool:
        """Take a frame; return False if the gateway asks to try again, as while the feeder is away."""
        match frame["type"]:
            case "data":
                [(code, [record, *_])] = frame["data"].items()
                place = Place(frame["epoch"], frame["seq"])
                self._published.add(code, place, record["time"])
                visit.arrivals[code].append(Arrival(place, time.monotonic()))
                self._places[code] = place
                self._heard_of[code] = time.monotonic()
                self._note()
            case "subscribed":
                visit.acknowledged(frame["start"])
                return not frame["rejected"]
            case "error":
                if not frame["retry"]:
                    raise AssertionError(f"the gateway says {frame}")
                return False
            case _:
                visit.told(frame)
        return True
