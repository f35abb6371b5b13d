"""All incidents together: one alert and one recovery each, what is kept over a restart, and the report."""

from __future__ import annotations

from datetime import datetime

import msgspec
import pytest

from qmt_bridge.alerts.book import Book, Kept, Plan
from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.rules import Limits, Observed
from qmt_bridge.wire.messages import AccountState, FeedStatus, Session
from qmt_bridge.wire.shanghai import SHANGHAI

MORNING = datetime(2026, 11, 30, 9, 0, tzinfo=SHANGHAI).timestamp()
LIMITS = Limits(lost=100, cut=5, disk_mb=0)
PLAN = Plan(LIMITS, after=30.0, settle=10.0, morning=9 * 60 + 15, name="desk")


def seen(state: Session = "up", accounts: tuple[AccountState, ...] = (), **more: object) -> Observed:
    status = FeedStatus("xtquant", False, state, 1, 0, accounts=accounts)
    plain = {"trading_day": True, "trading": True, "status": status, "status_age": 0.0, "lost": 0, "cut": {}}
    return Observed(**{**plain, **more})  # type: ignore[arg-type]


class Run:
    """A book that is looked at every second, and all that it has told."""

    def __init__(self, plan: Plan = PLAN, kept: Kept | None = None, wall: float = MORNING + 3600) -> None:
        # A clock that does not go back begins anywhere.
        self.now, self.wall = 777.0, wall
        self.book = Book(plan, kept or Kept(), self.now, self.wall)
        self.told: list[Notice] = []

    def look(self, observed: Observed, seconds: int = 1) -> list[tuple[str, str]]:
        told: list[Notice] = []
        for _ in range(seconds):
            self.now, self.wall = self.now + 1, self.wall + 1
            told += self.book.look(observed, self.now, self.wall)
        self.told += told
        return [(notice.event, f"{notice.rule} {notice.subject}".strip()) for notice in told]


def test_an_incident_is_told_once_at_each_end() -> None:
    run = Run()
    assert run.look(seen(), 60) == []
    assert run.look(seen("down"), 30) == []
    assert run.look(seen("down"), 100) == [("alert", "feed")]
    assert run.look(seen(), 60) == [("recovery", "feed")]
    alert, recovery = run.told
    assert alert.id == recovery.id
    assert alert.since == recovery.since
    assert alert.time - alert.since == 30_000
    assert run.book.open == []


def test_two_incidents_of_one_rule_have_ids_of_their_own() -> None:
    run = Run()
    for _ in range(2):
        run.look(seen("down"), 40)
        run.look(seen(), 40)
    assert [notice.event for notice in run.told] == ["alert", "recovery"] * 2
    assert len({notice.id for notice in run.told}) == 2


def accounts(state: Session) -> tuple[AccountState, ...]:
    return tuple(AccountState(f"***{number}", "STOCK", state) for number in range(3))


def test_each_account_is_an_incident_of_its_own() -> None:
    run = Run()
    assert run.look(seen(accounts=accounts("down")), 40) == [("alert", f"account ***{n} STOCK") for n in range(3)]
    assert run.look(seen(accounts=accounts("up")), 40) == [("recovery", f"account ***{n} STOCK") for n in range(3)]


def test_an_account_that_is_no_longer_served_is_over() -> None:
    run = Run()
    run.look(seen(accounts=accounts("down")), 40)
    assert len(run.look(seen(), 40)) == 3


def test_an_account_is_not_over_because_the_feeder_is_away() -> None:
    run = Run()
    run.look(seen(accounts=accounts("down")), 40)
    assert run.look(seen(accounts=accounts("down"), status_age=99.0), 100) == [("alert", "feed")]
    assert len(run.book.open) == 4
    assert run.look(seen(accounts=accounts("down")), 20) == [("recovery", "feed")]


def test_counted_rules_alert_at_once() -> None:
    run = Run()
    assert run.look(seen(cut={"desk": 5})) == [("alert", "cut desk")]
    assert run.look(seen(cut={"desk": 0}), 20) == [("recovery", "cut desk")]


def test_a_client_that_is_forgotten_by_the_gateway_is_over() -> None:
    run = Run()
    run.look(seen(cut={"desk": 5}))
    assert run.look(seen(cut=None, lost=None), 100) == []
    assert run.look(seen(cut={}), 20) == [("recovery", "cut desk")]


def test_open_incidents_go_on_after_a_restart() -> None:
    before = Run()
    before.look(seen("down"), 40)
    kept = msgspec.json.decode(msgspec.json.encode(before.book.kept({"store"})), type=Kept)
    assert kept.seen == ("store",)

    after = Run(kept=kept, wall=before.wall + 20)
    assert after.look(seen("down"), 100) == []
    assert after.look(seen(), 20) == [("recovery", "feed")]
    [alert], [recovery] = before.told, after.told
    assert (alert.id, alert.since) == (recovery.id, recovery.since)


def test_an_incident_of_before_is_repeated_in_its_time() -> None:
    before = Run()
    before.look(seen("down"), 40)
    after = Run(kept=before.book.kept(()), wall=before.wall + 3000)
    told = after.look(seen("down"), 700)
    assert told == [("repeat", "feed")]
    assert after.told[0].time - before.told[0].time == 3_600_000


def test_what_is_kept_changes_only_with_an_incident() -> None:
    run = Run()
    run.look(seen("down"), 31)
    kept = run.book.kept(())
    for _ in range(50):
        # The two clocks never run exactly alike.
        run.now += 0.3333
        run.wall += 0.33331
        run.book.look(seen("down"), run.now, run.wall)
        assert run.book.kept(()) == kept


def test_a_kept_rule_that_does_not_exist_is_forgotten() -> None:
    kept = msgspec.json.decode(b'{"open":[{"rule":"gone","subject":"","began":1.0}]}', type=Kept)
    assert Run(kept=kept).book.open == []
    ignoring = PLAN._replace(limits=LIMITS._replace(ignored=frozenset(("feed",))))
    kept = msgspec.json.decode(b'{"open":[{"rule":"feed","subject":"","began":1.0}]}', type=Kept)
    assert Run(ignoring, kept).book.open == []


def test_quiet_hours_hold_back_what_begins_in_them() -> None:
    run = Run(PLAN._replace(quiet=(8 * 60, 9 * 60), morning=None), wall=MORNING - 300)
    assert run.look(seen("down"), 299) == []
    assert run.look(seen("down"), 20) == [("alert", "feed")]


def test_the_report_comes_once_on_a_trading_day() -> None:
    run = Run(wall=MORNING)
    assert run.look(seen(), 14 * 60 + 59) == []
    assert run.look(seen(), 600) == [("report", "")]
    assert run.told[0].title == "【QMT Bridge 早报】一切正常"
    again = Run(kept=run.book.kept(()), wall=run.wall)
    assert again.look(seen(), 600) == []


@pytest.mark.parametrize(
    ("wall", "observed"),
    [(MORNING + 3600, seen()), (MORNING, seen(trading_day=False, trading=False))],
    ids=["after-its-time", "no-trading-day"],
)
def test_there_is_no_report_then(wall: float, observed: Observed) -> None:
    assert Run(wall=wall).look(observed, 3000) == []


def test_there_is_no_report_without_its_time() -> None:
    assert Run(PLAN._replace(morning=None), wall=MORNING).look(seen(), 3000) == []
