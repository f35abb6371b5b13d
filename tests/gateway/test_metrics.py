"""/metrics over a real feeder that loses messages, stops and starts again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gateway import metrics as metrics_module
from gateway.endpoints.urls import ENDPOINTS
from qmt_bridge.wire.topics import quote_topic
from tests.support.rig import Rig, metrics
from tests.support.waiting import until

TICK = quote_topic("600519.SH")


async def test_metrics_show_losses_and_the_state_of_the_feeder(rig: Rig) -> None:
    port = rig.servers[0].port
    before = metrics(port)
    assert (before["feed_up"], before['feed_state{state="up"}'], before['feed_state{state="down"}']) == (1, 1, 0)
    assert before["newest_tick_age_seconds"] == math.inf
    # Present before the first connection: an absent series would look like a stopped gateway.
    assert [before[f'connections{{path="{path}"}}'] for path in ENDPOINTS] == [0] * len(ENDPOINTS)
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"])
        for number in range(4):
            body = {"600519.SH": [{"n": number}]}
            if number in (1, 2):
                rig.lose(TICK, body)
            else:
                rig.source.publish(TICK, body)
                assert await client.receive() == body
        after = metrics(port)
        assert after["gaps_total"] - before["gaps_total"] == 1
        assert after["lost_total"] - before["lost_total"] == 2
        assert 0 <= after["newest_tick_age_seconds"] < math.inf
        assert after['connections{path="/ws/realtime"}'] == 1
        rig.feeder.stop()
        await until(lambda: metrics(port)["feed_up"] == 0, "the absence to be noticed")
        gone = metrics(port)
        assert (gone['feed_state{state="up"}'], gone['feed_state{state="down"}']) == (0, 1)
        assert gone['connections{path="/ws/realtime"}'] == 1
        rig.start_feeder()
        await until(lambda: metrics(port)["feed_up"] == 1, "the return to be noticed")


def test_empty_file_of_a_starting_worker_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(metrics_module.MULTIPROC_ENV, str(tmp_path))
    empty = tmp_path / "counter_1.db"
    empty.touch()
    monkeypatch.setattr(metrics_module.time, "sleep", lambda _: empty.write_bytes(bytes(8)))
    assert metrics_module.render() == b""
