"""One incident: when an alert, a repetition and a recovery are due. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmt_bridge.alerts.incident import JUMP, Incident, News, Saved, Verdict

AFTER, SETTLE, REPEAT = 5.0, 3.0, 60.0


def told(looks: list[tuple[float, Verdict]], incident: Incident | None = None) -> list[tuple[float, News]]:
    """Return what an incident tells, with the times, when it is looked at like this."""
    incident = incident or Incident(AFTER, SETTLE, REPEAT)
    found = [(at, incident.look(at, verdict)) for at, verdict in looks]
    return [(at, news) for at, news in found if news is not None]


def every_second(*spans: tuple[int, int, Verdict]) -> list[tuple[float, Verdict]]:
    return [(float(at), verdict) for begin, end, verdict in spans for at in range(begin, end)]


def test_an_alert_comes_after_the_time_and_a_recovery_after_its_own() -> None:
    looks = every_second((0, 3, "well"), (3, 20, "bad"), (20, 30, "well"))
    assert told(looks) == [(8.0, "alert"), (23.0, "recovery")]


def test_what_is_bad_for_a_shorter_time_is_not_told() -> None:
    looks = every_second((0, 4, "bad"), (4, 5, "well"), (5, 9, "bad"), (9, 40, "well"))
    assert told(looks) == []


def test_what_is_well_for_a_short_time_is_the_same_incident() -> None:
    looks = every_second((0, 10, "bad"), (10, 12, "well"), (12, 20, "bad"), (20, 30, "well"))
    assert told(looks) == [(5.0, "alert"), (23.0, "recovery")]


def test_an_incident_that_lasts_is_repeated() -> None:
    looks = every_second((0, 140, "bad"))
    assert told(looks) == [(5.0, "alert"), (65.0, "repeat"), (125.0, "repeat")]


def test_with_zero_nothing_is_repeated() -> None:
    assert told(every_second((0, 5000, "bad")), Incident(AFTER, SETTLE, 0.0)) == [(5.0, "alert")]


def test_nothing_opens_or_ends_while_nothing_is_known() -> None:
    looks = every_second((0, 4, "bad"), (4, 20, "unknown"), (20, 24, "bad"), (24, 30, "unknown"))
    assert told(looks) == []
    looks = every_second((0, 10, "bad"), (10, 300, "unknown"), (300, 302, "well"), (302, 310, "unknown"))
    assert told(looks) == [(5.0, "alert")]


def test_the_time_that_a_machine_slept_does_not_count() -> None:
    looks: list[tuple[float, Verdict]] = [(0.0, "bad"), (JUMP + 1, "bad"), (JUMP + 5, "bad"), (JUMP + 7, "bad")]
    assert told(looks) == [(JUMP + 7, "alert")]
    open_one = Incident(AFTER, SETTLE, REPEAT, Saved(0.0, 0.0))
    assert told([(1.0, "well"), (JUMP + 2, "well"), (JUMP + 6, "well")], open_one) == [(JUMP + 6, "recovery")]


def test_an_incident_that_was_told_is_not_told_again_after_a_restart() -> None:
    incident = Incident(AFTER, SETTLE, REPEAT, Saved(-30.0, -25.0))
    assert told(every_second((0, 20, "bad"), (20, 30, "well")), incident) == [(23.0, "recovery")]


def test_quiet_hours_tell_nothing_until_they_are_over() -> None:
    incident = Incident(AFTER, SETTLE, REPEAT)
    assert [incident.look(float(at), "bad", quiet=True) for at in range(20)] == [None] * 20
    assert incident.look(20.0, "bad") == "alert"


def test_what_is_over_before_the_quiet_hours_end_is_not_told() -> None:
    incident = Incident(AFTER, SETTLE, REPEAT)
    for at in range(20):
        assert incident.look(float(at), "bad" if at < 10 else "well", quiet=True) is None
    assert not incident.is_open
    assert incident.look(21.0, "well") is None


def test_a_recovery_in_quiet_hours_is_told_after_them() -> None:
    incident = Incident(0.0, SETTLE, REPEAT)
    assert incident.look(0.0, "bad") == "alert"
    for at in range(1, 10):
        assert incident.look(float(at), "well", quiet=True) is None
    assert incident.look(10.0, "well") == "recovery"


def test_what_is_bad_again_in_quiet_hours_is_the_same_incident() -> None:
    incident = Incident(0.0, SETTLE, REPEAT)
    assert incident.look(0.0, "bad") == "alert"
    for at in range(1, 10):
        incident.look(float(at), "well", quiet=True)
    assert incident.look(10.0, "bad", quiet=True) is None
    assert incident.look(11.0, "bad") is None
    assert incident.is_open


class Model:
    """What is told, by the whole history: no state is carried from one look to the next."""

    def __init__(self, looks: list[tuple[float, Verdict, bool]]) -> None:
        self.looks = looks

    def expected(self) -> list[News | None]:
        out: list[News | None] = []
        opened: int | None = None
        last_told: float | None = None
        for place, (now, verdict, quiet) in enumerate(self.looks):
            begin = 0 if opened is None else opened
            news: News | None = None
            if opened is None and verdict == "bad" and now - self._run_began(place, begin_at=self._closed) >= AFTER:
                opened = place
            if opened is not None:
                well = verdict == "well" and now - self._well_began(place, begin) >= SETTLE
                if well and not (quiet and last_told is not None):
                    news = "recovery" if last_told is not None else None
                    opened, last_told, self._closed = None, None, place
                elif verdict == "bad" and not quiet:
                    if last_told is None:
                        news, last_told = "alert", now
                    elif now - last_told >= REPEAT:
                        news, last_told = "repeat", now
            out.append(news)
        return out

    _closed = -1

    def _run_began(self, place: int, begin_at: int) -> float:
        """Return when the verdict "bad" began that holds at `place`, without a sleep of the machine between."""
        while place - 1 > begin_at and self.looks[place - 1][1] == "bad" and self._near(place):
            place -= 1
        return self.looks[place][0]

    def _well_began(self, place: int, begin: int) -> float:
        while place - 1 >= begin and self.looks[place - 1][1] == "well" and self._near(place):
            place -= 1
        return self.looks[place][0]

    def _near(self, place: int) -> bool:
        return self.looks[place][0] - self.looks[place - 1][0] <= JUMP


steps = st.tuples(
    st.sampled_from([0.25, 1.0, 2.0, 4.0, 14.0, 16.0, 40.0]),
    st.sampled_from(["well", "bad", "unknown"]),
    st.booleans(),
    st.integers(1, 12),
)


@given(st.lists(steps, max_size=15))
def test_the_machine_tells_what_its_history_says(changes: list[tuple[float, Verdict, bool, int]]) -> None:
    looks: list[tuple[float, Verdict, bool]] = []
    now = 0.0
    for pause, verdict, quiet, times in changes:
        for _ in range(times):
            now += pause
            looks.append((now, verdict, quiet))
    incident = Incident(AFTER, SETTLE, REPEAT)
    news = [incident.look(at, verdict, quiet=quiet) for at, verdict, quiet in looks]
    assert news == Model(looks).expected()


@given(st.lists(steps, max_size=15))
def test_alerts_and_recoveries_alternate(changes: list[tuple[float, Verdict, bool, int]]) -> None:
    incident = Incident(AFTER, SETTLE, REPEAT)
    now, news = 0.0, []
    for pause, verdict, quiet, times in changes:
        for _ in range(times):
            now += pause
            said = incident.look(now, verdict, quiet=quiet)
            assert said is None or not quiet
            if said in ("alert", "recovery"):
                news.append(said)
            if said == "repeat":
                assert news
                assert news[-1] == "alert"
    assert news == [("alert", "recovery")[place % 2] for place in range(len(news))]


@pytest.mark.parametrize("after", [0.0, 5.0])
def test_an_idle_incident_can_be_forgotten(after: float) -> None:
    incident = Incident(after, SETTLE, REPEAT)
    assert incident.is_idle
    incident.look(0.0, "bad")
    assert not incident.is_idle
    for at in range(1, 6):
        incident.look(float(at), "well")
    assert incident.is_idle
