"""Lines that mutations have found, at a real feeder: each is refused with its cause, and costs that line only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from feeder.app import Feeder
from feeder.push.source import PushSource
from qmt_bridge.config import Config
from tests.support.ports import ANY_ADDRESSES, ANY_PORT
from tests.support.pusher import KEY, Pusher


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Pusher]:
    source = PushSource(config := Config(**ANY_ADDRESSES, data_dir=str(tmp_path), push_addr=ANY_PORT, push_key=KEY))
    feeder = Feeder(config, source)
    feeder.start()
    try:
        with Pusher.at(int(source.address.rpartition(":")[2])) as client:
            client.join(kinds=["quote", "trade"])
            yield client
    finally:
        feeder.stop()


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        pytest.param('{"topic":{"kind":"quote","code":"600519.SH"},"time":1e308,"data":{}}', "milliseconds", id="late"),
        pytest.param(
            '{"topic":{"kind":"quote","code":"600519.SH"},"time":true,"data":{}}', "milliseconds", id="boolean"
        ),
        pytest.param(
            '{"topic":{"kind":"quote","code":"600519.SH"},"time":1795904107,"data":{}}', "are seconds", id="seconds"
        ),
        pytest.param(
            '{"topic":{"kind":"trade","account":""},"id":"1","event":"order","data":{}}', "topic", id="no-name"
        ),
    ],
)
def test_odd_line_is_refused_with_its_cause(
    client: Pusher, odd: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.raw(odd.encode() + b"\n")
    refusal = client.until("error")
    assert (refusal["line"], refusal["code"]) == (2, "bad_request")
    assert said in refusal["error"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
