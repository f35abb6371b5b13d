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
        self._names = set(names)
        self._reached: dict[str, tuple[int, int]] = {}
        # The market of each code whose positions are those of its market.
        self._markets: dict[str, str] = {}
        # The feeder's epoch when the stream began; 0 while that is not known.
        self._began = 0

    def add(self, names: Iterable[str]) -> None:
        """Take further names."""
        self._names.update(names)

    def began(self, epoch: int) -> None:
        """Take the epoch of the feeder: of codes without a last value nothing was published in it before."""
        self._began = self._began or epoch

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
        known = self._reached
        if self._began and request.get("complete") and request.get("snapshot", True) and "start" not in request:
            # All that was published of the others came after the stream had begun.
            known = dict.fromkeys(request[field], (self._began, 0)) | self._reached
        reached = [name for name in request[field] if name in known]
        if not reached:
            return [request]
        if request.get("speed"):
            # What is played together has to be asked for together.
            return [{**request, "start": {name: self._start(name, request, known) for name in request[field]}}]
        again = []
        for at in range(0, len(reached), CODES_A_REQUEST):
            part = reached[at : at + CODES_A_REQUEST]
            start = {name: self._start(name, request, known) for name in part}
            again.append({**request, field: part, "start": start})
        rest = [name for name in request[field] if name not in known]
        return [*again, {**request, field: rest}] if rest else again

    def _start(self, name: str, request: dict[str, Any], known: Mapping[str, tuple[int, int]]) -> Any:
        """Return where a code goes on: behind its position, or at the start of the request."""
        if name not in known:
            return request["start"]
        epoch, seq = known[name]
        return {"epoch": epoch, "seq": seq} | ({"market": self._markets[name]} if name in self._markets else {})
