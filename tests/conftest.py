"""What every test leaves as it was, the logging of the process; and what none inherits, a SIGINT that is ignored."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

# A shell that starts the tests in the background ignores it, and so would each program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Undo what a test does to the loggers: a command that runs in this process sets their level and handlers."""
    root = logging.getLogger()
    loggers = [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]
    before = [(each, each.handlers[:], each.filters[:], each.level, each.propagate) for each in loggers]
    yield
    for each, handlers, filters, level, propagate in before:
        each.handlers[:], each.filters[:], each.propagate = handlers, filters, propagate
        each.setLevel(level)
