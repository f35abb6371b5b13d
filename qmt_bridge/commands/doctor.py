"""`qmt-bridge doctor`: what is right and wrong on this machine, in plain words, and what to do about it.

Runs in the main thread, for a few seconds. The checks are pure functions of facts; `examine` collects the facts, and
leaves nothing behind: no file, no port in use, no subscription.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import zmq

from qmt_bridge import sockets
from qmt_bridge.commands.supervisor import ask_gateway, is_loopback
from qmt_bridge.config import ADDRESSES, Config
from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import ConfigError, QMTBridgeError
from qmt_bridge.handshakes import PATIENCE_SECONDS, Notice, Trouble
from qmt_bridge.process import child
from qmt_bridge.process.stop import Stop
from qmt_bridge.wire.frames import read
from qmt_bridge.wire.messages import FeedStatus, trade_state
from qmt_bridge.wire.topics import STATUS_TOPIC

Level = Literal["ok", "warn", "fail"]

# The version that the tests run against; pyproject.toml pins it.
TESTED_XTQUANT = "250807.1.2"
# Its native modules are for Windows and some versions of Python; nothing of it is imported here.
_NATIVE = ("xtquant.datacenter", "xtquant.xtpythonclient")
# A feeder sends its heartbeat once a second; ticks of one instrument come every three.
LISTEN_SECONDS = 4.0
# Longer than it takes to know that nothing answers.
SILENT_SECONDS = PATIENCE_SECONDS + 0.6
CONNECT_SECONDS = 2.0
PROBE_SECONDS = 15.0
# A tick may be as old as the interval of snapshots; from the future comes none.
TICK_AGE_MS = (-1000.0, 5000.0)
# A larger difference is no error of a clock.
CLOSED_AGE_MS = 600_000.0
# The journal of a busy month is far below a gibibyte.
LITTLE_DISK = 1 << 30
NO_DISK = 100 << 20
# A year of minute bars is some 60,000 records a code: for a thousand codes, at 64 bytes each, this much.
LITTLE_HOME = 4 << 30
SHORT_KEY = 16
_WINDOWS = sys.platform == "win32"
# Reasons of a failed connection where something answers; an address without an answer is no fault of this machine.
_REFUSALS = frozenset(Trouble) - {Trouble.ABSENT}


class Finding(NamedTuple):
    """One line: what was looked at, the result, and what to do, which is empty where all is well."""

    check: str
    level: Level
    said: str
    advice: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What the process that asks xtquant says (feeder/xt/probe.py); `error` is why it can say nothing."""

    error: str = ""


class Heard(NamedTuple):
    """What was heard at the feeder's addresses."""

    status: FeedStatus | None = None
    # Ages of live ticks, in ms.
    ages_ms: tuple[float, ...] = ()
    # Why nothing can be heard at all, such as missing keys.
    unheard: str | None = None
    # Why there is no connection, and its reason; None also where nothing answers.
    refused: Notice | None = None


Some = TypeVar("Some", bound=Answer)


class Probe(Answer, frozen=True):
    """What the terminal answered: newest tick and end of calendar, or why not."""

    tick_ms: float = 0
    tick_error: str = ""
    calendar_end: str = ""
    calendar_error: str = ""


class Center(Answer, frozen=True):
    """What xtquant's data service would meet: servers that are no addresses, and its first free port, or 0."""

    servers_error: str = ""
    host: str = ""
    ports: tuple[int, int] = (0, 0)
    port: int = 0


class Xtquant(NamedTuple):
    """What there is of xtquant: its version, and whether its native modules fit this Python."""

    version: str | None
    importable: bool


# -- Rendering


def to_text(findings: Sequence[Finding]) -> str:
    """Return one line a finding."""
    width = max(len(finding.check) for finding in findings)
    return "\n".join(
        f"{finding.level:<4}  {finding.check:<{width}}  {finding.said}"
        + (f" -> {finding.advice}" if finding.advice else "")
        for finding in findings
    )


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON: ``{"ok":true,"checks":[{"check":..,"level":..,"said":..,"advice":..}]}``."""
    return json.dumps({"ok": exit_code(findings) == 0, "checks": [finding._asdict() for finding in findings]})


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 if something has failed; a warning is no failure."""
    return int(any(finding.level == "fail" for finding in findings))


# -- The checks


def settings(error: ConfigError | None) -> Finding:
    """Judge the settings as they were read."""
    if error is not None:
        return Finding("settings", "fail", str(error), "correct that setting; nothing else was looked at")
    return Finding("settings", "ok", "can be read")


def environment(foreign: Sequence[str]) -> Finding:
    """Judge variables that look like settings and are none."""
    if not foreign:
        return Finding("environment", "ok", "every QMT_BRIDGE_ variable is a setting")
    return Finding("environment", "warn", "; ".join(foreign), "take them away, or set the settings that are meant")


def python(version: tuple[int, int], bits: int, needs_xtquant: bool) -> Finding:
    """Judge the interpreter: it decodes what xtquant pushes."""
    said = f"{version[0]}.{version[1]}, {bits}-bit"
    if not needs_xtquant:
        return Finding("python", "ok", said)
    if bits != 64:
        return Finding("python", "fail", f"{said}, but xtquant is 64-bit only", "install the 64-bit Python 3.11")
    if version > (3, 11):
        slow = "decodes xtquant's data without its C code: 32 us a code, 160 ms for a push of 5,000"
        return Finding("python", "warn", f"{said}, which {slow}", "run the feeder with Python 3.11")
    return Finding("python", "ok", said)


def xtquant(found: Xtquant, source: str, meant: bool) -> Finding:
    """Judge the SDK of the terminal, which is `meant` to be the source on Windows and where there is a token."""
    if source in ("sim", "replay"):
        return Finding("xtquant", "ok", f"not needed: source is {source}")
    if found.importable:
        if found.version == TESTED_XTQUANT:
            return Finding("xtquant", "ok", f"{found.version}, the tested version")
        said = f"{found.version or 'of unknown version'}, but tested is {TESTED_XTQUANT}"
        return Finding("xtquant", "warn", said, f"pip install xtquant=={TESTED_XTQUANT}")
    if found.version is None:
        said, advice = "not installed", f"pip install xtquant=={TESTED_XTQUANT}"
    else:
        said = f"{found.version} has no native modules for this Python on this system"
        advice = "use the 64-bit Python 3.11 on Windows"
    if source == "xtquant":
        return Finding("xtquant", "fail", f"{said}, and source is xtquant", advice)
    said += "; source auto gives SIMULATED data"
    return Finding("xtquant", "warn", said, advice) if meant else Finding("xtquant", "ok", said)


def terminal(address: str, unreachable: str | None, error: str, unneeded: str) -> Finding:
    """Judge whether the terminal listens at `address`, and whether xtquant can talk to it."""
    if unneeded:
        return Finding("terminal", "ok", f"not needed: {unneeded}")
    if unreachable is not None:
        advice = "start QMT in its independent-trading mode (miniQMT) and log in, or set --xt-addr"
        return Finding("terminal", "fail", f"does not answer at {address}: {unreachable}", advice)
    if error:
        said = f"something listens at {address}, but xtquant cannot connect: {error}"
        return Finding("terminal", "fail", said, "log in to the terminal, or look whose port that is")
    return Finding("terminal", "ok", f"xtquant connects to {address}")


def token(token: str) -> Finding:
    """Judge the token by what can be seen of it; it is never shown."""
    if not token.isascii() or not token.isprintable() or set(token) & set(" \"'"):
        said = "is set, but has blanks, quotes or other characters that no token has"
        return Finding("token", "warn", said, "set QMT_BRIDGE_XT_TOKEN to the token alone, without quotes")
    return Finding("token", "ok", "is set; whether it is good shows when the feeder logs in")


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
        return Finding("data service", "fail", said, "end what uses them, such as other feeders")
    return Finding("data service", "ok", f"can be imported, port {found.port} of {found.host} is free")


def home(path: Path, error: str | None, free: int) -> Finding:
    """Judge the data service's folder, and the space for its market data, in bytes."""
    if error is not None:
        return Finding("data service folder", "fail", f"{path} cannot be written: {error}", "set --xt-home")
    said = f"{path} can be written, {free / (1 << 30):.1f} GiB free for market data"
    if free < LITTLE_HOME:
        return Finding("data service folder", "fail" if free < NO_DISK else "warn", said, "make room, or set --xt-home")
    return Finding("data service folder", "ok", said)


def accounts(count: int, userdata: str, found: bool, unneeded: str) -> Finding:
    """Judge what trade events need."""
    if unneeded:
        return Finding("accounts", "ok", f"not needed: {unneeded}")
    if not count:
        return Finding("accounts", "ok", "none: market data only, no trade events")
    if not found:
        said = f"{count}, but xt_userdata is " + (f"no folder: {userdata}" if userdata else "not set")
        return Finding("accounts", "fail", said, "set --xt-userdata to the terminal's folder userdata_mini")
    return Finding("accounts", "ok", f"{count}, through {userdata}")


def gateway_port(host: str, port: int, error: str | None, ours: bool) -> Finding:
    """Judge the gateway's port: free, or in use by a gateway of ours."""
    if error is None:
        return Finding("gateway", "ok", f"port {port} of {host} is free" if port else "takes a free port")
    if ours:
        return Finding("gateway", "ok", f"a gateway answers at {host}:{port}")
    return Finding("gateway", "fail", f"cannot listen on {host}:{port}: {error}", "end what uses it, or set --port")


def wire(name: str, address: str, error: str | None, running: bool, unheard: str | None) -> Finding:
    """Judge one of the feeder's addresses: free, or in use by the feeder that is `running`, if it can be heard."""
    if running:
        return Finding(name, "ok", f"the running feeder has {address}")
    if error is None:
        return Finding(name, "ok", f"{address} is free")
    if unheard is not None:
        return Finding(name, "warn", f"{error}; that may be a feeder, which cannot be heard from here")
    option = f"--{name.replace('_', '-')}"
    return Finding(name, "fail", error, f"end what uses it, set {option}, or see curve_dir for other machines")


def reach(name: str, address: str, running: bool, refused: bool = False) -> Finding:
    """Judge one of the feeder's addresses on a gateway's machine, which connects to it."""
    if running:
        return Finding(name, "ok", f"the feeder answers at {address}")
    if refused:
        return Finding(name, "warn", f"no connection to the feeder at {address}", "see the line of the feeder")
    said = f"no feeder is heard at {address}"
    return Finding(
        name, "warn", said, "start the feeder, let its ports in through its firewall, or correct the address"
    )


def key(api_key: str, require_key: bool, host: str) -> Finding:
    """Judge the API key; it is never shown."""
    if not api_key:
        said = "none: no client gets trade events from `gateway`, and `up` makes a key for each run"
        return Finding("key", "warn", said, "set QMT_BRIDGE_API_KEY to a long random text")
    if len(api_key) < SHORT_KEY:
        said = f"has {len(api_key)} characters, which can be guessed"
        return Finding("key", "warn", said, f"use {SHORT_KEY} or more random characters")
    if not require_key and not is_loopback(host):
        said = f"trade events need it, market data does not: every client that reaches {host} gets it"
        return Finding("key", "warn", said, "set --require-key if others reach this machine")
    return Finding("key", "ok", "is set")


def clock(ages_ms: Sequence[float], unchecked: str, unneeded: str) -> Finding:
    """Judge this machine's clock by the ages of newest ticks, or say why it is `unchecked`."""
    if unneeded:
        return Finding("clock", "ok", f"not needed: {unneeded}")
    if not ages_ms:
        said = f"not checked: only a live tick tells the exchange's time, and there is none: {unchecked}"
        return Finding("clock", "warn", said, "look again in trading hours, while the feeder runs")
    age = min(ages_ms)
    if age > CLOSED_AGE_MS:
        said = f"not checked: the newest tick is {age / 3_600_000:.1f} hours old, so the market is closed"
        return Finding("clock", "warn", said, "look again in trading hours")
    advice = "set the clock by NTP (Windows: w32tm /resync)"
    if age < TICK_AGE_MS[0]:
        return Finding("clock", "warn", f"at least {-age / 1000:.1f} s behind the exchange's", advice)
    if age > TICK_AGE_MS[1]:
        said = f"the newest tick is {age / 1000:.1f} s old: this clock is ahead, or the market pauses"
        return Finding("clock", "warn", said, advice)
    return Finding("clock", "ok", f"{age / 1000:.1f} s after the exchange's time of the newest tick")


def calendar(end: str, unchecked: str, today: str, unneeded: str) -> Finding:
    """Judge the terminal's trading calendar by its last day, or say why it is `unchecked`; days are YYYYMMDD."""
    if unneeded:
        return Finding("calendar", "ok", f"not needed: {unneeded}")
    advice = "let the terminal update its data, which has the holidays"
    if not end:
        return Finding("calendar", "warn", f"not checked: {unchecked}", advice)
    if end < today:
        return Finding("calendar", "warn", f"trading days are known until {end}, today is {today}", advice)
    return Finding("calendar", "ok", f"trading days are known until {end}")


def feeder_firewall(addresses: Sequence[str], windows: bool) -> Finding:
    """Give a hint where gateways on other machines shall reach the feeder."""
    ports = [address.rpartition(":")[2] for address in addresses if not sockets.is_local(address)]
    if not ports:
        return Finding("firewall", "ok", "not needed: only this machine reaches the feeder")
    listed = ",".join(ports)
    rule = f'netsh advfirewall firewall add rule name="QMT feeder" dir=in action=allow protocol=TCP localport={listed}'
    advice = f"allow TCP ports {listed} to come in" + (f": {rule}" if windows else "")
    return Finding("firewall", "warn", "gateways reach the feeder only if the firewall lets them", advice)


def firewall(host: str, port: int, windows: bool) -> Finding:
    """Give a hint where other machines shall reach the gateway."""
    if is_loopback(host):
        return Finding("firewall", "ok", f"not needed: only this machine reaches {host}")
    rule = f'netsh advfirewall firewall add rule name="QMT Bridge" dir=in action=allow protocol=TCP localport={port}'
    advice = f"allow TCP port {port} to come in" + (f": {rule}" if windows else "")
    return Finding("firewall", "warn", f"other machines reach {host}:{port} only if the firewall lets them", advice)


def folder(path: Path, error: str | None) -> Finding:
    """Judge whether the feeder may write its files."""
    if error is not None:
        return Finding("data folder", "fail", f"{path} cannot be written: {error}", "set --data-dir, or give the right")
    return Finding("data folder", "ok", f"{path} can be written")


def disk(free: int) -> Finding:
    """Judge the space for the trade journal, in bytes."""
    said = f"{free / (1 << 30):.1f} GiB free for the trade journal"
    if free < LITTLE_DISK:
        return Finding("disk", "fail" if free < NO_DISK else "warn", said, "make room, or set --data-dir")
    return Finding("disk", "ok", said)


def feeder(status: FeedStatus | None, unheard: str | None, version: str, source: str, refused: str = "") -> Finding:
    """Judge the feeder that answers, against our `version` and the setting `source`.

    `unheard` is why none can be heard, `refused` why there is no connection to what answers.
    """
    if refused:
        said, _, advice = refused.partition(": ")
        return Finding("feeder", "fail", said, advice or "look at curve_dir on both machines")
    if unheard is not None:
        return Finding("feeder", "warn", f"not checked: {unheard}", "see curve_dir, or what else uses these addresses")
    if status is None:
        return Finding("feeder", "ok", "none runs at these addresses")
    kind = "SIMULATED data, " if status.simulated else ""
    state = status.state + (f" ({status.reason})" if status.reason else "")
    said = f"source {status.source}, {kind}state {state}, {status.topics} topics, version {status.version or 'unknown'}"
    if status.state == "down":
        return Finding("feeder", "fail", said, "see the line of the terminal or of the token, and the feeder's log")
    if status.state != "up":
        return Finding("feeder", "warn", said, "see the feeder's log")
    # A feeder that was never installed does not know its version.
    if status.version not in ("", version):
        return Finding("feeder", "warn", f"{said}, but installed is {version}", "start it again")
    if source not in ("auto", status.source):
        return Finding("feeder", "warn", f"{said}, but the setting is {source}", "start it again")
    return Finding("feeder", "ok", said)


def journal(status: FeedStatus) -> Finding:
    """Judge whether the feeder that answers can write its trade journal."""
    if status.journal is not None:
        said = f"the feeder cannot write it: {status.journal}; trade events go out, but are only in its memory"
        return Finding("journal", "fail", said, "make room on its disk or put the file back, and do not stop it before")
    if status.journal_note is not None:
        said = f"is written, but {status.journal_note}"
        return Finding("journal", "warn", said, "qmt-bridge journal verify --file FILE says what is damaged")
    return Finding("journal", "ok", f"is written; the newest trade event is {status.trade_seq}")


def trade(status: FeedStatus) -> Finding:
    """Judge whether the feeder that answers gets the trade events of its accounts."""
    if not status.accounts:
        return Finding("trade events", "ok", "the feeder serves no accounts")
    said = "; ".join(
        f"{account.account} ({account.type}) is {account.state}" + (f": {account.reason}" if account.reason else "")
        for account in status.accounts
    )
    match trade_state(status.accounts):
        case "down":
            return Finding("trade events", "fail", said, "log in to the terminal; check xt_userdata and xt_accounts")
        case "waiting":
            return Finding("trade events", "warn", said, "wait for the terminal, or see the feeder's log")
    return Finding("trade events", "ok", said)


# -- The facts


def role_of(config: Config, feeders: bool, gateways: bool) -> sockets.Role | None:
    """Return what runs on this machine, None for both: by whose settings are given, or by the feeder's addresses."""
    if feeders != gateways:
        return "feeder" if feeders else "gateway"
    return "gateway" if all(_is_elsewhere(address) for address in _addresses(config).values()) else None


def examine(
    config: Config, version: str, role: sockets.Role | None = None, foreign: Sequence[str] = ()
) -> list[Finding]:
    """Look at this machine through `config`, as `version` of this project; takes some seconds.

    `role` is what runs here, None for feeder and gateway; `foreign` what is wrong with the environment.
    """
    heard = _listen(config)
    findings = [settings(None)]
    if foreign:
        findings.append(environment(foreign))
    if role == "gateway":
        findings.append(python(sys.version_info[:2], _bits(), False))
        running = heard.status is not None
        refused = heard.refused is not None
        findings += [reach(name, address, running, refused) for name, address in _addresses(config).items()]
    else:
        findings += _examine_feeder(config, heard, role)
    if role != "feeder":
        bound = _bind_error(config.host, config.port)
        findings += [
            gateway_port(config.host, config.port, bound, bound is not None and _is_gateway(config)),
            key(config.api_key, config.require_key, config.host),
            firewall(config.host, config.port, _WINDOWS),
        ]
    if role != "gateway":
        findings += [
            folder(config.data_path, _write_error(config.data_path)),
            disk(_free_bytes(config.data_path)),
        ]
    source = "auto" if role == "gateway" else config.source
    findings.append(_heard_feeder(heard, version, source, role))
    return findings if heard.status is None else [*findings, journal(heard.status), trade(heard.status)]


def _heard_feeder(heard: Heard, version: str, source: str, role: sockets.Role | None) -> Finding:
    refused = heard.refused
    if role != "gateway" and refused is not None and refused.reason == Trouble.NO_FEEDER:
        # Its address is in use by something else, which is a finding of its own.
        refused = None
    if role == "gateway" and heard.status is None and heard.unheard is None and refused is None:
        return Finding("feeder", "warn", "none answers at these addresses", "start it; the gateway waits for it")
    return feeder(heard.status, heard.unheard, version, source, "" if refused is None else refused.text)


def _examine_feeder(config: Config, heard: Heard, role: sockets.Role | None) -> Iterator[Finding]:
    sdk = _find_xtquant()
    needed = config.source == "xtquant" or (config.source == "auto" and sdk.importable)
    unneeded = "" if needed else "the source is not xtquant"
    no_terminal = unneeded or ("with xt_token quotes come from the data service" if config.xt_token else "")
    unreachable = None if no_terminal else _connect_error(config.xt_addr)
    probe = Probe("the terminal cannot be asked" if unreachable else "only the feeder asks the data service")
    if not no_terminal and unreachable is None:
        probe = _ask(Probe, config.xt_addr)
    ages_ms = [*heard.ages_ms, *([time.time() * 1000 - probe.tick_ms] if probe.tick_ms else ())]
    yield python(sys.version_info[:2], _bits(), needed)
    yield xtquant(sdk, config.source, _WINDOWS or bool(config.xt_token))
    yield terminal(config.xt_addr, unreachable, probe.error, no_terminal)
    if needed and config.xt_token:
        yield from _examine_center(config)
    yield accounts(len(config.xt_accounts), config.xt_userdata, os.path.isdir(config.xt_userdata), unneeded)
    yield calendar(probe.calendar_end, probe.error or probe.calendar_error, time.strftime("%Y%m%d"), no_terminal)
    yield clock(ages_ms, probe.error or probe.tick_error, unneeded)
    for name, error in _wire_errors(config):
        yield wire(name, getattr(config, name), error, heard.status is not None, heard.unheard)
    if role == "feeder":
        yield feeder_firewall(list(_addresses(config).values()), _WINDOWS)


def _addresses(config: Config) -> dict[str, str]:
    return {name: getattr(config, name) for name in ADDRESSES}


def _is_elsewhere(address: str) -> bool:
    """Return whether an address is one of another machine, so that nothing here can listen on it."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == address or sockets.is_local(address) or not host:
        return False
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError as exc:
        return exc.errno in (errno.EADDRNOTAVAIL, getattr(errno, "WSAEADDRNOTAVAIL", errno.EADDRNOTAVAIL))
    return False


def _bits() -> int:
    return 64 if sys.maxsize > 1 << 32 else 32


def _examine_center(config: Config) -> list[Finding]:
    found = _ask(Center, "--center", *config.xt_servers)
    path = config.xt_home_path
    return [
        token(config.xt_token),
        center(found),
        servers(len(config.xt_servers), found.servers_error),
        home(path, _write_error(path), _free_bytes(path)),
    ]


def _find_xtquant() -> Xtquant:
    try:
        version = importlib.metadata.version("xtquant")
    except importlib.metadata.PackageNotFoundError:
        version = None
    # A top-level name: find_spec executes parent packages only.
    spec = importlib.util.find_spec("xtquant")
    if spec is None or spec.submodule_search_locations is None:
        return Xtquant(version, False)
    locations = list(spec.submodule_search_locations)
    return Xtquant(
        version,
        all(name in sys.modules or PathFinder.find_spec(name, locations) is not None for name in _NATIVE),
    )


def _connect_error(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as exc:
        return _short(exc)
    return None


def _ask(answer: type[Some], *arguments: str) -> Some:
    """Ask xtquant in a process of its own: only the feeder's files may use it, and it may hang."""
    try:
        asked = subprocess.run(
            child.python("feeder.xt.probe", *arguments),
            env=child.environment(Config()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        return msgspec.json.decode(asked.stdout, type=answer)
    except subprocess.TimeoutExpired:
        return answer(error=f"no answer in {PROBE_SECONDS:g} s")
    except OSError as exc:
        return answer(error=f"the process that asks cannot be started: {_short(exc)}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return answer(error=f"the process that asks ended with exit code {asked.returncode}")


def _bind_error(host: str, port: int) -> str | None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As servers do: elsewhere than on Windows, a port whose last connections have just ended is free.
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as exc:
        return _short(exc)
    return None


def _wire_errors(config: Config) -> Iterator[tuple[str, str | None]]:
    """Yield the name of each address setting, and why a feeder cannot listen there."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for name in ADDRESSES:
            error = None
            address: str = getattr(config, name)
            # An ipc: file that something else listens to would be replaced.
            if not address.startswith("ipc:"):
                try:
                    curve = sockets.load_curve(config.curve_dir, "feeder")
                    sockets.bind_publisher(context, name, address, curve).close(linger=0)
                except ConfigError as exc:
                    error = exc.reason
            yield name, error
    finally:
        context.destroy(linger=0)


def _is_gateway(config: Config) -> bool:
    found = ask_gateway(config, "/healthz", Stop(), CONNECT_SECONDS)
    return found is not None and found.get("status") == "ok"


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(path for path in _upwards(folder) if os.path.isdir(path))).free


def _upwards(folder: Path) -> tuple[Path, ...]:
    return folder, *folder.absolute().parents


def _write_error(folder: Path) -> str | None:
    """Return why `folder`, which may have to be made, cannot be written."""
    try:
        # Not Path.exists: it raises for a folder that may not be looked into.
        tempfile.TemporaryFile(dir=next(path for path in _upwards(folder) if os.path.exists(path))).close()
    except OSError as exc:
        return _short(exc)
    return None


def _listen(config: Config) -> Heard:
    """Return what the feeder says of itself and how old live ticks are, or why it cannot be heard."""
    status: FeedStatus | None = None
    ages_ms: list[float] = []
    notices: list[Notice] = []
    until = time.monotonic() + LISTEN_SECONDS
    try:
        # Prefixes listen to what others asked for, and ask for nothing.
        for frame in subscribe(
            STATUS_TOPIC,
            "quote/",
            "whole/",
            market_addr=config.market_addr,
            trade_addr=config.trade_addr,
            ask_addr=config.ask_addr,
            curve_dir=config.curve_dir,
            timeout=SILENT_SECONDS,
            on_notice=notices.append,
        ):
            if frame.topic == STATUS_TOPIC:
                status = read(msgspec.msgpack.Decoder(FeedStatus), frame.body)
            # Invented and recorded ticks tell nothing.
            elif status is not None and status.source == "xtquant" and (times := list(_times(frame.data))):
                ages_ms.append(frame.received_ns / 1e6 - max(times))
            if time.monotonic() > until:
                break
    except (QMTBridgeError, zmq.ZMQError) as exc:
        return Heard(unheard=_short(exc))
    if status is None:
        return Heard(refused=next((notice for notice in notices if notice.reason in _REFUSALS), None))
    return Heard(status, tuple(ages_ms))


def _times(body: Any) -> Iterator[float]:
    """Yield the exchange's times, in ms, in the body of a quote or whole topic."""
    for records in body.values() if isinstance(body, dict) else ():
        for record in records if isinstance(records, list) else [records]:
            moment = record.get("time") if isinstance(record, dict) else None
            if isinstance(moment, int | float):
                yield moment


def _short(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
