"""A pusher that changes its state again and again does not fill the log, and its last state is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from feeder.push import pushers
from feeder.push.pushers import Pushers
from tests.support.push_feeder import desk
from tests.support.pusher import ACCOUNT
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


def test_a_loss_between_two_told_states_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushers, "CHANGES_A_SECOND", 1)
    with desk(tmp_path) as found:
        pusher, consumer = found.pusher(kinds=["trade"]), found.consumer()
        lost = {"type": "state", "state": "up", "data_lost": True}
        pusher.say(lost)
        consumer.status(state="up", data_lost=True)
        # The first line takes the only change of this second.
        accounts = {"type": "accounts", "accounts": [{"account": ACCOUNT}]}
        pusher.say(accounts, {"type": "state", "state": "stale"}, lost)
        consumer.status(state="up", data_lost=False)
        consumer.status(state="up", data_lost=True)


def test_a_pusher_that_comes_and_goes_fills_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pushers, "CHANGES_A_SECOND", 1)
    # Each connection takes the place of the one before: two lines.
    connections = 20
    with desk(tmp_path) as found, caplog.at_level("INFO"):
        for _ in range(connections):
            found.pusher()
        said = [line for line in caplog.messages if line.startswith("pusher desk is")]
        assert len(said) < 2 * connections - 1
        wait_for(lambda: found.push.health().pushers[0].state == "up")


def test_nothing_is_served_before_the_thread_has_begun(tmp_path: Path) -> None:
    with desk(tmp_path) as found:
        before = Pushers(found.feeder.publisher.inbox, {}, "", 1)
        assert all(before.served[kind] for kind in found.push.kinds)


def test_each_loss_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with desk(tmp_path) as found:
        told: list[tuple[str, str | None, bool]] = []
        monkeypatch.setattr(
            found.push._sink,
            "set_state",
            lambda state, reason=None, *, data_lost=False: told.append((state, reason, data_lost)),
        )
        losing, other = found.pusher(name="losing", kinds=["l2"]), found.pusher(name="other")
        lost = {"type": "state", "state": "up", "data_lost": True}
        losing.say(lost, lost)
        wait_for(lambda: told.count(("up", None, True)) == 2, lambda: f"two losses in {told}")
        # A later change of another pusher is no loss.
        other.say({"type": "state", "state": "stale", "reason": "x"})
        wait_for(lambda: told[-1][0] == "stale", lambda: f"a change in {told}")
    first = told.index(("up", None, True))
    assert told[first : first + 4] == [
        ("up", None, True),
        ("up", None, False),
        ("up", None, True),
        ("stale", "x", False),
    ]
