"""The end of the console on Windows: what takes part ends in order, and a service outlives the log-off of others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qmt_bridge.system import console
from tests.support.ports import address_options, free_addresses, free_port
from tests.support.up import Up, wait_for
from tests.support.waiting import SLOWNESS

windows = pytest.mark.skipif(sys.platform != "win32", reason="only Windows has events of a console")
DEADLINE = 40.0 * SLOWNESS


@pytest.mark.parametrize(
    ("event", "session", "taken", "ends"),
    [
        pytest.param(0, 1, False, False, id="ctrl-c"),
        pytest.param(console.CLOSE, 1, True, True, id="window"),
        pytest.param(console.LOGOFF, 1, True, True, id="log-off"),
        pytest.param(console.LOGOFF, 0, True, False, id="log-off-of-others"),
        pytest.param(console.SHUTDOWN, 0, True, True, id="shutdown-of-a-service"),
    ],
)
def test_end_of_the_console_asks_and_then_waits(event: int, session: int, taken: bool, ends: bool) -> None:
    done: list[object] = []
    assert console.take(event, session, lambda: done.append("ask"), done.append) is taken
    assert done == (["ask", console.HOLD_SECONDS] if ends else [])


def test_ctrl_break_asks_and_windows_goes_on() -> None:
    done: list[object] = []
    assert console.take(console.BREAK, 1, lambda: done.append("ask"), done.append)
    assert done == ["ask"]


@windows
@pytest.mark.timeout(180)
@pytest.mark.parametrize("event", [console.BREAK, console.CLOSE, console.SHUTDOWN])
def test_the_end_of_the_console_stops_up_in_order(event: int, tmp_path: Path) -> None:
    from tests.support.console import send_event

    up = Up(tmp_path, "--source=sim", "--workers=2")
    try:
        up.wait_ready()
        pids = [up.pid("feeder"), up.pid("gateway")]
        # Closing a window tells each process that is attached to the console.
        for pid in (*pids, up.process.pid):
            send_event(pid, event)
        wait_for(lambda: up.process.poll() is not None, "the end", up, DEADLINE)
    finally:
        up.close()
    assert re.search(r"feeder stopped after \d+ messages", up.text)
    assert "killed" not in up.text
    assert "Traceback" not in up.text


@windows
@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", ["feeder", "gateway"])
def test_the_end_of_the_console_stops_a_part_in_order(part: str, tmp_path: Path) -> None:
    options = {"feeder": ["--source=sim"], "gateway": [f"--port={free_port()}"]}[part]
    started = {"feeder": "feeder started", "gateway": "gateway listens"}[part]
    command = [sys.executable, "-m", "qmt_bridge.cli", part, *options, f"--data-dir={tmp_path}"]
    process = subprocess.Popen(
        [*command, *address_options(free_addresses())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = _event_after(process, started, console.CLOSE)
    assert process.returncode == 0, said
    assert "Traceback" not in said


@windows
@pytest.mark.timeout(120)
def test_the_end_of_the_console_interrupts_a_command(tmp_path: Path) -> None:
    """A tape that is recorded is complete, and the command says what it holds."""
    out = tmp_path / "行情.tape"
    command = [sys.executable, "-m", "qmt_bridge.cli", "record", "status/", f"--out={out}"]
    process = subprocess.Popen(
        [*command, *address_options(free_addresses())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert "recorded 0 messages" in _event_after(process, "recording on", console.CLOSE)


def _event_after(process: subprocess.Popen[str], line: str, event: int) -> str:
    """Send the event once the process has printed `line`; return all that it prints."""
    from tests.support.console import send_event

    assert process.stdout is not None
    said = ""
    with process:
        try:
            while line not in said:
                said += process.stdout.readline() or pytest.fail(said)
            send_event(process.pid, event)
            return said + process.communicate(timeout=DEADLINE)[0]
        finally:
            process.kill()
