"""QMTClient on the real thing: processes are killed, the program itself ends, and no trade event is missed."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qmt_bridge import CallbackError, QMTClient, StreamState
from qmt_bridge import client as client_module
from tests.support import waiting
from tests.support.paths import ROOT
from tests.support.up import Up, running
from tests.support.waiting import SLOWNESS

DEADLINE = 30.0 * SLOWNESS


async def until(condition: Callable[[], object], up: Up) -> None:
    await waiting.until(condition, lambda: f"the condition; printed:\n{up.text}")


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
async def test_no_trade_event_is_missed_or_doubled_whatever_ends(tmp_path: Path) -> None:
    state = tmp_path / "cursor.json"
    seen: list[int] = []
    states: list[StreamState] = []
    arguments = ["--source=sim", "--workers=2", "--sim-order-interval=0.05"]
    with running(tmp_path, *arguments) as up:
        key = up.trade_url.partition("api_key=")[2]
        client = QMTClient("127.0.0.1", up.port, key, on_state=states.append)

        def told(what: str) -> bool:
            return any(one.state == what for one in states)

        async def run() -> None:
            await client.subscribe_trade_events(lambda event: seen.append(event["seq"]), after=0, state=state)

        async def more() -> None:
            target = len(seen) + 50
            await until(lambda: len(seen) >= target, up)

        task = asyncio.ensure_future(run())
        try:
            await more()
            states.clear()
            os.kill(up.pid("feeder"), signal.SIGKILL)
            await until(lambda: told("feed_up"), up)
            await more()
            assert not told("disconnected"), "a feeder that is gone closes no socket"
            os.kill(up.pid("gateway"), signal.SIGKILL)
            await until(lambda: told("resumed"), up)
            await more()
            # The end of this program, and its next run.
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            task = asyncio.ensure_future(run())
            await more()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert seen == list(range(1, len(seen) + 1))


def test_the_documented_program_keeps_its_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "trade-events.md").read_text(encoding="utf-8")
    (program,) = [block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "state=" in block]
    seen: list[int] = []

    def stop(*told: object) -> None:
        # States of the stream, and of each event its seq, type and data.
        if isinstance(told[0], int):
            seen.append(told[0])
            if len(seen) == 3:
                raise KeyError

    with running(tmp_path, "--source=sim", "--api-key=16-or-more-random-characters", "--sim-order-interval=0.2") as up:
        # The program names the usual port; the TCP connection goes to this one.
        here = functools.partial(client_module.connect, host="127.0.0.1", port=up.port)
        monkeypatch.setattr(client_module, "connect", here)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CallbackError):
            exec(compile(program, "trade-events.md", "exec"), {"print": stop})
    assert seen == [seen[0], seen[0] + 1, seen[0] + 2]
    assert json.loads((tmp_path / "cursor.json").read_bytes())["seq"] == seen[1]
