"""A real Chromium, driven by Playwright, that looks at the page: what it logs, asks for and refuses is collected."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.waiting import SLOWNESS

DEADLINE = 30.0 * SLOWNESS
# A browser needs a moment of both cores to start.
LAUNCH = 60.0 * SLOWNESS
# Options of `qmt-bridge up`: a tick each second, because the console of whole markets gets 5,400 of them; an order each
# half second.
QUICK = ("--source=sim", "--sim-interval=1", "--sim-order-interval=0.5", "--sim-l2-rate=20")
_NAMES = ("chromium", "chromium-browser")


@contextmanager
def running_browser() -> Iterator[Any]:
    """Run a Chromium; skip where the system has none, or no Playwright."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed (Debian: chromium)")
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (the extra `browser`)")
    # Chromium's sandbox does not run as root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=options, timeout=LAUNCH * 1000)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page in a browser of its own state, and what it has logged, asked for and refused."""

    def __init__(self, browser: Any, base: str, **options: Any) -> None:
        self.base = base
        settings = {"viewport": {"width": 1440, "height": 900}, "locale": "en-US", "color_scheme": "dark", **options}
        self.context = browser.new_context(**settings)
        self.context.set_default_timeout(DEADLINE * 1000)
        self.page = self.context.new_page()
        self.logged: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.logged.append(f"{error.name}: {error.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.logged.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def open(self, place: str = "", path: str = "/") -> Any:
        """Load a page, at one of its views or places, and return it."""
        self.page.goto(f"{self.base}{path}" + (f"#{place}" if place else ""))
        return self.page

    def go(self, place: str) -> None:
        """Go to a view without loading the page again."""
        self.page.evaluate("place => { location.hash = place; }", place)

    def until(self, script: str, argument: object = None) -> Any:
        """Wait until a script in the page returns something true, and return that."""
        return self.page.wait_for_function(script, arg=argument, timeout=DEADLINE * 1000).json_value()

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def foreign(self) -> list[str]:
        """Return what was asked of any other host."""
        own = urlsplit(self.base).netloc
        return [url for url in self.asked if urlsplit(url).netloc != own and not url.startswith(("data:", "blob:"))]

    def troubles(self, excused: Callable[[str], bool] = lambda _: False) -> list[str]:
        """Return errors and warnings of the console."""
        return [each for each in self.logged if not excused(each)]

    def close(self) -> None:
        self.context.close()
