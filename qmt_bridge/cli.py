"""The command `qmt-bridge`: up | feeder | gateway | tail | keygen | doctor. Reads the settings, hands them down.

Every setting is a flag of the commands that use it, made from the one table in config.py.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from qmt_bridge import __version__, log, supervisor
from qmt_bridge.config import Config, choices, default, description, export_env, load_config
from qmt_bridge.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

WIRE = ("market_addr", "trade_addr", "ask_addr", "curve_dir")
LOG = ("log_level", "log_format")
FEEDER = (
    "source",
    "file",
    "speed",
    "delay",
    "loop",
    "sim_seed",
    "sim_interval",
    "sim_l2_rate",
    "sim_order_interval",
    "sim_hours",
    "xt_addr",
    "xt_token",
    "xt_home",
    "xt_servers",
    "xt_userdata",
    "xt_accounts",
    "xt_single_limit",
    "xt_silence",
    "xt_download_timeout",
    "xt_download_queue",
    "grace",
    "journal_days",
    "data_dir",
)
GATEWAY = (
    "host",
    "port",
    "workers",
    "api_key",
    "require_key",
    "origins",
    "max_connections",
    "max_topics",
    "max_rate",
    "outbox_bytes",
    "slow_timeout",
    "deflate",
)


def settings(*names: str) -> Callable[[Command], Command]:
    """Give a command ``--config`` and a flag for each setting; what the user leaves out comes as None."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _flag(name)(command)
        file = click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file of settings.")
        return file(command)

    return decorate


def _flag(name: str) -> Callable[[Command], Command]:
    value = default(name)
    option = f"--{name.replace('_', '-')}"
    shown = ",".join(value) if isinstance(value, tuple) else value
    text = description(name) + (f"  [default: {shown}]" if shown != "" else "")
    if isinstance(value, bool):
        return click.option(f"{option}/--no-{option[2:]}", name, default=None, help=text)
    if isinstance(value, tuple):
        return click.option(option, name, multiple=True, default=None, callback=_given, help=text)
    if choices(name):
        return click.option(option, name, default=None, type=click.Choice(choices(name)), help=text)
    return click.option(option, name, default=None, type=type(value), metavar=type(value).__name__, help=text)


def _given(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    return list(value) or None


def _load(config_file: Path | None, flags: dict[str, Any]) -> Config:
    try:
        return load_config(config_file, None, flags)
    except ConfigError as exc:
        _fail(exc)


def _fail(exc: Exception) -> NoReturn:
    raise click.ClickException(str(exc))


def _stop_event(until_eof: bool) -> threading.Event:
    """Return the event that Ctrl-C, SIGTERM (Windows: Ctrl-Break) or the end of standard input sets."""
    stop = threading.Event()
    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    for number in [getattr(signal, name) for name in names if hasattr(signal, name)]:
        signal.signal(number, lambda *_: stop.set())
    if until_eof:
        # Raw reads: a lock of sys.stdin held by a daemon thread would be fatal at the interpreter's end.
        def watch() -> None:
            while os.read(0, 4096):
                pass
            stop.set()

        threading.Thread(target=watch, name="stdin-watch", daemon=True).start()
    return stop


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="qmt-bridge")
def main() -> None:
    """Real-time miniQMT market data and trade events for every language."""


@main.command()
@settings(*FEEDER, *GATEWAY, *WIRE, *LOG)
def up(config_file: Path | None, **flags: Any) -> None:
    """Start the feeder and the gateway, and keep both running."""
    config = _load(config_file, flags)
    made_key = not config.api_key
    if made_key:
        config = _load(config_file, {**flags, "api_key": secrets.token_urlsafe(24)})
    if not config.port:
        config = _load(config_file, {**flags, "api_key": config.api_key, "port": _free_port(config.host)})
    log.configure(config.log_level, config.log_format)
    stop = _stop_event(False)
    sys.exit(supervisor.run(config, stop, lambda status, pids: _banner(config, status, pids, made_key)))


def _banner(config: Config, status: dict[str, Any], pids: dict[str, int | None], made_key: bool) -> None:
    host = supervisor.reachable(config.host)
    base = f"ws://{host}:{config.port}"
    source = status["source"]
    if status["simulated"]:
        source += "  (SIMULATED data: invented, not the market)"
    elif source == "replay":
        source += f"  (recorded data: {config.file}, speed {config.speed:g})"
    workers = f"{config.workers} worker{'s' if config.workers > 1 else ''}"
    lines = [
        f"QMT Bridge {__version__} is up",
        f"  source   {source}, state {status['feed']}",
        f"  feeder   pid {pids['feeder']}, {config.market_addr} {config.trade_addr} {config.ask_addr}",
        f"  gateway  pid {pids['gateway']}, {workers}, http://{host}:{config.port}/readyz /healthz /metrics",
        f"  market   {base}/ws/realtime /ws/whole_quote /ws/l2_thousand /ws/download_progress /ws/formula",
    ]
    if made_key:
        lines.append(f"  trade    {base}/ws/trade?api_key={config.api_key}  (key made for this run)")
    else:
        lines.append(f"  trade    {base}/ws/trade?api_key=<your key>")
    if not supervisor.is_loopback(config.host) and not config.require_key:
        lines.append(f"  open     whoever reaches {config.host} gets market data; --require-key closes it")
    lines.append("  stop     Ctrl-C")
    click.echo("\n".join(lines))


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@main.command()
@settings(*FEEDER, *WIRE, *LOG)
@click.option("--until-eof", is_flag=True, hidden=True)
def feeder(config_file: Path | None, until_eof: bool, **flags: Any) -> None:
    """Run the feeder alone: it owns the source and publishes on ZeroMQ."""
    from feeder import app

    config = _load(config_file, flags)
    log.configure(config.log_level, config.log_format)
    try:
        sys.exit(app.run(config, _stop_event(until_eof)))
    except ConfigError as exc:
        _fail(exc)


@main.command()
@settings(*GATEWAY, *WIRE, *LOG)
@click.option("--until-eof", is_flag=True, hidden=True)
def gateway(config_file: Path | None, until_eof: bool, **flags: Any) -> None:
    """Run gateway workers alone; any number, also on another machine than the feeder."""
    from gateway import server

    config = _load(config_file, flags)
    log.configure(config.log_level, config.log_format)
    # Worker processes read the same settings from the environment; never from a command line, which others can see.
    os.environ.update(export_env(config))
    try:
        sys.exit(server.serve(config, _stop_event(until_eof)))
    except ConfigError as exc:
        _fail(exc)


@main.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC... | URL [CODE...]")
@click.option("--count", "-n", type=click.IntRange(min=1), help="Stop after that many messages.")
@click.option("--period", default="tick", show_default=True, help="Period, for the URL of /ws/realtime.")
@click.option("--send", help="First frame to send to the URL, instead of one made from the codes.")
@settings("api_key", *WIRE)
def tail(
    config_file: Path | None, topics: tuple[str, ...], count: int | None, period: str, send: str | None, **flags: Any
) -> None:
    """Print what topics carry, one JSON object a line.

    From ZeroMQ: qmt-bridge tail quote/600519.SH/tick/ whole/SH/

    From a WebSocket: qmt-bridge tail ws://127.0.0.1:8000/ws/realtime 600519.SH 000001.SZ
    """
    from qmt_bridge import tail as tailing

    config = _load(config_file, flags)
    _stop_with_pipe()
    try:
        if topics[0].startswith(("ws://", "wss://")):
            tailing.from_url(topics[0], topics[1:], period, send, config.api_key, count)
        else:
            tailing.from_wire(topics, config, count)
    except KeyboardInterrupt:
        sys.exit(130)
    except tailing.ERRORS as exc:
        _fail(exc)


def _stop_with_pipe() -> None:
    # `qmt-bridge tail ... | head` ends quietly; Windows has no SIGPIPE.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def keygen(folder: Path) -> None:
    """Write CURVE key pairs for the feeder and its gateways, needed when they are on different machines."""
    from qmt_bridge.sockets import make_keys

    try:
        written = make_keys(folder)
    except ConfigError as exc:
        _fail(exc)
    for path in written:
        click.echo(path)
    click.echo(f"feeder's machine: {folder} with clients/; gateway's machine: feeder.key and gateway.key_secret only")


@main.command()
@settings(*FEEDER, *GATEWAY, *WIRE)
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def doctor(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Say what is right and wrong on this machine; exit with 1 if something is wrong."""
    from qmt_bridge import doctor as examination

    try:
        findings = examination.examine(load_config(config_file, None, flags), __version__)
    except ConfigError as exc:
        findings = [examination.settings(exc)]
    click.echo((examination.to_json if as_json else examination.to_text)(findings))
    sys.exit(examination.exit_code(findings))


if __name__ == "__main__":
    main()
