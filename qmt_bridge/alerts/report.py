"""What the alerts tell the feeder of themselves (docs/wire.md, "Reports"). Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

from qmt_bridge.alerts.book import Open
from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.rules import RULES
from qmt_bridge.alerts.targets.sender import Counts
from qmt_bridge.wire.parts.report import (
    MOST_HAPPENED,
    MOST_OPEN,
    AlertsStatus,
    Happened,
    OpenIncident,
    Report,
    TargetCounts,
)


class Reported:
    """The alerts as they are, with what they have told people lately."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._happened: deque[Happened] = deque(maxlen=MOST_HAPPENED)

    def note(self, notice: Notice) -> None:
        """Take down an alert or a recovery that is told; other messages are no news of the service."""
        if notice.event == "recovery":
            self._happened.append(Happened(notice.time, "recovery", notice.title))
        elif notice.event in ("alert", "repeat"):
            self._happened.append(Happened(notice.time, "alert", notice.title))

    def report(self, opened: Sequence[Open], targets: Mapping[str, Counts], *, leaves: bool = False) -> Report:
        """Return the report: `opened` are the open incidents, `targets` what was counted of each target."""
        counted = Counter(each.rule for each in opened)
        oldest = sorted(opened, key=lambda each: each.began)[:MOST_OPEN]
        status = AlertsStatus(
            self._version,
            {rule: counted[rule] for rule in RULES},
            [OpenIncident(each.rule, each.subject, round(each.began * 1000)) for each in oldest],
            [
                TargetCounts(name, counts.sent, counts.failed, counts.dropped, counts.waiting, counts.failing)
                for name, counts in targets.items()
            ],
        )
        return Report(0, alerts=status, happened=list(self._happened), leaves=leaves)
