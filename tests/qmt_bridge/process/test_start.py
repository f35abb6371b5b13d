"""What holds before any command runs: every text can be printed, on whatever encoding the output has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feeder.journal.journal import Journal
from qmt_bridge.journal_file import journal_path
from tests.support.ports import free_port, tcp
from tests.support.waiting import SLOWNESS

# Of a redirected output on Windows in China, in Western Europe, and of a system without a language.
ENCODINGS = ["cp936", "gbk", "cp1252", "ascii"]
# cp936 has the first two, none of the others; only UTF-8 has the last.
NAME = "行情 数据\U0001f4c8"


def run_into_file(folder: Path, encoding: str, *arguments: str) -> tuple[int, bytes]:
    """Run a command with both outputs in one file; return its exit code and what is in the file."""
    out = folder / "out.txt"
    with out.open("wb") as file:
        ended = subprocess.run(
            [sys.executable, "-m", "qmt_bridge.cli", *arguments],
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            timeout=60 * SLOWNESS,
            check=False,
        )
    return ended.returncode, out.read_bytes()


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
