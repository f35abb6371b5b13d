"""The page in a real Chromium while parts of the service are killed: it comes back by itself and tells what was."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feeder.source import Health
from qmt_bridge.config import Config
from qmt_bridge.wire.messages import PusherState
from tests.support.browser import QUICK, Visit
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import KEY, running_rig
from tests.support.up import Up, running
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(180)

PRICE = "() => document.querySelector('.row[data-code=\"600519.SH\"] .c-last')?.textContent"


@pytest.fixture
def fresh(browser: Any, tmp_path: Path) -> Iterator[Up]:
    with running(tmp_path, *QUICK) as up:
        yield up


# What has happened, and of what the page tells then. A feeder may be back before a gateway has missed it.
TOLD = {
    "feeder": ("happened.restart", "the feeder was started again"),
    "gateway": ("happened.lost", "connection to the gateway lost"),
}
HAPPENED = (
    "name => import('/assets/parts/happenings.js').then(page => page.happenings.some(each => each.name === name))"
)


@pytest.mark.parametrize("part", TOLD)
def test_page_comes_back_after_a_killed_part(browser: Any, fresh: Up, part: str) -> None:
    name, told = TOLD[part]
    visit = Visit(browser, f"http://127.0.0.1:{fresh.port}")
    try:
        visit.open("market/600519.SH")
        visit.until(f"() => /\\d/.test(({PRICE})())")
        # A module that is loaded does not need the gateway any more.
        assert not visit.page.evaluate(HAPPENED, name)
        os.kill(fresh.pid(part), signal.SIGKILL)
        wait_for(lambda: visit.page.evaluate(HAPPENED, name), told)
        visit.until("() => document.querySelector('#feed').dataset.state === 'up'")
        price = visit.page.evaluate(PRICE)
        visit.until(f"before => ({PRICE})() !== before", price)
        tape = visit.text(".tape tbody tr")
        visit.until("before => document.querySelector('.tape tbody tr').innerText !== before", tape)
        visit.go("state")
        visit.until("() => document.querySelector('.verdict').dataset.level === 'ok'")
        assert told in visit.text(".s-lately table")
        # A browser logs each connection that fails; nothing else may be in its log.
        assert visit.troubles(lambda line: "net::ERR_" in line or "WebSocket connection to" in line) == []
    finally:
        visit.close()


def test_gateway_that_hangs_is_not_shown_as_working(browser: Any, fresh: Up) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{fresh.port}")
    try:
        visit.open()
        visit.until("() => document.querySelector('.verdict').dataset.level === 'ok'")
        os.kill(fresh.pid("gateway"), signal.SIGSTOP)
        # Its sockets stay open; the question for its state is given up after 8 s.
        visit.until("() => document.querySelector('.verdict').dataset.level === 'bad'")
        assert "No connection to the gateway" in visit.text(".verdict h1")
        os.kill(fresh.pid("gateway"), signal.SIGCONT)
        visit.until("() => document.querySelector('.verdict').dataset.level === 'ok'")
    finally:
        os.kill(fresh.pid("gateway"), signal.SIGCONT)
        visit.close()


def test_page_that_may_see_nothing_asks_for_a_key(browser: Any, tmp_path: Path) -> None:
    with running_rig(Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(tmp_path), require_key=True)) as rig:
        rig.serve()
        visit = Visit(browser, f"http://127.0.0.1:{rig.servers[0].port}")
        try:
            visit.open()
            visit.until("() => document.querySelector('.verdict h1').textContent === 'The gateway asks for a key'")
            assert visit.text("#feed") == "needs a key"
            visit.page.click(".lacks button")
            visit.page.fill("#api-key", KEY)
            visit.page.keyboard.press("Enter")
            visit.until("() => document.querySelector('.lacks').hidden")
            assert visit.text("#feed") != "needs a key"
        finally:
            visit.close()


def test_page_lists_the_pushers_and_names_the_one_that_is_gone(browser: Any, tmp_path: Path) -> None:
    with running_rig(Config(**ANY_ADDRESSES, data_dir=str(tmp_path))) as rig:
        rig.serve()
        visit = Visit(browser, f"http://127.0.0.1:{rig.servers[0].port}")
        try:
            visit.open()
            visit.until("() => document.querySelector('.verdict').dataset.level === 'ok'")
            assert not visit.page.locator(".s-pushers").is_visible()
            here = PusherState("desk", "up", kinds=("trade",), accounts=("******0365",), records=1234)
            rig.source.condition = Health(pushers=[here, PusherState("ctp", "down", "pusher_gone", 1)])
            rig.source.sink.set_state("down", "pusher_gone")
            visit.until("() => document.querySelectorAll('.s-pushers tbody tr').length === 2")
            desk, ctp = visit.page.locator(".s-pushers tbody tr").all_inner_texts()
            assert desk.split("\t")[0::3] == ["desk", "trade ******0365", "0"]
            assert "1,234" in desk
            assert "start it again" in ctp
            assert "pushers that are not up: ctp" in visit.text(".verdict p")
        finally:
            visit.close()
