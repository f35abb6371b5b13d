"""The command `qmt-bridge doctor` on this machine, with real processes and sockets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.doctor import KEY, SECONDS, Machine, levels, listener
from tests.support.ports import free_port


def test_simulated_data_needs_nothing_and_no_file_is_left(machine: Machine, tmp_path: Path) -> None:
    machine.answers = True
    code, findings = machine.run()
    assert code == 0, findings
    assert levels(findings, "fail") == levels(findings, "warn") == []
    assert findings["feeder"].said == "none runs at these addresses"
    assert findings["store"].said == f"none answers at {machine.env['QMT_BRIDGE_STORE_ADDR']}"
    assert list(tmp_path.iterdir()) == []
    assert KEY not in machine.printed


def test_ports_in_use_by_other_programs_fail(machine: Machine) -> None:
    machine.answers = True
    with listener() as market, listener() as port, listener() as store:
        addresses = ("--market-addr", f"tcp://127.0.0.1:{market}", "--store-addr", f"tcp://127.0.0.1:{store}")
        code, findings = machine.run(*addresses, "--port", str(port))
    assert code == 1
    assert findings["store"].said == f"what answers at tcp://127.0.0.1:{store} is no store, or it hangs"
    assert levels(findings, "fail") == ["market_addr", "gateway"]
    assert "Address" in findings["market_addr"].said
    assert f"cannot listen on 127.0.0.1:{port}" in findings["gateway"].said


def test_an_address_that_the_feeder_would_refuse_fails(machine: Machine) -> None:
    code, findings = machine.run("--ask-addr", "tcp://0.0.0.0:0", "--trade-addr", "tcp://192.0.2.1:5556")
    assert code == 1
    assert levels(findings, "fail") == ["trade_addr", "ask_addr"]
    assert "needs curve_dir" in findings["ask_addr"].said


def test_a_malformed_address_is_a_wrong_setting(machine: Machine) -> None:
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


def test_missing_keys_are_a_warning(machine: Machine, tmp_path: Path) -> None:
    code, findings = machine.run("--curve-dir", str(tmp_path))
    assert code == 0
    assert levels(findings, "warn") == ["market_addr", "trade_addr", "ask_addr", "feeder", "store"]
    assert "cannot read the keys" in findings["feeder"].said
    assert "not checked: curve_dir: cannot read the keys" in findings["store"].said


def test_foreign_variables_are_a_warning(machine: Machine) -> None:
    machine.env["QMT_BRIDGE_TRADING_ENABLED"] = "true"
    code, findings = machine.run()
    assert code == 0
    assert levels(findings, "warn") == ["environment"]
    assert "QMT_BRIDGE_TRADING_ENABLED is no setting" in findings["environment"].said


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
    assert "keeps nothing yet" in findings["store"].said
    assert findings["gateway"].said == f"a gateway answers at 127.0.0.1:{machine.port}"


def test_xtquant_is_not_imported(tmp_path: Path) -> None:
    code = """
import sys
from qmt_bridge.commands.doctor import examination
from qmt_bridge.config import load_config
examination.examine(load_config(), "1")
print("xtquant" in sys.modules, any(name.startswith("feeder") for name in sys.modules))
"""
    machine = Machine(tmp_path, QMT_BRIDGE_SOURCE="xtquant", QMT_BRIDGE_XT_ADDR=f"127.0.0.1:{free_port()}")
    printed = subprocess.check_output([sys.executable, "-c", code], env=machine.env, encoding="utf-8", timeout=SECONDS)
    assert printed.split() == ["False", "False"]
