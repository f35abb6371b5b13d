"""`qmt-bridge bench` and `python -m tests.bench`: they count every frame that was sent."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from websockets import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from qmt_bridge import cli
from qmt_bridge.commands.bench import Bare, measure, selftest, shown, to_text
from qmt_bridge.commands.load import Client, Crew, Crews, Histogram, Load, Measurement
from qmt_bridge.wire.frames import framed, to_json
from tests.bench import table
from tests.bench.loads import LOADS, medians, observe, verdicts
from tests.bench.publish import EMBEDDED, FIRST_SEQ, Template, tick
from tests.bench.servers import OURS, PUBLIC, Asking, gateway

DEADLINE = 20.0
CODES = ("600519.SH", "000001.SZ", "300750.SZ")


def stamped(code: str, seq: int, epoch: int = 7, data: str = "x" * 200) -> bytes:
    now = time.time_ns() / 1e6
    head = {"type": "data", "epoch": epoch, "seq": seq, "time": now - 2.0, "published": now - 1.0}
    return to_json({**head, "data": {code: [{"data": data}]}})


@contextmanager
def served(handler: Callable[[ServerConnection, list[str]], None]) -> Iterator[str]:
    """Serve `/ws/realtime` by a handler that gets the codes asked for; yield the URL."""

    def handle(socket: ServerConnection) -> None:
        try:
            handler(socket, orjson.loads(socket.recv())["stocks"])
        except ConnectionClosed:
            return

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws/realtime"
        finally:
            server.shutdown()
            thread.join()


def acknowledge(socket: ServerConnection, codes: Sequence[str], rejected: Sequence[dict[str, str]] = ()) -> None:
    socket.send(to_json({"type": "subscribed", "id": 1, "added": codes, "rejected": rejected}).decode())


def stream(socket: ServerConnection, codes: Sequence[str], leave_out: Callable[[int], bool]) -> None:
    """Send frames of all codes until the client has gone."""
    pause = threading.Event()
    seq = 0
    while True:
        seq += 1
        for code in codes:
            if not leave_out(seq):
                socket.send(stamped(code, seq).decode())
        pause.wait(0.001)


def every_tenth_lost(socket: ServerConnection, codes: list[str]) -> None:
    acknowledge(socket, codes)
    stream(socket, codes, lambda seq: seq % 10 == 0)


# -- Pure


def test_percentiles_are_right_to_one_percent():
    times = Histogram()
    for ms in range(1, 1001):
        times.add(float(ms))
    assert times.percentile(0.5) == pytest.approx(500, rel=0.01)
    assert times.percentile(0.99) == pytest.approx(990, rel=0.01)
    assert times.percentile(0.999) == pytest.approx(999, rel=0.01)
    assert times.percentile(1.0) == pytest.approx(1000, rel=0.01)


def test_no_time_has_no_percentile():
    assert Histogram().shown() == {"p50": None, "p99": None, "p99.9": None}


def test_a_clock_that_is_behind_gives_no_negative_time():
    times = Histogram()
    times.add(-3.0)
    assert times.percentile(0.5) == pytest.approx(0.001)


def test_each_client_goes_on_where_the_last_one_ended():
    load = Load("ws://h/ws/realtime", ("a", "b", "c"), each=2)
    assert [load.codes_of(number) for number in range(3)] == [("a", "b"), ("c", "a"), ("b", "c")]
    assert load._replace(each=0).codes_of(5) == ("a", "b", "c")


def test_a_request_is_that_of_its_url():
    load = Load("ws://h/ws/whole_quote", ("SH",))
    assert orjson.loads(load.request(0)) == {"id": 1, "seq": True, "codes": ["SH"]}
    load = Load("ws://h/ws/realtime", ("600519.SH",), period="1m")
    assert orjson.loads(load.request(0)) == {"id": 1, "seq": True, "stocks": ["600519.SH"], "period": "1m"}
    with pytest.raises(ValueError, match="/ws/trade"):
        Load("ws://h/ws/trade").request(0)


@pytest.mark.parametrize("sample", [1, 3])
@pytest.mark.parametrize("piece", [1, 2, 7, 300, 100_000])
def test_frames_are_counted_wherever_they_are_cut(piece, sample):
    load = Load("ws://h/ws/realtime", CODES, clients=1, sample=sample)
    crew = Crew(load, [0], Client)
    client = crew._clients[0]
    wanted = [framed(stamped(code, seq)) for seq in range(1, 41) for code in CODES]
    # Lengths of all three kinds, another opcode between them, and a message in two pieces.
    wanted.insert(7, framed(stamped("688001.SH", 1, data="y" * 70_000)))
    wanted.insert(9, framed(stamped("688002.SH", 1, data=""), binary=True))
    whole = b"".join([*wanted, b"\x8a\x00", b"\x01\x03abc", b"\x80\x03def"])
    try:
        client.begin()
        rest = b""
        for start in range(0, len(whole), piece):
            data = bytearray(rest + whole[start : start + piece])
            rest = bytes(data[client.split(data, 0, len(data)) :])
        assert rest == b""
        assert client.frames == len(wanted) + 1
        assert client.unstamped == 1
        if sample == 1:
            assert client.positions == {code.encode(): 40 for code in CODES} | {b"688001.SH": 1, b"688002.SH": 1}
    finally:
        crew.leave()


def test_a_market_is_one_topic_and_a_code_of_its_own_another():
    crew = Crew(Load("ws://h/ws/whole_quote", ("SH", "000001.SZ", "600000.SH"), clients=1), [], Client)
    try:
        found = [crew.topics[code] for code in (b"600519.SH", b"000001.SZ", b"600000.SH")]
        # The gateway sends a code once, with its market, where both are asked for.
        assert found == [b"SH", b"000001.SZ", b"SH"]
    finally:
        crew.leave()


def test_what_is_lost_while_the_feeder_restarts_is_not_counted():
    crew = Crew(Load("ws://h/ws/realtime", CODES, clients=1), [0], Client)
    client = crew._clients[0]
    try:
        frames = [stamped("600519.SH", 5), stamped("600519.SH", 8), stamped("600519.SH", 3, epoch=8)]
        data = bytearray(b"".join(map(framed, frames)))
        client.split(data, 0, len(data))
        client.end()
        assert client.lost() == 2
        assert client.positions == {b"600519.SH": 3}
        assert client.repeated == 0
        assert crew.epochs == {b"8"}
    finally:
        crew.leave()


def test_tallies_add_up():
    one, other = Measurement(), Measurement()
    for measured, lost in ((one, 2), (other, None)):
        measured.frames, measured.lost, measured.seconds, measured.cpu_seconds, measured.clients = 10, lost, 2.0, 1.0, 3
        measured.latency.add(1.0)
        measured.trouble["gone"] += 1
    one.add(other)
    assert (one.frames, one.lost, one.rate, one.busy, one.clients) == (20, None, 10.0, 0.5, 6)
    assert one.latency.total() == 2
    assert one.trouble == {"gone": 2}


def test_a_report_says_what_it_does_not_know():
    measured = Measurement()
    measured.lost, measured.frames, measured.unstamped, measured.seconds = None, 5, 5, 1.0
    load = Load("ws://h/ws/realtime", CODES, clients=1)
    machine = {"cpu": "c", "cores": 2, "system": "s", "python": "p"}
    text = to_text({**shown(load, measured), "server": None, "machine": machine})
    assert "lost        not known, 5 without a position" in text
    assert "latency" not in text
    assert "psutil is not installed" in text


def test_a_template_fills_number_and_time_into_what_it_encodes():
    template = Template(lambda seq, sent: {"600519.SH": [tick(seq, sent)]}, to_json, text=True)
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
    public = said["at least 150 x the public qmt-bridge"]
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


def test_a_target_stands_beside_the_load_that_is_named_once():
    rows = table.targets(list(verdicts(RESULTS)))
    assert rows[1][0] == f"1. {LOADS[0].name}"
    assert rows[2][0] == ""
    assert [row[3] for row in rows[1:4]] == ["missed", "-", "-"]


def test_medians_are_of_the_rounds_that_have_a_figure():
    assert medians([{"a": 1.0, "b": None}, {"a": 5.0}, {"a": 2.0, "b": None}]) == {"a": 2.0, "b": None}


def test_a_readme_keeps_all_but_what_is_between_the_marks():
    assert table.replaced("a\n<!-- bench -->\nold\n<!-- /bench -->\nb", "new") == (
        "a\n<!-- bench -->\nnew\n<!-- /bench -->\nb"
    )
    with pytest.raises(ValueError, match="<!-- bench -->"):
        table.replaced("a <!-- /bench --> b <!-- bench -->", "new")


# -- Real


@pytest.mark.parametrize("sample", [1, 7])
def test_every_tenth_frame_lost_is_reported_as_that(sample):
    clients = 4
    with served(every_tenth_lost) as url:
        load = Load(url, CODES, clients=clients, sample=sample, cores=(0,))
        found = measure(load, 0.6)
    assert found["clients"] == clients
    assert found["frames"] > 500
    # Exactly one of ten numbers; where a client begins and ends, one of each code more or less.
    expected = found["frames"] / 9
    slack = 2 * clients * len(CODES)
    if sample > 1:
        # Counted on until each topic has shown how far it has come.
        slack += found["frames"] // 10
    assert expected - slack <= found["lost"] <= expected + slack
    assert found["unstamped"] == found["repeated"] == found["skipped"] == 0
    # The delays are those that the server stamped.
    assert found["feeder_ms"]["p50"] == pytest.approx(1.0, rel=0.02)
    assert found["gateway_ms"]["p50"] >= 0.98
    assert found["latency_ms"]["p50"] >= 1.96


def test_nothing_is_lost_where_nothing_is_lost():
    def handler(socket: ServerConnection, codes: list[str]) -> None:
        acknowledge(socket, codes, [{"code": "bad", "error": "unknown_symbol"}])
        stream(socket, codes, lambda seq: False)

    with served(handler) as url:
        for sample in (1, 7):
            found = measure(Load(url, CODES, clients=2, sample=sample, cores=(0,)), 0.3)
            assert found["frames"] > 100
            assert found["lost"] == 0
            assert found["rejected"] == {"bad: unknown_symbol": 2}


def test_a_server_without_positions_is_counted_and_its_loss_not_known():
    def handler(socket: ServerConnection, codes: list[str]) -> None:
        pause = threading.Event()
        while True:
            socket.send(to_json({codes[0]: [{"lastPrice": 1858.0}]}).decode())
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


def test_a_stalled_client_reads_nothing_once_counting_has_begun():
    with served(every_tenth_lost) as url:
        crew = Crew(Load(url, CODES, clients=3, stalled=2), range(3), Client)
        try:
            assert not crew.connect()
            assert len(crew.selector.get_map()) == 3
            crew.begin()
            assert [key.data.number for key in crew.selector.get_map().values()] == [0]
        finally:
            crew.leave()


def test_a_server_that_closes_is_told_with_its_reason():
    def handler(socket: ServerConnection, codes: list[str]) -> None:
        socket.close(1008, "unauthorized: no API key was given")

    with served(handler) as url, pytest.raises(ConnectionError, match=r"1008 unauthorized: .* \(1 clients\)"):
        measure(Load(url, CODES, clients=1), 0.3)


def test_a_client_that_loses_its_connection_meanwhile_is_trouble():
    def handler(socket: ServerConnection, codes: list[str]) -> None:
        acknowledge(socket, codes)
        for seq in range(1, 1000):
            socket.send(stamped(codes[0], seq).decode())
            threading.Event().wait(0.001)
        socket.close(1012, "server_restart")

    with served(handler) as url:
        found = measure(Load(url, CODES, clients=1), 3.0)
    assert found["trouble"] == {"closed by the server: 1012 server_restart": 1}


def test_the_clients_end_with_their_parent():
    program = (
        "import sys, time; from qmt_bridge.commands.load import Crews, Load\n"
        "with Crews(Load(sys.argv[1], ('600519.SH',), clients=2, cores=(0,))) as crews:\n"
        "    crews.connect(); print('connected', flush=True); time.sleep(60)"
    )
    left = threading.Semaphore(0)

    def handler(socket: ServerConnection, codes: list[str]) -> None:
        try:
            every_tenth_lost(socket, codes)
        finally:
            left.release()

    with served(handler) as url:
        with subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE) as parent:
            try:
                assert parent.stdout is not None
                assert parent.stdout.readline() == b"connected\n"
            finally:
                parent.kill()
        assert left.acquire(timeout=DEADLINE)
        assert left.acquire(timeout=DEADLINE)


def test_the_selftest_counts_what_a_bare_loop_writes():
    found = selftest(Load("", clients=3, sample=5, cores=(0,)), 0.3)
    assert found["frames_per_second"] > 0
    assert found["clients"] == 3
    assert "by a loop that writes ready-made frames" in to_text(found)


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


def test_the_command_measures_a_real_gateway_and_the_table_the_same_one():
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
def test_the_command_says_what_is_wrong(arguments, said):
    result = CliRunner().invoke(cli.main, ["bench", *arguments])
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output
