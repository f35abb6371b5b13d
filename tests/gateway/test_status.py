"""/readyz over a real feeder: a full disk, and what a worker holds."""

from __future__ import annotations

import os
import threading
from urllib.parse import quote

from conftest import DEADLINE, KEY, Rig, metrics, readiness, until


def limit_disk(rig: Rig, pages: int) -> None:
    """Let the feeder's journal grow to so many pages only; return when that holds."""
    publisher = rig.feeder.publisher
    done = threading.Event()

    def limit() -> None:
        publisher._journal._database.execute(f"PRAGMA max_page_count={pages}")
        done.set()

    publisher._put(limit)
    assert done.wait(DEADLINE)


async def test_a_worker_is_not_ready_while_trade_events_cannot_be_written(rig: Rig) -> None:
    port = rig.servers[0].port
    assert readiness(port)["journal"] is None
    assert metrics(port)["journal_up"] == 1
    async with rig.connect(f"/ws/trade?after=0&api_key={quote(KEY)}") as client:
        limit_disk(rig, 1)
        rig.source.trade("order", text="x" * 5000)
        assert (await client.receive())["journaled"] is False
        await until(lambda: not readiness(port)["ready"], "the full disk to be told")
        shown = readiness(port)
        assert (shown["journal"], shown["feed"]) == ("database or disk is full", "up")
        assert metrics(port)["journal_up"] == 0
        limit_disk(rig, 1_000_000)
        await until(lambda: readiness(port)["ready"], "the journal to be written")
        rig.source.trade("order")
        event = await client.receive()
        assert event["seq"] == 2
        assert "journaled" not in event


async def test_a_worker_tells_its_tasks_and_a_client_leaves_none_behind(rig: Rig) -> None:
    port = rig.servers[0].port
    before = readiness(port)
    assert before["worker"] == os.getpid()
    async with rig.connect("/ws/realtime"):
        await until(lambda: readiness(port)["connections"] == 1, "the client")
        assert readiness(port)["tasks"] > before["tasks"]
    await until(lambda: readiness(port)["tasks"] == before["tasks"], "its tasks to end")
