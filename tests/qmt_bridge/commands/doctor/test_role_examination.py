"""The command `qmt-bridge doctor` on the machine of a feeder alone, or of a gateway alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from feeder.app import Feeder
from qmt_bridge.commands.doctor import examination
from qmt_bridge.config import FEEDER, GATEWAY, Config
from qmt_bridge.curve.key_folder import make_keys
from tests.support.doctor import Machine, levels

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
def test_the_settings_show_what_runs_on_this_machine(settings: dict[str, object], role: str | None) -> None:
    config = Config(**settings)  # type: ignore[arg-type]
    feeders, gateways = bool(settings.keys() & set(FEEDER)), bool(settings.keys() & set(GATEWAY))
    assert examination.role_of(config, feeders, gateways) == role


@pytest.mark.parametrize("arguments", [("--for", "gateway"), ()])
def test_a_gateway_machine_has_no_false_failures(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    make_keys(tmp_path / "keys")
    machine = Machine(tmp_path, QMT_BRIDGE_CURVE_DIR=str(tmp_path / "keys"), **ELSEWHERE)
    # As in the settings file of a gateway, which has no settings of feeders.
    del machine.env["QMT_BRIDGE_DATA_DIR"]
    code, findings = machine.run(*arguments)
    assert code == 0, findings
    assert levels(findings, "fail") == []
    assert levels(findings, "warn") == ["market_addr", "trade_addr", "ask_addr", "feeder"]
    assert "no feeder is heard at tcp://192.0.2.1:5555" in findings["market_addr"].said
    assert not findings.keys() & {"xtquant", "terminal", "accounts", "calendar", "clock", "data folder", "disk"}


def test_a_gateway_machine_without_keys_gets_no_trades(tmp_path: Path) -> None:
    code, findings = Machine(tmp_path, **ELSEWHERE).run("--for", "gateway")
    assert code == 1
    assert levels(findings, "fail") == ["trade_addr"]
    assert "not taken from there without keys" in findings["trade_addr"].said


def test_a_feeder_machine_is_not_checked_for_gateway_settings(tmp_path: Path) -> None:
    machine = Machine(tmp_path, QMT_BRIDGE_SOURCE="sim")
    del machine.env["QMT_BRIDGE_API_KEY"]
    code, findings = machine.run("--for", "feeder")
    assert code == 0, findings
    assert levels(findings, "warn") == []
    assert not findings.keys() & {"gateway", "key"}


def test_a_refused_key_is_reported(tmp_path: Path) -> None:
    for name in ("feeder", "stranger"):
        make_keys(tmp_path / name)
    (tmp_path / "stranger" / "feeder.key").write_bytes((tmp_path / "feeder" / "feeder.key").read_bytes())
    machine = Machine(tmp_path)
    machine.answers = True
    del machine.env["QMT_BRIDGE_DATA_DIR"]
    wire = {name: machine.env[f"QMT_BRIDGE_{name.upper()}"] for name in ("market_addr", "ask_addr")}
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


def test_doctor_tells_who_gets_trade_events(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    wire = {name: machine.env[f"QMT_BRIDGE_{name.upper()}"] for name in ("market_addr", "ask_addr")}
    feeder = Feeder(Config(source="sim", data_dir=str(tmp_path / "data"), **wire))
    feeder.start()
    try:
        machine.answers = True
        _, findings = machine.run("--for", "gateway")
        assert findings["trade access"].level == "ok"
        # A feeder without a store: what it publishes is kept by none.
        assert findings["store"].level == "warn"
        # Another data folder, as the gateway of another user has it.
        _, findings = machine.run("--for", "gateway", "--data-dir", str(tmp_path / "other"))
        assert findings["trade access"].level == "warn"
        assert f"{tmp_path}/other/run/trade.sock" in findings["trade access"].said
    finally:
        feeder.stop()
