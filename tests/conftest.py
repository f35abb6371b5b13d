"""For all tests: restore logging and environment after each test, and do not inherit an ignored SIGINT."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from qmt_bridge import log
from qmt_bridge.language import catalog
from tests.support.waiting import SLOWNESS

# A shell ignores SIGINT for the tests that it starts in the background; the programs of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The folder of the user, in which a gateway without `data_dir` keeps its files.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="qmt-bridge-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)

# The feeder's metrics have one address on a machine, and a feeder that finds it taken logs a warning.
os.environ["QMT_BRIDGE_METRICS_ADDR"] = ""


# The time that an example takes says how busy the machine is, and not whether it holds.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


# The texts that tests expect are English, wherever they run.
os.environ["QMT_BRIDGE_LANG"] = "en"


# `log.configure` sets their levels; a logger that does not exist before a test is not restored after it.
for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "websockets"):
    logging.getLogger(name)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the collector off meanwhile, and what was made then out of its way afterwards.

    Collecting all tests makes half a million objects that stay, and the collector went through them again and again:
    13 of 23 s of each process.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test, and not only what it waits for, more time where all is slower."""
    if SLOWNESS == 1.0:
        return
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds = float(marker.args[0] if marker is not None else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds * SLOWNESS), append=False)


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Restore the loggers: commands that a test runs in this process set levels and handlers."""
    root = logging.getLogger()
    loggers = [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]
    before = [(each, each.handlers[:], each.filters[:], each.level, each.propagate) for each in loggers]
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)
    log.forget()
    for each, handlers, filters, level, propagate in before:
        each.handlers[:], each.filters[:], each.propagate = handlers, filters, propagate
        each.setLevel(level)


@pytest.fixture(autouse=True)
def language_restored() -> Iterator[None]:
    """Restore the language: a command that a test runs in this process sets it for the whole process."""
    yield
    catalog.speak("en")


@pytest.fixture(autouse=True)
def environment_restored() -> Iterator[None]:
    """Restore the environment: `qmt-bridge gateway` that a test runs in this process puts the settings there."""
    before = os.environ.copy()
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
