"""Files that a virus scanner holds for a moment: tried again for a bounded time, and only on Windows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from feeder.journal.opening import set_aside
from qmt_bridge import private
from qmt_bridge.curve.key_folder import own_keys
from qmt_bridge.system import in_use
from qmt_bridge.system.in_use import patiently

windows = pytest.mark.skipif(sys.platform != "win32", reason="only Windows keeps an open file from being replaced")


class Held(PermissionError):
    """What Windows says of a file that another program has open."""

    winerror = 32  # type: ignore[assignment, unused-ignore]


class Act:
    """Fails so often."""

    def __init__(self, failures: int, error: Callable[[], OSError]) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error()
        return self.calls


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a wait take no time, and count it."""
    now = [100.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr(in_use, "time", Clock)
    return now


def test_a_file_in_use_is_tried_again(clock: list[float]) -> None:
    assert patiently(Act(5, Held)) == 6
    assert clock[0] < 101.0


def test_a_file_that_stays_in_use_is_given_up(clock: list[float]) -> None:
    act = Act(1000, Held)
    with pytest.raises(Held):
        patiently(act, 0.5)
    assert 100.5 <= clock[0] < 100.6
    assert act.calls > 10


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, FileExistsError, OSError])
def test_another_error_is_raised_at_once(clock: list[float], error: type[OSError]) -> None:
    act = Act(1, error)
    with pytest.raises(error):
        patiently(act)
    assert (act.calls, clock[0]) == (1, 100.0)


def refuse_first(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[object]:
    """Let the first call of a method fail as with a file in use; return what it is called with."""
    calls: list[object] = []
    real = getattr(owner, name)

    def once(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise Held
        return real(*args, **options)

    monkeypatch.setattr(owner, name, once)
    return calls


def test_a_held_file_is_replaced_and_read_in_the_end(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is how positions, keys and the times of their use are written."""
    path = tmp_path / "position.json"
    path.write_bytes(b"old")
    assert len(refuse_first(monkeypatch, Path, "replace")) == 0
    private.replace(path, b"new")
    opened = refuse_first(monkeypatch, private.os, "open")
    assert private.read_small(path, 10) == b"new"
    assert len(opened) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["position.json"]


def test_a_damaged_journal_that_is_held_is_set_aside(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal-sim.sqlite3"
    path.write_bytes(b"damaged")
    path.with_name(f"{path.name}-wal").write_bytes(b"log")
    renamed = refuse_first(monkeypatch, Path, "rename")
    aside = set_aside(path)
    assert len(renamed) == 3
    assert sorted(each.name for each in tmp_path.iterdir()) == [aside.name, f"{aside.name}-wal"]


def test_keys_are_made_in_a_folder_that_is_held(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(refuse_first(monkeypatch, Path, "rename")) == 0
    own_keys(tmp_path / "curve")
    assert (tmp_path / "curve" / "feeder.key_secret").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["curve"]


@windows
def test_windows_keeps_an_open_file_until_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "持仓 位置.json"
    path.write_bytes(b"old")
    scanner = path.open("rb")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        scanner.close()

    monkeypatch.setattr(in_use.time, "sleep", wait)
    private.replace(path, b"new")
    assert waits
    assert path.read_bytes() == b"new"


@windows
def test_windows_refuses_a_file_that_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    path.write_bytes(b"old")
    with path.open("rb"), pytest.raises(PermissionError):
        private.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["position.json"]
