"""All incidents, and the report of the morning: from what is observed to what is told. Pure: time is an argument.

Two clocks are needed. `now` does not go back, and measures how long something lasts; `wall` is the time of day, in
seconds since 1970, for messages and for what is kept over a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from qmt_bridge.alerts import hours, texts
from qmt_bridge.alerts.incident import Incident, News, Saved
from qmt_bridge.alerts.notice import Event, Notice
from qmt_bridge.alerts.rules import PATIENT, RULES, Finding, Limits, Observed, Rule, blind, judge
from qmt_bridge.alerts.texts import Language

# Minutes after its time in which a report is still sent: a process that starts at noon reports nothing of the morning.
_REPORT_MINUTES = 30


class Plan(NamedTuple):
    """The settings that decide what is told, and when."""

    limits: Limits
    after: float = 30.0
    settle: float = 10.0
    repeat: float = 3600.0
    # Minutes after midnight.
    quiet: tuple[int, int] | None = None
    morning: int | None = None
    holidays: frozenset[str] = frozenset()
    language: Language = "zh"
    name: str = ""


class Open(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An incident that is open; times in seconds since 1970."""

    rule: str
    subject: str
    began: float
    told: float | None = None


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept over a restart: `seen` are parts that have answered once, `reported` is the day of the report."""

    open: tuple[Open, ...] = ()
    seen: tuple[str, ...] = ()
    reported: str = ""


class Book:
    """The incidents of one installation."""

    def __init__(self, plan: Plan, kept: Kept, now: float, wall: float) -> None:
        """Go on with the incidents that were open when the process before this one ended."""
        self._plan = plan
        self._reported = kept.reported
        self._incidents: dict[tuple[Rule, str], Incident] = {}
        # Those that are open, with the times of day at which they began and were last told. They are taken once, since
        # the difference of the two clocks is never twice the same.
        self._opened: dict[tuple[Rule, str], Open] = {}
        for each in kept.open:
            rule = next((known for known in RULES if known == each.rule), None)
            if rule is None or rule in plan.limits.ignored:
                continue
            told = None if each.told is None else now - max(0.0, wall - each.told)
            saved = Saved(now - max(0.0, wall - each.began), told)
            self._incidents[rule, each.subject] = self._new(rule, saved)
            self._opened[rule, each.subject] = each

    def look(self, seen: Observed, now: float, wall: float, unsent: int = 0) -> list[Notice]:
        """Take what is observed; return what is to be told.

        `unsent` is how many messages could not be sent since the last report.
        """
        quiet = hours.is_within(self._plan.quiet, wall)
        notices = []
        for finding in self._findings(seen):
            place = finding.rule, finding.subject
            incident = self._incidents.get(place)
            if incident is None:
                if finding.verdict != "bad":
                    continue
                incident = self._incidents[place] = self._new(finding.rule, None)
            news = incident.look(now, finding.verdict, quiet=quiet)
            if place not in self._opened and incident.began is not None and incident.is_open:
                self._opened[place] = Open(*place, round(wall - (now - incident.began), 3))
            if news is not None:
                opened = self._opened[place]
                self._opened[place] = msgspec.structs.replace(opened, told=round(wall, 3))
                notices.append(self._notice(news, finding, opened.began, wall, seen.simulated))
            if not incident.is_open:
                self._opened.pop(place, None)
            if incident.is_idle:
                del self._incidents[place]
        if seen.trading_day and self._reports(wall):
            notices.append(self._report(seen, wall, unsent))
        return notices

    def kept(self, seen: Iterable[str]) -> Kept:
        """Return what is to be kept over a restart, with the parts that have answered once."""
        return Kept(tuple(self.open), tuple(sorted(seen)), self._reported)

    @property
    def open(self) -> list[Open]:
        """Return the incidents that are open."""
        return [self._opened[place] for place in sorted(self._opened)]

    def _findings(self, seen: Observed) -> Sequence[Finding]:
        """Return what the rules find, and a verdict on each incident whose subject they do not name any more."""
        found = judge(seen, self._plan.limits)
        named = {(each.rule, each.subject) for each in found}
        unseen = blind(seen)
        for rule, subject in self._incidents.keys() - named:
            found.append(Finding(rule, subject, "unknown" if rule in unseen else "well"))
        return found

    def _new(self, rule: Rule, saved: Saved | None) -> Incident:
        plan = self._plan
        return Incident(plan.after if rule in PATIENT else 0.0, plan.settle, plan.repeat, saved)

    def _notice(self, news: News, finding: Finding, began: float, wall: float, simulated: bool) -> Notice:
        plan = self._plan
        title = texts.title(plan.language, news, finding, simulated)
        body = texts.body(plan.language, news, finding, began, wall, plan.name)
        incident = f"{finding.rule}/{finding.subject}/{began}"
        return self._made(news, title, body, wall, simulated, incident, finding, began)

    def _made(
        self,
        event: Event,
        title: str,
        body: str,
        wall: float,
        simulated: bool,
        incident: str,
        finding: Finding | None = None,
        began: float = 0.0,
    ) -> Notice:
        return Notice(
            event=event,
            id=hashlib.sha256(incident.encode()).hexdigest()[:16],
            rule="" if finding is None else finding.rule,
            subject="" if finding is None else finding.subject,
            title=title,
            text=f"{title}\n{body}",
            name=self._plan.name,
            simulated=simulated,
            since=round(began * 1000),
            time=round(wall * 1000),
        )

    def _reports(self, wall: float) -> bool:
        """Return whether the report of the day is due, and note that it was made."""
        at, day = self._plan.morning, hours.day_name(wall)
        if at is None or day == self._reported:
            return False
        if not at <= hours.minute_of(wall) < at + _REPORT_MINUTES:
            return False
        self._reported = day
        return True

    def _report(self, seen: Observed, wall: float, unsent: int) -> Notice:
        plan = self._plan
        title, body = texts.report(plan.language, seen, plan.limits.disk_mb, unsent, wall, plan.name)
        return self._made("report", title, body, wall, seen.simulated, f"report/{hours.day_name(wall)}")


def test_notice(language: Language, wall: float, name: str) -> Notice:
    """Return a message by which a person sees that a target receives alerts."""
    title, body = texts.test(language, wall, name)
    number = hashlib.sha256(f"test/{wall}".encode()).hexdigest()[:16]
    return Notice(event="test", id=number, title=title, text=f"{title}\n{body}", name=name, time=round(wall * 1000))
