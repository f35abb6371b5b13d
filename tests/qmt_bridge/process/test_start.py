"""What holds before any command runs: every text can be printed, on whatever encoding the output has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from feeder.journal.journal import Journal
from qmt_bridge.journal_file import journal_path
from tests.support.ports import WIRE, address_options, free_port, free_ports, tcp
from tests.support.waiting import DEADLINE, SLOWNESS, wait_for

# Of a redirected output on Windows in China, in Western Europe, and of a system without a language.
ENCODINGS = ["cp936", "gbk", "cp1252", "ascii"]
# cp936 has the first two, none of the others; only UTF-8 has the last.
NAME = "行情 数据\U0001f4c8"


def started(command: Sequence[str], encoding: str, file: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a command with both outputs in a file of the encoding."""
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
    )


def run_into_file(
    folder: Path, encoding: str, *arguments: str, start: Sequence[str] = ("-m", "qmt_bridge.cli")
) -> tuple[int, bytes]:
    """Run a command with both outputs in one file; return its exit code and what is in the file."""
    out = folder / "out.txt"
    with out.open("wb") as file, started([sys.executable, *start, *arguments], encoding, file) as process:
        try:
            code = process.wait(60 * SLOWNESS)
        finally:
            process.kill()
    return code, out.read_bytes()


def is_shown(text: str, encoding: str, said: bytes) -> bool:
    # click takes ASCII for a mistake of the system, and writes UTF-8.
    return text.encode(encoding, "backslashreplace") in said or (encoding == "ascii" and text.encode() in said)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([NAME], id="command"),
        pytest.param(["tail", "quote/", f"--{NAME}"], id="flag"),
        pytest.param(["doctor", "--config", NAME], id="doctor"),
        pytest.param(["feeder", "--source=sim", "--config", NAME], id="feeder"),
        pytest.param(["journal", "verify", "--data-dir", NAME], id="journal"),
    ],
)
def test_an_error_with_any_text_can_be_printed(arguments: list[str], encoding: str, tmp_path: Path) -> None:
    code, said = run_into_file(tmp_path, encoding, *arguments)
    assert code in (1, 2)
    assert b"UnicodeEncodeError" not in said
    assert is_shown(NAME, encoding, said)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_findings_with_any_text_can_be_printed(encoding: str, tmp_path: Path) -> None:
    """These go to standard output, for which Python has no error handler of its own."""
    folder = tmp_path / NAME
    Journal(journal_path(folder, "sim"), days=1).close()
    code, said = run_into_file(tmp_path, encoding, "journal", "verify", "--data-dir", str(folder))
    assert b"UnicodeEncodeError" not in said
    assert code == 0, said
    assert is_shown(NAME, encoding, said)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_doctor_can_print_the_name_of_any_folder(encoding: str, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    addresses = [f"--{name}={tcp(free_port())}" for name in ("market-addr", "ask-addr")]
    _, said = run_into_file(
        tmp_path, encoding, "doctor", "--for", "feeder", "--source=sim", f"--data-dir={folder}", *addresses
    )
    assert b"Traceback" not in said
    assert is_shown(NAME, encoding, said)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_traceback_with_any_text_can_be_printed(encoding: str, tmp_path: Path) -> None:
    """In the log, of a thread that ends, and of the main thread."""
    code = (
        "import logging, threading\n"
        "from qmt_bridge import log\n"
        "from qmt_bridge.process.start import prepare\n"
        "def fail():\n"
        "    raise ValueError(TEXT)\n"
        "prepare()\n"
        "log.configure('info', 'text')\n"
        "thread = threading.Thread(target=fail)\n"
        "thread.start()\n"
        "thread.join()\n"
        "try:\n"
        "    fail()\n"
        "except ValueError:\n"
        "    logging.exception(TEXT)\n"
        "    raise\n"
    )
    ended, said = run_into_file(tmp_path, encoding, start=("-c", f"TEXT = {NAME!r}\n{code}"))
    assert ended == 1
    assert b"UnicodeEncodeError" not in said
    text = NAME.encode(encoding, "backslashreplace")
    # Once for each traceback, and once for the line of the log.
    assert said.count(text) >= 4, said


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_banner_with_any_text_can_be_printed(encoding: str, tmp_path: Path) -> None:
    ticks = tmp_path / f"{NAME}.csv"
    ticks.write_text("code,time,lastPrice\n600519.SH,1760000000000,1700.5\n", encoding="utf-8")
    ports = free_ports(1 + len(WIRE))
    command = [sys.executable, "-m", "qmt_bridge.cli", "up", "--source=replay", f"--file={ticks}"]
    command += [f"--data-dir={tmp_path}", f"--port={ports[0]}"]
    command += address_options(dict(zip(WIRE, map(tcp, ports[1:]), strict=True)))
    out = tmp_path / "out.txt"
    with out.open("wb") as file, started(command, encoding, file) as up:
        try:
            wait_for(lambda: b"  stop " in out.read_bytes() or up.poll() is not None, lambda: repr(out.read_bytes()))
            up.terminate()
            up.wait(DEADLINE)
        finally:
            up.kill()
    said = out.read_bytes()
    assert b"  stop " in said, said
    assert b"UnicodeEncodeError" not in said
    assert is_shown(NAME, encoding, said)


def run_in_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m qmt_bridge.cli '
    return subprocess.run(
        ["sh", "-c", line.replace("qmt-bridge ", command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
    )


@pytest.mark.skipif(os.name != "posix", reason="redirections of a shell of Unix")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        # Its exit code depends on the machine.
        pytest.param("qmt-bridge doctor >&-; true", 0, "", id="no-output"),
        pytest.param("qmt-bridge init --source sim <&-", 1, "Aborted!", id="no-input"),
        pytest.param("mkdir gone; cd gone; rmdir ../gone; qmt-bridge --version", 0, "", id="no-folder"),
    ],
)
def test_a_process_without_streams_or_folder_goes_on(line: str, code: int, said: str, tmp_path: Path) -> None:
    done = run_in_shell(line, tmp_path)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


@pytest.mark.skipif(os.name != "posix" or not Path("/dev/full").exists(), reason="needs a device that is full")
def test_output_on_a_full_disk_is_an_error_in_one_line(tmp_path: Path) -> None:
    done = run_in_shell("qmt-bridge completion bash >/dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "Error: cannot write: No space left on device\n")
