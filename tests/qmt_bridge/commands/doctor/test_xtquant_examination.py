"""The command `qmt-bridge doctor` where xtquant is the source: terminal, data service and accounts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qmt_bridge.commands.doctor.findings import xtquant
from tests.support.doctor import SECONDS, TOKEN, Machine, levels
from tests.support.ports import free_port


@pytest.mark.skipif(sys.platform == "win32", reason="the wheel's native modules are for Windows")
def test_an_sdk_without_native_modules_fails_if_it_is_the_source(machine: Machine) -> None:
    code, findings = machine.run("--source", "xtquant", "--xt-addr", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert levels(findings, "fail") == ["xtquant", "terminal"]
    assert findings["xtquant"].said.startswith(xtquant.TESTED_XTQUANT)
    assert findings["calendar"].said == "not checked: the terminal cannot be asked"
    assert findings["clock"].said.endswith("the terminal cannot be asked")


def test_a_terminal_is_asked_through_xtquant(trading_machine: Machine, terminal: str) -> None:
    code, findings = trading_machine.run()
    assert code == 0, findings
    assert findings["xtquant"].said == f"{xtquant.TESTED_XTQUANT}, the tested version"
    assert findings["terminal"].said == f"xtquant connects to {terminal}"
    assert "trading days are known until 20261231" in findings["calendar"].said
    # The stand-in for xtquant sends ticks of 2024.
    assert "so the market is closed" in findings["clock"].said
    assert findings["accounts"].said == "none: market data only, no trade events"
    capabilities = [finding for check, finding in findings.items() if check.startswith("sdk: ")]
    assert len(capabilities) == 13
    assert {finding.said for finding in capabilities} == {"xtquant has it"}


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


def test_with_a_token_the_data_service_is_checked_not_the_terminal(token_machine: Machine, tmp_path: Path) -> None:
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


def test_all_errors_of_the_data_service_are_reported_together(token_machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "xt"
    code, findings = token_machine.run("--xt-servers", "10.0.0.1", "--xt-home", str(home))
    assert code == 1
    assert levels(findings, "fail") == ["servers", "data service folder"]
    assert findings["servers"].said == "xt_servers: expected 'host:port', got '10.0.0.1'"
    assert findings["data service folder"].said.startswith(f"{home} cannot be written: ")


@pytest.mark.skipif(sys.platform == "win32", reason="the wheel's native modules are for Windows")
def test_a_token_without_native_modules_fails_only_if_needed(machine: Machine) -> None:
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


def test_accounts_need_the_terminals_folder(trading_machine: Machine, tmp_path: Path) -> None:
    trading_machine.env["QMT_BRIDGE_XT_ACCOUNTS"] = "1000000365:STOCK,2000000001:CREDIT"
    code, findings = trading_machine.run("--xt-userdata", str(tmp_path / "gone"))
    assert code == 1
    assert levels(findings, "fail") == ["accounts"]
    _, findings = trading_machine.run("--xt-userdata", str(tmp_path))
    assert findings["accounts"].said == f"2, through {tmp_path}"
    assert "1000000365" not in trading_machine.printed


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "cp1252", "cp936", "utf-8"])
def test_chinese_text_can_be_printed_in_every_encoding(trading_machine: Machine, encoding: str) -> None:
    trading_machine.env |= {"FAKE_XT_DOWN": "1", "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        trading_machine.start,
        env=trading_machine.env,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    # click writes UTF-8 if the encoding is ASCII.
    text = done.stdout.decode("utf-8" if encoding.startswith("ascii") else encoding)
    assert "无法连接" in text or r"\u65e0\u6cd5\u8fde\u63a5" in text
    # JSON does not depend on the encoding.
    _, findings = trading_machine.run()
    assert "无法连接" in findings["terminal"].said
