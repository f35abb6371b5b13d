"""Checks of the addresses, the ports, the firewall and the API key."""

from __future__ import annotations

from collections.abc import Sequence

from qmt_bridge import sockets
from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.keys.exposure import is_loopback

SHORT_KEY = 16


def gateway_port(host: str, port: int, error: str | None, ours: bool) -> Finding:
    """Judge the gateway's port: it is free, or a gateway of this project uses it."""
    if error is None:
        return Finding("gateway", "ok", f"port {port} of {host} is free" if port else "takes a free port")
    if ours:
        return Finding("gateway", "ok", f"a gateway answers at {host}:{port}")
    return Finding(
        "gateway", "fail", f"cannot listen on {host}:{port}: {error}", "stop the program that uses it, or set --port"
    )


def exposed(problem: str, host: str, tls: bool) -> Finding:
    """Judge whether a gateway with these settings starts; `problem` says why not."""
    if problem:
        first, _, rest = problem.partition("; ")
        return Finding("exposure", "fail", f"a gateway does not start: {first}", " ".join(rest.split()))
    if is_loopback(host):
        return Finding("exposure", "ok", f"{host}: this machine alone")
    return Finding("exposure", "ok", f"{host}: other machines, {'with TLS' if tls else 'through a proxy'}")


def key(api_key: str, open_market_data: bool, host: str, traders: Sequence[str] = (), problem: str = "") -> Finding:
    """Judge the API key, without printing it.

    `traders` names what else opens trade events: keys of the file, or tokens; `problem` says why no key can be read.
    """
    if problem:
        return Finding("key", "fail", f"a gateway does not start: {problem}", "restore the file, or remove it")
    if not api_key and traders:
        return Finding("key", "ok", f"trade events need one of these: {', '.join(traders)}")
    if not api_key:
        said = "none: no client gets trade events from `gateway`, and `up` makes a key for each run"
        return Finding("key", "warn", said, "make one: qmt-bridge key add NAME --scopes trade")
    if len(api_key) < SHORT_KEY:
        said = f"has {len(api_key)} characters, which can be guessed: a gateway does not start with it"
        return Finding("key", "fail", said, f"use {SHORT_KEY} or more random characters")
    if open_market_data and not is_loopback(host):
        said = f"trade events need it, market data does not: every client that reaches {host} gets it"
        return Finding("key", "warn", said, "set --require-key, and not --open-market-data, if that is not meant")
    return Finding("key", "ok", "is set")


def tokens(location: str, count: int, problem: str) -> Finding:
    """Judge the public keys of the tokens' issuer at `location`; `problem` says why tokens are not accepted."""
    if problem:
        said = f"a gateway does not start, or accepts no token: {problem}"
        return Finding("tokens", "fail", said, "see docs/deploy.md, A login of your own")
    return Finding(
        "tokens",
        "ok",
        f"{count} public key{'s' if count > 1 else ''} in {location}" if location else "not accepted (jwt_jwks)",
    )


def firewall(host: str, port: int, windows: bool) -> Finding:
    """Give the firewall rule that a gateway for other machines needs."""
    if is_loopback(host):
        return Finding("firewall", "ok", f"not needed: only this machine reaches {host}")
    rule = f'netsh advfirewall firewall add rule name="QMT Bridge" dir=in action=allow protocol=TCP localport={port}'
    advice = f"allow TCP port {port} to come in" + (f": {rule}" if windows else "")
    return Finding("firewall", "warn", f"other machines reach {host}:{port} only if the firewall lets them", advice)


def wire(name: str, address: str, error: str | None, running: bool, unheard: str | None) -> Finding:
    """Judge one of the feeder's addresses: it is free, or the `running` feeder uses it.

    `unheard` says why nothing can be received there.
    """
    if running:
        return Finding(name, "ok", f"the running feeder has {address}")
    if error is None:
        return Finding(name, "ok", f"{address} is free")
    if unheard is not None:
        return Finding(name, "warn", f"{error}; that may be a feeder, which cannot be heard from here")
    option = f"--{name.replace('_', '-')}"
    return Finding(
        name, "fail", error, f"stop the program that uses it, set {option}, or see curve_dir for other machines"
    )


def reach(name: str, address: str, running: bool, refused: bool = False, needs_keys: bool = False) -> Finding:
    """Judge one of the feeder's addresses from the machine of a gateway, which connects to it."""
    if needs_keys:
        said = f"{address} is on another machine, and trade events are not taken from there without keys"
        return Finding(name, "fail", said, "make them with qmt-bridge keygen, and set curve_dir")
    if running:
        return Finding(name, "ok", f"the feeder answers at {address}")
    if refused:
        return Finding(name, "warn", f"no connection to the feeder at {address}", "see the line `feeder` below")
    said = f"no feeder is heard at {address}"
    return Finding(name, "warn", said, "start the feeder, open its ports in the firewall, or correct the address")


def wire_firewall(part: str, addresses: Sequence[str], windows: bool) -> Finding:
    """Give the firewall rule that the `part` feeder or forwarder needs for gateways on other machines."""
    ports = [address.rpartition(":")[2] for address in addresses if not sockets.is_local(address)]
    if not ports:
        return Finding("firewall", "ok", f"not needed: only this machine reaches the {part}")
    listed = ",".join(ports)
    rule = f'netsh advfirewall firewall add rule name="QMT {part}" dir=in action=allow protocol=TCP localport={listed}'
    advice = f"allow TCP ports {listed} to come in" + (f": {rule}" if windows else "")
    return Finding("firewall", "warn", f"gateways reach the {part} only if the firewall lets them", advice)
