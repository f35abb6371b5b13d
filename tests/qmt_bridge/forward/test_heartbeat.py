"""What the log says of the feeder's heartbeats; the time is an argument."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from qmt_bridge.forward.heartbeat import ABSENT_AFTER, Heartbeat


def test_heartbeats_that_never_come_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    context: zmq.Context[Any] = zmq.Context()
    relay: Any = SimpleNamespace(inproc="inproc://never")
    heartbeat = Heartbeat(context, relay)
    try:
        heartbeat.look(100.0)
        heartbeat.look(99.0 + ABSENT_AFTER)
        assert caplog.text == ""
        heartbeat.look(101.0 + ABSENT_AFTER)
        heartbeat.look(102.0 + ABSENT_AFTER)
    finally:
        heartbeat.close()
        context.destroy(0)
    assert caplog.text.count("no heartbeat has come since the start") == 1
