"""A browser, and a running `qmt-bridge up` whose page it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.browser import QUICK, Visit, running_browser
from tests.support.up import Up, running


# Its loop runs in the thread of the tests for as long as it is open, so no test of another module could have its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def up(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Return feeder, gateway and store, which all tests of a module share."""
    with running(tmp_path_factory.mktemp("up"), *QUICK) as up:
        yield up


@pytest.fixture
def visits(browser: Any, up: Up) -> Iterator[Callable[..., Visit]]:
    """Return what opens pages; at the end no page has logged an error or asked another host for anything."""
    opened: list[Visit] = []

    def visit(**options: Any) -> Visit:
        opened.append(Visit(browser, f"http://127.0.0.1:{up.port}", **options))
        return opened[-1]

    yield visit
    for each in opened:
        each.close()
    assert [each.troubles() for each in opened] == [[] for _ in opened]
    assert [each.foreign() for each in opened] == [[] for _ in opened]


@pytest.fixture
def visit(visits: Callable[..., Visit]) -> Visit:
    return visits()
