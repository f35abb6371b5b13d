"""What the alerts tell the feeder: open incidents, counts by target, and what people were told lately."""

from __future__ import annotations

from qmt_bridge.alerts.book import Open
from qmt_bridge.alerts.notice import Event, Notice
from qmt_bridge.alerts.report import Reported
from qmt_bridge.alerts.rules import RULES
from qmt_bridge.alerts.targets.sender import Counts
from qmt_bridge.wire.parts.report import MOST_HAPPENED, MOST_OPEN, Happened, OpenIncident, TargetCounts


def notice(event: Event, title: str, time: int = 0) -> Notice:
    return Notice(event=event, id="i", title=title, text=f"{title}\n", name="desk", time=time)


def test_alerts_and_recoveries_are_told_and_reports_are_not() -> None:
    reported = Reported("1")
    for event in ("alert", "report", "repeat", "test", "recovery"):
        reported.note(notice(event, event, 5))
    told = reported.report([], {}).happened
    assert told == [Happened(5, "alert", "alert"), Happened(5, "alert", "repeat"), Happened(5, "recovery", "recovery")]


def test_what_was_told_lately_is_bounded() -> None:
    reported = Reported("1")
    for number in range(MOST_HAPPENED + 5):
        reported.note(notice("alert", str(number)))
    assert [each.text for each in reported.report([], {}).happened] == [str(n) for n in range(5, MOST_HAPPENED + 5)]


def test_open_incidents_are_counted_by_rule_and_the_oldest_shown() -> None:
    opened = [Open("cut", str(number), 1000.0 - number) for number in range(MOST_OPEN + 3)]
    status = Reported("1").report([*opened, Open("feed", "", 1.5)], {}).alerts
    assert status is not None
    assert {rule: count for rule, count in status.rules.items() if count} == {"cut": MOST_OPEN + 3, "feed": 1}
    assert status.rules.keys() == set(RULES)
    assert status.open[0] == OpenIncident("feed", "", 1500)
    assert len(status.open) == MOST_OPEN


def test_each_target_is_counted() -> None:
    status = Reported("1").report([], {"webhook": Counts(4, 3, 2, 1, True)}).alerts
    assert status is not None
    assert status.targets == [TargetCounts("webhook", 4, 3, 2, 1, True)]
