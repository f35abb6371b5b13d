"""What is read from the messages at the addresses of the feeder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from qmt_bridge import sockets
from qmt_bridge.commands.doctor.facts import feeder as feeder_facts
from qmt_bridge.commands.doctor.findings import feeder
from qmt_bridge.config import Config
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import STATUS_TOPIC, Topic, quote_topic
from tests.support.ports import free_ports


@contextmanager
def publishing(make: Callable[[], list[tuple[Topic, object]]]) -> Iterator[Config]:
    """Publish the messages that `make` returns again and again, like a feeder that answers no questions."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    market = sockets.bind_publisher(context, "market_addr", "tcp://127.0.0.1:0", None)
    address = market.getsockopt_string(zmq.LAST_ENDPOINT)
    ended = threading.Event()

    def run() -> None:
        seq = 0
        while not ended.wait(0.05):
            seq += 1
            for topic, body in make():
                market.send_multipart(Frame(topic, 1, seq, time.time_ns(), time.time_ns(), encode(body)).to_parts())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        trade, ask = free_ports(2)
        yield Config(market_addr=address, trade_addr=f"tcp://127.0.0.1:{trade}", ask_addr=f"tcp://127.0.0.1:{ask}")
    finally:
        ended.set()
        thread.join()
        context.destroy(linger=0)


@pytest.mark.parametrize(("source", "heard"), [("xtquant", True), ("replay", False)])
def test_only_live_ticks_of_a_running_feeder_check_the_clock(
    source: str, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder_facts, "LISTEN_SECONDS", 2.0)

    def make() -> list[tuple[Topic, object]]:
        now = time.time_ns() // 1_000_000
        status = {"source": source, "simulated": False, "state": "up", "epoch": 1, "time": now}
        # One hour old, except for one code.
        ticks = {"000001.SZ": {"time": now - 3_600_000}, "600519.SH": [{"time": now + 60_000}], "x": {"time": None}}
        return [
            (STATUS_TOPIC, status),
            (Topic("whole/SH/"), ticks),
            (quote_topic("600519.SH"), {"600519.SH": [{"time": now}]}),
        ]

    with publishing(make) as config:
        status, ages, unheard, _ = feeder_facts.listen(config)
    assert unheard is None
    assert status is not None
    assert status.source == source
    assert bool(ages) == heard
    if heard:
        assert feeder.clock(ages, "", "").said.startswith("at least 6")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"HEAD", encode(["nonsense"])], id="array"),
        pytest.param([b"HEAD", encode({"source": "x", "simulated": 1})], id="wrong-types"),
        pytest.param([b"HEAD", b"[" * 100_000], id="nested"),
        pytest.param([b"HEAD", b'{"\xff\xfe":1}'], id="no-utf-8"),
        pytest.param([STATUS_TOPIC.encode()], id="topic-alone"),
        pytest.param([STATUS_TOPIC.encode() + b"short", b"{}"], id="short-stamp"),
        pytest.param([b"HEAD", b"", b"", b"", b""], id="too-many"),
    ],
)
def test_messages_of_another_program_are_a_finding(monkeypatch: pytest.MonkeyPatch, parts: list[bytes]) -> None:
    is_frame = len(parts) == 2 and parts[0] == b"HEAD"
    if not is_frame:
        # It is left out.
        monkeypatch.setattr(feeder_facts, "SILENT_SECONDS", 0.5)
    head = Frame(STATUS_TOPIC, 1, 1, 1, 1, b"").to_parts()[0]
    raw = [head if part == b"HEAD" else part for part in parts]
    monkeypatch.setattr(Frame, "to_parts", lambda frame: raw)
    with publishing(lambda: [(STATUS_TOPIC, None)]) as config:
        heard = feeder_facts.listen(config)
        assert (heard.status, heard.ages_ms) == (None, ())
        assert (heard.unheard is not None) is is_frame
        found = feeder.feeder(None, heard.unheard, "1.0", "auto", heard.refused.text if heard.refused else "")
    assert found.check == "feeder"
