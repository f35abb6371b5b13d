"""/readyz over a real feeder: a full disk, accounts, a damaged journal, and the tasks of a worker."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from feeder.source import Health
from qmt_bridge.journal_file import journal_path
from qmt_bridge.wire.messages import AccountState, PusherState
from qmt_bridge.wire.parts.report import AlertsStatus, Happened, Report
from tests.support.rig import DEADLINE, KEY, Rig, metrics, readiness
from tests.support.waiting import until


def limit_disk(rig: Rig, pages: int) -> None:
    """Limit the feeder's journal to so many pages; return when the limit is in force."""
    statement = f"PRAGMA max_page_count={pages}"
    rig.feeder.publisher._journal.call(lambda journal: journal._database.execute(statement).fetchall(), DEADLINE)


async def test_worker_is_not_ready_while_the_journal_cannot_grow(rig: Rig) -> None:
    port = rig.servers[0].port
    assert readiness(port)["journal"] is None
    assert metrics(port)["journal_up"] == 1
    async with rig.connect(f"/ws/trade?after=0&api_key={quote(KEY)}") as client:
        limit_disk(rig, 1)
        rig.source.trade("order", text="x" * 5000)
        assert (await client.receive())["journaled"] is False
        await until(lambda: not readiness(port)["ready"], "the full disk to be shown")
        shown = readiness(port)
        assert (shown["journal"], shown["feed"]) == ("database or disk is full", "up")
        assert metrics(port)["journal_up"] == 0
        limit_disk(rig, 1_000_000)
        await until(lambda: readiness(port)["ready"], "the journal to be written")
        rig.source.trade("order")
        event = await client.receive()
        assert event["seq"] == 2
        assert "journaled" not in event


def account(state: Any, reason: str | None = None, number: str = "******0365", **fields: Any) -> AccountState:
    return AccountState(number, "STOCK", state, reason, 7, **fields)


async def test_readiness_shows_the_state_of_every_account(rig: Rig) -> None:
    port = rig.servers[0].port
    assert (readiness(port)["trade"], readiness(port)["accounts"]) == ("off", [])
    async with rig.connect("/ws/realtime?ctl=1") as client:
        assert (await client.receive())["trade"] == "off"
    rig.source.sink.set_accounts([account("up"), account("connecting", "not subscribed yet", "******0001")])
    await until(lambda: readiness(port)["trade"] == "waiting", "the accounts to be shown")
    shown = readiness(port)
    assert shown["accounts"] == [
        {"account": "******0365", "type": "STOCK", "state": "up", "reason": None, "since": 7, "fault": False},
        {
            "account": "******0001",
            "type": "STOCK",
            "state": "connecting",
            "reason": "not subscribed yet",
            "since": 7,
            "fault": False,
        },
    ]
    told = metrics(port)
    assert told['account_up{account="******0365",type="STOCK"}'] == 1
    assert told['account_up{account="******0001",type="STOCK"}'] == 0
    states = {
        state: told[f'account_state{{account="******0001",state="{state}",type="STOCK"}}']
        for state in ("connecting", "up", "down", "stale", "refused")
    }
    assert states == {"connecting": 1, "up": 0, "down": 0, "stale": 0, "refused": 0}


async def test_pages_show_the_sdk_and_the_call_that_runs(rig: Rig) -> None:
    port = rig.servers[0].port
    shown = readiness(port)
    assert (shown["sdk"], shown["call"], shown["call_age"]) == ("", None, 0.0)
    rig.source.condition = Health("250807.1.2", "subscribe_quote", 12.34)
    await until(lambda: readiness(port)["call"] == "subscribe_quote", "the call to be shown")
    shown = readiness(port)
    assert (shown["sdk"], shown["call_age"]) == ("250807.1.2", 12.3)
    assert 0 < shown["since"] <= time.time() * 1000
    await until(lambda: metrics(port)["call_age_seconds"] == 12.3, "its age to be measured")


@pytest.mark.parametrize("state", ["connecting", "refused"])
async def test_clients_are_told_the_states_that_they_know(rig: Rig, state: Any) -> None:
    port = rig.servers[0].port
    async with rig.connect("/ws/realtime?ctl=1") as client:
        assert (await client.receive())["feed"] == "up"
        rig.source.sink.set_state(state, "why")
        notice = await client.receive()
        assert (notice["state"], notice["reason"]) == ("down", "why")
    assert readiness(port)["feed"] == state
    await until(lambda: metrics(port)[f'feed_state{{state="{state}"}}'] == 1, "the state to be measured")
    async with rig.connect("/ws/realtime?ctl=1") as client:
        assert (await client.receive())["feed"] == "down"


@pytest.mark.parametrize(
    ("accounts", "ready"),
    [
        pytest.param([account("down", "disconnected")], True, id="logged-out"),
        pytest.param([account("down", "no folder", fault=True)], False, id="misconfigured"),
        pytest.param([account("down", "no folder", fault=True), account("up")], True, id="one-of-two"),
    ],
)
async def test_worker_is_not_ready_if_only_settings_can_mend_it(
    rig: Rig, accounts: list[AccountState], ready: bool
) -> None:
    port = rig.servers[0].port
    rig.source.sink.set_accounts(accounts)
    await until(lambda: readiness(port)["trade"] == "down", "the accounts to be shown")
    assert (readiness(port)["ready"], readiness(port)["serving"]) == (ready, True)
    rig.source.sink.set_accounts([account("up")])
    await until(lambda: readiness(port)["ready"] and readiness(port)["trade"] == "up", "the account to be up")


async def test_parts_that_report_are_shown_and_that_they_are_silent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    port = rig.servers[0].port
    assert readiness(port)["parts"] == {}
    report = Report(0, alerts=AlertsStatus("1", {}, [], []), happened=[Happened(5, "alert", "feed is down")])
    rig.feeder.publisher.inbox.put(lambda: rig.feeder.publisher.reported((b"one",), report))
    await until(lambda: readiness(port)["parts"] == {"alerts": "up"}, "the report")
    state = await asyncio.to_thread(state_of, port)
    assert (state["alerts"]["up"], state["alerts"]["open"], state["store"]) == (True, [], None)
    assert [(each["where"], each["text"]) for each in state["events"] if each["kind"] == "alert"] == [
        ("alerts", "feed is down")
    ]
    monkeypatch.setattr("qmt_bridge.wire.parts.report.SILENT_SECONDS", 0.0)
    await until(lambda: readiness(port)["parts"] == {"alerts": "silent"}, "the silence")
    # Market data and trade events are served without them.
    assert readiness(port)["ready"] is True


async def test_pushers_are_shown_to_those_who_may_see_all(rig: Rig) -> None:
    port = rig.servers[0].port
    assert readiness(port)["pushers"] == []
    pusher = PusherState("desk", "down", "pusher_gone", 5, ("trade",), (), ("******0365",), 7, 2, 1)
    rig.source.condition = Health(pushers=[pusher])
    await until(lambda: readiness(port)["pushers"], "the pusher")
    told = json.loads(msgspec.json.encode(pusher))
    assert readiness(port)["pushers"] == [told]
    assert (await asyncio.to_thread(state_of, port))["pushers"] == [told]


def state_of(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/state", timeout=DEADLINE) as response:
        found: dict[str, Any] = json.load(response)
        return found


async def test_damaged_journal_is_shown_and_worker_stays_ready(rig: Rig) -> None:
    port = rig.servers[0].port
    assert readiness(port)["journal_note"] is None
    rig.feeder.stop()
    path = journal_path(rig.config.data_path, "hand")
    path.write_text("not a database", encoding="utf-8")
    rig.start_feeder()
    await until(lambda: readiness(port).get("journal_note"), "the damaged file to be shown")
    shown = readiness(port)
    assert (shown["ready"], shown["journal"]) == (True, None)
    assert "a damaged journal was set aside" in shown["journal_note"]


async def test_client_that_left_leaves_no_task_in_the_worker(rig: Rig) -> None:
    port = rig.servers[0].port
    before = readiness(port)
    assert before["worker"] == os.getpid()
    async with rig.connect("/ws/realtime"):
        await until(lambda: readiness(port)["connections"] == 1, "the client")
        assert readiness(port)["tasks"] > before["tasks"]
    await until(lambda: readiness(port)["tasks"] == before["tasks"], "its tasks to end")
