"""The limit of open files (gateway/connections/descriptors.py)."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest

from gateway.connections import descriptors
from gateway.connections.descriptors import OTHERS, RESERVE, SELECTED, Descriptors, places, raise_limit

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")


class Limits:
    """The system's limits of one process."""

    RLIMIT_NOFILE = 7
    RLIM_INFINITY = -1

    def __init__(self, soft: int, hard: int) -> None:
        self.limits = (soft, hard)

    def getrlimit(self, _: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, _: int, limits: tuple[int, int]) -> None:
        if limits[1] != -1 and limits[0] > limits[1]:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@posix
@pytest.mark.parametrize(
    ("soft", "hard", "after", "warns"),
    [
        (1024, 1_048_576, 5000 + OTHERS, False),
        (1024, -1, 5000 + OTHERS, False),
        (1024, 4096, 4096, True),
        (1024, 1024, 1024, True),
        (100_000, 100_000, 100_000, False),
        (-1, -1, -1, False),
    ],
)
def test_soft_limit_is_raised_to_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, soft: int, hard: int, after: int, warns: bool
) -> None:
    limits = Limits(soft, hard)
    monkeypatch.setattr(descriptors, "resource", limits)
    with caplog.at_level(logging.WARNING):
        raise_limit(5000)
    assert limits.limits == (after, hard)
    assert ("max_connections = 5000" in caplog.text) == warns


@posix
def test_last_descriptors_are_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "resource", Limits(1024, 4096))
    assert not Descriptors().scarce(1024 - RESERVE - 1)
    assert Descriptors().scarce(1024 - RESERVE)
    monkeypatch.setattr(descriptors, "resource", Limits(-1, -1))
    assert not Descriptors().scarce(1_000_000)


def test_refused_connections_are_logged_at_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("gateway.connections.descriptors.time.monotonic", lambda: now[0])
    running = Descriptors()
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            running.tell()
        now[0] += descriptors.REPEAT
        running.tell()
    assert [record.getMessage().split()[0] for record in caplog.records] == ["1", "50"]


@pytest.mark.parametrize(
    ("platform", "loop", "wanted", "served"),
    [
        pytest.param("win32", asyncio.SelectorEventLoop, 5000, SELECTED, id="select"),
        pytest.param("win32", asyncio.SelectorEventLoop, 100, 100, id="select-few"),
        pytest.param("win32", asyncio.AbstractEventLoop, 5000, 5000, id="proactor"),
        pytest.param("linux", asyncio.SelectorEventLoop, 5000, 5000, id="epoll"),
    ],
)
def test_a_loop_that_selects_on_windows_serves_fewer(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    platform: str,
    loop: type[asyncio.AbstractEventLoop],
    wanted: int,
    served: int,
) -> None:
    """The 513th socket would end the loop."""
    running = loop()
    monkeypatch.setattr(descriptors.sys, "platform", platform)
    try:
        with caplog.at_level(logging.WARNING):
            assert places(running, wanted) == served
    finally:
        monkeypatch.undo()
        if loop is asyncio.SelectorEventLoop:
            running.close()
    assert (f"at most {SELECTED} WebSockets on Windows, not {wanted}" in caplog.text) == (served < wanted)
