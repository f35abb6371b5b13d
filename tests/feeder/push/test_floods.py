"""A pusher that changes its state again and again does not fill the log, and its last state is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from feeder.push.pushers import Pushers
from tests.support.push_feeder import desk
from tests.support.waiting import wait_for

FLIPS = 5000


def test_flood_of_states_is_told_as_a_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with desk(tmp_path) as found, caplog.at_level("INFO"):
        pusher, consumer = found.pusher(), found.consumer()
        consumer.status(state="up")
        flips = [{"type": "state", "state": state, "reason": "x"} for state in ("stale", "up")] * (FLIPS // 2)
        pusher.say(*flips, {"type": "state", "state": "down", "data_lost": True}, {"type": "state", "state": "stale"})
        told = consumer.status(state="stale", reason=None)
        # The state between that told of a loss may have been left out, but not the loss.
        wait_for(lambda: found.push.health().pushers[0].state == "stale")
        assert told["data_lost"] or any(status["data_lost"] for status in consumer.statuses)
        said = [record for record in caplog.records if record.getMessage().startswith("feed is")]
        assert len(said) < FLIPS // 5


def test_nothing_is_served_before_the_thread_has_begun(tmp_path: Path) -> None:
    with desk(tmp_path) as found:
        before = Pushers(found.feeder.publisher.inbox, {}, "", 1)
        assert all(before.served[kind] for kind in found.push.kinds)
