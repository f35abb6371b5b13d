"""The order of the checks of `qmt-bridge doctor`, and which of them a machine needs.

Runs in the main thread, for a few seconds. It leaves nothing behind: no file, no port in use, no subscription.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence

from qmt_bridge.addresses.endpoint import addresses, needs_keys
from qmt_bridge.commands.doctor.answers import Center, Probe, Sdk
from qmt_bridge.commands.doctor.facts import forwarder as forwarder_facts
from qmt_bridge.commands.doctor.facts.feeder import Heard, listen, trade_trouble
from qmt_bridge.commands.doctor.facts.machine import bits, free_bytes, other_version, write_error
from qmt_bridge.commands.doctor.facts.network import (
    bind_error,
    connect_error,
    is_elsewhere,
    is_gateway,
    push_error,
    wire_errors,
)
from qmt_bridge.commands.doctor.facts.store import ask_store
from qmt_bridge.commands.doctor.facts.xtquant import ask, ask_package
from qmt_bridge.commands.doctor.findings import feeder, forwarder, machine, network, pushers, source, store, xtquant
from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.config import SOURCES, Config
from qmt_bridge.curve.key_folder import End
from qmt_bridge.errors import ConfigError
from qmt_bridge.handshakes import Trouble
from qmt_bridge.keys.exposure import check_exposure
from qmt_bridge.keys.key_file import read_keys as read_key_file
from qmt_bridge.tokens.location import check_tokens, read_keys

# Keys that a line names.
MOST_NAMED = 5

_WINDOWS = sys.platform == "win32"


def role_of(config: Config, feeders: bool, gateways: bool, forwarders: bool = False) -> End | None:
    """Return what runs on this machine, None for feeder and gateway; the others say whose settings are given."""
    if forwarders and not feeders and not gateways:
        return "forward"
    if feeders != gateways:
        return "feeder" if feeders else "gateway"
    return "gateway" if is_elsewhere(config.market_addr) and is_elsewhere(config.ask_addr) else None


def examine(config: Config, version: str, role: End | None = None, foreign: Sequence[str] = ()) -> list[Finding]:
    """Return all findings for this machine; takes some seconds.

    `version` is that of this project, `role` what runs here (None: feeder and gateway), and `foreign` has the variables
    of the environment that look like settings but are not.
    """
    heard = listen(config)
    feeds, serves, forwards = role in (None, "feeder"), role in (None, "gateway"), role == "forward"
    findings = [machine.settings(None), machine.package(other_version())]
    if foreign:
        findings.append(machine.environment(foreign))
    if feeds:
        findings += _examine_feeder(config, heard, role)
    else:
        findings.append(machine.python(sys.version_info[:2], bits(), False))
        findings += _examine_connections(config, heard, trades=not forwards or bool(config.forward_trade_addr))
    if forwards:
        findings += _examine_forwarder(config)
    if serves:
        bound = bind_error(config.host, config.port)
        findings += [
            network.gateway_port(config.host, config.port, bound, bound is not None and is_gateway(config)),
            network.exposed(_exposure_problem(config), config.host, bool(config.tls_cert)),
            network.key(config.api_key, config.open_market_data, config.host, *_traders(config)),
            network.tokens(config.jwt_jwks, *_issuer_keys(config)),
            network.firewall(config.host, config.port, _WINDOWS),
        ]
    if feeds:
        findings += [
            machine.folder(config.data_path, write_error(config.data_path)),
            machine.disk(free_bytes(config.data_path)),
        ]
    findings.append(_heard_feeder(heard, version, config.source if feeds else "auto", role))
    if heard.status is not None:
        findings += [feeder.journal(heard.status), feeder.parts(heard.status), feeder.trade(heard.status)]
        if pushers.serves_pushers(heard.status.source):
            # The settings of another machine's feeder are not here.
            own = config if feeds and pushers.serves_pushers(config.source) else Config(push_addr="")
            has_key = bool(own.push_key)
            findings.append(pushers.pushers(heard.status, own.push_addr, has_key=has_key))
        if not forwards or config.forward_trade_addr:
            is_open = config.open_trade_addr and not config.curve_dir
            findings.append(feeder.trade_access(trade_trouble(config), is_open))
    if not forwards or config.forward_store_addr:
        findings.append(_examine_store(config, version, heard.status is not None))
    return findings


def _examine_connections(config: Config, heard: Heard, *, trades: bool) -> Iterator[Finding]:
    """Yield a finding for each address of the feeder from a machine that connects to it."""
    refused = heard.refused is not None
    for name, address in addresses(config).items():
        if name.startswith("trade") and not trades:
            continue
        if name == "trade_ask_addr" and address == config.ask_addr:
            continue
        yield network.reach(name, address, heard.status is not None, refused, needs_keys(config, name))


def _examine_forwarder(config: Config) -> Iterator[Finding]:
    yield forwarder.keys(config.curve_dir, *forwarder_facts.keys(config))
    found = forwarder_facts.health(config)
    listened = list(forwarder_facts.listen_errors(config))
    for name, address, error in listened:
        asked = bool(config.forward_health_addr)
        yield forwarder.listens(name, address, error, found.shown is not None, asked)
    yield forwarder.health(config.forward_health_addr, *found)
    yield network.wire_firewall("forwarder", [address for _, address, _ in listened], _WINDOWS)


def _examine_store(config: Config, version: str, feeder_runs: bool) -> Finding:
    status, unasked, refused = ask_store(config)
    kept = config.store_days, config.store_max_mb
    return store.store(status, unasked, refused, config.store_addr, version, *kept, feeder_runs)


def _exposure_problem(config: Config) -> str:
    """Return why a gateway with these settings does not start; empty if it does."""
    try:
        check_exposure(config)
    except ConfigError as exc:
        return exc.reason
    return ""


def _traders(config: Config) -> tuple[list[str], str]:
    """Return what opens trade events beside the setting `api_key`, and why the keys cannot be read."""
    try:
        keys = read_key_file(config.data_path)
    except ConfigError as exc:
        return [], str(exc)
    valid = [each.name for each in keys if each.allows("trade") and not each.expired(time.time())]
    named = [f"the key {name}" for name in valid[:MOST_NAMED]]
    more = [f"{len(valid) - MOST_NAMED} more keys"] if len(valid) > MOST_NAMED else []
    return [*named, *more, *(["tokens of your login"] if config.jwt_jwks else [])], ""


def _issuer_keys(config: Config) -> tuple[int, str]:
    """Return how many keys of the tokens' issuer there are, and why they cannot be used; fetches them from a URL."""
    try:
        check_tokens(config)
        return (len(read_keys(config.jwt_jwks)) if config.jwt_jwks else 0), ""
    except ConfigError as exc:
        return 0, str(exc)


def _heard_feeder(heard: Heard, version: str, named: str, role: End | None) -> Finding:
    refused = heard.refused
    connects = role in ("gateway", "forward")
    if not connects and refused is not None and refused.reason == Trouble.NO_FEEDER:
        # Another program uses the address; the lines of the addresses say so.
        refused = None
    if connects and heard.status is None and heard.unheard is None and refused is None:
        part = "forwarder" if role == "forward" else "gateway"
        return Finding("feeder", "warn", "none answers at these addresses", f"start a feeder; the {part} waits for it")
    return feeder.feeder(heard.status, heard.unheard, version, named, "" if refused is None else refused.text)


def _examine_feeder(config: Config, heard: Heard, role: End | None) -> Iterator[Finding]:
    sources = config.source.split("+")
    if sources[0] not in ("auto", *SOURCES):
        yield source.source(sources[0], ask_package(config))
    sdk = ask(Sdk, "--sdk") if sources[0] in ("auto", "xtquant") else Sdk()
    needed = sources[0] == "xtquant" or (sources[0] == "auto" and sdk.importable)
    unneeded = "" if needed else "the source is not xtquant"
    no_terminal = unneeded or ("with xt_token quotes come from the data service" if config.xt_token else "")
    unreachable = None if no_terminal else connect_error(config.xt_addr)
    probe = Probe("the terminal cannot be asked" if unreachable else "only the feeder asks the data service")
    if not no_terminal and unreachable is None:
        probe = ask(Probe, config.xt_addr)
    ages_ms = [*heard.ages_ms, *([time.time() * 1000 - probe.tick_ms] if probe.tick_ms else ())]
    yield machine.python(sys.version_info[:2], bits(), needed)
    yield xtquant.xtquant(sdk, config.source, _WINDOWS or bool(config.xt_token), _WINDOWS)
    if needed:
        yield from xtquant.capabilities(sdk, bool(config.xt_accounts), bool(config.xt_token))
    yield xtquant.terminal(config.xt_addr, unreachable, probe.error, no_terminal)
    if needed and config.xt_token:
        yield from _examine_center(config)
    yield xtquant.accounts(len(config.xt_accounts), config.xt_userdata, os.path.isdir(config.xt_userdata), unneeded)
    yield xtquant.calendar(
        probe.calendar_end, probe.error or probe.calendar_error, time.strftime("%Y%m%d"), no_terminal
    )
    yield feeder.clock(ages_ms, probe.error or probe.tick_error, unneeded)
    where = addresses(config)
    for name, error in wire_errors(config):
        yield network.wire(name, where[name], error, heard.status is not None, heard.unheard)
    reached = list(where.values())
    if pushers.serves_pushers(config.source):
        reached.append(config.push_addr)
        yield pushers.address(
            config.push_addr,
            push_error(config),
            running=heard.status is not None and pushers.serves_pushers(heard.status.source),
            has_key=bool(config.push_key),
            has_certificate=bool(config.tls_cert and config.tls_key),
        )
    if role == "feeder":
        yield network.wire_firewall("feeder", reached, _WINDOWS)


def _examine_center(config: Config) -> list[Finding]:
    found = ask(Center, "--center", *config.xt_servers)
    path = config.xt_home_path
    return [
        xtquant.token(config.xt_token),
        xtquant.center(found),
        xtquant.servers(len(config.xt_servers), found.servers_error),
        xtquant.home(path, write_error(path), free_bytes(path)),
    ]
