"""XtHistory: real processes, each with xtquant's real Python layer over the stand-ins for its native modules."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import native
import pytest

from feeder.xt import history as history_module
from feeder.xt.history import XtHistory
from feeder.xt.source import XtSource
from qmt_bridge.config import Config
from qmt_bridge.errors import ErrorCode, Refused
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import parse_topic, quote_topic
from tests.support.paths import FAKES, ROOT
from tests.support.sink import Recording, encoded
from tests.support.waiting import SLOWNESS

# A process has to start, and this machine may be busy.
SECONDS = 30.0 * SLOWNESS

CODE, OTHER = "600519.SH", "000001.SZ"
# 2026-11-27 09:30 in Shanghai.
OPEN = 1795743000000
DAY = midnight(OPEN)


class Recorder(Recording):
    """A Sink that keeps histories."""

    seconds = SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, tuple[list[Any], int]] = {}
        self.refused: dict[int, tuple[str, str]] = {}

    def give_history(self, number: int, bodies: Iterable[object], from_ms: int) -> None:
        found = [encoded(json.loads(json.dumps(body, default=lambda raw: json.loads(bytes(raw))))) for body in bodies]
        with self.changed:
            self.given[number] = found, from_ms
            self.changed.notify_all()

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        with self.changed:
            self.refused[number] = code, reason
            self.changed.notify_all()

    def rows(self, number: int) -> list[Any]:
        """Wait for a history; return its records."""
        self.until(lambda: number in self.given or number in self.refused)
        assert number not in self.refused, self.refused
        return [record for body in self.given[number][0] for records in body.values() for record in records]

    def reason(self, number: int) -> tuple[str, str]:
        self.until(lambda: number in self.given or number in self.refused)
        return self.refused[number]


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the switches of the terminal (see sitecustomize.py)."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))

    def switch(**switches: str) -> None:
        for name, value in switches.items():
            monkeypatch.setenv(f"FAKE_XT_{name}", value)

    return switch


@pytest.fixture
def make(sink: Recorder) -> Iterator[Callable[[], XtHistory]]:
    made: list[XtHistory] = []

    def start() -> XtHistory:
        made.append(XtHistory(Config()))
        made[-1].start(sink)
        return made[-1]

    try:
        yield start
    finally:
        for one in made:
            one.close()
        assert [each.name for each in threading.enumerate() if each.name.startswith("xtquant-history")] == []


def morning(code: str = CODE, count: int = 5, start: int = OPEN) -> list[dict[str, Any]]:
    return [native.tick(code, number) | {"time": start + 3000 * number, "pe": 1.5} for number in range(count)]


def save(tmp_path: Path, **history: list[dict[str, Any]]) -> str:
    path = tmp_path / "history.json"
    path.write_text(json.dumps({name.replace("_", "."): rows for name, rows in history.items()}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("arrays", ["0", "1"])
def test_history_has_the_days_ticks_as_the_terminal_has_them(
    make: Callable[[], XtHistory], sink: Recorder, terminal: Callable[..., None], tmp_path: Path, arrays: str
) -> None:
    rows = morning()
    yesterday = morning(start=OPEN - 86_400_000)
    log = tmp_path / "calls"
    terminal(HISTORY=save(tmp_path, **{"600519_SH": yesterday + rows}), ARRAYS=arrays, WIDE="1", LOG=str(log))
    make().history(7, CODE, OPEN + 3_600_000)
    assert sink.rows(7) == rows
    assert sink.given[7][1] == DAY
    calls = log.read_text(encoding="utf-8").splitlines()
    day = "20261127000000", "20261127235959"
    assert [call for call in calls if call.startswith(("supply", "get_market"))] == [
        f"supply_history_data2{((CODE,), 'tick', *day, {'incrementally': False})}",
        f"get_market_data3{((CODE,), 'tick', *day, False, 'v3')}",
    ]


def test_questions_that_wait_share_a_process(
    make: Callable[[], XtHistory], sink: Recorder, terminal: Callable[..., None], tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    both = {"600519_SH": morning(), "000001_SZ": morning(OTHER, 3)}
    terminal(HISTORY=save(tmp_path, **both), LOG=str(log))
    histories = XtHistory(Config())
    for number, code in enumerate((CODE, OTHER, CODE)):
        histories.history(number, code, OPEN)
    histories.start(sink)
    try:
        assert [len(sink.rows(number)) for number in range(3)] == [5, 3, 5]
    finally:
        histories.close()
    # The third asks for what the first one has.
    assert log.read_text(encoding="utf-8").count("supply_history_data2") == 2


def test_code_that_fails_is_refused_and_the_others_are_found(
    make: Callable[[], XtHistory], sink: Recorder, terminal: Callable[..., None], tmp_path: Path
) -> None:
    terminal(HISTORY=save(tmp_path, **{"600519_SH": morning()}), REFUSE=OTHER)
    histories = XtHistory(Config())
    for number, code in enumerate((CODE, OTHER)):
        histories.history(number, code, OPEN)
    histories.start(sink)
    try:
        assert len(sink.rows(0)) == 5
        assert sink.reason(1) == ("upstream_refused", f"下载数据失败：{OTHER} 无权限")
    finally:
        histories.close()


def test_frozen_call_is_killed_and_told(
    make: Callable[[], XtHistory],
    sink: Recorder,
    terminal: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hang = tmp_path / "hang"
    hang.write_text("get_market_data3", encoding="utf-8")
    terminal(HISTORY=save(tmp_path, **{"600519_SH": morning()}), HANG_FILE=str(hang))
    monkeypatch.setattr(history_module, "SECONDS", 3.0 * SLOWNESS)
    histories = make()
    histories.history(1, CODE, OPEN)
    code, reason = sink.reason(1)
    assert (code, "has not given it in" in reason) == ("upstream_unavailable", True)
    hang.unlink()
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    terminal(HISTORY=save(tmp_path, **{"600519_SH": morning()}))
    histories.history(2, CODE, OPEN)
    assert len(sink.rows(2)) == 5


def test_terminal_that_is_away_is_told(
    make: Callable[[], XtHistory], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWN="1")
    make().history(1, CODE, OPEN)
    assert sink.reason(1)[1].startswith("cannot connect to the terminal at 127.0.0.1:58610")


def test_close_ends_the_process_that_asks(sink: Recorder, terminal: Callable[..., None], tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    hang.write_text("supply_history_data2", encoding="utf-8")
    terminal(HANG_FILE=str(hang))
    histories = XtHistory(Config())
    histories.start(sink)
    histories.history(1, CODE, OPEN)
    sink.until(lambda: histories._process is not None)
    histories.close()
    assert not histories._thread.is_alive()
    with pytest.raises(Refused, match="stopping"):
        histories.history(2, CODE, OPEN)


def test_only_ticks_have_a_history() -> None:
    source = XtSource(Config())
    topic = quote_topic(CODE, "1m")
    with pytest.raises(Refused, match="only ticks"):
        source.history(1, topic, parse_topic(topic), 0)
