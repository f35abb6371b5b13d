"""The checks of the addresses, the ports, the firewall and the key."""

from __future__ import annotations

import pytest

from qmt_bridge.commands.doctor.findings import network
from qmt_bridge.commands.doctor.findings.finding import Finding
from tests.support.doctor import KEY, assert_finding


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        pytest.param(network.gateway_port("h", 8000, None, False), "ok", "port 8000 of h is free", id="port"),
        pytest.param(network.gateway_port("h", 0, None, False), "ok", "takes a free port", id="port-0"),
        pytest.param(network.gateway_port("h", 8000, "in use", True), "ok", "a gateway answers", id="port-ours"),
        pytest.param(network.gateway_port("h", 8000, "in use", False), "fail", "h:8000: in use", id="port-taken"),
        pytest.param(network.wire("ask_addr", "tcp://a:1", None, False, None), "ok", "is free", id="wire"),
        pytest.param(network.wire("ask_addr", "tcp://a:1", None, True, None), "ok", "the running", id="wire-ours"),
        pytest.param(network.wire("ask_addr", "tcp://a:1", "in use", False, None), "fail", "in use", id="wire-taken"),
        pytest.param(network.wire("ask_addr", "a", "in use", False, "no key"), "warn", "may be a feeder", id="unheard"),
        pytest.param(network.key("", False, "127.0.0.1"), "warn", "none", id="key-none"),
        pytest.param(network.key("", False, "127.0.0.1", ["the key desk"]), "ok", "the key desk", id="key-of-the-file"),
        pytest.param(network.key("", False, "127.0.0.1", [], "no file"), "fail", "no file", id="key-file-damaged"),
        pytest.param(network.key("short", False, "127.0.0.1"), "fail", "5 characters", id="key-short"),
        pytest.param(network.key(KEY, False, "127.0.0.1"), "ok", "is set", id="key"),
        pytest.param(network.key(KEY, True, "0.0.0.0"), "warn", "market data does not", id="key-open"),
        pytest.param(network.key(KEY, False, "0.0.0.0"), "ok", "is set", id="key-required"),
        pytest.param(network.tokens("", 0, ""), "ok", "not accepted", id="tokens-not"),
        pytest.param(network.tokens("/keys", 2, ""), "ok", "2 public keys in /keys", id="tokens"),
        pytest.param(network.tokens("/keys", 0, "cannot read it"), "fail", "cannot read it", id="tokens-unread"),
        pytest.param(network.exposed("", "127.0.0.1", False), "ok", "this machine alone", id="exposed-not"),
        pytest.param(network.exposed("", "0.0.0.0", True), "ok", "with TLS", id="exposed-tls"),
        pytest.param(network.exposed("", "0.0.0.0", False), "ok", "through a proxy", id="exposed-proxy"),
        pytest.param(network.exposed("x; add: y", "h", False), "fail", "does not start: x", id="exposed"),
        pytest.param(network.firewall("::1", 8000, True), "ok", "only this machine", id="firewall-loopback"),
        pytest.param(network.firewall("0.0.0.0", 8000, False), "warn", "firewall", id="firewall"),
        pytest.param(network.reach("ask_addr", "tcp://h:1", True), "ok", "answers at tcp://h:1", id="reach"),
        pytest.param(network.reach("ask_addr", "tcp://h:1", False), "warn", "heard at tcp://h:1", id="reach-not"),
        pytest.param(network.reach("ask_addr", "tcp://h:1", False, True), "warn", "no connection", id="reach-refused"),
        pytest.param(
            network.wire_firewall("feeder", ["tcp://127.0.0.1:1"], True), "ok", "this machine", id="feeder-loopback"
        ),
        pytest.param(
            network.wire_firewall("feeder", ["tcp://0.0.0.0:1"], True), "warn", "lets them", id="feeder-firewall"
        ),
    ],
)
def test_a_check_has_the_level_and_text_of_its_facts(finding: Finding, level: str, said: str) -> None:
    assert_finding(finding, level, said)


def test_on_windows_the_firewall_hint_is_a_command() -> None:
    assert "netsh advfirewall firewall add rule" in network.firewall("0.0.0.0", 8123, True).advice
    assert "localport=8123" in network.firewall("0.0.0.0", 8123, True).advice
    assert "netsh" not in network.firewall("0.0.0.0", 8123, False).advice
