"""The command `qmt-bridge doctor` on the machine of a forwarder, without and with one that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from feeder.app import Feeder
from qmt_bridge.commands.doctor import examination
from qmt_bridge.commands.doctor.facts.forwarder import Health, health
from qmt_bridge.config import FORWARDED, Config, env_name
from qmt_bridge.curve.key_folder import add_client, make_keys
from tests.support.doctor import Machine, levels, listener
from tests.support.forwarder import ALL_ROLES, forwarder_keys, running_forwarder
from tests.support.ports import ANY_ADDRESSES, ANY_PORT, free_ports, tcp
from tests.support.waiting import wait_for


class Rack(Machine):
    """A machine with the settings of a forwarder alone, and the keys of one below the feeder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_keys(folder / "keys")
        self.keys = forwarder_keys(folder / "keys", "rack")
        *ports, self.health_port = free_ports(len(FORWARDED) + 1)
        self.forward = dict(zip(FORWARDED, map(tcp, ports), strict=True))
        self.forward |= {"forward_health_addr": f"127.0.0.1:{self.health_port}", "curve_dir": str(self.keys)}
        for name in ("QMT_BRIDGE_PORT", "QMT_BRIDGE_API_KEY"):
            del self.env[name]
        self.env |= {env_name(name): value for name, value in self.forward.items()}


def test_settings_of_a_forwarder_show_that_one_runs_here() -> None:
    assert examination.role_of(Config(), False, False, True) == "forward"
    assert examination.role_of(Config(), False, True, True) == "gateway"


def test_machine_of_a_forwarder_has_no_false_failures(tmp_path: Path) -> None:
    rack = Rack(tmp_path)
    code, findings = rack.run()
    assert code == 0, findings
    assert levels(findings, "warn") == ["market_addr", "trade_addr", "ask_addr", "forward keys", "feeder"]
    assert findings["forwarder"].said == f"none runs: 127.0.0.1:{rack.health_port} is free"
    assert [findings[name].said for name in FORWARDED] == [f"{rack.forward[name]} is free" for name in FORWARDED]
    assert not findings.keys() & {"gateway", "key", "xtquant", "disk", "data folder", "trade_ask_addr"}


def test_addresses_for_other_machines_have_no_false_failures(tmp_path: Path) -> None:
    rack = Rack(tmp_path)
    rack.env |= {env_name(name): rack.forward[name].replace("127.0.0.1", "0.0.0.0") for name in FORWARDED}
    code, findings = rack.run()
    assert code == 0, findings
    assert [findings[name].level for name in FORWARDED] == ["ok"] * len(FORWARDED)
    # Nor while the keys are wrong, which is told by itself.
    (rack.keys / "forward.key_secret").unlink()
    _, findings = rack.run()
    assert levels(findings, "fail") == ["forward keys"]


def test_what_a_forwarder_cannot_start_with_is_told(tmp_path: Path) -> None:
    rack = Rack(tmp_path)
    (rack.keys / "forward.key_secret").unlink()
    with listener() as port:
        rack.env[env_name("forward_health_addr")] = f"127.0.0.1:{port}"
        code, findings = rack.run("--for", "forward", "--forward-trade-addr", "", "--forward-store-addr", "")
    assert code == 1
    assert levels(findings, "fail") == ["forward keys", "forwarder"]
    assert "forward.key_secret" in findings["forward keys"].said
    assert not findings.keys() & {"trade_addr", "forward_trade_addr", "forward_store_addr", "store"}


def test_running_forwarder_has_its_addresses_and_answers(tmp_path: Path) -> None:
    rack = Rack(tmp_path)
    # Both before the feeder and the forwarder read the folders.
    add_client(rack.keys, "desk", ALL_ROLES)
    upstream = {**ANY_ADDRESSES, "trade_addr": ANY_PORT, "trade_ask_addr": ""}
    feeder = Feeder(Config(**upstream, source="sim", curve_dir=str(tmp_path / "keys"), data_dir=str(tmp_path / "d")))
    feeder.start()
    try:
        publisher = feeder.publisher
        found = {name: getattr(publisher, name) for name in ("market_addr", "trade_addr", "ask_addr")}
        rack.env |= {env_name(name): address for name, address in found.items()}
        rack.answers = True
        with running_forwarder(Config(**rack.forward, **found, data_dir=str(tmp_path / "f"))) as running:  # type: ignore[arg-type]
            wait_for(lambda: running.service.numbers().ready, "the feeder's heartbeats")
            code, findings = rack.run("--for", "forward")
        assert code == 0, findings
        assert levels(findings, "warn") == ["store"]
        assert findings["forwarder"].said.endswith("passes the feeder's heartbeats on")
        assert findings["forward_ask_addr"].said == f"the running forwarder has {rack.forward['forward_ask_addr']}"
        assert "admits 1 clients" in findings["forward keys"].said
        assert findings["market_addr"].said == f"the feeder answers at {found['market_addr']}"
        assert findings["parts"].level == "ok"
    finally:
        feeder.stop()


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "192.0.2.1:8002"])
def test_address_of_health_that_nothing_can_have_is_told(address: str) -> None:
    found = health(Config(forward_health_addr=address))
    assert found.shown is None
    assert found.error
    assert health(Config(forward_health_addr="")) == Health()
