"""Checks of xtquant, of the terminal, and of what xtquant needs for market data and trade events."""

from __future__ import annotations

from pathlib import Path

from qmt_bridge.commands.doctor.answers import Center, Sdk
from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.commands.doctor.findings.machine import NO_DISK

# The version that the tests run against; pyproject.toml pins it.
TESTED_XTQUANT = "250807.1.2"
# A year of minute bars has about 60,000 records a code: about 4 GiB for a thousand codes at 64 bytes a record.
LITTLE_HOME = 4 << 30


def xtquant(found: Sdk, source: str, meant: bool, windows: bool) -> Finding:
    """Judge xtquant; it is `meant` to be the source on Windows, and where a token is set."""
    if not {"auto", "xtquant"} & set(source.split("+")):
        return Finding("xtquant", "ok", f"not needed: source is {source}")
    pinned = f"pip install xtquant=={TESTED_XTQUANT}"
    if found.importable and not found.error:
        if found.version == TESTED_XTQUANT:
            return Finding("xtquant", "ok", f"{found.version}, the tested version")
        said = f"{found.version or 'of unknown version'}, but tested is {TESTED_XTQUANT}"
        advice = pinned if windows else "compare the lines `sdk` with docs/xtquant.md"
        return Finding("xtquant", "warn", said, advice)
    if found.error:
        said, advice = f"{found.version or ''} cannot be used: {found.error}".strip(), "see the feeder's log"
    elif found.version is None:
        said, advice = "not installed", pinned
    else:
        said = f"{found.version or 'it'} has no native modules for this Python on this system"
        advice = "use the 64-bit Python 3.11 on Windows"
    if not windows and not found.error:
        advice = "use Windows, or the vendor's xtquant for Linux (docs/xtquant.md, untried): market data only"
    if source != "auto":
        return Finding("xtquant", "fail", f"{said}, and source is xtquant", advice)
    said += "; source auto gives SIMULATED data"
    return Finding("xtquant", "warn", said, advice) if meant else Finding("xtquant", "ok", said)


def capabilities(found: Sdk, has_accounts: bool, has_token: bool) -> list[Finding]:
    """Judge what the installed xtquant can do, one line a capability."""
    needed = {"connection": True, "trade events": has_accounts, "data service": has_token}
    findings = []
    for name, lack in found.lacks.items():
        if not lack:
            findings.append(Finding(f"sdk: {name}", "ok", "xtquant has it"))
        elif needed.get(name, False):
            findings.append(Finding(f"sdk: {name}", "fail", lack, "install a version that has it"))
        elif name in needed:
            findings.append(Finding(f"sdk: {name}", "ok", f"not needed; {lack}"))
        else:
            findings.append(Finding(f"sdk: {name}", "warn", lack, "install a version that has it, or do without it"))
    return findings


def terminal(address: str, unreachable: str | None, error: str, unneeded: str) -> Finding:
    """Judge whether the terminal listens at `address`, and whether xtquant can talk to it."""
    if unneeded:
        return Finding("terminal", "ok", f"not needed: {unneeded}")
    if unreachable is not None:
        advice = "start QMT in its independent-trading mode (miniQMT) and log in, or set --xt-addr"
        return Finding("terminal", "fail", f"does not answer at {address}: {unreachable}", advice)
    if error:
        said = f"something listens at {address}, but xtquant cannot connect: {error}"
        return Finding("terminal", "fail", said, "log in to the terminal, or find the program that uses that port")
    return Finding("terminal", "ok", f"xtquant connects to {address}")


def token(token: str) -> Finding:
    """Judge the characters of the token, without printing it."""
    if not token.isascii() or not token.isprintable() or set(token) & set(" \"'"):
        said = "is set, but has blanks, quotes or other characters that a token never has"
        return Finding("token", "warn", said, "set QMT_BRIDGE_XT_TOKEN to the token alone, without quotes")
    return Finding("token", "ok", "is set; whether it is valid is known when the feeder logs in")


def servers(count: int, error: str) -> Finding:
    """Judge the addresses of the data service's servers."""
    if error:
        return Finding("servers", "fail", f"xt_servers: {error}", "write each as host:port")
    return Finding("servers", "ok", f"{count} addresses" if count else "any: xt_servers is empty")


def center(found: Center) -> Finding:
    """Judge whether xtquant's data service can run in this Python and listen on this machine."""
    if found.error:
        said = f"xtquant's data service cannot be imported: {found.error}"
        return Finding("data service", "fail", said, "use the 64-bit Python 3.11 on Windows")
    first, last = found.ports
    if not found.port:
        said = f"all ports {first} to {last} of {found.host} are in use"
        return Finding("data service", "fail", said, "stop the programs that use them, such as other feeders")
    return Finding("data service", "ok", f"can be imported, port {found.port} of {found.host} is free")


def home(path: Path, error: str | None, free: int) -> Finding:
    """Judge the data service's folder, and the space for its market data, in bytes."""
    if error is not None:
        return Finding("data service folder", "fail", f"{path} cannot be written: {error}", "set --xt-home")
    said = f"{path} can be written, {free / (1 << 30):.1f} GiB free for market data"
    if free < LITTLE_HOME:
        return Finding(
            "data service folder", "fail" if free < NO_DISK else "warn", said, "free some space, or set --xt-home"
        )
    return Finding("data service folder", "ok", said)


def accounts(count: int, userdata: str, found: bool, unneeded: str) -> Finding:
    """Judge whether the accounts have the folder that trade events need."""
    if unneeded:
        return Finding("accounts", "ok", f"not needed: {unneeded}")
    if not count:
        return Finding("accounts", "ok", "none: market data only, no trade events")
    if not found:
        said = f"{count}, but xt_userdata is " + (f"no folder: {userdata}" if userdata else "not set")
        return Finding("accounts", "fail", said, "set --xt-userdata to the terminal's folder userdata_mini")
    return Finding("accounts", "ok", f"{count}, through {userdata}")


def calendar(end: str, unchecked: str, today: str, unneeded: str) -> Finding:
    """Judge the terminal's trading calendar by its last day, or say why it is `unchecked`; days are YYYYMMDD."""
    if unneeded:
        return Finding("calendar", "ok", f"not needed: {unneeded}")
    advice = "let the terminal update its data, which contains the holidays"
    if not end:
        return Finding("calendar", "warn", f"not checked: {unchecked}", advice)
    if end < today:
        return Finding("calendar", "warn", f"trading days are known until {end}, today is {today}", advice)
    return Finding("calendar", "ok", f"trading days are known until {end}")
