"""The command `qmt-bridge doctor` where programs push data: their address, which are there and which are missing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from feeder.app import Feeder
from feeder.push.source import PushSource
from qmt_bridge.config import load_config
from tests.support.doctor import Machine, levels
from tests.support.ports import free_port, tcp
from tests.support.pusher import Pusher


@pytest.fixture
def push_machine(tmp_path: Path) -> Machine:
    where = {"QMT_BRIDGE_PUSH_ADDR": tcp(free_port()), "QMT_BRIDGE_PUSH_KEY": "a-key-of-the-pushers"}
    return Machine(tmp_path, QMT_BRIDGE_SOURCE="push", QMT_BRIDGE_PUSHERS="desk:quote,ctp:trade", **where)


@pytest.fixture
def port(push_machine: Machine) -> Iterator[int]:
    """Run the feeder of the machine; yield the port of its pushers."""
    source = PushSource(config := load_config(None, push_machine.env))
    feeder = Feeder(config, source)
    feeder.start()
    yield int(source.address.rpartition(":")[2])
    feeder.stop()


def test_address_of_pushers_that_is_taken_fails(push_machine: Machine) -> None:
    where = push_machine.env["QMT_BRIDGE_PUSH_ADDR"]
    with socket.create_server(("127.0.0.1", int(where.rpartition(":")[2]))):
        _, findings = push_machine.run()
    assert levels(findings, "fail") == ["push_addr"]
    assert findings["push_addr"].said == f"cannot listen on {where}: Address already in use"
    assert "pushers" not in findings


def test_pushers_that_are_missing_are_named(push_machine: Machine, port: int) -> None:
    where = push_machine.env["QMT_BRIDGE_PUSH_ADDR"]
    push_machine.answers = True
    with Pusher.at(port) as client:
        client.join(key="a-key-of-the-pushers")
        _, findings = push_machine.run()
        said = findings["pushers"]
        assert (said.level, findings["push_addr"].said) == ("warn", f"the running feeder has {where}")
        assert "desk: up, serves quote" in said.said
        assert "ctp: connecting" in said.said
        assert said.advice == f"start the program: ctp; it connects to {where}, with push_key"
        assert "a-key-of-the-pushers" not in push_machine.printed
    # A gateway's machine does not have the settings of the feeder.
    code, findings = push_machine.run("--for", "gateway")
    assert (code, findings["pushers"].level) == (1, "fail")
    assert "desk: down (pusher_gone)" in findings["pushers"].said
    assert findings["pushers"].advice == "start the program again: ctp desk"
    assert "push_addr" not in findings
