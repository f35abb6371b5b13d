"""The request to end: no lock in a handler, a second signal, and no traceback at any moment."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import psutil
import pytest

from qmt_bridge.process import stop
from qmt_bridge.process.stop import Stop, interruptible
from tests.support.paths import ROOT
from tests.support.ports import WIRE, address_options, free_addresses, free_port
from tests.support.waiting import SLOWNESS, wait_for

DEADLINE = 30.0 * SLOWNESS
posix = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_interrupted_at(moment: int) -> bool:
    """Wait with a new `Stop` and call its handler before bytecode `moment` of that; return whether there is one."""
    stop = Stop()
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == moment:
                sys.settrace(None)
                stop._take(signal.SIGINT, None)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        stop.wait(0.0)
    finally:
        sys.settrace(before)
    assert stop.is_set() == (seen >= moment)
    return seen >= moment


def test_a_signal_at_any_instruction_of_a_wait_is_taken() -> None:
    """An event holds its lock at some of these moments, and its `set` would wait for ever."""
    moments = 0
    while wait_interrupted_at(moments + 1):
        moments += 1
    assert moments > 20


@posix
def test_thousands_of_signals_at_random_moments_end_every_wait() -> None:
    code = """
        import random, signal
        from qmt_bridge.process import stop as module
        from qmt_bridge.process.stop import Stop
        # A thousand looks a second at the flag instead of twenty.
        module.STEP = 0.001
        random.seed(1)
        for _ in range(4000):
            stop = Stop()
            stop.on_signals()
            signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-4))
            assert stop.wait(20.0)
        print("ended")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=50 * SLOWNESS,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("ended", "")


def test_no_handler_of_ours_takes_a_lock() -> None:
    """Every `signal.signal` of the packages is in stop.py, or ignores, or is the default."""
    found = {}
    for package in ("qmt_bridge", "feeder", "gateway"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("signal.signal", "signal"):
                    found.setdefault(path.name, set()).add(ast.unparse(node.args[1]).removeprefix("signal."))
    assert found.pop("stop.py") == {"self._take", "interrupt", "SIG_DFL", "handler"}
    assert set().union(*found.values()) <= {"SIG_IGN", "SIG_DFL"}


def test_a_wait_ends_with_its_time_or_with_the_request() -> None:
    stop = Stop()
    assert not stop.wait(0.01)
    threading.Timer(0.05, stop.set).start()
    assert stop.wait(DEADLINE)
    assert stop.wait(0.0)


def program(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_whatever_the_process_does(number: signal.Signals) -> None:
    code = """
        import threading, time
        from qmt_bridge.process.stop import Stop
        stop = Stop()
        stop.on_signals()
        stop.last_act = lambda: print("last act", flush=True)
        threading.Thread(target=time.sleep, args=(1000,)).start()
        print("waits", flush=True)
        stop.wait(1000)
        print("stops", flush=True)
        time.sleep(1000)
    """
    with program(code) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "waits\n"
        running.send_signal(number)
        assert running.stdout.readline() == "stops\n"
        running.send_signal(number)
        assert running.wait(DEADLINE) == 128 + number
        assert running.stdout.read() == "last act\n"


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_closes_what_is_open_and_says_nothing(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    closed = False

    def work() -> None:
        nonlocal closed
        with interruptible():
            try:
                signal.raise_signal(number)
            finally:
                closed = True

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == code
    assert closed
    assert signal.getsignal(number) is before


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_tail_ends_with_the_code_of_its_signal(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-P", "-m", "qmt_bridge.cli", "tail", "trade/"]
    command += address_options(dict.fromkeys(WIRE, "tcp://127.0.0.1:9"))
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as running:
        try:
            assert running.stderr is not None
            assert "nothing answers" in running.stderr.readline()
            running.send_signal(number)
            assert running.wait(DEADLINE) == code
            assert running.stderr.read() == ""
        finally:
            running.kill()


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_is_dropped_is_raised_again(number: signal.Signals, code: int) -> None:
    """Python drops what `__del__` raises. The work that ends the command is not interrupted a second time."""
    code_of_command = f"""
        import signal, time
        from qmt_bridge.process.stop import interruptible
        class Dropping:
            def __del__(self):
                signal.raise_signal({int(number)})
        with interruptible():
            try:
                Dropping()
                print("goes on", flush=True)
                while True:
                    time.sleep(0.01)
            finally:
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    time.sleep(0.01)
                print("closed", flush=True)
    """
    with program(code_of_command) as running:
        assert running.wait(DEADLINE) == code
        assert running.stdout is not None
        assert running.stdout.read().split("\n")[-3:] == ["goes on", "closed", ""]


@posix
def test_a_second_signal_ends_a_command_that_is_closing() -> None:
    code = """
        import time
        from qmt_bridge.process.stop import interruptible
        with interruptible():
            try:
                print("runs", flush=True)
                time.sleep(1000)
            finally:
                print("closes", flush=True)
                time.sleep(1000)
    """
    with program(code) as running:
        assert running.stdout is not None
        for line in ("runs\n", "closes\n"):
            assert running.stdout.readline() == line
            running.send_signal(signal.SIGINT)
        assert running.wait(DEADLINE) == -signal.SIGINT
        assert running.stdout.read() == ""


@posix
@pytest.mark.parametrize("module_name", ["qmt_bridge", "qmt_bridge.cli"])
@pytest.mark.parametrize("library", ["click", "zmq", "msgspec"])
def test_ctrl_c_while_the_command_imports_is_no_traceback(tmp_path: Path, module_name: str, library: str) -> None:
    """A library whose import never ends holds the program at that moment."""
    (tmp_path / f"{library}.py").write_text("print('imports', flush=True)\nimport time\ntime.sleep(1000)\n", "utf-8")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", module_name, "tail", "quote/"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=tmp_path
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "imports\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(DEADLINE) in (-signal.SIGINT, 130)
        assert running.stdout.read() == ""


@posix
@pytest.mark.parametrize("command", ["feeder", "gateway", "record", "replay", "up"])
def test_ctrl_c_while_a_service_imports_ends_it(tmp_path: Path, command: str) -> None:
    """Here the import goes on after a while: the service sees the request as soon as it looks."""
    library = {"gateway": "uvicorn", "up": "click"}.get(command, "zmq")
    (tmp_path / f"{library}.py").write_text("print('imports', flush=True)\nimport time\ntime.sleep(1000)\n", "utf-8")
    arguments = {"record": ["--out=tape", "quote/"], "replay": ["nowhere"]}.get(command, [])
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "qmt_bridge.cli", command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        cwd=tmp_path,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "imports\n"
        running.send_signal(signal.SIGINT)
        # An import that does not end: the second one ends it.
        until = time.monotonic() + DEADLINE
        while running.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            running.send_signal(signal.SIGINT)
        assert running.returncode in (-signal.SIGINT, 130)
        assert running.stdout.read() == ""


PROGRAMS = [
    pytest.param(program, id=f"{readme}-{number}")
    for readme in ("README.md", "README.zh-CN.md", "docs/trade-events.md", "docs/zeromq.md")
    for number, program in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / readme).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL), 1
    )
]


def accept_from(server: socket.socket, pid: int) -> None:
    """Accept and close a connection of the process; a test that runs beside this one may try the same port."""
    while True:
        connection, (_, port) = server.accept()
        ours = {each.laddr.port for each in psutil.Process(pid).net_connections("tcp") if each.laddr}
        connection.close()
        if port in ours:
            return


@posix
@pytest.mark.parametrize("text", PROGRAMS)
def test_a_documented_program_ends_on_ctrl_c_without_a_traceback(tmp_path: Path, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)
        port = server.getsockname()[1]
        here = re.sub(r"127\.0\.0\.1:555\d", f"127.0.0.1:{port}", text)
        here = re.sub(r'f"ipc://\{RUN\}/\w+\.sock"', f'"tcp://127.0.0.1:{port}"', here)
        here = here.replace('host="127.0.0.1"', f'host="127.0.0.1", port={port}')
        here = here.replace('/tick/"):', f'/tick/", market_addr="tcp://127.0.0.1:{port}"):')
        assert here != text
        file = tmp_path / "program.py"
        file.write_text(here, encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
        ) as running:
            # The program has finished its imports once it connects; nothing answers it.
            accept_from(server, running.pid)
            running.send_signal(signal.SIGINT)
            printed, _ = running.communicate(timeout=DEADLINE)
            assert running.returncode in (0, -signal.SIGINT), printed
            assert "Traceback" not in printed


@posix
def test_ctrl_c_while_a_source_starts_does_not_wait_for_it(tmp_path: Path) -> None:
    """A login to xtquant's data service takes up to two minutes, in a native call that nothing ends."""
    code = """
        import sys, time
        from feeder.sim import simulator
        from qmt_bridge import cli
        def start(self, sink):
            print("starts", flush=True)
            time.sleep(1000)
        simulator.Simulator.start = start
        sys.argv[1:] = ["feeder", "--source=sim", "--data-dir=DATA"]
        sys.argv += ["--market-addr=tcp://127.0.0.1:*", "--trade-addr=tcp://127.0.0.1:*", "--ask-addr=tcp://127.0.0.1:*"]
        cli.main()
    """.replace("DATA", str(tmp_path))
    with program(code) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "starts\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(DEADLINE) == 0
        assert "feeder stopped while its source was still starting" in running.stdout.read()


@posix
@pytest.mark.parametrize(
    "command", ["gateway --workers 2", "gateway", "feeder --source sim", "record --out tape quote/"]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_in_a_terminal_ends_with_0_and_no_traceback(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """Its processes are in one group, and all of them get the signal, as from Ctrl-C."""
    words = [*command.split(), *address_options(free_addresses())]
    if "gateway" in words:
        words.append(f"--port={free_port()}")
    if "feeder" in words:
        words.append(f"--data-dir={tmp_path}")
    with subprocess.Popen(
        [sys.executable, "-m", "qmt_bridge.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert "INFO" in line, line
        # Workers that are still importing are met as well.
        os.killpg(running.pid, number)
        assert running.wait(DEADLINE) == 0
        assert "Traceback" not in running.stdout.read()


@posix
def test_ctrl_c_while_the_workers_of_a_gateway_import_is_no_traceback(tmp_path: Path) -> None:
    """In a terminal they get it as well; a sitecustomize file makes the import slow."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'multiprocessing.spawn' in ' '.join(sys.orig_argv):\n"
        "    import time\n    print('imports', flush=True)\n    time.sleep(1.0)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "qmt_bridge.cli", "gateway", "--workers=2", f"--port={free_port()}"]
    command += address_options(free_addresses())
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    ) as running:
        assert running.stdout is not None
        started = 0
        while started < 2:
            line = running.stdout.readline()
            assert line
            # Two workers that print at once may share a line.
            started += line.count("imports")
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(DEADLINE) == 0
        assert "Traceback" not in running.stdout.read()


@pytest.mark.parametrize("code", [0, 1, 75])
def test_leaving_ends_a_process_whatever_its_threads_do(code: int) -> None:
    # On Windows, os.kill of an own group with 0 or 1 would be Ctrl-C or Ctrl-Break.
    left = subprocess.run(
        [
            sys.executable,
            "-c",
            "import threading\nfrom qmt_bridge.process.stop import leave\n"
            f"threading.Thread(target=threading.Event().wait).start()\nprint('last words')\nleave({code})",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    assert (left.returncode, left.stdout.strip(), left.stderr) == (code, b"last words", b"")


@pytest.mark.parametrize("code", [0, 1, 75])
def test_leaving_on_windows_sends_no_console_event(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[str, int]] = []
    windows = SimpleNamespace(
        GetCurrentProcess=lambda: "this process", TerminateProcess=lambda process, code: ended.append((process, code))
    )
    monkeypatch.setitem(sys.modules, "_winapi", windows)
    monkeypatch.setattr(stop.sys, "platform", "win32")
    monkeypatch.setattr(stop, "_LEAVE_SECONDS", 0)
    monkeypatch.setattr(stop.os, "kill", lambda *arguments: pytest.fail(f"os.kill{arguments}"))
    monkeypatch.setattr(stop.os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        stop.leave(code)
    assert ended == [("this process", code)]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_stop_of_a_gateway_does_not_wait_for_a_frozen_worker(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qmt_bridge.cli", "gateway", "--workers=2", "--freeze-timeout=0"]
    command += [f"--port={free_port()}", *address_options(free_addresses())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        running.stdout.readline()
        # One that is frozen while it starts ends by another way: with the threads of ZeroMQ it serves.
        wait_for(lambda: [each.num_threads() >= 4 for each in workers_of(running.pid)] == [True] * 2, "the workers")
        frozen = workers_of(running.pid)[0]
        frozen.suspend()
        running.send_signal(signal.SIGINT)
        assert running.wait(DEADLINE) == 0
        assert f"worker {frozen.pid} did not stop in time; killed" in running.stdout.read()


def workers_of(gateway: int) -> list[psutil.Process]:
    return [each for each in psutil.Process(gateway).children() if is_worker(each)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False
