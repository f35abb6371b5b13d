"""How far a stream of quotes has come: the position of the last message of each code, to go on there. Pure.

The source of the positions is the option `seq` (docs/websocket.md, "Options of a subscription").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Codes with positions in one request: each takes some 75 bytes, and a request has 64 KiB.
CODES_A_REQUEST = 400


class Places:
    """The position of each code or market that a stream asked for, as (epoch, seq)."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._reached: dict[str, tuple[int, int]] = {}
        # The market of each code whose positions are those of its market.
        self._markets: dict[str, str] = {}

    def take(self, frame: Mapping[str, Any]) -> bool:
        """Take a frame with its position; return whether it is new."""
        code = next(iter(frame["data"]), "")
        market = code.rpartition(".")[2]
        # The records of a code come with its market, if that was asked for too.
        name = market if market in self._names else code
        if "market" in frame:
            # The gateway reads the code out of its market.
            self._markets[name] = frame["market"]
        at, reached = (frame["epoch"], frame["seq"]), self._reached.get(name)
        if reached is not None and (at < reached or (at == reached and name != market)):
            return False
        # The parts of a market's snapshot have one position.
        self._reached[name] = at
        return True

    def resume(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what to ask instead of `request` to go on: codes with a position behind it, the others as before."""
        field = "codes" if "codes" in request else "stocks"
        reached = [name for name in request[field] if name in self._reached]
        if not reached:
            return [request]
        if request.get("speed"):
            # What is played together has to be asked for together.
            return [{**request, "start": {name: self._start(name, request) for name in request[field]}}]
        again = []
        for at in range(0, len(reached), CODES_A_REQUEST):
            part = reached[at : at + CODES_A_REQUEST]
            again.append({**request, field: part, "start": {name: self._start(name, request) for name in part}})
        rest = [name for name in request[field] if name not in self._reached]
        return [*again, {**request, field: rest}] if rest else again

    def _start(self, name: str, request: dict[str, Any]) -> Any:
        """Return where a code goes on: behind its position, or at the start of the request."""
        if name not in self._reached:
            return request["start"]
        epoch, seq = self._reached[name]
        return {"epoch": epoch, "seq": seq} | ({"market": self._markets[name]} if name in self._markets else {})
