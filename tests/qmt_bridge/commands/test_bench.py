"""`qmt-bridge bench` and `python -m tests.bench`: they count every frame that was sent."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from websockets.sync.server import ServerConnection

from qmt_bridge import cli
from qmt_bridge.commands.bench import Bare, measure, selftest, shown
from qmt_bridge.commands.checks import measured_lines
from qmt_bridge.commands.load.crews import Crews
from qmt_bridge.commands.load.load import Load
from qmt_bridge.commands.load.measurement import Measurement
from qmt_bridge.commands.load.report import LABEL
from qmt_bridge.commands.terminal.table import labelled
from qmt_bridge.wire.frames import encode, framed
from tests.bench import table
from tests.bench.loads import LOADS
from tests.bench.observing import observe
from tests.bench.publish import EMBEDDED, FIRST_SEQ, Template, tick
from tests.bench.servers import OURS, PUBLIC, Asking, gateway
from tests.bench.targets import over_rounds, verdicts
from tests.support.stamped_server import CODES, acknowledge, every_tenth_lost, served, stamped, stream
from tests.support.waiting import SLOWNESS

DEADLINE = 30.0 * SLOWNESS


def test_a_report_says_what_is_not_known():
    measured = Measurement()
    measured.lost, measured.frames, measured.unstamped, measured.seconds = None, 5, 5, 1.0
    load = Load("ws://h/ws/realtime", CODES, clients=1)
    machine = {"cpu": "c", "cores": 2, "system": "s", "python": "p"}
    text = labelled(measured_lines({**shown(load, measured), "server": None, "machine": machine}), LABEL)
    assert "lost        not known, 5 without a position" in text
    assert "latency" not in text
    assert "psutil is not installed" in text


def test_a_template_fills_number_and_time_into_the_body():
    template = Template(lambda seq, sent: {"600519.SH": [tick(seq, sent)]})
    body = template.fill(FIRST_SEQ + 41, 1_767_000_000_123_456)
    assert orjson.loads(body) == {"600519.SH": [tick(FIRST_SEQ + 41, 1_767_000_000_123_456)]}
    assert len(body) == template.size


RESULTS = {
    (1, OURS.name): {"rate": 1_500_000.0, "load_core": 0.99, "lost": 0.0},
    (1, PUBLIC.name): {"rate": 15_000.0, "load_core": 0.99, "cpu": 0.98},
    (2, OURS.name): {"p99": 2.5},
    (8, OURS.name): {"subscribe_s": 0.1, "lost": 3.0, "back_s": 0.7},
}


def test_targets_are_met_or_missed_or_not_measured():
    said = {verdict.target: verdict for verdict in verdicts(RESULTS)}
    assert {verdict.load for verdict in said.values()} == {1, 2, 8}
    public = said["at least 290 x the public qmt-bridge"]
    assert (public.here, public.met) == ("100 x", False)
    assert said["at least 8 x Starlette send_text"].met is None
    assert said["p99 at 50,000/s at most 3 ms"].met is True
    assert said["none lost"].met is False
    assert said["subscribed in at most 0.2 s"].met is True
    assert said["all back within 0.5 s of a restart of the feeder"].met is False


def test_the_table_names_what_is_missing():
    rows = table.comparison(RESULTS, {"nats-server": "apt install nats-server"})
    assert rows[0][0] == "server"
    assert rows[1] == [OURS.name, "≥ 1,500,000", "2.50 ms"]
    assert rows[2] == [PUBLIC.name, "15,000", ""]
    assert rows[3] == ["nats-server", "missing: apt install nats-server", ""]
    assert "| nats-server | missing: apt install nats-server |  |" in table.markdown(rows)
    assert table.text(rows).splitlines()[3] == "nats-server        missing: apt install nats-server"


def test_the_table_names_each_load_once_with_all_its_targets():
    rows = table.targets(list(verdicts(RESULTS)))
    assert rows[1][0] == f"1. {LOADS[0].name}"
    assert rows[2][0] == ""
    assert [row[3] for row in rows[1:4]] == ["missed", "-", "-"]


def test_medians_are_of_the_rounds_that_have_a_figure():
    assert over_rounds([{"a": 1.0, "b": None}, {"a": 5.0}, {"a": 2.0, "b": None}]) == {"a": 2.0, "b": None}


def test_only_the_text_between_the_marks_is_replaced():
    assert table.replaced("a\n<!-- bench -->\nold\n<!-- /bench -->\nb", "new") == (
        "a\n<!-- bench -->\nnew\n<!-- /bench -->\nb"
    )
    with pytest.raises(ValueError, match="<!-- bench -->"):
        table.replaced("a <!-- /bench --> b <!-- bench -->", "new")


@pytest.mark.parametrize("sample", [1, 7])
def test_the_loss_of_every_tenth_frame_is_reported(sample):
    clients = 4
    with served(every_tenth_lost) as url:
        load = Load(url, CODES, clients=clients, sample=sample, cores=(0,))
        found = measure(load, 0.6)
    assert found["clients"] == clients
    assert found["frames"] > 500
    # Exactly one of ten numbers is missing; where a client begins and ends, one more or less of each code.
    expected = found["frames"] / 9
    slack = 2 * clients * len(CODES)
    if sample > 1:
        # Frames are counted until each topic has shown its last sequence number.
        slack += found["frames"] // 10
    assert expected - slack <= found["lost"] <= expected + slack
    assert found["unstamped"] == found["repeated"] == found["skipped"] == 0
    # The server has stamped these delays.
    assert found["feeder_ms"]["p50"] == pytest.approx(1.0, rel=0.02)
    assert found["gateway_ms"]["p50"] >= 0.98
    assert found["latency_ms"]["p50"] >= 1.96


def test_no_loss_is_reported_without_a_loss():
    def handler(socket: ServerConnection, codes: list[str]) -> None:
        acknowledge(socket, codes, [{"code": "bad", "error": "unknown_symbol"}])
        stream(socket, codes, lambda seq: False)

    with served(handler) as url:
        for sample in (1, 7):
            found = measure(Load(url, CODES, clients=2, sample=sample, cores=(0,)), 0.3)
            assert found["frames"] > 100
            assert found["lost"] == 0
            assert found["rejected"] == {"bad: unknown_symbol": 2}


def test_the_loss_of_a_server_without_positions_is_not_known():
    def handler(socket: ServerConnection, codes: list[str]) -> None:
        pause = threading.Event()
        while True:
            socket.send(encode({codes[0]: [{"lastPrice": 1858.0}]}).decode())
            pause.wait(0.001)

    with served(handler) as url:
        found = measure(Load(url, CODES, clients=2, cores=(0,)), 0.3)
    assert found["frames"] > 50
    assert found["unstamped"] == found["frames"]
    assert found["lost"] is None
    assert found["latency_ms"]["p50"] is None


def test_clients_that_stall_are_not_measured():
    with served(every_tenth_lost) as url:
        found = measure(Load(url, CODES, clients=3, stalled=2, cores=(0,)), 0.3)
    assert found["clients"] == 1
    assert found["stalled"] == 2
    assert found["frames"] > 50
    assert found["lost"] > 0


def test_a_close_by_the_server_is_reported_with_its_reason():
    def handler(socket: ServerConnection, codes: list[str]) -> None:
        socket.close(1008, "unauthorized: no API key was given")

    with served(handler) as url, pytest.raises(ConnectionError, match=r"1008 unauthorized: .*, 1 clients"):
        measure(Load(url, CODES, clients=1), 0.3)


def test_a_connection_that_ends_during_counting_is_reported():
    def handler(socket: ServerConnection, codes: list[str]) -> None:
        acknowledge(socket, codes)
        for seq in range(1, 1000):
            socket.send(stamped(codes[0], seq).decode())
            threading.Event().wait(0.001)
        socket.close(1012, "server_restart")

    with served(handler) as url:
        found = measure(Load(url, CODES, clients=1), 3.0)
    assert found["trouble"] == {"closed by the server: 1012 server_restart": 1}


def test_the_selftest_counts_what_a_bare_loop_writes():
    found = selftest(Load("", clients=3, sample=5, cores=(0,)), 0.3)
    assert found["frames_per_second"] > 0
    assert found["clients"] == 3
    assert any("by a loop that writes ready-made frames" in text for _, text in measured_lines(found))


def test_a_bare_loop_writes_nothing_before_it_is_told():
    frame = framed(stamped("600519.SH", 1))
    with Bare(frame) as bare, Crews(Load(bare.url, CODES, clients=2, acked=False, cores=(0,))) as crews:
        crews.connect()
        crews.begin()
        crews.end()
        assert crews.result().frames == 0
        crews.begin()
        bare.begin()
        until = time.monotonic() + DEADLINE
        while True:
            crews.end()
            measured = crews.result()
            if measured.frames > 10:
                break
            assert time.monotonic() < until
        # The loop writes the same frame again and again, so each client counts it as new once.
        assert measured.frames - measured.repeated == 2


def test_the_command_and_the_table_measure_a_real_gateway():
    with gateway() as running:
        publisher = running.publisher
        with Crews(Load(running.url, CODES, clients=4, acked=True, stamps=EMBEDDED, cores=(0,)), Asking) as crews:
            crews.connect()
            publisher.ask("once", list(CODES))
            seen = observe(running, crews, CODES, 400.0, 0.5)
        assert seen.measured.frames > 20
        assert seen.measured.lost == 0
        assert seen.measured.latency.total() > 0
        publisher.start(list(CODES), 200.0)
        result = CliRunner().invoke(
            cli.main, ["bench", running.url, *CODES, "--clients", "4", "--seconds", "0.5", "--json"]
        )
        publisher.stop()
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["frames"] > 20
    assert found["lost"] == 0
    assert found["unstamped"] == 0
    assert all(found[hop]["p50"] is not None for hop in ("latency_ms", "feeder_ms", "gateway_ms"))
    assert found["server"]["pids"] == [running.pids[0]]
    assert found["server"]["rss_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'URL'"),
        (["ws://127.0.0.1:9/ws/trade"], "cannot measure 'ws://127.0.0.1:9/ws/trade'"),
        (["ws://127.0.0.1:9/ws/realtime", "600519.SH", "--clients", "1"], "cannot connect"),
        (["ws://127.0.0.1:9/ws/realtime", "--clients", "2", "--stalled", "2"], "--stalled must leave"),
    ],
)
def test_the_command_prints_the_error(arguments, said):
    result = CliRunner().invoke(cli.main, ["bench", *arguments])
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output
