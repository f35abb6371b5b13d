"""The real native modules of xtquant, without a terminal: what they answer, and what the feeder makes of it.

Runs on Windows only, which `tests/windows/run` has under Wine.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from feeder.xt import sdk
from tests.support import natives
from tests.support.ports import address_options, free_addresses, free_port
from tests.support.supervised import supervised
from tests.support.waiting import DEADLINE, wait_for
from tests.windows.questions import QUESTIONS

pytestmark = [
    pytest.mark.skipif(sys.platform != "win32" or not sdk.importable(), reason="needs xtquant's native modules"),
    pytest.mark.timeout(120),
]
FEEDER = (sys.executable, "-m", "qmt_bridge.cli", "feeder")
ACCOUNTS = ("--xt-accounts=1000000365:STOCK", "--xt-userdata=C:\\nothing")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native code that crashes, or is ended while it starts, writes a dump of 5 MB into the current folder."""
    monkeypatch.chdir(tmp_path)


def test_natives_answer_as_recorded() -> None:
    found = natives.ask(list(QUESTIONS), {})
    assert {name: each["answer"] for name, each in found.items()} == natives.recorded()


def test_no_call_without_a_terminal_keeps_other_threads_waiting() -> None:
    names = ["connect", "trade connect", "trade init", "subscribeWithSeq", "xtdata connect"]
    found = natives.ask(names, {})
    # Python gives the lock on after 5 ms; a busy machine takes longer. The trade connect takes three seconds.
    assert max(each["kept"] for each in found.values()) < 1.0
    assert found["trade connect"]["seconds"] > 1.0


def test_feeder_without_a_terminal_tries_again_and_ends(tmp_path: Path) -> None:
    command = [*FEEDER, "--until-eof", "--source=xtquant", f"--data-dir={tmp_path}", *ACCOUNTS]
    command += [f"--xt-addr=127.0.0.1:{free_port()}", "--log-level=debug", *address_options(free_addresses())]
    lines: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.decode("utf-8", "replace"))
            text = "".join(lines)
            tried = text.count("cannot connect to the terminal"), text.count("connect returned -1")
            if tried[0] >= 3 and tried[1] >= 2:
                break
        assert process.stdin is not None
        process.stdin.close()
        text = "".join([*lines, process.stdout.read().decode("utf-8", "replace")])
        assert process.wait(DEADLINE) == 0, text
    assert "feed is down: terminal_unreachable" in text
    assert "feeder stopped after" in text
    assert "Traceback" not in text.replace("cannot open a trade session", "")


def test_download_without_a_terminal_is_refused_in_words() -> None:
    request = {"host": "127.0.0.1", "port": free_port(), "stocks": ["600000.SH"], "period": "1d"}
    request |= {"start_time": "", "end_time": ""}
    command = [sys.executable, "-m", "feeder.xt.download"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(DEADLINE)
    assert said["code"] == "upstream_unavailable"
    assert said["error"].startswith(f"cannot connect to the terminal at 127.0.0.1:{request['port']}: ")


def test_doctor_says_that_there_is_no_terminal() -> None:
    command = [
        sys.executable,
        "-m",
        "qmt_bridge.cli",
        "doctor",
        "--for",
        "feeder",
        f"--xt-addr=127.0.0.1:{free_port()}",
    ]
    env = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, input=b"", capture_output=True, timeout=DEADLINE, env=env, check=False)
    text = done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")
    assert done.returncode == 1, text
    assert "terminal" in text
    assert "Traceback" not in text


def test_terminal_that_is_silent_freezes_the_feeder_which_is_replaced(tmp_path: Path) -> None:
    """Native code keeps every thread of Python waiting while it connects, so only another process notices."""
    port = free_port()
    arguments = ["--source=xtquant", f"--xt-addr=127.0.0.1:{port}", "--freeze-timeout=3"]
    with supervised(tmp_path, *arguments, env={"PYTHONUTF8": "1"}) as running:
        wait_for(lambda: "the feeder answers (pid " in running.text, lambda: running.text)
        with socket.create_server(("127.0.0.1", port)):
            frozen = "feeder has given no sign of life for "
            wait_for(lambda: frozen in running.text, lambda: running.text)
        wait_for(lambda: running.started >= 2, lambda: running.text)


# The last one: under Wine a process that crashes keeps others from starting for a while.
def test_native_crash_ends_the_feeder_alone_and_is_retried(tmp_path: Path) -> None:
    """The login of the data service crashes where there is no network."""
    env = {"QMT_BRIDGE_XT_TOKEN": "made-up-token-of-the-tests", "PYTHONUTF8": "1"}
    with supervised(tmp_path / "data", "--source=xtquant", env=env) as running:
        told = "feeder ended with exit code 0xC0000005 (access violation); starting it again"
        # The dump that native code writes takes a minute on a busy machine, so one crash has to do.
        wait_for(lambda: told in running.text or running.process.poll() is not None, lambda: running.text, 2 * DEADLINE)
        if "Error: xt_token: " in running.text:
            pytest.skip("this machine has a network, where the login is refused instead")
        assert running.process.poll() is None, running.text
        assert "Windows fatal exception: access violation" in running.text
        assert re.search(r'File ".*xtdatacenter\.py", line \d+ in init', running.text)
        assert "made-up-token" not in running.text
        running.wait_for(lambda: "the crash of native code is described in " in running.text, "its dump")
        assert running.process.poll() is None
