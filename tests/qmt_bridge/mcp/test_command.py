"""`qmt-bridge mcp` as a process, and what it refuses before it serves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from qmt_bridge.cli import main
from tests.support.processes import DEADLINE
from tests.support.up import START

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process can handle")
def test_signal_ends_the_server_while_its_input_is_open() -> None:
    with subprocess.Popen([*START, "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["result"]["serverInfo"]["name"] == "qmt-bridge"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(DEADLINE) == 130
        finally:
            process.kill()


def test_missing_package_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mcp", "mcp_types")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "qmt_bridge.mcp.server", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    result = CliRunner().invoke(main, ["mcp"])
    assert result.exit_code == 1
    assert result.output == "Error: mcp: needs the package mcp: pip install 'qmt-bridge-gateway[mcp]'\n"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://quotes.example",
        "quotes.example:8000",
        "http://quotes.example/feed",
        "http://quotes.example:0",
        "http://quotes.example:99999",
        "http://[::1",
        "http://desk:s3cret@quotes.example",
        "http://:s3cret@quotes.example",
        "http://quotes.example/?api_key=s3cret",
    ],
)
def test_url_that_is_no_gateway_is_refused_without_its_secrets(url: str) -> None:
    result = CliRunner().invoke(main, ["mcp", "--url", url])
    assert result.exit_code == 1
    assert "--url: expected one such as http://127.0.0.1:8000" in result.output
    assert "s3cret" not in result.output


def test_authority_needs_a_url_with_a_certificate(tmp_path) -> None:
    result = CliRunner().invoke(main, ["mcp", "--ca", str(tmp_path / "ca.pem")])
    assert result.exit_code == 2
    assert "--ca has no effect" in result.output
    result = CliRunner().invoke(main, ["mcp", "--url", "https://quotes.example", "--ca", str(tmp_path / "ca.pem")])
    assert result.exit_code == 1
    assert "holds no certificate authority" in result.output


def test_key_is_no_flag() -> None:
    result = CliRunner().invoke(main, ["mcp", "--api-key", "k"])
    assert result.exit_code == 2
    assert "No such option" in result.output
