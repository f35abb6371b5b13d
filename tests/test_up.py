"""`qmt-bridge up` from the outside: real processes, real recorded data, killed and frozen processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from qmt_bridge import Frame, quote_topic
from qmt_bridge.sockets import connect_subscriber
from tests.support import waiting
from tests.support.paths import FAKES, ROOT
from tests.support.ports import UP, address_options, free_port, free_ports, tcp, up_addresses
from tests.support.processes import DEADLINE, KILLED, kill, runs
from tests.support.recorded import TICKS, recorded, rows_by_code
from tests.support.store_asker import asking
from tests.support.up import START, Up, answers, receive, running, wait_for
from tests.support.waiting import SLOWNESS


@recorded
async def test_websocket_client_receives_every_recorded_row_in_order(tmp_path: Path) -> None:
    expected = rows_by_code()
    arguments = ["--source=replay", f"--file={TICKS}", "--speed=300", "--workers=2"]
    with running(tmp_path, *arguments) as up:
        received: dict[str, list[dict[str, Any]]] = {code: [] for code in expected}
        async with connect(up.url("/ws/realtime"), proxy=None) as client:
            await client.send(json.dumps({"stocks": list(expected), "period": "tick", "mode": "all"}))
            for _ in range(sum(map(len, expected.values()))):
                for code, records in (await receive(client)).items():
                    received[code] += records
        assert received == expected
        assert sum(map(len, received.values())) == 32_972


@recorded
def test_zeromq_consumer_receives_every_row_at_full_speed(tmp_path: Path) -> None:
    expected = rows_by_code()
    with running(tmp_path, "--source=replay", f"--file={TICKS}", "--speed=0") as up:
        received: dict[str, list[dict[str, Any]]] = {code: [] for code in expected}
        sequences: dict[str, list[int]] = {code: [] for code in expected}
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            consumer = connect_subscriber(context, up.market_addr, None)
            consumer.rcvtimeo = int(DEADLINE * 1000)
            for code in expected:
                consumer.subscribe(quote_topic(code))
            for _ in range(sum(map(len, expected.values()))):
                frame = Frame.from_parts(consumer.recv_multipart())
                [(code, records)] = frame.data.items()
                received[code] += records
                sequences[code].append(frame.seq)
        finally:
            context.destroy(linger=0)
        assert received == expected
        assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in sequences.values())


async def test_trade_sockets_on_two_workers_receive_the_same_events(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim", "--workers=2", "--sim-order-interval=0.2") as up:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(up.trade_url, proxy=None)) for _ in range(8)]
            events = [[await receive(client)] for client in clients]
            # All have the events from the first one of the client that came last.
            first = max(stream[0]["seq"] for stream in events)
            last = first + 20
            for client, stream in zip(clients, events, strict=True):
                while stream[-1]["seq"] < last:
                    stream.append(await receive(client))
        shared = [[event for event in stream if first <= event["seq"] <= last] for stream in events]
        assert all(stream == shared[0] for stream in shared)
        assert [event["seq"] for event in shared[0]] == list(range(first, last + 1))


async def test_a_key_is_added_and_revoked_without_a_restart(tmp_path: Path) -> None:
    def key(*arguments: str) -> str:
        command = [*START, "key", *arguments, f"--data-dir={tmp_path}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]

    async def close_of(client: ClientConnection) -> tuple[int | None, str | None]:
        async with asyncio.timeout(DEADLINE):
            await client.wait_closed()
        return client.close_code, client.close_reason

    with running(tmp_path, "--source=sim", "--workers=2") as up:
        secret = await asyncio.to_thread(key, "add", "desk", "--scopes", "market,trade")
        url = up.url(f"/ws/trade?ctl=1&api_key={secret}")

        async def opened() -> ClientConnection:
            """Open a socket; a worker may need a second to know the key."""
            async with asyncio.timeout(DEADLINE):
                while True:
                    client = await connect(url, proxy=None)
                    with suppress(ConnectionClosed):
                        if json.loads(await client.recv())["type"] == "welcome":
                            return client
                    await asyncio.sleep(0.5)

        clients = [await opened() for _ in range(8)]
        await asyncio.to_thread(key, "revoke", "desk")
        closes = await asyncio.gather(*map(close_of, clients))
        assert closes == [(1008, "unauthorized: the key desk was revoked")] * 8
        assert secret not in up.text


async def test_killed_feeder_closes_no_socket_and_data_continues(tmp_path: Path) -> None:
    requests = {
        "/ws/realtime": {"stocks": ["000001.SZ", "600519.SH"], "period": "tick"},
        "/ws/whole_quote": {"codes": ["SH", "SZ"]},
        "/ws/l2_thousand": {"stocks": ["000001.SZ"]},
        "/ws/formula": {"action": "subscribe", "formula_name": "MA", "stock_code": "000001.SZ"},
    }
    arguments = ["--source=sim", "--workers=2", "--sim-interval=0.5", "--sim-order-interval=0.2"]
    with running(tmp_path, *arguments) as up:
        async with AsyncExitStack() as stack:
            clients = []
            for url in (up.trade_url, *map(up.url, requests)):
                # websockets does not read while its queue is full, and so never sees the answer to its close frame.
                client = connect(url, proxy=None, max_size=None, close_timeout=0.1)
                clients.append(await stack.enter_async_context(client))
            for client, request in zip(clients[1:], requests.values(), strict=True):
                await client.send(json.dumps(request))
            before = [await receive(client) for client in clients]
            epoch = await asyncio.to_thread(_ready, up, "epoch")
            kill(up.pid("feeder"))
            wait_for(lambda: f"feeder ended with exit code {KILLED}" in up.text, "the report", up)
            wait_for(lambda: _ready(up, "epoch") not in (0, epoch), "the new feeder", up)
            # Frames sent before the kill are read first; later ones are from the new feeder.
            for client in clients:
                for _ in range(3):
                    await receive(client)
            assert all(client.close_code is None for client in clients)
            assert before[0]["seq"] > 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
async def test_metrics_of_two_workers_are_correct_after_a_kill(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim", "--workers=2") as up:
        async with AsyncExitStack() as stack:
            clients = []
            for _ in range(12):
                clients.append(await stack.enter_async_context(connect(up.url("/ws/realtime"), proxy=None)))
                await clients[-1].send(json.dumps({"stocks": ["600519.SH"]}))
                await receive(clients[-1])
            wait_for(lambda: _metric(up, 'connections{path="/ws/realtime"}') == 12, "the sum over the workers", up)
            wait_for(lambda: (_metric(up, "frames_sent_total") or 0) >= 12, "the frames of both workers", up)
            # Each worker exports its numbers once a second.
            wait_for(lambda: _metric(up, 'feed_state{state="up"}') == 2, "the state of both workers", up)
            assert _metric(up, "feed_up") == 1
            worker = _children(up.pid("gateway"))[-1]
            kill(worker)
            wait_for(lambda: f"worker {worker} ended" in up.text, "the report", up)
            alive = [client for client in clients if await answers(client)]
            wait_for(lambda: _metric(up, 'feed_state{state="up"}') == 2, "the new worker", up)
            wait_for(
                lambda: _metric(up, 'connections{path="/ws/realtime"}') == len(alive), "the remaining connections", up
            )
            for client in alive:
                assert list(await receive(client)) == ["600519.SH"]


async def test_killed_gateway_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim", "--workers=2") as up:
        gateway = up.pid("gateway")
        orphans = _children(gateway)
        kill(gateway)
        wait_for(lambda: f"gateway ended with exit code {KILLED}" in up.text, "the report", up)
        # The workers of the killed gateway keep the port until they notice that their parent has ended.
        wait_for(lambda: _ready(up, "worker") not in (0, *orphans), "the new gateway", up)
        async with connect(up.url("/ws/realtime"), proxy=None) as client:
            await client.send(json.dumps({"stocks": ["600519.SH"]}))
            assert list(await receive(client)) == ["600519.SH"]


def _positions(up: Up, topic: str) -> list[tuple[int, int]]:
    """Return the positions that the store of `up` has of a topic."""
    with asking(tcp(up.ports[-1])) as asker:
        return [(frame.epoch, frame.seq) for answer in asker.all(topic, start="00:00") for frame in answer.frames]


async def test_killed_store_is_replaced_and_has_what_it_had(tmp_path: Path) -> None:
    topic = quote_topic("600519.SH")
    with running(tmp_path, "--source=sim", "--sim-interval=0.2", f"--store={topic}") as up:
        wait_for(lambda: len(_positions(up, topic)) > 5, "ticks in the store", up)
        before = _positions(up, topic)
        async with connect(up.url("/ws/realtime"), proxy=None) as client:
            await client.send(json.dumps({"stocks": ["600519.SH"]}))
            kill(up.pid("store"))
            wait_for(lambda: f"store ended with exit code {KILLED}; starting it again" in up.text, "the report", up)
            for _ in range(3):
                assert list(await receive(client)) == ["600519.SH"]
        wait_for(lambda: (_positions(up, topic) or before)[-1] > before[-1], "newer ticks in the store", up)
        assert _positions(up, topic)[: len(before)] == before


async def test_store_that_cannot_run_keeps_no_other_part_from_it(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with running(tmp_path, "--source=sim") as up:
        wait_for(lambda: "store ended with exit code 1; starting it again" in up.text, "the report", up)
        assert f"cannot make the folder {tmp_path / 'store'}" in up.text
        async with connect(up.url("/ws/realtime"), proxy=None) as client:
            await client.send(json.dumps({"stocks": ["600519.SH"]}))
            assert list(await receive(client)) == ["600519.SH"]
        (tmp_path / "store").unlink()
        wait_for(lambda: "store started" in up.text, "the store", up, 2 * DEADLINE)


def test_without_days_there_is_no_store(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim", "--store-days=0") as up:
        assert "store    none (store_days = 0)" in up.text
        assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("how", ["terminate", "interrupt", "kill"])
def test_all_processes_end_with_up_however_it_ends(tmp_path: Path, how: str) -> None:
    with running(tmp_path, "--source=sim", "--workers=2") as up:
        pids = [up.pid("feeder"), up.pid("gateway"), up.pid("store")]
        match how:
            case "terminate":
                up.process.terminate()
            case "interrupt":
                up.process.send_signal(signal.SIGINT)
            case "kill":
                up.process.kill()
        code = up.process.wait(DEADLINE)
        assert code == (-9 if how == "kill" else 0), up.text
        for pid in pids:
            wait_for(lambda pid=pid: not runs(pid), f"the end of {pid}", up)
        wait_for(lambda: _refused(up.port), "the end of the workers", up)


def test_banner_shows_the_urls_and_that_data_is_simulated(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim") as up:
        banner = up.text[up.text.index("QMT Bridge") :].splitlines()
        assert len(banner) <= 10
        assert banner[1] == f"  page     http://127.0.0.1:{up.port}/"
        assert "SIMULATED" in banner[2]
        assert f"store    pid {up.pid('store')}, {tcp(up.ports[-1])}, 5 days in {tmp_path / 'store'}" in up.text
        for path in ("/ws/realtime", "/ws/whole_quote", "/ws/l2_thousand", "/ws/download_progress", "/ws/formula"):
            assert path in up.text
        # The key is shown once, in the banner, and not in the log.
        assert up.text.count(up.trade_url.partition("api_key=")[2]) == 1


@contextmanager
def holding(how: str, folder: Path) -> Iterator[list[int]]:
    """Yield ports held by another `up`, by another web server, or by a program that never answers."""
    if how == "up":
        with running(folder / "other", "--source=sim") as other:
            yield other.ports
        return
    with ExitStack() as stack:
        holders = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        ports = [int(holder.getsockname()[1]) for holder in holders]
        if how == "web server":
            # It answers that it is ready, as the gateway of another run does.
            stack.callback(_Web(holders).close)
        yield ports


class _Web:
    """Answers each request on the first socket like a ready gateway that no `up` has started."""

    def __init__(self, holders: list[socket.socket]) -> None:
        self._ended = False
        self._socket = holders[0]
        self._socket.settimeout(0.05)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        body = b'{"ready":true,"source":"sim","simulated":true,"feed":"up","instance":"","feeder_instance":""}'
        while not self._ended:
            with suppress(OSError):
                connection, _ = self._socket.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + body)

    def close(self) -> None:
        self._ended = True
        self._thread.join()


@pytest.mark.parametrize("how", ["up", "web server", "black hole"])
@pytest.mark.parametrize("taken", ["gateway", "market", "ask", "feeder", "all"])
def test_up_ends_at_a_taken_port_and_names_its_holder(tmp_path: Path, how: str, taken: str) -> None:
    places = {"gateway": (0,), "market": (1,), "ask": (2,), "feeder": (1, 2), "all": (0, 1, 2)}
    with holding(how, tmp_path) as held:
        ports = free_ports(1 + len(UP))
        for place in places[taken]:
            ports[place] = held[place]
        command = [sys.executable, "-m", "qmt_bridge.cli", "up", "--source=sim", f"--data-dir={tmp_path / 'own'}"]
        command += [f"--port={ports[0]}"]
        command += address_options(dict(zip(UP, map(tcp, ports[1:]), strict=True)))
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=30 * SLOWNESS, check=False, encoding="utf-8"
        )
    assert ended.returncode == 1
    assert "api_key" not in ended.stdout
    assert "Traceback" not in ended.stderr
    told = [line for line in ended.stderr.splitlines() if "metrics_addr" not in line]
    named = [line for line in told if "cannot listen on" in line]
    assert named
    for line in named:
        assert re.search(rf":({'|'.join(str(ports[place]) for place in places[taken])}): Address already in use", line)
        if sys.platform == "linux":
            assert re.search(r"; \S+ \(pid \d+: .*\) has it$", line)
            assert how == "up" or f"(pid {os.getpid()}: " in line


def test_a_gateway_that_runs_already_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """It has the port, and is connected to the very addresses of the feeder that `up` starts."""
    port = free_port()
    addresses = [f"--port={port}", *address_options(up_addresses())]
    other = subprocess.Popen([*START, "gateway", *addresses], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        waiting.wait_for(lambda: not _refused(port), "the other gateway")
        # Its own gateway takes so long to start that the other one has seen the feeder before.
        (tmp_path / "sitecustomize.py").write_text(
            "import sys, time\ntime.sleep(3.0 if 'gateway' in sys.orig_argv else 0.0)\n", encoding="utf-8"
        )
        command = [*START, "up", "--source=sim", f"--data-dir={tmp_path}", *addresses]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        ended = subprocess.run(
            command, capture_output=True, timeout=30 * SLOWNESS, check=False, encoding="utf-8", env=env
        )
    finally:
        other.terminate()
        other.communicate(timeout=DEADLINE)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert f"(pid {other.pid}: " in ended.stderr


def test_port_taken_during_a_restart_is_tried_again(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim") as up:
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kill(up.pid("gateway"))
        try:
            # Take the port as soon as it is free.
            def take() -> bool:
                with suppress(OSError):
                    holder.bind(("127.0.0.1", up.port))
                    holder.listen()
                    return True
                return False

            wait_for(take, "the port", up)
            wait_for(lambda: "gateway ended with exit code 1; starting it again" in up.text, "the report", up)
            assert f"port: cannot listen on 127.0.0.1:{up.port}: Address already in use; " in up.text
        finally:
            holder.close()
        wait_for(lambda: _ready(up, "ready"), "the gateway", up)


frozen = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
# A busy machine may hold a part for some seconds, which is no freeze.
FROZEN = 4.0


@frozen
@pytest.mark.parametrize(
    ("part", "workers"), [("feeder", 1), ("feeder", 2), ("gateway", 1), ("gateway", 2), ("store", 1)]
)
def test_frozen_part_is_replaced_and_data_continues(tmp_path: Path, part: str, workers: int) -> None:
    with running(tmp_path, "--source=sim", f"--workers={workers}", f"--freeze-timeout={FROZEN}") as up:
        epoch, worker = _ready(up, "epoch"), _ready(up, "worker")
        with asking(tcp(up.ports[-1])) as asker:
            began = asker.status().time
        # A part that has never answered `up` is not taken for a frozen one.
        wait_for(lambda: f"{part} answers, " in up.text, "its first answer", up)
        os.kill(up.pid(part), signal.SIGSTOP)
        wait_for(lambda: f"{part} has given no sign of life for " in up.text, "the report", up)
        wait_for(lambda: f"{part} ended with exit code -9; starting it again" in up.text, "the end", up)
        if part == "feeder":
            wait_for(lambda: _ready(up, "epoch") not in (0, epoch), "the new feeder", up)
        elif part == "store":
            with asking(tcp(up.ports[-1])) as asker:
                assert asker.status().time > began
        else:
            wait_for(lambda: _ready(up, "worker") not in (0, worker), "the new gateway", up)
        # No other part was considered frozen.
        assert up.text.count("no sign of life") == 1, up.text


@pytest.mark.timeout(120)
@frozen
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_frozen_worker_of_several_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim", "--workers=2", f"--freeze-timeout={FROZEN}") as up:
        # Ctrl-C in a terminal goes to a whole process group and must reach `up` only.
        groups = {os.getpgid(pid) for pid in (up.process.pid, up.pid("feeder"), up.pid("gateway"))}
        assert len(groups) == 3
        worker = _children(up.pid("gateway"))[0]
        os.kill(worker, signal.SIGSTOP)
        # A worker has 30 s for its first answer.
        said = f"worker {worker} is frozen and was killed; another one is starting"
        wait_for(lambda: said in up.text, "its replacement", up, 45)
        wait_for(lambda: len(_children(up.pid("gateway"))) == 2, "the new worker", up)
        assert "gateway has given no sign" not in up.text


@frozen
def test_up_replaces_nothing_after_it_was_stopped_itself(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim", "--freeze-timeout=3") as up:
        up.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(up.process.pid).status() == psutil.STATUS_STOPPED, "the stop", up)
        # Longer than the limit, and than `up` ever needs for its own work.
        time.sleep(4.0)
        up.process.send_signal(signal.SIGCONT)
        # `up` asks its parts once a second, so it has decided by then.
        time.sleep(2.5)
        assert "no sign of life" not in up.text
        assert runs(up.pid("feeder"))
        assert runs(up.pid("gateway"))


@frozen
def test_second_signal_ends_up_and_frozen_parts_at_once(tmp_path: Path) -> None:
    with running(tmp_path, "--source=sim", "--freeze-timeout=0") as up:
        pids = [up.pid("feeder"), up.pid("gateway")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        up.process.send_signal(signal.SIGINT)
        wait_for(lambda: up.process.poll() is None, "the first signal", up)
        until = time.monotonic() + DEADLINE
        while up.process.poll() is None and time.monotonic() < until:
            up.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert up.process.wait(DEADLINE) == 130
        for pid in pids:
            wait_for(lambda pid=pid: not runs(pid), f"the end of {pid}", up)
        assert "Traceback" not in up.text


# Names of modules that we import and that files of a user may have too.
NAMES = (
    "feeder gateway websockets zmq msgspec orjson click uvicorn starlette qmt_bridge psutil asyncio socket signal json"
    " logging typing random secrets queue multiprocessing threading struct pickle"
).split()


def test_processes_of_a_command_run_no_files_of_the_user(tmp_path: Path) -> None:
    """multiprocessing starts these processes in the same way as the workers of a gateway."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('RAN {name}')\n", "utf-8")
    command = [Path(sys.executable).with_name("qmt-bridge"), "bench", "--selftest", "--seconds=0.2", "--clients=2"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, timeout=60 * SLOWNESS, check=False, encoding="utf-8"
    )
    assert "RAN" not in ended.stderr
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the environment of processes in /proc")
@pytest.mark.parametrize("start", [["{python}", "-P", "-m", "qmt_bridge.cli"], ["{bin}/qmt-bridge"]])
def test_parts_run_no_files_of_the_user_and_get_only_their_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: list[str]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(f"print('RAN {name}', flush=True)\nraise SystemExit('RAN {name}')\n", "utf-8")
    monkeypatch.chdir(here)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    settings = tmp_path / "settings.toml"
    settings.write_text('api_key = "k3y-k3y-k3y-k3y-k"\nxt_token = "t0ken-t0ken"\n', encoding="utf-8")
    command = [word.format(python=sys.executable, bin=Path(sys.executable).parent) for word in start]
    arguments = ("--source=sim", "--workers=2", f"--config={settings}")
    with running(tmp_path / "data", *arguments, start=command) as up:
        wait_for(lambda: len(_children(up.pid("gateway"))) == 2, "the workers", up)
        environments = {
            part: [Path(f"/proc/{pid}/environ").read_text(encoding="utf-8") for pid in pids]
            for part, pids in {
                "feeder": [up.pid("feeder")],
                "gateway": [up.pid("gateway"), *_children(up.pid("gateway"))],
            }.items()
        }
        assert "RAN" not in up.text
    assert [("t0ken-t0ken" in env, "k3y-k3y-k3y-k3y-k" in env) for env in environments["feeder"]] == [(True, False)]
    assert [("t0ken-t0ken" in env, "k3y-k3y-k3y-k3y-k" in env) for env in environments["gateway"]] == [
        (False, True)
    ] * 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--source=replay", "--file=nowhere.csv"], "nowhere.csv", id="file"),
        pytest.param(["--source=sim", "--market-addr=tcp://0.0.0.0:5555"], "curve_dir", id="open-address"),
    ],
)
def test_setting_that_cannot_be_used_ends_up_with_its_name(tmp_path: Path, arguments: list[str], named: str) -> None:
    command = [sys.executable, "-m", "qmt_bridge.cli", "up", f"--data-dir={tmp_path}", f"--port={free_port()}"]
    command += [*address_options(up_addresses()), *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=30 * SLOWNESS, check=False, encoding="utf-8"
    )
    assert ended.returncode == 1
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


@contextmanager
def starting(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, *arguments: str) -> Iterator[Up]:
    """Start `qmt-bridge up` with the stand-ins for xtquant; each of its processes runs `code` first."""
    (folder / "sitecustomize.py").write_text(
        f"import runpy\nrunpy.run_path({str(FAKES / 'sitecustomize.py')!r})\n{textwrap.dedent(code)}", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (folder, FAKES, ROOT))))
    up = Up(folder / "data", "--source=xtquant", *arguments)
    try:
        yield up
    finally:
        up.close()


def refused_by(port: int) -> str:
    return f"""
        import os
        import datacenter
        import native
        login = {{"loginparam": {{"ip": "127.0.0.1", "port": {port}}}, "errorcode": 1, "boerror": "no"}}
        datacenter.fetch_server_list_status = lambda: native.encode({{"0": login}})
        if os.path.exists(os.path.join(os.path.dirname(__file__), "away")):
            datacenter.fetch_auth_markets = lambda: {{"done": 0}}
    """


def test_unreachable_data_service_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMT_BRIDGE_XT_TOKEN", "t0ken")
    # The service of the stand-in listens on the first of the ports that are tried.
    monkeypatch.setenv("FAKE_XT_ADDR", "127.0.0.1:58609")
    (tmp_path / "away").touch()
    with starting(tmp_path, monkeypatch, refused_by(1)) as up:
        again = "feeder ended with exit code 75; starting it again"
        wait_for(lambda: up.text.count(again) >= 2 or up.process.poll() is not None, "a second start", up)
        assert "Error: xt_token: none of its servers can be reached" in up.text
        (tmp_path / "away").unlink()
        up.wait_ready()
        # The banner is printed when the feeder runs; its login may not be complete.
        wait_for(lambda: _ready(up, "feed") == "up", "the session", up)


def test_refused_token_ends_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMT_BRIDGE_XT_TOKEN", "t0ken")
    (tmp_path / "away").touch()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with starting(tmp_path, monkeypatch, refused_by(server.getsockname()[1])) as up:
            wait_for(lambda: up.process.poll() is not None, "the end", up)
    assert up.process.returncode == 1
    assert up.text.count("Error: xt_token: ConnectionError: ") == 1
    assert "feeder ended with exit code 1 before it was ready" in up.text
    assert "t0ken" not in up.text


def test_up_starts_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_XT_DOWN", "1")
    with starting(tmp_path, monkeypatch, "") as up:
        up.wait_ready()
        assert "state down" in up.text


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_feeder_killed_before_it_is_ready_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import os, signal, sys
        killed = os.path.join(os.path.dirname(__file__), "killed")
        if "feeder" in sys.orig_argv and not os.path.exists(killed):
            open(killed, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with starting(tmp_path, monkeypatch, code) as up:
        up.wait_ready()
        assert "feeder ended with exit code -9; starting it again" in up.text


def _ready(up: Up, name: str) -> Any:
    """Return a value of /readyz; 0 if no ready gateway answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{up.port}/readyz", timeout=2) as response:
            return json.load(response)[name]
    except (urllib.error.HTTPError, OSError):
        return 0


def _metric(up: Up, name: str) -> float | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{up.port}/metrics", timeout=DEADLINE) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f"qmt_bridge_{name} "):
                return float(line.rpartition(" ")[2])
    return None


def _children(pid: int) -> list[int]:
    """Return the worker processes of a gateway, without multiprocessing's resource tracker."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [child for child in map(int, children) if "spawn_main" in _command_line(child)]


def _command_line(pid: int) -> str:
    """Return the command line of a process; it is empty once the process has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    return ""


def _refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
