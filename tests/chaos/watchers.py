"""The clients of a run, on the event loop: each keeps what it receives, reconnects by the rules, and can stall."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from typing import Any
from urllib.parse import quote

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from qmt_bridge import QMTClient
from qmt_bridge.closes import may_reconnect
from tests.chaos.verdict import Received, received

_OPEN_SECONDS = 5.0
# Milliseconds of published data within which a notice of a gap must come; a worker may be frozen for seconds.
_TOLD_MS = 8000


class Watcher:
    """What every client of a run has: events, longest silence, and its failure, if there was one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.got: list[Received] = []
        self.failure: str | None = None
        self.reconnects = 0
        self.longest = 0.0
        # Cleared while the client does not read.
        self.reading = asyncio.Event()
        self.reading.set()
        self._heard = time.monotonic()

    @property
    def position(self) -> int:
        """Return the last event's position."""
        return self.got[-1].seq if self.got else 0

    async def run(self, port: int, key: str) -> None:
        """Receive until cancelled."""
        try:
            await self._listen(port, key)
        except Exception as exc:
            self.failure = f"{type(exc).__name__}: {exc}"

    async def _listen(self, port: int, key: str) -> None:
        raise NotImplementedError

    def _note(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._heard)
        self._heard = now


class LibraryTrader(Watcher):
    """Receives trade events by QMTClient, which resumes by itself."""

    async def _listen(self, port: int, key: str) -> None:
        async for event in QMTClient("127.0.0.1", port, key, connect_timeout=math.inf).trade_events(after=0):
            self.got.append(received(event))
            self._note()
            await self.reading.wait()


class RawTrader(Watcher):
    """Receives trade events by a plain WebSocket with ``after=``; with `notices` it names the epoch too."""

    def __init__(self, name: str, notices: bool) -> None:
        super().__init__(name)
        self._notices = notices
        self._epoch = 0

    async def _listen(self, port: int, key: str) -> None:
        while True:
            url = f"ws://127.0.0.1:{port}/ws/trade?api_key={quote(key)}&after={self.position}"
            if self._notices:
                url += "&ctl=1" + f"&epoch={self._epoch}" * bool(self._epoch)
            code: int | None = None
            try:
                async with connect(url, proxy=None, compression=None, open_timeout=_OPEN_SECONDS) as socket:
                    async for text in socket:
                        event = orjson.loads(text)
                        if event["type"] == "error":
                            raise AssertionError(f"the gateway says {event}")
                        if "data" in event:
                            self.got.append(received(event))
                            self._note()
                        else:
                            self._epoch = event.get("epoch") or self._epoch
                        await self.reading.wait()
                    code = socket.close_code
            except (OSError, WebSocketException, TimeoutError) as exc:
                code = getattr(getattr(exc, "rcvd", None), "code", None)
            if code is not None and not may_reconnect(code):
                raise AssertionError(f"closed with {code}")
            self.reconnects += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))


class QuoteWatcher(Watcher):
    """Receives stamped ticks: every gap in the sequence numbers of a topic has to be explained by a notice."""

    def __init__(self, name: str, stocks: list[str]) -> None:
        super().__init__(name)
        self.frames = 0
        # The numbers of skipped frames in notices, by their reason.
        self.skipped: Counter[str] = Counter()
        # Missing messages without a notice: for all times, and below on the open connection.
        self.holes = 0
        # On the open connection: missing messages, and those that notices have told of.
        self.missing = 0
        self.told = 0
        self._stocks = stocks
        # When a tick of each stock was last received.
        self._heard_of = dict.fromkeys(stocks, 0.0)
        # When the frame that showed a gap without a notice was published, in ms.
        self._untold_since: float | None = None

    @property
    def unexplained(self) -> int:
        """Return how many messages are missing without a notice."""
        return self.holes + max(0, self.missing - self.told)

    def silent(self, since: float) -> list[str]:
        """Return the stocks without a tick since then (time.monotonic())."""
        return [code for code, at in self._heard_of.items() if at < since]

    async def _listen(self, port: int, key: str) -> None:
        request = orjson.dumps({"action": "subscribe", "id": 1, "stocks": self._stocks, "seq": True}).decode()
        while True:
            self.missing = self.told = 0
            self._untold_since = None
            positions: dict[str, tuple[int, int]] = {}
            try:
                url = f"ws://127.0.0.1:{port}/ws/realtime"
                async with connect(url, proxy=None, compression=None, open_timeout=_OPEN_SECONDS) as socket:
                    await socket.send(request)
                    async for text in socket:
                        self._take(orjson.loads(text), positions)
                        await self.reading.wait()
            except (OSError, WebSocketException, TimeoutError):
                pass
            self.reconnects += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))

    def _take(self, frame: dict[str, Any], positions: dict[str, tuple[int, int]]) -> None:
        if frame["type"] == "skipped":
            self.told += frame["count"]
            self.skipped[frame["reason"]] += frame["count"]
        if frame["type"] != "data":
            return
        self.frames += 1
        self._note()
        [code] = frame["data"]
        self._heard_of[code] = time.monotonic()
        epoch, seq = positions.get(code, (0, 0))
        if frame["epoch"] == epoch:
            if frame["seq"] <= seq:
                raise AssertionError(f"{code} came with seq {frame['seq']} after {seq}")
            self.missing += frame["seq"] - seq - 1
        elif frame["epoch"] < epoch:
            raise AssertionError(f"{code} came from an older epoch of the feeder")
        positions[code] = frame["epoch"], frame["seq"]
        if self.missing <= self.told:
            self._untold_since = None
        elif frame["published"] is None:
            # A last value, which is not newly published.
            return
        elif self._untold_since is None:
            self._untold_since = frame["published"]
        elif frame["published"] - self._untold_since > _TOLD_MS:
            # Too late: the notice should have come by now.
            self.holes += self.missing - self.told
            self.missing = self.told
