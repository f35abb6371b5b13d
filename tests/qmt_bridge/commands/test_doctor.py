"""`qmt-bridge doctor`: the checks on given facts, and the command on this machine with real servers and processes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from msgspec.structs import replace

from feeder.app import Feeder
from feeder.xt import probe
from qmt_bridge import sockets
from qmt_bridge.commands import doctor
from qmt_bridge.commands.doctor import Finding, Xtquant
from qmt_bridge.config import FEEDER, GATEWAY, Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.messages import AccountState, FeedStatus
from qmt_bridge.wire.topics import STATUS_TOPIC, Topic, quote_topic
from tests.support.paths import FAKES, ROOT
from tests.support.ports import ANY_PORT, address_env, free_addresses, free_port

SECONDS = 30.0
KEY = "0123456789abcdef"

SDK = Xtquant(doctor.TESTED_XTQUANT, True)
CENTER = doctor.Center(host="127.0.0.1", ports=(58609, 58619), port=58609)
UP = FeedStatus("xtquant", False, "up", 1, 1, topics=3, version="1.0")


def served(*states: str) -> FeedStatus:
    """Return a status with one account in each state."""
    accounts = []
    for state in states:
        reason = None if state == "up" else "why"
        accounts.append(AccountState("******0365", "STOCK", state, reason))  # type: ignore[arg-type]
    return replace(UP, accounts=tuple(accounts))


# -- The checks


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        pytest.param(doctor.python((3, 11), 64, True), "ok", "3.11, 64-bit", id="python"),
        pytest.param(doctor.python((3, 12), 64, True), "warn", "32 us a code, 160 ms", id="python-without-c-codec"),
        pytest.param(doctor.python((3, 12), 64, False), "ok", "3.12", id="python-for-a-gateway"),
        pytest.param(doctor.python((3, 11), 32, True), "fail", "xtquant is 64-bit only", id="python-32-bit"),
        pytest.param(doctor.xtquant(SDK, "auto", True), "ok", "the tested version", id="sdk"),
        pytest.param(doctor.xtquant(Xtquant("1", True), "auto", True), "warn", "1, but tested is", id="sdk-other"),
        pytest.param(doctor.xtquant(Xtquant(None, True), "auto", True), "warn", "unknown version", id="sdk-copied"),
        pytest.param(doctor.xtquant(Xtquant("1", False), "auto", True), "warn", "SIMULATED", id="sdk-not-native"),
        pytest.param(doctor.xtquant(Xtquant(None, False), "auto", True), "warn", "not installed", id="sdk-missing"),
        pytest.param(doctor.xtquant(Xtquant("1", False), "auto", False), "ok", "SIMULATED", id="sdk-on-linux"),
        pytest.param(doctor.xtquant(Xtquant("1", False), "xtquant", False), "fail", "no native", id="sdk-needed"),
        pytest.param(doctor.xtquant(Xtquant(None, False), "sim", True), "ok", "source is sim", id="sdk-for-sim"),
        pytest.param(doctor.xtquant(Xtquant(None, False), "replay", True), "ok", "is replay", id="sdk-for-replay"),
        pytest.param(doctor.terminal("h:1", None, "", ""), "ok", "connects to h:1", id="terminal"),
        pytest.param(doctor.terminal("h:1", "refused", "", ""), "fail", "h:1: refused", id="terminal-away"),
        pytest.param(doctor.terminal("h:1", None, "no login", ""), "fail", "no login", id="terminal-not-ours"),
        pytest.param(doctor.terminal("h:1", "refused", "", "a reason"), "ok", "not needed", id="terminal-not-needed"),
        pytest.param(doctor.token("7b1e0c"), "ok", "is set", id="token"),
        pytest.param(doctor.token('"7b1e0c"'), "warn", "quotes", id="token-quoted"),
        pytest.param(doctor.token("7b1e0c "), "warn", "blanks", id="token-blank"),
        pytest.param(doctor.token("7b1e0c\n"), "warn", "blanks", id="token-newline"),
        pytest.param(doctor.center(CENTER), "ok", "port 58609 of 127.0.0.1 is free", id="center"),
        pytest.param(doctor.center(doctor.Center("no module")), "fail", "imported: no module", id="center-missing"),
        pytest.param(doctor.center(replace(CENTER, port=0)), "fail", "58609 to 58619 of 127.0.0.1", id="center-ports"),
        pytest.param(doctor.servers(0, ""), "ok", "any", id="servers-any"),
        pytest.param(doctor.servers(2, ""), "ok", "2 addresses", id="servers"),
        pytest.param(doctor.servers(2, "got 'x'"), "fail", "xt_servers: got 'x'", id="servers-malformed"),
        pytest.param(doctor.home(Path("d"), None, 5 << 30), "ok", "d can be written, 5.0 GiB", id="home"),
        pytest.param(doctor.home(Path("d"), None, 3 << 30), "warn", "3.0 GiB free for market data", id="home-little"),
        pytest.param(doctor.home(Path("d"), None, 1 << 20), "fail", "0.0 GiB", id="home-full"),
        pytest.param(
            doctor.home(Path("d"), "denied", 5 << 30), "fail", "d cannot be written: denied", id="home-denied"
        ),
        pytest.param(doctor.accounts(0, "", False, ""), "ok", "market data only", id="accounts-none"),
        pytest.param(doctor.accounts(2, "C:/q", True, ""), "ok", "2, through C:/q", id="accounts"),
        pytest.param(doctor.accounts(2, "C:/q", False, ""), "fail", "no folder: C:/q", id="accounts-no-folder"),
        pytest.param(doctor.accounts(2, "", False, ""), "fail", "not set", id="accounts-no-userdata"),
        pytest.param(doctor.accounts(2, "", False, "a reason"), "ok", "not needed", id="accounts-not-needed"),
        pytest.param(doctor.calendar("20261231", "", "20261124", ""), "ok", "until 20261231", id="calendar"),
        pytest.param(doctor.calendar("20261124", "", "20261124", ""), "ok", "20261124", id="calendar-last-day"),
        pytest.param(doctor.calendar("20251231", "", "20260105", ""), "warn", "20260105", id="calendar-old"),
        pytest.param(doctor.calendar("", "empty", "20260105", ""), "warn", "not checked: empty", id="calendar-none"),
        pytest.param(doctor.calendar("", "", "20260105", "a reason"), "ok", "not needed", id="calendar-not-needed"),
        pytest.param(doctor.clock([9000, 300], "", ""), "ok", "0.3 s after", id="clock"),
        pytest.param(doctor.clock([-1500, 300], "", ""), "warn", "1.5 s behind", id="clock-behind"),
        pytest.param(doctor.clock([7000, 5100], "", ""), "warn", "5.1 s old: this clock is ahead", id="clock-ahead"),
        pytest.param(doctor.clock([7_200_000], "", ""), "warn", "not checked: the newest tick is 2.0 h", id="closed"),
        pytest.param(doctor.clock([], "none", ""), "warn", "not checked", id="clock-not-checked"),
        pytest.param(doctor.clock([], "", "a reason"), "ok", "not needed", id="clock-not-needed"),
        pytest.param(doctor.gateway_port("h", 8000, None, False), "ok", "port 8000 of h is free", id="port"),
        pytest.param(doctor.gateway_port("h", 0, None, False), "ok", "takes a free port", id="port-0"),
        pytest.param(doctor.gateway_port("h", 8000, "in use", True), "ok", "a gateway answers", id="port-ours"),
        pytest.param(doctor.gateway_port("h", 8000, "in use", False), "fail", "h:8000: in use", id="port-taken"),
        pytest.param(doctor.wire("ask_addr", "tcp://a:1", None, False, None), "ok", "is free", id="wire"),
        pytest.param(doctor.wire("ask_addr", "tcp://a:1", None, True, None), "ok", "the running", id="wire-ours"),
        pytest.param(doctor.wire("ask_addr", "tcp://a:1", "in use", False, None), "fail", "in use", id="wire-taken"),
        pytest.param(doctor.wire("ask_addr", "a", "in use", False, "no key"), "warn", "may be a feeder", id="unheard"),
        pytest.param(doctor.key("", False, "127.0.0.1"), "warn", "none", id="key-none"),
        pytest.param(doctor.key("short", False, "127.0.0.1"), "warn", "5 characters", id="key-short"),
        pytest.param(doctor.key(KEY, False, "127.0.0.1"), "ok", "is set", id="key"),
        pytest.param(doctor.key(KEY, False, "0.0.0.0"), "warn", "market data does not", id="key-open"),
        pytest.param(doctor.key(KEY, True, "0.0.0.0"), "ok", "is set", id="key-required"),
        pytest.param(doctor.firewall("::1", 8000, True), "ok", "only this machine", id="firewall-loopback"),
        pytest.param(doctor.firewall("0.0.0.0", 8000, False), "warn", "firewall", id="firewall"),
        pytest.param(doctor.folder(Path("d"), None), "ok", "d can be written", id="folder"),
        pytest.param(doctor.folder(Path("d"), "denied"), "fail", "d cannot be written: denied", id="folder-denied"),
        pytest.param(doctor.disk(5 << 30), "ok", "5.0 GiB", id="disk"),
        pytest.param(doctor.disk(1 << 29), "warn", "0.5 GiB", id="disk-little"),
        pytest.param(doctor.disk(1 << 20), "fail", "0.0 GiB", id="disk-full"),
        pytest.param(doctor.feeder(None, None, "1.0", "auto"), "ok", "none runs", id="feeder-none"),
        pytest.param(doctor.feeder(None, "no key", "1.0", "auto"), "warn", "not checked: no key", id="feeder-unheard"),
        pytest.param(doctor.feeder(UP, None, "1.0", "auto"), "ok", "source xtquant, state up, 3 topics", id="feeder"),
        pytest.param(doctor.feeder(UP, None, "2.0", "auto"), "warn", "1.0, but installed is 2.0", id="feeder-old"),
        pytest.param(doctor.feeder(None, None, "1", "auto", "no: do"), "fail", "no", id="feeder-refuses"),
        pytest.param(doctor.reach("ask_addr", "tcp://h:1", True), "ok", "answers at tcp://h:1", id="reach"),
        pytest.param(doctor.reach("ask_addr", "tcp://h:1", False), "warn", "heard at tcp://h:1", id="reach-not"),
        pytest.param(doctor.reach("ask_addr", "tcp://h:1", False, True), "warn", "no connection", id="reach-refused"),
        pytest.param(doctor.environment([]), "ok", "is a setting", id="environment"),
        pytest.param(doctor.environment(["X is none"]), "warn", "X is none", id="environment-foreign"),
        pytest.param(doctor.feeder_firewall(["tcp://127.0.0.1:1"], True), "ok", "this machine", id="feeder-loopback"),
        pytest.param(doctor.feeder_firewall(["tcp://0.0.0.0:1"], True), "warn", "lets them", id="feeder-firewall"),
        pytest.param(doctor.feeder(UP, None, "1.0", "sim"), "warn", "but the setting is sim", id="feeder-other"),
        pytest.param(doctor.journal(replace(UP, trade_seq=7)), "ok", "newest trade event is 7", id="journal"),
        pytest.param(doctor.journal(replace(UP, journal="disk is full")), "fail", "disk is full", id="journal-full"),
        pytest.param(doctor.trade(UP), "ok", "no accounts", id="trade-none"),
        pytest.param(doctor.trade(served("up")), "ok", "******0365 (STOCK) is up", id="trade-up"),
        pytest.param(doctor.trade(served("up", "waiting")), "warn", "is waiting: why", id="trade-waiting"),
        pytest.param(doctor.trade(served("waiting", "down")), "fail", "is down: why", id="trade-down"),
        pytest.param(doctor.journal(replace(UP, journal_note="set aside")), "warn", "set aside", id="journal-aside"),
    ],
)
def test_a_check_has_the_level_and_text_of_its_facts(finding: Finding, level: str, said: str) -> None:
    assert finding.level == level
    assert said in finding.said
    # A finding that is not ok has an advice; each one fits one line.
    assert bool(finding.advice) == (level != "ok") or finding.said.endswith("cannot be heard from here")
    assert "\n" not in finding.said + finding.advice


@pytest.mark.parametrize(
    ("state", "reason", "level"),
    [("down", "terminal_unreachable", "fail"), ("stale", None, "warn"), ("ended", None, "warn")],
)
def test_a_feeder_that_is_not_up_is_named_with_its_reason(state: str, reason: str | None, level: str) -> None:
    status = FeedStatus("sim", True, state, 1, 1, reason=reason, version="1.0")  # type: ignore[arg-type]
    finding = doctor.feeder(status, None, "1.0", "auto")
    assert finding.level == level
    assert f"SIMULATED data, state {state}{f' ({reason})' if reason else ''}" in finding.said


def test_on_windows_the_firewall_hint_is_a_command() -> None:
    assert "netsh advfirewall firewall add rule" in doctor.firewall("0.0.0.0", 8123, True).advice
    assert "localport=8123" in doctor.firewall("0.0.0.0", 8123, True).advice
    assert "netsh" not in doctor.firewall("0.0.0.0", 8123, False).advice


def test_a_warning_is_no_failure() -> None:
    warned = [Finding("a", "ok", "x"), Finding("b", "warn", "y", "z")]
    assert doctor.exit_code(warned) == 0
    assert doctor.exit_code([*warned, Finding("c", "fail", "x", "y")]) == 1


def test_a_line_has_level_check_what_it_is_and_what_to_do() -> None:
    findings = [Finding("key", "warn", "none", "set one"), Finding("firewall", "ok", "fine")]
    assert doctor.to_text(findings) == "warn  key       none -> set one\nok    firewall  fine"


def test_the_tested_version_is_the_pinned_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [item for item in project["dependencies"] if item.startswith("xtquant")]
    assert [pin.partition(";")[0].strip() for pin in pins] == [f"xtquant=={doctor.TESTED_XTQUANT}"]


# -- The facts


@contextmanager
def listener() -> Iterator[int]:
    """Listen on a free port and never answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


# The command, which waits less long for a feeder that is not there.
QUICK = """
from qmt_bridge import handshakes
handshakes.PATIENCE_SECONDS = 0.3
from qmt_bridge import cli
cli.main()
"""


class Machine:
    """The settings of a machine with free ports and a folder of its own, and what the command says of it."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.port = free_port()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("QMT_BRIDGE_")}
        self.env |= {"QMT_BRIDGE_PORT": str(self.port), "QMT_BRIDGE_DATA_DIR": str(folder / "data")}
        self.env |= {"QMT_BRIDGE_API_KEY": KEY}
        self.env |= address_env(free_addresses()) | env
        self.printed = ""
        # Whether something listens at these addresses, which needs its time to answer.
        self.answers = False

    @property
    def start(self) -> list[str]:
        """Return the command without its arguments."""
        return [sys.executable, *(("-m", "qmt_bridge.cli") if self.answers else ("-c", QUICK)), "doctor"]

    def run(self, *arguments: str) -> tuple[int, dict[str, Finding]]:
        """Run the command with --json; return its exit code and the findings by check."""
        done = subprocess.run(
            [*self.start, "--json", *arguments],
            env=self.env,
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )
        assert done.stderr == ""
        self.printed = done.stdout
        said = json.loads(done.stdout)
        assert said["ok"] == (done.returncode == 0)
        return done.returncode, {item["check"]: Finding(**item) for item in said["checks"]}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, QMT_BRIDGE_SOURCE="sim")


def levels(findings: dict[str, Finding], level: str) -> list[str]:
    return [check for check, finding in findings.items() if finding.level == level]


def test_a_machine_for_simulated_data_is_well_and_stays_as_it_was(machine: Machine, tmp_path: Path) -> None:
    machine.answers = True
    code, findings = machine.run()
    assert code == 0, findings
    assert levels(findings, "fail") == levels(findings, "warn") == []
    assert findings["feeder"].said == "none runs at these addresses"
    assert list(tmp_path.iterdir()) == []
    assert KEY not in machine.printed


def test_text_says_the_same_as_json(machine: Machine) -> None:
    _, findings = machine.run()
    done = subprocess.run(
        machine.start,
        env=machine.env,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=True,
    )
    free = re.compile(r"[\d.]+ GiB")
    assert free.sub("", done.stdout) == free.sub("", doctor.to_text(list(findings.values())) + "\n")


def test_ports_in_use_by_other_programs_fail(machine: Machine) -> None:
    machine.answers = True
    with listener() as market, listener() as port:
        code, findings = machine.run("--market-addr", f"tcp://127.0.0.1:{market}", "--port", str(port))
    assert code == 1
    assert levels(findings, "fail") == ["market_addr", "gateway"]
    assert "Address" in findings["market_addr"].said
    assert f"cannot listen on 127.0.0.1:{port}" in findings["gateway"].said


def test_an_address_that_the_feeder_would_refuse_fails(machine: Machine) -> None:
    code, findings = machine.run("--ask-addr", "tcp://0.0.0.0:0", "--trade-addr", "tcp://192.0.2.1:5556")
    assert code == 1
    assert levels(findings, "fail") == ["trade_addr", "ask_addr"]
    assert "needs curve_dir" in findings["ask_addr"].said


def test_an_address_that_is_none_is_a_wrong_setting(machine: Machine) -> None:
    code, findings = machine.run("--trade-addr", "nonsense")
    assert code == 1
    assert "--trade-addr: expected tcp://HOST:PORT" in findings["settings"].said


def test_a_folder_below_a_file_cannot_be_written(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, findings = machine.run("--data-dir", str(tmp_path / "file" / "data"))
    assert code == 1
    assert levels(findings, "fail") == ["data folder"]


def test_a_wrong_setting_is_a_finding(machine: Machine) -> None:
    machine.env["QMT_BRIDGE_GRACE"] = "soon"
    code, findings = machine.run()
    assert code == 1
    assert list(findings) == ["settings"]
    assert "QMT_BRIDGE_GRACE" in findings["settings"].said


def test_keys_that_are_not_there_are_told(machine: Machine, tmp_path: Path) -> None:
    code, findings = machine.run("--curve-dir", str(tmp_path))
    assert code == 0
    assert levels(findings, "warn") == ["market_addr", "trade_addr", "ask_addr", "feeder"]
    assert "cannot read the keys" in findings["feeder"].said


@pytest.mark.skipif(sys.platform == "win32", reason="the wheel's native modules are for Windows")
def test_an_sdk_without_native_modules_fails_if_it_is_the_source(machine: Machine) -> None:
    code, findings = machine.run("--source", "xtquant", "--xt-addr", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert levels(findings, "fail") == ["xtquant", "terminal"]
    assert findings["xtquant"].said.startswith(doctor.TESTED_XTQUANT)
    assert findings["calendar"].said == "not checked: the terminal cannot be asked"
    assert findings["clock"].said.endswith("the terminal cannot be asked")


@pytest.fixture
def terminal() -> Iterator[str]:
    """Return the address of a listening terminal; the probe process uses the stand-in for xtquant."""
    with listener() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def trading_machine(tmp_path: Path, terminal: str) -> Machine:
    env = {"PYTHONPATH": os.pathsep.join(map(str, (FAKES, ROOT))), "QMT_BRIDGE_XT_ADDR": terminal}
    env |= {"FAKE_XT_ADDR": terminal, "FAKE_XT_TICK_MS": "1000", "FAKE_XT_CODES": "000001.SH", "FAKE_XT_CHATTER": "1"}
    return Machine(tmp_path, **env, FAKE_XT_HOLIDAYS="20260101,20261001")


def test_a_terminal_is_asked_through_xtquant(trading_machine: Machine, terminal: str) -> None:
    code, findings = trading_machine.run()
    assert code == 0, findings
    assert findings["xtquant"].said == f"{doctor.TESTED_XTQUANT}, the tested version"
    assert findings["terminal"].said == f"xtquant connects to {terminal}"
    assert "trading days are known until 20261231" in findings["calendar"].said
    # The stand-in's ticks are of 2024.
    assert "so the market is closed" in findings["clock"].said
    assert findings["accounts"].said == "none: market data only, no trade events"


def test_a_terminal_that_refuses_the_connection_fails(trading_machine: Machine) -> None:
    trading_machine.env["FAKE_XT_DOWN"] = "1"
    code, findings = trading_machine.run()
    assert code == 1
    assert levels(findings, "fail") == ["terminal"]
    assert "无法连接xtquant服务" in findings["terminal"].said
    assert "not checked" in findings["calendar"].said


def test_a_terminal_without_calendar_and_ticks_is_told(trading_machine: Machine) -> None:
    trading_machine.env |= {"FAKE_XT_HOLIDAYS": "", "FAKE_XT_CODES": "600519.SH"}
    code, findings = trading_machine.run()
    assert code == 0, findings
    assert findings["calendar"].said == "not checked: 交易日列表为空"
    assert "not checked" in findings["clock"].said


def test_a_terminal_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    monkeypatch.setenv("FAKE_XT_CALL_MS", "60000")
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5)
    assert doctor._ask(doctor.Probe, "127.0.0.1:58610") == doctor.Probe(error="no answer in 0.5 s")


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        pytest.param(b"", "ended with exit code 0", id="nothing"),
        pytest.param(b"Traceback", "ended with exit code 0", id="text"),
        pytest.param(b'{"error":"\xce\xde"}', "ended with exit code 0", id="gbk"),
        pytest.param(b'{"tick_ms":"x"}', "ended with exit code 0", id="another-type"),
        pytest.param(b'{"x":' + b"[" * 100_000, "ended with exit code 0", id="nested"),
        pytest.param(None, "cannot be started: No such file or directory", id="no-program"),
    ],
)
def test_every_failure_of_the_probe_process_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: bytes | None, said: str
) -> None:
    path = tmp_path / "printed"
    path.write_bytes(printed or b"")
    command = [sys.executable, "-c", f"import sys; sys.stdout.buffer.write(open({str(path)!r}, 'rb').read())"]
    monkeypatch.setattr(
        doctor.child, "python", lambda *words: command if printed is not None else [str(tmp_path / "none")]
    )
    assert doctor._ask(doctor.Probe, "127.0.0.1:58610").error == f"the process that asks {said}"


@pytest.mark.parametrize(
    ("answer", "ours"),
    [
        (b'HTTP/1.1 200 OK\r\n\r\n{"status":"ok"}', True),
        (b'HTTP/1.1 200 OK\r\n\r\n{"status":["ok"]}', False),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60_000, False),
        (b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
    ],
)
def test_any_answer_at_the_gateways_port_is_judged(answer: bytes, ours: bool) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert doctor._is_gateway(Config(port=listener.getsockname()[1])) is ours
        finally:
            thread.join()


TOKEN = "7b1e-t0ken"


@pytest.fixture
def token_machine(trading_machine: Machine) -> Machine:
    """Return a machine with a token, and nothing at the terminal's address."""
    trading_machine.env |= {"QMT_BRIDGE_XT_TOKEN": TOKEN, "QMT_BRIDGE_XT_ADDR": f"127.0.0.1:{free_port()}"}
    return trading_machine


def test_with_a_token_the_data_service_is_looked_at_and_no_terminal(token_machine: Machine, tmp_path: Path) -> None:
    code, findings = token_machine.run("--xt-servers", "10.0.0.1:55310", "--xt-servers", "10.0.0.2:55310")
    assert code == 0, findings
    assert levels(findings, "fail") == []
    # Only a live tick shows the exchange's time. A Python after 3.11 is a warning, and the tests run on such too.
    assert set(levels(findings, "warn")) - {"python"} == {"clock"}
    assert "only the feeder asks the data service" in findings["clock"].said
    for check in ("terminal", "calendar"):
        assert findings[check].said == "not needed: with xt_token quotes come from the data service"
    assert findings["token"].said.startswith("is set")
    assert re.fullmatch(r"can be imported, port 586[01]\d of 127.0.0.1 is free", findings["data service"].said)
    assert findings["servers"].said == "2 addresses"
    assert findings["data service folder"].said.startswith(f"{tmp_path / 'data' / 'xtdata'} can be written")
    assert TOKEN not in token_machine.printed
    # The command made no file and did not log in.
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_a_data_service_is_told_at_once(token_machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "xt"
    code, findings = token_machine.run("--xt-servers", "10.0.0.1", "--xt-home", str(home))
    assert code == 1
    assert levels(findings, "fail") == ["servers", "data service folder"]
    assert findings["servers"].said == "xt_servers: expected 'host:port', got '10.0.0.1'"
    assert findings["data service folder"].said.startswith(f"{home} cannot be written: ")


@pytest.mark.skipif(sys.platform == "win32", reason="the wheel's native modules are for Windows")
def test_a_token_without_native_modules_is_told_whatever_the_source(machine: Machine) -> None:
    machine.env["QMT_BRIDGE_XT_TOKEN"] = TOKEN
    code, findings = machine.run("--source", "xtquant")
    assert code == 1
    assert levels(findings, "fail") == ["xtquant", "data service"]
    assert "cannot be imported: " in findings["data service"].said
    code, findings = machine.run("--source", "auto")
    assert code == 0
    assert levels(findings, "warn") == ["xtquant"]
    assert "SIMULATED" in findings["xtquant"].said
    assert "token" not in findings
    _, findings = machine.run("--source", "sim")
    assert levels(findings, "warn") == levels(findings, "fail") == []


def test_a_port_that_is_in_use_is_not_the_data_services() -> None:
    free = free_port()
    with listener() as taken:
        assert probe.free_port(taken, taken) == 0
        assert probe.free_port(free, free) == free


def test_accounts_need_the_terminals_folder(trading_machine: Machine, tmp_path: Path) -> None:
    trading_machine.env["QMT_BRIDGE_XT_ACCOUNTS"] = "1000000365:STOCK,2000000001:CREDIT"
    code, findings = trading_machine.run("--xt-userdata", str(tmp_path / "gone"))
    assert code == 1
    assert levels(findings, "fail") == ["accounts"]
    _, findings = trading_machine.run("--xt-userdata", str(tmp_path))
    assert findings["accounts"].said == f"2, through {tmp_path}"
    assert "1000000365" not in trading_machine.printed


def test_a_running_feeder_and_gateway_are_recognised(machine: Machine) -> None:
    machine.answers = True
    up = subprocess.Popen(
        [sys.executable, "-m", "qmt_bridge.cli", "up"],
        env=machine.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        assert up.stdout is not None
        assert any("stop     Ctrl-C" in line for line in up.stdout)
        code, findings = machine.run()
    finally:
        up.terminate()
        up.communicate(timeout=SECONDS)
    assert code == 0, findings
    assert levels(findings, "warn") == []
    assert "source sim, SIMULATED data, state up" in findings["feeder"].said
    assert "is written" in findings["journal"].said
    assert findings["market_addr"].said == f"the running feeder has {machine.env['QMT_BRIDGE_MARKET_ADDR']}"
    assert findings["gateway"].said == f"a gateway answers at 127.0.0.1:{machine.port}"


# -- What runs here


ELSEWHERE = {
    f"QMT_BRIDGE_{name}_ADDR": f"tcp://192.0.2.1:{port}"
    for name, port in (("MARKET", 5555), ("TRADE", 5556), ("ASK", 5557))
}


@pytest.mark.parametrize(
    ("settings", "role"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"workers": 2}, "gateway", id="of-gateways"),
        pytest.param({"source": "sim"}, "feeder", id="of-feeders"),
        pytest.param({"source": "sim", "workers": 2}, None, id="of-both"),
        pytest.param(
            {f"{name}_addr": "tcp://192.0.2.1:5555" for name in ("market", "trade", "ask")}, "gateway", id="elsewhere"
        ),
        pytest.param(
            {f"{name}_addr": "tcp://0.0.0.0:5555" for name in ("market", "trade", "ask")}, None, id="all-addresses"
        ),
    ],
)
def test_the_settings_say_what_runs_here(settings: dict[str, object], role: str | None) -> None:
    config = Config(**settings)  # type: ignore[arg-type]
    feeders, gateways = bool(settings.keys() & set(FEEDER)), bool(settings.keys() & set(GATEWAY))
    assert doctor.role_of(config, feeders, gateways) == role


@pytest.mark.parametrize("arguments", [("--for", "gateway"), ()])
def test_a_gateways_machine_has_no_false_failures(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    machine = Machine(tmp_path, **ELSEWHERE)
    # Settings as in a gateway's file: none that only feeders read.
    del machine.env["QMT_BRIDGE_DATA_DIR"]
    code, findings = machine.run(*arguments)
    assert code == 0, findings
    assert levels(findings, "fail") == []
    assert levels(findings, "warn") == ["market_addr", "trade_addr", "ask_addr", "feeder"]
    assert "no feeder is heard at tcp://192.0.2.1:5555" in findings["market_addr"].said
    assert not findings.keys() & {"xtquant", "terminal", "accounts", "calendar", "clock", "data folder", "disk"}


def test_a_feeders_machine_is_not_asked_for_what_gateways_need(tmp_path: Path) -> None:
    machine = Machine(tmp_path, QMT_BRIDGE_SOURCE="sim")
    del machine.env["QMT_BRIDGE_API_KEY"]
    code, findings = machine.run("--for", "feeder")
    assert code == 0, findings
    assert levels(findings, "warn") == []
    assert not findings.keys() & {"gateway", "key"}


def test_a_key_that_the_feeder_refuses_is_told(tmp_path: Path) -> None:
    for name in ("feeder", "stranger"):
        sockets.make_keys(tmp_path / name)
    (tmp_path / "stranger" / "feeder.key").write_bytes((tmp_path / "feeder" / "feeder.key").read_bytes())
    machine = Machine(tmp_path)
    machine.answers = True
    del machine.env["QMT_BRIDGE_DATA_DIR"]
    wire = {name: machine.env[f"QMT_BRIDGE_{name.upper()}"] for name in ("market_addr", "trade_addr", "ask_addr")}
    feeder = Feeder(Config(source="sim", data_dir=str(tmp_path / "d"), curve_dir=str(tmp_path / "feeder"), **wire))
    feeder.start()
    try:
        code, findings = machine.run("--for", "gateway", "--curve-dir", str(tmp_path / "stranger"))
        assert code == 1
        assert levels(findings, "fail") == ["feeder"]
        assert "refuses this key" in findings["feeder"].said
        assert "copy gateway.key into" in findings["feeder"].advice
    finally:
        feeder.stop()


def test_foreign_variables_are_a_warning(machine: Machine) -> None:
    machine.env["QMT_BRIDGE_TRADING_ENABLED"] = "true"
    code, findings = machine.run()
    assert code == 0
    assert levels(findings, "warn") == ["environment"]
    assert "QMT_BRIDGE_TRADING_ENABLED is no setting" in findings["environment"].said


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "cp1252", "cp936", "utf-8"])
def test_chinese_text_comes_through_every_code_page(trading_machine: Machine, encoding: str) -> None:
    trading_machine.env |= {"FAKE_XT_DOWN": "1", "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        trading_machine.start,
        env=trading_machine.env,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    # click treats ASCII as a mistake and writes UTF-8.
    text = done.stdout.decode("utf-8" if encoding.startswith("ascii") else encoding)
    assert "无法连接" in text or r"\u65e0\u6cd5\u8fde\u63a5" in text
    # JSON is the same for all.
    _, findings = trading_machine.run()
    assert "无法连接" in findings["terminal"].said


@contextmanager
def publishing(make: Callable[[], list[tuple[Topic, object]]]) -> Iterator[Config]:
    """Publish the messages that `make` returns again and again, like a feeder that answers no questions."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    market = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
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
        yield Config(**{**free_addresses(), "market_addr": address})
    finally:
        ended.set()
        thread.join()
        context.destroy(linger=0)


@pytest.mark.parametrize(("source", "heard"), [("xtquant", True), ("replay", False)])
def test_only_live_ticks_of_a_running_feeder_check_the_clock(
    source: str, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LISTEN_SECONDS", 2.0)

    def make() -> list[tuple[Topic, object]]:
        now = time.time_ns() // 1_000_000
        status = {"source": source, "simulated": False, "state": "up", "epoch": 1, "time": now}
        # Of an hour ago, except for one code.
        ticks = {"000001.SZ": {"time": now - 3_600_000}, "600519.SH": [{"time": now + 60_000}], "x": {"time": None}}
        return [
            (STATUS_TOPIC, status),
            (Topic("whole/SH/"), ticks),
            (quote_topic("600519.SH"), {"600519.SH": [{"time": now}]}),
        ]

    with publishing(make) as config:
        status, ages, unheard, _ = doctor._listen(config)
    assert unheard is None
    assert status is not None
    assert status.source == source
    assert bool(ages) == heard
    if heard:
        assert doctor.clock(ages, "", "").said.startswith("at least 6")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"BODY", encode(["nonsense"])], id="array"),
        pytest.param([b"BODY", encode({"source": "x", "simulated": 1})], id="wrong-types"),
        pytest.param([b"BODY", b"\x91" * 100_000], id="nested"),
        pytest.param([b"BODY", b"\xa2\xff\xfe"], id="no-utf-8"),
        pytest.param([], id="topic-alone"),
        pytest.param([b"short", b""], id="short-stamp"),
        pytest.param([b"STAMP", b"", b"", b"", b""], id="too-many"),
    ],
)
def test_messages_of_another_program_are_a_finding(monkeypatch: pytest.MonkeyPatch, parts: list[bytes]) -> None:
    if b"BODY" not in parts:
        # The message is not a frame, so it is left out.
        monkeypatch.setattr(doctor, "SILENT_SECONDS", 0.5)
    stamp = Frame(STATUS_TOPIC, 1, 1, 1, 1, b"").to_parts()[1]
    given = [stamp if part in (b"BODY", b"STAMP") else part for part in parts]
    raw = [STATUS_TOPIC.encode(), *given]
    monkeypatch.setattr(Frame, "to_parts", lambda frame: raw)
    with publishing(lambda: [(STATUS_TOPIC, None)]) as config:
        heard = doctor._listen(config)
        assert (heard.status, heard.ages_ms) == (None, ())
        assert (heard.unheard is not None) is (b"BODY" in parts)
        found = doctor.feeder(None, heard.unheard, "1.0", "auto", heard.refused.text if heard.refused else "")
    assert found.check == "feeder"


def test_xtquant_is_not_imported(tmp_path: Path) -> None:
    code = """
import sys
from qmt_bridge.commands import doctor
from qmt_bridge.config import load_config
doctor.examine(load_config(), "1")
print("xtquant" in sys.modules, any(name.startswith("feeder") for name in sys.modules))
"""
    machine = Machine(tmp_path, QMT_BRIDGE_SOURCE="xtquant", QMT_BRIDGE_XT_ADDR=f"127.0.0.1:{free_port()}")
    printed = subprocess.check_output([sys.executable, "-c", code], env=machine.env, encoding="utf-8", timeout=SECONDS)
    assert printed.split() == ["False", "False"]


def test_a_settings_error_becomes_a_line() -> None:
    assert doctor.settings(ConfigError("port", "is bad")).said == "port: is bad"
