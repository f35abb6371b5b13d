"""The page in a real Chromium while parts of the service are killed: it comes back by itself and tells what was."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import QUICK, Visit
from tests.support.up import Up, running

pytestmark = pytest.mark.timeout(180)

PRICE = "() => document.querySelector('.row[data-code=\"600519.SH\"] .c-last')?.textContent"


@pytest.fixture
def fresh(browser: Any, tmp_path: Path) -> Iterator[Up]:
    with running(tmp_path, *QUICK) as up:
        yield up


@pytest.mark.parametrize("part", ["feeder", "gateway"])
def test_page_comes_back_after_a_killed_part(browser: Any, fresh: Up, part: str) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{fresh.port}")
    try:
        visit.open("market/600519.SH")
        visit.until(f"() => /\\d/.test(({PRICE})())")
        os.kill(fresh.pid(part), signal.SIGKILL)
        visit.until("() => document.querySelector('#feed').dataset.state !== 'up'")
        visit.until("() => document.querySelector('#feed').dataset.state === 'up'")
        price = visit.page.evaluate(PRICE)
        visit.until(f"before => ({PRICE})() !== before", price)
        tape = visit.text(".tape tbody tr")
        visit.until("before => document.querySelector('.tape tbody tr').innerText !== before", tape)
        visit.go("state")
        visit.until("() => document.querySelector('.verdict').dataset.level === 'ok'")
        told = visit.text(".s-lately table")
        assert ("market data is down" if part == "feeder" else "connection to the gateway lost") in told
        # A browser logs each connection that fails; nothing else may be in its log.
        assert visit.troubles(lambda line: "net::ERR_" in line or "WebSocket connection to" in line) == []
    finally:
        visit.close()
