"""The process that asks xtquant, and its failures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from feeder.xt import probe
from qmt_bridge.commands.doctor.answers import Probe
from qmt_bridge.commands.doctor.facts import xtquant as xtquant_facts
from tests.support.doctor import listener
from tests.support.paths import FAKES, ROOT
from tests.support.ports import free_ports


def test_a_terminal_that_hangs_is_reported_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    monkeypatch.setenv("FAKE_XT_CALL_MS", "60000")
    monkeypatch.setattr(xtquant_facts, "PROBE_SECONDS", 0.5)
    assert xtquant_facts.ask(Probe, "127.0.0.1:58610") == Probe(error="no answer in 0.5 s")


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
        xtquant_facts.child, "python", lambda *words: command if printed is not None else [str(tmp_path / "none")]
    )
    assert xtquant_facts.ask(Probe, "127.0.0.1:58610").error == f"the process that asks {said}"


def test_a_port_that_is_in_use_is_not_the_data_services() -> None:
    [free] = free_ports(1)
    with listener() as taken:
        assert probe.free_port(taken, taken) == 0
        assert probe.free_port(free, free) == free
