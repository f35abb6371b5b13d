"""What a store and the alerts have reported. Pure; time is an argument. The publisher's thread owns it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from qmt_bridge.answering.askers import Peer
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.parts.report import PARTS, SILENT_SECONDS, Part, Report, Reported


class _Newest(NamedTuple):
    peer: Peer
    report: Report
    at: float


class Reports:
    """The newest report of each part."""

    def __init__(self) -> None:
        self._newest: dict[Part, _Newest] = {}

    def take(self, peer: Peer, report: Report, now: float) -> None:
        """Note a report; raise `BadRequest` for one of no part, and while another process reports of the same part."""
        part = report.part
        if part is None:
            raise BadRequest("bad_request", "a report of neither a store nor alerts")
        before = self._newest.get(part)
        if before is not None and before.peer[0] != peer[0] and now - before.at <= SILENT_SECONDS:
            # Counters of two processes, by turns, would be those of none.
            raise BadRequest("bad_request", f"another process reports of the {part}")
        if report.leaves:
            self._newest.pop(part, None)
        else:
            self._newest[part] = _Newest(peer, report, now)

    def of(self, part: Part, now: float) -> Reported | None:
        """Return the newest report of a part; None if there was none, or the part has ended. From any thread."""
        newest = self._newest.get(part)
        return None if newest is None else Reported(newest.report, max(0.0, now - newest.at))

    def states(self, now: float) -> Mapping[str, str]:
        """Return of each part that has reported whether it is ``up`` or ``silent``."""
        found = {part: self.of(part, now) for part in PARTS}
        return {part: "up" if each.up else "silent" for part, each in found.items() if each is not None}
