"""docs/recipes.md: every program runs as it stands, and does what its recipe says, with real processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pandas
import pytest

from feeder.sim.market import Market
from qmt_bridge import CallbackError, Disconnected
from qmt_bridge.sync import QMTClient
from tests.support.documents import blocks, placed
from tests.support.ports import address_options, free_port, free_ports, tcp
from tests.support.programs import Running, check, programs
from tests.support.proxies import Nginx, started
from tests.support.up import Up, running
from tests.support.waiting import DEADLINE, wait_for

PAGE = blocks("docs/recipes.md")
CODES = ["600519.SH", "000001.SZ"]
# That of the page.
KEY = "16-or-more-random-characters"
COMMAND = [sys.executable, "-m", "qmt_bridge.cli"]

pytestmark = pytest.mark.timeout(90)
posix = pytest.mark.skipif(sys.platform == "win32", reason="kills a program at any moment, and has no nginx there")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    with running(folder, "--source=sim", f"--api-key={KEY}", "--sim-interval=0.5", "--sim-order-interval=0.1") as up:
        yield up


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    with programs() as start:
        yield start


def block(section: str, language: str = "python") -> str:
    """Return the only block of a language in a section."""
    (found,) = [each.text for each in PAGE if (each.section, each.language) == (section, language)]
    return found


def changed(text: str, *changes: tuple[str, str]) -> str:
    """Return a text with other words in the places that a test has to change; each is there once."""
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Enough(Exception):
    """Ends an endless program."""


def printed_by(program: str, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """Run a program until it has printed enough, or ends; return what each `print` was given."""
    printed: list[Any] = []

    def show(*words: object) -> None:
        printed.append(words)
        if enough(printed):
            raise Enough

    try:
        exec(compile(program, "recipes.md", "exec"), {"print": show})
    except Enough:
        pass
    except CallbackError as exc:
        if not isinstance(exc.__cause__, Enough):
            raise
    return printed


@contextmanager
def observing(up: Up) -> Iterator[list[tuple[str, int]]]:
    """Collect codes and times of all ticks meanwhile; the store has them, and from the first one on all that follow."""
    seen: list[tuple[str, int]] = []

    def take(frame: dict[str, list[dict[str, Any]]]) -> None:
        seen.extend((code, record["time"]) for code, records in frame.items() for record in records)

    # With `complete` nothing is left out here either.
    with (
        QMTClient("127.0.0.1", up.port) as client,
        client.subscribe_realtime(CODES, take, snapshot=False, complete=True),
    ):
        wait_for(lambda: {code for code, _ in seen} == set(CODES), "a tick of each code")
        yield seen


def stored(up: Up, start: int, ends: dict[str, int]) -> Counter[tuple[str, int]]:
    """Return codes and times of the ticks that the store has before the end of each code."""
    found: Counter[tuple[str, int]] = Counter()
    for code in CODES:
        with QMTClient("127.0.0.1", up.port) as client:
            records, last = client.ticks(code, start, ends[code], library="records")
        assert last["complete"]
        found.update((code, record["time"]) for record in records)
    return found


def test_each_program_has_at_most_25_lines_and_a_test():
    assert all(len(each.text.splitlines()) <= 25 for each in PAGE)
    tested = set(re.findall(r'\bblock\("([^"]+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert {each.section for each in PAGE if each.language == "python"} == tested


def test_first_quote(up):
    program = placed(block("The first quote"), up.port)
    first, second = printed_by(program, lambda printed: len(printed) == 2)
    assert first[0] == second[0] == "600519.SH"
    assert isinstance(first[1], float)


def test_the_morning_comes_first_then_live(up):
    program = placed(block("The morning, then live"), up.port)
    with observing(up) as seen:
        first = {code: min(time for each, time in seen if each == code) for code in CODES}
        began = max(first.values())
        wait_for(lambda: sum(time > began for _, time in seen) >= 4, "a morning")
        # What is printed beyond what was seen before the program started came live.
        before = len(seen)
        program = changed(program, ('start="09:30:00"', f"start={began}"))
        printed = printed_by(program, lambda printed: len(printed) == before + 4)
        ticks = [(code, time) for code, time, price in printed]
        wait_for(lambda: set(ticks) <= set(seen), "the observer")
        for code in CODES:
            of_code = [time for each, time in ticks if each == code]
            assert of_code == [time for each, time in seen if each == code and time >= began][: len(of_code)]


def test_what_is_missing_of_the_morning_is_told(up):
    program = placed(block("The morning, then live"), up.port)
    before = int((time.time() - 3600) * 1000)
    program = changed(program, ('start="09:30:00"', f"start={before}"))
    with observing(up):
        printed = printed_by(program, lambda printed: printed[-1][0] == "missing:")
    assert printed[-1][2] == "store_began"
    assert set(printed[-1][1]) <= set(CODES)


@posix
def test_parquet_files_have_every_tick_after_a_kill(up, run, tmp_path):
    program = changed(placed(block("Ticks into Parquet"), up.port), ("(stream, 1000)", "(stream, 5)"))
    with observing(up) as seen:
        began = max(min(time for each, time in seen if each == code) for code in CODES)
        file = tmp_path / "ticks.py"
        file.write_text(changed(program, ('start="09:15:00"', f"start={began}")), encoding="utf-8")
        killed = run([sys.executable, str(file)], cwd=tmp_path)
        kill_when(killed, lambda: len(list(tmp_path.glob("ticks-*/*.parquet"))), 2)
        end = max(time for _, time in seen)
        moment = datetime.fromtimestamp(end / 1000, tz=UTC).isoformat(timespec="milliseconds")
        told = check([sys.executable, str(file), moment], cwd=tmp_path)
    assert "state='gap'" not in told
    (folder,) = tmp_path.glob("ticks-*")
    ticks = pandas.read_parquet(folder)
    ticks = ticks[ticks["time"] < end]
    found = Counter(zip(ticks["code"], ticks["time"], strict=True))
    assert found == stored(up, began, dict.fromkeys(CODES, end))
    assert len(found) >= 8
    assert set(found.values()) == {1}


@posix
def test_fills_are_in_the_database_exactly_once(up, run, tmp_path):
    program = placed(block("Fills into a database, exactly once"), up.port)
    base = tmp_path / "fills.sqlite3"

    def rows(query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(base, timeout=DEADLINE) as reading:
            return reading.execute(query).fetchall()

    # It dies between the fill and its position.
    update = '            base.execute("UPDATE'
    dies = changed(program, (update, f'            if event["type"] == "trade": import os; os._exit(9)\n{update}'))
    assert subprocess.run([sys.executable, "-c", dies], cwd=tmp_path, timeout=DEADLINE).returncode == 9
    assert rows("SELECT * FROM fills") == []
    for count in (3, 6, 9):
        kill_when(run([sys.executable, "-c", program], cwd=tmp_path), lambda: len(rows("SELECT seq FROM fills")), count)
    ((position,),) = rows("SELECT seq FROM position")
    expected = []
    with QMTClient("127.0.0.1", up.port, KEY) as client:
        for event in client.trade_events(after=0):
            if event["type"] == "trade" and event["seq"] <= position:
                names = ("account_id", "stock_code", "traded_price", "traded_volume")
                expected.append((event["seq"], *(event["data"][name] for name in names)))
            if event["seq"] >= position:
                break
    assert len(expected) >= 9
    assert rows("SELECT * FROM fills ORDER BY seq") == expected


def kill_when(program: Running, has: Callable[[], int], count: int) -> None:
    """Kill a program, at any moment of its work, once it has done so much."""
    wait_for(lambda: has() >= count or program.process.poll() is not None, lambda: "".join(program.lines))
    assert program.process.poll() is None, program.lines
    os.kill(program.process.pid, signal.SIGKILL)
    program.process.wait(DEADLINE)


def commands(text: str) -> list[list[str]]:
    """Return the commands of a block for this interpreter."""
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("qmt-bridge ")]
    return [[*COMMAND, *words] for _, *words in lines]


@posix
def test_the_whole_market_of_another_machine_is_a_table(run, tmp_path):
    here, there = [each.text for each in PAGE if each.section == "Several machines"]
    init, feeder, store = commands(here.replace("192.168.1.100", "127.0.0.1"))
    (gateway,) = commands(there)
    check([*init, "--source=sim"], cwd=tmp_path)
    # The copy.
    (tmp_path / "feeder" / "gateway").rename(tmp_path / "gateway")
    ports = dict(zip(("5555", "5556", "5557", "5559"), free_ports(4), strict=True))
    for file in tmp_path.glob("*/qmt-bridge.toml"):
        settings = file.read_text(encoding="utf-8")
        for port, free in ports.items():
            settings = settings.replace(f":{port}", f":{free}")
        file.write_text(settings, encoding="utf-8")
    # 5,000 codes every three seconds are more than a busy machine has room for.
    env = {"QMT_BRIDGE_DATA_DIR": str(tmp_path / "data"), "QMT_BRIDGE_SIM_INTERVAL": "60"}
    run(feeder, cwd=tmp_path, env=env)
    run(store, cwd=tmp_path, env=env)
    port = free_port()
    other = {"QMT_BRIDGE_DATA_DIR": str(tmp_path / "data-there")}
    told = run([*gateway, f"--port={port}"], cwd=tmp_path / "gateway", env=other)
    told.wait_for("feeder is connected")
    market = Market(1)
    codes = {*market.codes("SH"), *market.codes("SZ")}
    program = placed(block("The whole market as a DataFrame"), port)
    tables: list[pandas.DataFrame] = []
    names: dict[str, Any] = {"print": tables.append}
    newest: dict[str, Any] = {}
    # Both markets are subscribed and complete before the program asks for them.
    with QMTClient("127.0.0.1", port) as client, client.subscribe_whole_quote(["SH", "SZ"], newest.update):
        wait_for(lambda: set(newest) == codes, "the first snapshot")
        exec(compile(program, "recipes.md", "exec"), names)
    (shown,) = tables
    assert list(shown) == ["code", "lastPrice", "change"]
    assert len(shown) == 10
    assert shown["change"].is_monotonic_decreasing
    assert sorted(names["table"]["code"]) == sorted(codes)


@posix
def test_ticks_come_through_nginx_with_a_key(up, run, tmp_path, monkeypatch):
    example, add, _ = commands(block("Behind nginx", "bash"))
    data = [f"--data-dir={tmp_path / 'data'}"]
    (tmp_path / "qmt-bridge.toml").write_text(block("Behind nginx", "toml"), encoding="utf-8")
    check(example, cwd=tmp_path)
    key = subprocess.check_output([*add, *data], cwd=tmp_path, text=True).splitlines()[-1]
    port = free_port()
    feeder = address_options({"market_addr": up.market_addr, "ask_addr": tcp(up.ports[2])})
    gateway = [*COMMAND, "gateway", "--config", "qmt-bridge.toml", f"--port={port}", *data, *feeder]
    # Without the feeder's data folder it has no trade events, which nothing here needs.
    run(gateway, cwd=tmp_path).wait_for("gateway listens")
    proxy, _ = started(Nginx, tmp_path, port, run)
    assert (tmp_path / "examples/nginx/qmt-bridge.conf").read_bytes() == Nginx.shipped.read_bytes()
    program = changed(
        block("Behind nginx"),
        ('host="quotes.example", port=443', f'host="localhost", port={proxy.port}'),
        ("tls=True", f"tls={str(proxy.authority.ca)!r}"),
    )
    monkeypatch.setenv("QMT_BRIDGE_API_KEY", key)
    ((price,),) = printed_by(program, lambda printed: True)
    assert isinstance(price, float)
    monkeypatch.setenv("QMT_BRIDGE_API_KEY", "a-wrong-key-of-the-test")
    with pytest.raises(Disconnected):
        printed_by(program, lambda printed: True)


def test_a_program_is_told_an_alert(run, tmp_path):
    port = free_port()
    receiver = run([sys.executable, "-c", changed(block("Alerts"), ("9000", str(port)))], cwd=tmp_path)
    settings = changed(block("Alerts", "toml"), ("9000", str(port)))
    (tmp_path / "qmt-bridge.toml").write_text(settings, encoding="utf-8")
    (test,) = commands(block("Alerts", "bash"))
    wait_for(lambda: subprocess.run(test, cwd=tmp_path, capture_output=True).returncode == 0, "the receiver")
    assert receiver.wait_for("^test ")


def test_a_program_of_the_public_server_gets_its_frames(up):
    program = changed(block("From the public qmt-bridge"), ("127.0.0.1:8000", f"127.0.0.1:{up.port}"))
    printed = printed_by(program, lambda printed: {code for code, _ in printed} == set(CODES))
    assert all(isinstance(price, float) for _, price in printed)


def test_a_database_is_sent_each_tick_once(up):
    bodies: list[tuple[str, list[dict[str, Any]]]] = []

    class Database(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            # The program ends when the database refuses.
            self.send_response(200 if len(bodies) < 2 else 503)
            self.end_headers()
            bodies.append((self.path, [json.loads(line) for line in body.splitlines()]))

        def log_message(self, *_: object) -> None:
            pass

    section = "From scripts with Redis or ClickHouse"
    program = placed(block("From scripts with Redis or ClickHouse"), up.port)
    with HTTPServer(("127.0.0.1", 0), Database) as database, observing(up) as seen:
        serving = threading.Thread(target=database.serve_forever, args=(0.01,))
        serving.start()
        try:
            began = max(min(time for each, time in seen if each == code) for code in CODES)
            changes = (("127.0.0.1:8123", f"127.0.0.1:{database.server_port}"), ('"09:15:00"', str(began)))
            with pytest.raises(urllib.error.HTTPError):
                printed_by(changed(program, *changes), lambda printed: False)
        finally:
            database.shutdown()
            serving.join()
    assert {path for path, _ in bodies} == {"/?query=INSERT%20INTO%20ticks%20FORMAT%20JSONEachRow"}
    rows = [row for _, sent in bodies for row in sent]
    columns = re.findall(r"(\w+) (?:LowCardinality|Int64|Float64)", block(section, "sql"))
    assert {tuple(row) for row in rows} == {tuple(columns)}
    ticks = Counter((row["code"], row["time"]) for row in rows)
    assert set(ticks.values()) == {1}
    # A tick of one code may be in the next insert when a later one of the other code is in this one.
    ends = {code: max(time for each, time in ticks if each == code) + 1 for code in CODES}
    assert ticks == stored(up, began, ends)


def test_pandas_reads_the_store_as_its_page_says(up):
    (program,) = [each.text for each in blocks("docs/http.md") if each.language == "python"]
    with observing(up) as seen:
        program = changed(program, ("127.0.0.1:8000", f"127.0.0.1:{up.port}"), ("09:30", str(seen[0][1])))
        names: dict[str, Any] = {}
        exec(compile(program, "http.md", "exec"), names)
    assert {"time", "lastPrice"} <= set(names["ticks"])
    assert len(names["ticks"]) >= 1
