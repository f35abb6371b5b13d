"""Reports: of each part the newest is kept, one process at a time, and its silence is seen."""

from __future__ import annotations

import pytest

from feeder.reports import Reports
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.history import StoreStatus
from qmt_bridge.wire.parts.report import SILENT_SECONDS, AlertsStatus, Report

ONE, OTHER = (b"one", b""), (b"other", b"")
ALERTS = Report(0, alerts=AlertsStatus("1", {}, [], []))


def stored(count: int) -> Report:
    return Report(0, store=StoreStatus(time=0, stored=count))


def test_newest_report_of_each_part_is_kept_with_its_age() -> None:
    reports = Reports()
    assert (reports.of("store", 0.0), reports.states(0.0)) == (None, {})
    reports.take(ONE, stored(1), 10.0)
    reports.take(ONE, stored(2), 11.0)
    reports.take(OTHER, ALERTS, 11.0)
    found = reports.of("store", 13.0)
    assert found is not None
    assert (found.report, found.age, found.up) == (stored(2), 2.0, True)
    assert reports.states(11.0 + SILENT_SECONDS) == {"store": "up", "alerts": "up"}


def test_part_without_reports_is_silent_until_it_reports_again() -> None:
    reports = Reports()
    reports.take(ONE, ALERTS, 10.0)
    assert reports.states(10.1 + SILENT_SECONDS) == {"alerts": "silent"}
    reports.take(OTHER, ALERTS, 20.0)
    assert reports.states(20.0) == {"alerts": "up"}


def test_part_that_ends_is_forgotten() -> None:
    reports = Reports()
    reports.take(ONE, stored(1), 10.0)
    reports.take(ONE, Report(0, store=StoreStatus(time=0), leaves=True), 11.0)
    assert (reports.of("store", 11.0), reports.states(11.0)) == (None, {})


def test_second_process_of_a_part_is_refused_while_one_reports() -> None:
    reports = Reports()
    reports.take(ONE, stored(1), 10.0)
    with pytest.raises(BadRequest, match="another process reports of the store"):
        reports.take(OTHER, stored(900), 12.0)
    found = reports.of("store", 12.0)
    assert found is not None
    assert found.report == stored(1)


def test_report_of_no_part_is_refused() -> None:
    with pytest.raises(BadRequest, match="neither a store nor alerts"):
        Reports().take(ONE, Report(0), 0.0)
