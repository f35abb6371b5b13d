"""The programs in deploy/examples, each in its own language, against a gateway whose processes are killed.

All of them run at the same time, because what takes time is to start the gateway: its worker is killed, its feeder is
killed, and at last everything is stopped and started again. `make examples` runs this file; a language without its
tools is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socketserver
import subprocess
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.utils import accept_key

from tests.support import waiting
from tests.support.browser import running_browser
from tests.support.paths import ROOT
from tests.support.processes import DEADLINE, kill
from tests.support.up import Up, running, wait_for

pytestmark = [pytest.mark.examples, pytest.mark.timeout(400)]

FOLDER = ROOT / "deploy" / "examples"
CODES = ("600519.SH", "000001.SZ")
KEY = "a-key-of-the-examples-0123456789"
# A compiler is slow on a machine that is busy, and so is a package source.
BUILD_SECONDS = 300
SIMULATOR = ("--source=sim", "--sim-interval=0.2", "--sim-order-interval=0.2")
# Debian's folders.
GO_PACKAGES = Path("/usr/share/gocode")
GSON = Path("/usr/share/java/gson.jar")
NEWTONSOFT = Path("/usr/lib/cli/Newtonsoft.Json-5.0/Newtonsoft.Json.dll")
# What Mono writes to a terminal beside the lines.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


class Missing(Exception):
    """The machine lacks what a language needs."""


def needed(*names: str) -> None:
    """Raise `Missing` unless these commands are there."""
    for name in names:
        if shutil.which(name) is None:
            raise Missing(f"no {name}")


def build(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=BUILD_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr


def node(name: str, package: str) -> Callable[[Path], list[str]]:
    def made(folder: Path) -> list[str]:
        needed("node", "npm")
        (folder / "package.json").write_text("{}")
        command = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", package)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS)
        if done.returncode:
            raise Missing(f"npm could not install {package}")
        shutil.copy(FOLDER / name, folder)
        return ["node", str(folder / name)]

    return made


def go(folder: Path) -> list[str]:
    needed("go")
    if not (GO_PACKAGES / "src/github.com/gorilla/websocket").is_dir():
        raise Missing("no golang-github-gorilla-websocket-dev")
    env = {"GO111MODULE": "off", "GOPATH": str(GO_PACKAGES), "GOCACHE": str(folder / "cache")}
    build("go", "build", "-o", str(folder / "client"), str(FOLDER / "client.go"), cwd=folder, env=env)
    return [str(folder / "client")]


def java(folder: Path) -> list[str]:
    needed("javac", "java")
    if not GSON.exists():
        raise Missing("no libgoogle-gson-java")
    build("javac", "-Xlint", "-Werror", "-cp", str(GSON), "-d", str(folder), str(FOLDER / "Client.java"), cwd=folder)
    return ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{folder}:{GSON}", "Client"]


def csharp(folder: Path) -> list[str]:
    needed("mcs", "mono")
    if not NEWTONSOFT.exists():
        raise Missing("no libnewtonsoft-json5.0-cil")
    program = folder / "Client.exe"
    build("mcs", "-warnaserror", f"-r:{NEWTONSOFT}", f"-out:{program}", str(FOLDER / "Client.cs"), cwd=folder)
    return ["mono", str(program)]


def rust(folder: Path) -> list[str]:
    # Debian 12 has no crate for WebSockets: a person who has crates.io, or sources, builds it and names the program.
    program = os.environ.get("EXAMPLE_RUST", "")
    if not program:
        raise Missing("EXAMPLE_RUST names no program built of client.rs")
    return [program]


def c(folder: Path) -> list[str]:
    needed("cc")
    if not Path("/usr/include/zmq.h").exists():
        raise Missing("no libzmq3-dev")
    command = (
        "cc",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(folder / "zeromq"),
        str(FOLDER / "zeromq.c"),
        "-lzmq",
    )
    build(*command, cwd=folder)
    return [str(folder / "zeromq")]


def shell(folder: Path) -> list[str]:
    needed("bash", "curl")
    return [str(FOLDER / "events.sh")]


WEBSOCKET: Mapping[str, Callable[[Path], list[str]]] = {
    "node": node("node.mjs", "ws@8.23.0"),
    "go": go,
    "java": java,
    "csharp": csharp,
    "rust": rust,
}
OTHERS: Mapping[str, Callable[[Path], list[str]]] = {
    "node-zeromq": node("node-zeromq.mjs", "zeromq@6.8.0"),
    "c": c,
    "shell": shell,
}
BROWSER = "browser"


class Program:
    """A running example; its lines are collected."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        # Mono handles Ctrl-C in a terminal only; a pipe is no terminal.
        self._terminal, terminal = os.openpty()
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "TERM": "xterm", **env},
            stdin=terminal,
            stdout=terminal if command[0] == "mono" else subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.close(terminal)
        output = self._terminal if self.process.stdout is None else self.process.stdout.fileno()
        assert self.process.stderr is not None
        pipes = ((output, self.lines), (self.process.stderr.fileno(), self.errors))
        self._readers = [threading.Thread(target=_read, args=pipe) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Wait for the end; the process is killed if it does not come."""
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        finally:
            self.process.wait()
            for reader in self._readers:
                reader.join()
            os.close(self._terminal)
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()


def _read(number: int, lines: list[str]) -> None:
    rest = b""
    # A terminal without a program is an error of input and output, and no end.
    with suppress(OSError):
        while chunk := os.read(number, 65_536):
            *whole, rest = (rest + chunk).split(b"\n")
            lines.extend(_ESCAPES.sub("", line.decode()) for line in whole)


@dataclass
class Run:
    """What all programs have printed, and what was missing on this machine."""

    missing: dict[str, str] = field(default_factory=dict)
    # By language; of trade events the lines of two processes, of which the second went on where the first had ended.
    ticks: dict[str, list[str]] = field(default_factory=dict)
    trades: dict[str, list[str]] = field(default_factory=dict)
    errors: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    codes: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    # The header of the key, and the close code, as a server saw them.
    seen: dict[str, tuple[str | None, int | None]] = field(default_factory=dict)
    # How a program ended whose connection was refused, and what it said.
    refused: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    table: str = ""

    def of(self, what: Mapping[str, Any], language: str) -> Any:
        if language in self.missing:
            pytest.skip(self.missing[language])
        return what[language]


def places(lines: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Return the positions that were printed of each code, in order."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for line in lines:
        if line.startswith("{"):
            frame = json.loads(line)
            for code in frame["data"]:
                found[code].append((frame["epoch"], frame["seq"]))
        elif line.startswith("tick "):
            _, code, epoch, seq, *_ = line.split(" ")
            found[code].append((int(epoch), int(seq)))
    return found


def epochs(lines: Sequence[str]) -> list[int]:
    """Return how many epochs each of the codes has been seen in."""
    return [len({epoch for epoch, _ in places(lines)[code]}) for code in CODES]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run all programs through the deaths of worker, feeder and gateway, and end them by Ctrl-C."""
    result = Run()
    commands = {}
    for language, make in {**WEBSOCKET, **OTHERS}.items():
        try:
            commands[language] = make(tmp_path_factory.mktemp(language))
        except Missing as missing:
            result.missing[language] = str(missing)
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("QMT_BRIDGE_API_KEY", KEY)
        with running(data, *SIMULATOR) as up:
            _play(up, data, commands, result, stack)
    _greet(commands, result)
    for language in WEBSOCKET.keys() & commands.keys():
        result.refused[language] = _refuse(commands[language])
    return result


def _play(up: Up, data: Path, commands: Mapping[str, list[str]], result: Run, stack: ExitStack) -> None:
    _, market, _, store = up.ports
    urls = {"QMT_BRIDGE_URL": up.url(""), "QMT_BRIDGE_API_KEY": KEY}
    direct = {"QMT_BRIDGE_MARKET": f"tcp://127.0.0.1:{market}", "QMT_BRIDGE_STORE": f"tcp://127.0.0.1:{store}"}
    env = {language: urls if language in WEBSOCKET else direct for language in commands}
    env["shell"] = {**urls, "QMT_BRIDGE_URL": up.url("").replace("ws:", "http:")}
    running_now: list[tuple[str, Program]] = []
    page = stack.enter_context(_browser(up, result))

    def start(language: str, *arguments: str) -> Program:
        program = Program([*commands[language], *arguments], env[language])
        running_now.append((language, program))
        result.errors[language] = program.errors
        return program

    def stop(programs: Sequence[Program]) -> None:
        for program in programs:
            program.interrupt()
        for language, program in running_now:
            if program in programs:
                program.wait()
                result.codes[language].add(program.process.returncode)

    def trade(language: str) -> Program:
        return start(language, "trade", str(data / f"{language}.position"))

    def grow(programs: Sequence[Program], what: str) -> None:
        """Wait until each has printed more lines than are under way."""
        counts = [len(program.lines) for program in programs]
        wait_for(
            lambda: all(len(each.lines) > count + 6 for each, count in zip(programs, counts, strict=True)),
            what + str([(" ".join(each.process.args), each.errors[-2:]) for each in programs]),  # type: ignore[arg-type]
            up,
            60,
        )

    def see(count: int, what: str) -> None:
        """Wait until each program has seen so many runs of the feeder, of both codes."""
        wait_for(lambda: all(epochs(each.lines) == [count, count] for each in ticks.values()), what, up, 60)

    try:
        ticks = {language: start(language) for language in commands}
        trades = {language: trade(language) for language in commands if language in WEBSOCKET}
        everything = (*ticks.values(), *trades.values())
        grow(everything, "the first lines")
        answer = urllib.request.urlopen(_request_of_excel(up), timeout=DEADLINE)
        with answer:
            result.table = answer.read().decode()
        kill(up.pid("gateway"))
        grow(everything, "lines of a new worker")
        kill(up.pid("feeder"))
        see(2, "ticks of a new feeder")
        grow(everything, "lines of a new feeder")
        stop(list(trades.values()))
        first = {language: program.lines for language, program in trades.items()}
        up.close()
        up = Up(data, *SIMULATOR, ports=up.ports)
        stack.callback(up.close)
        up.wait_ready()
        again = {language: trade(language) for language in trades}
        see(3, "ticks of a new gateway")
        grow((*ticks.values(), *again.values()), "lines of a new gateway")
        stop([*ticks.values(), *again.values()])
        result.ticks |= {language: program.lines for language, program in ticks.items()}
        result.trades |= {language: [*first[language], *again[language].lines] for language in again}
        if page is not None:
            page.wait_for_function("document.querySelectorAll('tbody td').length > 0")
    finally:
        for _, program in running_now:
            if program.process.poll() is None:
                program.process.kill()
                program.wait()


@contextmanager
def _browser(up: Up, result: Run) -> Iterator[Any]:
    """Open the page as a person does, from its file; its lines come by the console."""
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(running_browser())
        except pytest.skip.Exception as skipped:
            result.missing[BROWSER] = str(skipped)
            yield None
            return
        page = browser.new_page()
        result.ticks[BROWSER] = lines = []
        page.on("console", lambda message: lines.append(message.text))
        page.on("pageerror", lambda error: result.errors[BROWSER].append(str(error)))
        page.goto(f"{(FOLDER / 'browser.html').as_uri()}?url={up.url('')}&codes={','.join(CODES)}")
        yield page


def _request_of_excel(up: Up) -> str:
    """Return the URL that Power Query makes of excel.pq."""
    text = (FOLDER / "excel.pq").read_text(encoding="utf-8")
    lists = {name: _texts(values) for name, values in re.findall(r"(Codes|Fields) = \{(.*?)\}", text)}
    [path] = re.findall(r'RelativePath = "(.*?)"', text)
    assert 'Query = [codes = Text.Combine(Codes, ","), fields = Text.Combine(Fields, ","), format = "csv"]' in text
    query = f"codes={','.join(lists['Codes'])}&fields={','.join(lists['Fields'])}&format=csv&api_key={KEY}"
    assert 'ApiKeyName = "api_key"' in text
    return f"{up.url('').replace('ws:', 'http:')}/{path}?{query}"


def _texts(values: str) -> list[str]:
    return re.findall(r'"(.*?)"', values)


def _greet(commands: Mapping[str, list[str]], result: Run) -> None:
    """Let each program connect to a server of the test, and end it by Ctrl-C there."""
    for language in WEBSOCKET:
        if language in commands:
            result.seen[language] = _goodbye(language, commands[language])


def _goodbye(language: str, command: Sequence[str]) -> tuple[str | None, int | None]:
    """Return the header of the key, and with which code the program closes after Ctrl-C."""
    left = threading.Event()
    seen: list[tuple[str | None, int | None]] = []

    def greet(socket: ServerConnection) -> None:
        assert socket.request is not None
        socket.send(json.dumps({"type": "heartbeat", "time": 0}))
        socket.recv()
        quote = {CODES[0]: [{"lastPrice": 1.5}]}
        socket.send(json.dumps({"type": "data", "epoch": 1, "seq": 1, "data": quote}))
        with suppress(ConnectionClosed):
            socket.recv()
        seen.append((socket.request.headers.get("Authorization"), socket.close_code))
        left.set()

    with serve(greet, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        program = Program(command, {"QMT_BRIDGE_URL": url, "QMT_BRIDGE_API_KEY": KEY})
        try:
            waiting.wait_for(lambda: program.lines, lambda: f"a line: {language} {program.errors}")
            program.interrupt()
            assert left.wait(DEADLINE), (language, program.errors)
        finally:
            program.interrupt()
            program.wait()
            server.shutdown()
            thread.join()
    return seen[0]


class _Refusing(socketserver.StreamRequestHandler):
    """Closes each connection with 1008, in the bytes that open it."""

    timeout = DEADLINE

    def handle(self) -> None:
        headers = dict(line.rstrip().split(b": ", 1) for line in iter(self.rfile.readline, b"\r\n") if b": " in line)
        key = {name.lower(): value for name, value in headers.items()}[b"sec-websocket-key"].decode()
        lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
        opening = "\r\n".join((*lines, f"Sec-WebSocket-Accept: {accept_key(key)}", "", "")).encode()
        reason = (1008).to_bytes(2, "big") + b"unauthorized: the API key is wrong"
        self.wfile.write(opening + bytes((0x88, len(reason))) + reason)
        with suppress(OSError):
            self.rfile.read()


def _refuse(command: list[str]) -> tuple[int, list[str]]:
    """Return how a program ends that the gateway refuses."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Refusing) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        program = Program(command, {"QMT_BRIDGE_URL": f"ws://127.0.0.1:{server.server_address[1]}"})
        try:
            program.wait()
        finally:
            server.shutdown()
            thread.join()
    return program.process.returncode, program.errors


def _check_places(lines: Sequence[str]) -> None:
    """Each code has each number once and in order; before each other step, and only there, a gap is told."""
    assert epochs(lines) == [3, 3]
    for code in CODES:
        last: tuple[int, int] | None = None
        told: list[str] = []
        for line in lines:
            if line.startswith(f"gap {code} "):
                told.append(line.split(" ")[2])
            elif code in (found := places([line])):
                [(epoch, seq)] = found[code]
                if last is None or epoch == last[0]:
                    assert last is None or seq == last[1] + 1, (last, line)
                    assert not told, (told, line)
                else:
                    # The store may have missed the first messages of a feeder that was there before it.
                    assert told == (["restart"] if seq == 1 else ["restart", "gap"]), (last, line)
                last, told = (epoch, seq), []


@pytest.mark.parametrize("language", [*WEBSOCKET, "node-zeromq", BROWSER])
def test_ticks_come_once_and_in_order_over_every_restart(run: Run, language: str) -> None:
    _check_places(run.of(run.ticks, language))


def test_events_of_the_shell_have_their_gaps_told_beside_them(run: Run) -> None:
    lines = run.of(run.ticks, "shell")
    assert epochs(lines) == [3, 3]
    for code in CODES:
        found = places(lines)[code]
        assert all(b[0] != a[0] or b[1] == a[1] + 1 for a, b in pairwise(found))
        notices = [json.loads(line) for line in run.errors["shell"] if line.startswith("{")]
        told = [each["reason"] for each in notices if each["type"] == "gap" and each["code"] == code]
        told += [each["start"][code].get("reason") for each in notices if each["type"] == "subscribed"]
        assert told.count("restart") == 2


def test_consumer_in_c_tells_each_gap_that_it_has(run: Run) -> None:
    lines = run.of(run.ticks, "c")
    assert epochs(lines) == [3, 3]
    for code in CODES:
        last: tuple[int, int] | None = None
        told = ""
        for line in lines:
            if line.startswith(f"gap {code} "):
                told = line.split(" ")[2]
            elif line.startswith(f"tick {code} "):
                [(epoch, seq)] = places([line])[code]
                json.loads(line.split(" ", 4)[4])
                if last is not None and epoch != last[0]:
                    assert told == "restart", line
                elif last is not None:
                    assert seq == last[1] + 1 + int(told or 0), (last, line)
                last, told = (epoch, seq), ""


@pytest.mark.parametrize("language", WEBSOCKET)
def test_trade_events_come_once_over_restarts_of_both_sides(run: Run, language: str) -> None:
    lines = run.of(run.trades, language)
    seqs = [int(line.split(" ")[1]) for line in lines]
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize("language", WEBSOCKET)
def test_interrupt_closes_the_connection_and_ends_the_program(run: Run, language: str) -> None:
    key, code = run.of(run.seen, language)
    assert (key, code) == (f"Bearer {KEY}", 1000)
    # Java ends with the code of the signal, as its shutdown hook runs within it.
    assert run.codes[language] == {130 if language == "java" else 0}


@pytest.mark.parametrize("language", WEBSOCKET)
def test_close_that_comes_with_the_opening_ends_the_program(run: Run, language: str) -> None:
    code, errors = run.of(run.refused, language)
    assert code == 1
    assert "1008" in "\n".join(errors)
    assert not [line for line in errors if "lost" in line]


@pytest.mark.parametrize("language", [*WEBSOCKET, *OTHERS])
def test_no_program_prints_its_key(run: Run, language: str) -> None:
    lines = run.of(run.ticks, language)
    assert lines
    assert KEY not in "\n".join([*lines, *run.errors[language]])


def test_page_of_the_browser_has_no_error(run: Run) -> None:
    assert run.of(run.ticks, BROWSER)
    assert run.errors[BROWSER] == []


def test_table_of_excel_has_the_columns_that_the_query_names(run: Run) -> None:
    text = (FOLDER / "excel.pq").read_text(encoding="utf-8")
    [fields] = re.findall(r"Fields = \{(.*?)\}", text)
    header, *rows = run.table.splitlines()
    assert header.split(",") == ["code", *_texts(fields), "missing"]
    assert [row.split(",")[0] for row in rows] == list(CODES)
    assert all(cell and float(cell) > 0 for row in rows for cell in row.split(",")[1:-1])
