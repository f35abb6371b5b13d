"""What a store and the alerts tell the feeder of themselves, once a second (docs/wire.md, "Reports"). Pure.

A report is all that there is to know of its part: one that is lost costs nothing, and a new feeder knows all after a
second.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import msgspec

from qmt_bridge.wire.history import StoreStatus

Part = Literal["store", "alerts"]
PARTS: tuple[Part, ...] = get_args(Part)
# Seconds between two reports, and without one after which a part counts as silent.
REPORT_SECONDS = 1.0
SILENT_SECONDS = 5.0
# What has happened lately, and open incidents, in one report.
MOST_HAPPENED = 20
MOST_OPEN = 50


class Happened(msgspec.Struct, frozen=True):
    """An alert that was told to people, or a recovery: when (ms since 1970), and its title."""

    time: int
    kind: Literal["alert", "recovery"]
    text: str


class OpenIncident(msgspec.Struct, frozen=True):
    """An incident that is open: its rule, its subject (empty if the rule has but one), since when (ms since 1970)."""

    rule: str
    subject: str
    since: int


class TargetCounts(msgspec.Struct, frozen=True):
    """Messages of one target since the alerts started: taken by it, refused or given up, dropped, and waiting now.

    `failing` is whether it did not take the newest attempt.
    """

    target: str
    sent: int
    failed: int
    dropped: int
    waiting: int
    failing: bool


class AlertsStatus(msgspec.Struct, frozen=True):
    """How the alerts are.

    `rules` counts the open incidents of each rule, `open` are the oldest of them.
    """

    version: str
    rules: dict[str, int]
    open: list[OpenIncident]
    targets: list[TargetCounts]


class Report(msgspec.Struct, frozen=True, tag_field="ask", tag="report"):
    """The report of one part; with `leaves` it ends. It is answered by a `Roll` if it is refused, else not."""

    id: int
    store: StoreStatus | None = None
    alerts: AlertsStatus | None = None
    happened: list[Happened] = []
    leaves: bool = False

    @property
    def part(self) -> Part | None:
        """Return which part reports; None for a report of none."""
        return "alerts" if self.alerts is not None else "store" if self.store is not None else None


class Reported(NamedTuple):
    """The newest report of a part, and the seconds since it came."""

    report: Report
    age: float

    @property
    def up(self) -> bool:
        """Return whether the part still reports."""
        return self.age <= SILENT_SECONDS
