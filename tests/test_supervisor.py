"""The children of `qmt-bridge up` one by one: when a dead one is started again, and how each is ended."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qmt_bridge import supervisor
from qmt_bridge.config import Config

DEADLINE = 20.0
ENDS = "raise SystemExit(3)"
# Ends when its input does.
LISTENS = "import sys; sys.stdin.read()"
STAYS = "import time; time.sleep(1000)"


class Clock:
    """Stands for the module `time` and moves by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    return clock


@pytest.fixture
def child() -> Iterator[Callable[[str], supervisor._Child]]:
    """Start a part that runs a program of the test."""
    children: list[supervisor._Child] = []

    def start(program: str) -> supervisor._Child:
        child = supervisor._Child("part", {})
        child._command = [sys.executable, "-S", "-c", program]
        child.start()
        children.append(child)
        return child

    yield start
    for child in children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()
            child.stop()


def test_a_part_that_keeps_dying_is_started_more_and_more_rarely(
    child: Callable[[str], supervisor._Child], clock: Clock
) -> None:
    part = child(ENDS)

    def dies_and_is_back_after(pause: float) -> None:
        assert part.process is not None
        assert part.process.wait(DEADLINE) == 3
        assert part.watch(clock.now) == 3
        clock.now += pause - 0.01
        assert part.watch(clock.now) is None
        assert part.process is None
        clock.now += 0.02
        assert part.watch(clock.now) is None
        assert part.process is not None

    for pause in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0):
        dies_and_is_back_after(pause)
    clock.now += supervisor.STEADY + 1
    # Of something new.
    dies_and_is_back_after(0.2)


def test_a_part_ends_with_its_input_and_one_that_does_not_is_killed(
    child: Callable[[str], supervisor._Child], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = child(LISTENS), child(STAYS)
    for part in (good, bad):
        part.stop()
    good.wait(clock.now + DEADLINE)
    bad.wait(clock.now)
    assert good.process is not None
    assert bad.process is not None
    assert good.process.returncode == 0
    assert bad.process.returncode
    assert caplog.messages == ["part did not stop in time; killed"]


@pytest.mark.skipif(sys.platform == "win32", reason="runs a script as if it were Python")
def test_all_parts_are_told_to_end_before_any_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each waits, behind the end of its input, for the other one's.
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable} -S\n"
        "import pathlib, sys, time\n"
        "part, folder = sys.argv[3], pathlib.Path(__file__).parent\n"
        "(folder / f'{part}.began').touch()\n"
        "sys.stdin.read()\n"
        "(folder / f'{part}.told').touch()\n"
        "while len(list(folder.glob('*.told'))) < 2:\n"
        "    time.sleep(0.01)\n"
        "(folder / f'{part}.ended').touch()\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    monkeypatch.setattr(supervisor, "sys", SimpleNamespace(executable=str(script)))
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT", DEADLINE)
    stop = threading.Event()
    monkeypatch.setattr(supervisor, "_readiness", lambda config: None)
    watching = threading.Thread(target=supervisor.run, args=(Config(), stop, lambda status, pids: None))
    watching.start()
    try:
        for _ in range(int(DEADLINE / 0.01)):
            if len(list(tmp_path.glob("*.began"))) == 2:
                break
            watching.join(0.01)
    finally:
        stop.set()
        watching.join()
    assert sorted(path.name for path in tmp_path.glob("*.ended")) == ["feeder.ended", "gateway.ended"]
