"""Many clients that connect and disconnect, as on a busy day, and keep no frames. Runs on the event loop."""

from __future__ import annotations

import asyncio
import random
from urllib.parse import quote

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

_OPEN_SECONDS = 5.0
# The least and the most seconds that a client stays connected.
_STAY_SECONDS = (10.0, 180.0)
# The first code of the simulator's Shanghai stocks, and how many of them are subscribed in all.
_FIRST, _CODES = 600000, 1500

_FORMULA = {"formula_name": "MA", "period": "1m", "count": 60, "stock_code": "600000.SH"}


def visit(chance: random.Random, key: str) -> tuple[str, bytes | None]:
    """Return the URL's path of a new client and its first frame."""
    kind = chance.random()
    first = chance.randrange(_CODES)
    codes = [f"{_FIRST + (first + number) % _CODES}.SH" for number in range(chance.randint(1, 30))]
    if kind < 0.1:
        return "/ws/whole_quote", orjson.dumps({"codes": ["SH", "SZ", "BJ"]})
    if kind < 0.2:
        return "/ws/l2_thousand", orjson.dumps({"stocks": codes[:5]})
    if kind < 0.3:
        return "/ws/formula", orjson.dumps(_FORMULA | {"stock_code": codes[0]})
    if kind < 0.4:
        return f"/ws/trade?api_key={quote(key)}", None
    request: dict[str, object] = {"stocks": codes, "period": "tick"}
    if kind < 0.7:
        request |= {"seq": True, "fields": ["lastPrice", "volume"], "max_rate_ms": 1000}
    return "/ws/realtime", orjson.dumps(request)


class Crowd:
    """A number of clients; each is replaced by another one when it disconnects or is disconnected."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.frames = 0
        self.visits = 0
        # The number of open connections.
        self.present = 0
        self._random = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, ports: list[int], key: str) -> None:
        """Connect all clients within a second."""
        self._tasks = [asyncio.create_task(self._one(ports[number % len(ports)], key)) for number in range(self.size)]

    async def stop(self) -> None:
        """Disconnect all clients, without replacements."""
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        self._tasks = []

    async def _one(self, port: int, key: str) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0.0, 1.0))
            path, first = visit(self._random, key)
            try:
                async with (
                    connect(
                        f"ws://127.0.0.1:{port}{path}",
                        proxy=None,
                        compression=None,
                        open_timeout=_OPEN_SECONDS,
                        max_size=None,
                    ) as socket,
                    asyncio.timeout(self._random.uniform(*_STAY_SECONDS)),
                ):
                    self.visits += 1
                    self.present += 1
                    try:
                        if first is not None:
                            await socket.send(first.decode())
                        async for _ in socket:
                            self.frames += 1
                    finally:
                        self.present -= 1
            except (OSError, WebSocketException, TimeoutError):
                continue
