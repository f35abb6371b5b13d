"""EventSource of a real browser: a stream with a `start`, whose gateway is killed in the middle of the morning."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qmt_bridge.config import Config, export_env
from tests.support.morning import CODE, OPEN, TICK, Market, demand
from tests.support.ports import free_port
from tests.support.rig import readiness, running_rig
from tests.support.store import store_of
from tests.support.waiting import wait_for

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium: apt-get install chromium"),
    pytest.mark.timeout(180),
]

# The page tells all that it sees, in order, in one request after the other.
PAGE = """<!DOCTYPE html><title>events</title><script>
const seen = [];
let telling = false;
async function tell(event) {
    seen.push(event);
    if (telling) return;
    telling = true;
    while (seen.length) await fetch("/seen", {method: "POST", body: JSON.stringify(seen.splice(0))});
    telling = false;
}
const source = new EventSource("%s");
source.onopen = () => tell({open: true});
source.onmessage = (event) => tell({id: event.lastEventId, data: JSON.parse(event.data)});
source.onerror = () => tell({error: source.readyState});
</script>"""


class Site:
    """The web server of the page, and what the page has told."""

    def __init__(self, stream: str) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer((PAGE % stream).encode() if self.path == "/" else b"")

            def do_POST(self) -> None:
                told.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of the ticks that the page has seen."""
        return [event["data"][CODE][0]["volume"] for event in list(self.told) if "data" in event]

    def count(self, what: str) -> int:
        return sum(what in event for event in list(self.told))

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def running(command: list[str], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is killed at the end."""
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def gateway(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "qmt_bridge.cli", "gateway"]
    with running(command, {**os.environ, **export_env(config)}) as process:
        wait_for(lambda: is_up(config.port), "the gateway")
        yield process


def is_up(port: int) -> bool:
    try:
        return bool(readiness(port)["feed"] == "up")
    except OSError:
        return False


@contextmanager
def browser(url: str, folder: Path) -> Iterator[None]:
    assert BROWSER is not None
    # The sandbox needs a user that is not root. A port for a debugger keeps the browser without a window running.
    options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --no-proxy-server"
    command = [BROWSER, *options.split(), "--remote-debugging-port=0", f"--user-data-dir={folder}", url]
    with running(command):
        yield


def publish(market: Market, count: int) -> None:
    """Publish ticks that are so large that a morning does not fit into what the systems on the way hold."""
    for _ in range(count):
        market.number += 1
        record = {"time": OPEN + 3000 * market.number, "volume": market.number, "filler": "x" * 2000}
        market.rig.source.publish(TICK, {CODE: [record]})


def test_browser_has_each_record_once_after_a_kill(config: Config, tmp_path: Path) -> None:
    with running_rig(config) as rig, store_of(rig.config.market_addr) as store:
        market = Market(rig, store)
        settings = msgspec.structs.replace(rig.config, port=free_port(), store_addr=store.address)
        site = Site(f"http://127.0.0.1:{settings.port}/sse/realtime?stocks={CODE}&start=09:30&mode=all")
        try:
            with demand(market), browser_between_gateways(market, settings, site, tmp_path):
                publish(market, 100)
                wait_for(lambda: site.numbers[-1:] == [market.number], "the newest tick")
        finally:
            site.close()
        assert site.numbers == list(range(1, market.number + 1))
        # It was connected twice, and told of the end between.
        assert (site.count("open"), site.count("error") >= 1) == (2, True)


@contextmanager
def browser_between_gateways(market: Market, settings: Config, site: Site, folder: Path) -> Iterator[None]:
    """Let a browser follow a gateway that is killed in the middle, then another one at the same address."""
    publish(market, 4000)
    market.wait_stored()
    killed, store = threading.Event(), market.store
    # The first gateway does not come to the end of the morning.
    store.answers = lambda ask: len(store.asks) < 4 or killed.is_set()
    with gateway(settings) as process, browser(site.url, folder / "browser"):
        wait_for(lambda: len(site.numbers) >= 100, "the morning to begin")
        process.kill()
        process.wait()
        killed.set()
        publish(market, 100)
        market.wait_stored()
        with gateway(settings):
            wait_for(lambda: site.count("open") == 2, "the browser to connect again")
            yield
