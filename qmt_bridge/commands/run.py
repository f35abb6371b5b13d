"""`qmt-bridge up`, `feeder`, `gateway`, `store`, `forward` and `replay`: what runs until it is stopped."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from qmt_bridge import __version__
from qmt_bridge.addresses import endpoint
from qmt_bridge.commands import alerts, codes_file, gateway_address, supervisor
from qmt_bridge.commands.options import (
    asked_to_stop,
    configure_log,
    fail,
    load_settings,
    no_effect,
    refuse,
    refuse_visible,
    run_part,
    settings,
)
from qmt_bridge.commands.terminal.table import labelled, on_terminal
from qmt_bridge.config import (
    FEEDER,
    FORWARD,
    GATEWAY,
    LOG,
    STORE,
    WIRE,
    Config,
    description,
)
from qmt_bridge.errors import BadRequest, ConfigError
from qmt_bridge.keys.exposure import check_exposure, is_loopback
from qmt_bridge.keys.key import check_length, make_key
from qmt_bridge.language.catalog import say
from qmt_bridge.process import child
from qmt_bridge.process.stop import Stop
from qmt_bridge.tokens.location import check_tokens
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.topics import Topic, parse_demand, quote_topic

logger = logging.getLogger(__name__)

# The settings of a replay, as their descriptions say.
REPLAY = tuple(name for name in FEEDER if description(name).startswith("replay: "))

# The settings of a feeder.
OF_FEEDER = (*FEEDER, *WIRE, *LOG)

# The settings of a gateway. It reads its keys in the data folder.
OF_GATEWAY = (*GATEWAY, "data_dir", *WIRE, *LOG)

# The settings of a store.
OF_STORE = (*STORE, "data_dir", *WIRE, *LOG)

# The settings of a forwarder.
OF_FORWARD = (*FORWARD, "data_dir", *WIRE, *LOG)

# Columns of the labels of `up`.
LABEL = 9

# Settings that do nothing without another one.
_NEEDS = {"xt_home": "xt_token", "xt_servers": "xt_token", "xt_userdata": "xt_accounts"}


@click.command()
@settings(*FEEDER, *GATEWAY, *STORE, *WIRE, *LOG, *alerts.FLAGS)
@click.option(
    "--qr/--no-qr",
    default=None,
    help="Show the page's address as a QR code.  [default: on a terminal, if a phone can reach the address]",
)
def up(config_file: Path | None, qr: bool | None, **flags: Any) -> None:
    """Start the feeder, the gateway and the store of the day, and keep them running."""
    stop = asked_to_stop(False)
    config = load_feeder_settings(config_file, flags)
    made_key = not config.api_key
    from feeder import app

    try:
        # The feeder would say it, but after all parts were started.
        app.check_source(config)
    except ConfigError as exc:
        fail(exc)
    if not _is_simulated(config):
        refuse_visible("api_key")
    try:
        check_length(config.api_key, simulated=_is_simulated(config))
        check_exposure(config)
        check_tokens(config)
        # The store would say it only in the log, again and again.
        stored_topics(config.store)
        targets = alerts.targets_of(config)
        config = msgspec.structs.replace(
            config,
            api_key=config.api_key or make_key(),
            port=config.port or _free_port(config.host),
        )
    except ConfigError as exc:
        fail(exc)
    configure_log(config)
    try:
        code = supervisor.run(
            config,
            {"feeder": OF_FEEDER, "gateway": OF_GATEWAY}
            | ({"store": OF_STORE} if config.store_days else {})
            | ({"alerts": alerts.OF_ALERTS} if targets else {}),
            stop,
            lambda status, pids: _banner(config, status, pids, made_key, qr),
        )
    except ConfigError as exc:
        fail(exc)
    sys.exit(code)


def _banner(
    config: Config, status: dict[str, Any], pids: dict[str, int | None], made_key: bool, qr: bool | None = None
) -> None:
    host = gateway_address.reachable(config.host)
    s = "s" if config.tls_cert else ""
    base = f"ws{s}://{host}:{config.port}"
    page, others = gateway_address.page_url(config)
    source = status["source"]
    if status["simulated"]:
        source += "  (SIMULATED data: invented, not the market)"
    elif source == "replay":
        source += f"  (recorded data: {config.file}, speed {config.speed:g})"
    # What a user opens first; then what runs, for an operator.
    lines = [
        ("page", page if others else f"http{s}://{host}:{config.port}/"),
        ("source", say(f"{source}, state {status['feed']}")),
        ("market", f"{base}/ws/realtime /ws/whole_quote /ws/l2_thousand /ws/download_progress /ws/formula"),
    ]
    if made_key:
        lines.append(("trade", say(f"{base}/ws/trade?api_key={config.api_key}  (key made for this run)")))
    else:
        lines.append(("trade", f"{base}/ws/trade?api_key={say('<your key>')}"))
    if config.open_market_data and not (is_loopback(config.host) and not config.behind_proxy):
        lines.append(("open", say(f"every client that reaches {config.host} gets market data (open_market_data)")))
    if config.open_trade_addr and not config.curve_dir:
        said = "every user of this machine gets trade events and downloads (open_trade_addr)"
        lines.append(("open", say(said)))
    if "push" in status["source"].split("+"):
        lines.append(("push", say(_of_pushers(config, status["pushers"]))))
    workers = f"{config.workers} worker{'s' if config.workers > 1 else ''}"
    paths = f"http{s}://{host}:{config.port}/readyz /healthz /metrics"
    lines += [
        ("feeder", say(f"pid {pids['feeder']}, {' '.join(dict.fromkeys(endpoint.addresses(config).values()))}")),
        ("gateway", say(f"pid {pids['gateway']}, {workers}, {paths}")),
        ("store", say(_of_store(config, pids))),
    ]
    if "alerts" in pids:
        lines.append(("alerts", say(f"pid {pids['alerts']}, to {', '.join(alerts.targets_of(config))}")))
    lines.append(("stop", "Ctrl-C"))
    click.echo(f"{say(f'QMT Bridge {__version__} is up')}\n{labelled(lines, LABEL, '  ')}")
    if qr or (qr is None and others and on_terminal()):
        from qmt_bridge.commands.terminal.qr_code import qr_code

        here = "" if others else f"  {say('(only this machine reaches it)')}"
        click.echo(f"\n{qr_code(page)}\n  {page}{here}")


def _of_pushers(config: Config, pushers: Sequence[dict[str, Any]]) -> str:
    access = "with push_key" if config.push_key else "programs of this user"
    there = ", ".join(each["name"] for each in pushers if each["silent"] is not None) or "none yet"
    return f"{config.push_addr}, {access}; connected: {there}"


def _of_store(config: Config, pids: dict[str, int | None]) -> str:
    if "store" not in pids:
        return "none (store_days = 0)"
    days = f"{config.store_days} day{'s' if config.store_days > 1 else ''}"
    return f"pid {pids['store']}, {config.store_addr}, {days} in {config.data_path / 'store'}"


def _is_simulated(config: Config) -> bool:
    """Return whether the feeder of these settings invents its data."""
    from feeder import app

    return app.source_name(config) == "sim"


def _free_port(host: str) -> int:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as exc:
        raise ConfigError("host", f"cannot listen on {host}: {getattr(exc, 'strerror', None) or exc}") from exc


@click.command()
@settings(*FEEDER, "freeze_timeout", *WIRE, *LOG, *alerts.FLAGS)
@click.option(
    "--supervised", is_flag=True, help="Run it as a process of its own, and restart it when it ends or freezes."
)
@click.option("--until-eof", is_flag=True, hidden=True)
def feeder(config_file: Path | None, supervised: bool, until_eof: bool, **flags: Any) -> None:
    """Run the feeder alone: it owns the source and publishes on ZeroMQ."""
    stop = asked_to_stop(until_eof)
    config = load_feeder_settings(config_file, flags)
    if supervised:
        _supervise_feeder(config, stop)
    if flags["freeze_timeout"] is not None:
        no_effect("freeze_timeout", "nothing watches a feeder alone; --supervised does")
    for name in alerts.FLAGS:
        if flags[name] is not None:
            no_effect(name, "a feeder alone sends no alerts; --supervised does, and qmt-bridge alerts")
    _run_feeder(config, stop)


def _supervise_feeder(config: Config, stop: Stop) -> NoReturn:
    configure_log(config)
    try:
        targets = alerts.targets_of(config)
        sys.exit(
            supervisor.run(
                config,
                {"feeder": OF_FEEDER} | ({"alerts": alerts.OF_ALERTS} if targets else {}),
                stop,
                lambda status, pids: logger.info("the feeder answers (pid %s); it is restarted if not", pids["feeder"]),
            )
        )
    except ConfigError as exc:
        fail(exc)


def _run_feeder(config: Config, stop: Stop) -> NoReturn:
    from feeder import app

    run_part(config, lambda: app.run(config, stop))


@click.command()
@settings(*OF_GATEWAY)
@click.option("--until-eof", is_flag=True, hidden=True)
def gateway(config_file: Path | None, until_eof: bool, **flags: Any) -> None:
    """Run gateway workers alone; any number, also on another machine than the feeder."""
    stop = asked_to_stop(until_eof)
    from gateway import server
    from gateway.connections import activation

    refuse_visible("api_key")
    config = load_settings(config_file, flags)
    if flags["freeze_timeout"] is not None and config.workers == 1:
        no_effect("freeze_timeout", "with one worker nothing watches it; `up` does, and several workers are watched")
    try:
        # Checked here, because a worker process could report it only as a traceback.
        supervisor.check_addresses(config)
        inherited = activation.inherited(os.environ, os.getpid())
    except ConfigError as exc:
        fail(exc)
    if inherited is not None:
        refuse("the service manager has opened the socket (LISTEN_FDS)", "host", "port")
        # Whether other machines reach the gateway goes by the socket, and not by the settings.
        host, port = inherited.getsockname()[:2]
        config = msgspec.structs.replace(config, host=host, port=port)
    configure_log(config)
    # Worker processes read the same settings from the environment; never from a command line, which others can see.
    env = child.environment(config, OF_GATEWAY)
    for name in set(os.environ) - set(env):
        del os.environ[name]
    os.environ.update(env)
    try:
        sys.exit(server.serve(config, stop, inherited))
    except ConfigError as exc:
        fail(exc)


@click.command()
@settings(*OF_STORE)
@click.option("--until-eof", is_flag=True, hidden=True)
def store(config_file: Path | None, until_eof: bool, **flags: Any) -> None:
    """Run a store of the day alone: it keeps what the feeder publishes, and answers questions about it."""
    stop = asked_to_stop(until_eof)
    config = load_settings(config_file, flags)
    try:
        from qmt_bridge.store import app
    except ImportError as exc:
        # Its compiled library needs what not every system has, such as the runtime of Visual C++ on Windows.
        fail(ConfigError("store_days", f"the library of the store cannot be loaded ({exc}); 0 leaves the store out"))
    run_part(config, lambda: app.run(config, stored_topics(config.store), stop))


@click.command()
@settings(*OF_FORWARD)
@click.option("--until-eof", is_flag=True, hidden=True)
def forward(config_file: Path | None, until_eof: bool, **flags: Any) -> None:
    """Run a forwarder: between the feeder, or another one, and many gateway hosts."""
    stop = asked_to_stop(until_eof)
    config = load_settings(config_file, flags)
    from qmt_bridge.forward import app

    run_part(config, lambda: app.run(config, stop))


def stored_topics(named: Sequence[str]) -> list[Topic]:
    """Return the topics that the setting `store` names, each once; raise `ConfigError`.

    What ends in a slash is a topic; anything else is a file of codes, whose ticks are stored.
    """
    topics: dict[Topic, None] = {}
    for name in named:
        try:
            if name != "-" and not name.endswith("/"):
                topics.update(dict.fromkeys(quote_topic(code) for code in codes_file.read_codes(name, check_code)))
            elif parse_demand(name) is None:
                raise ConfigError("store", f"{name[:80]!r} is no topic that can be stored, such as whole/SH/")
            else:
                topics[Topic(name)] = None
        except BadRequest as exc:
            raise ConfigError("store", exc.reason) from exc
        except codes_file.BadCodesFile as exc:
            raise ConfigError("store", f"{exc}; a topic ends with a slash") from exc
    return list(topics)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@settings("speed", "delay", "loop", "grace", "journal_days", "journal_max_mb", "data_dir", *WIRE, *LOG)
@click.option("--until-eof", is_flag=True, hidden=True)
def replay(config_file: Path | None, file: str, until_eof: bool, **flags: Any) -> None:
    """Play a tape, or a CSV of ticks, as a feeder does: feeder --source replay --file FILE."""
    stop = asked_to_stop(until_eof)
    _run_feeder(load_settings(config_file, {**flags, "source": "replay", "file": file}), stop)


def load_feeder_settings(config_file: Path | None, flags: dict[str, Any]) -> Config:
    """Read the settings of a feeder; refuse flags that would have no effect. In a file such settings are accepted."""
    config = load_settings(config_file, flags)
    given = [name for name, value in flags.items() if value is not None]
    if "file" in given and config.source == "auto" and "source" not in given:
        config = load_settings(config_file, {**flags, "source": "replay"})
    of_sources = {name: _source_of(name) for name in given if _source_of(name)}
    if not of_sources:
        return config
    source: str = config.source
    if source.split("+")[0] == "auto":
        from feeder import app

        source = app.source_name(config)
    for name, wanted in of_sources.items():
        if wanted not in source.split("+"):
            is_now = source if source == config.source else f"{config.source}, which is {source} here"
            meant = "--source replay --file FILE" if wanted == "replay" else f"--source {wanted}"
            no_effect(name, f"the source is {is_now}; this is for {meant}")
    for name, needed in _NEEDS.items():
        if name in given and not getattr(config, needed):
            no_effect(name, f"it needs {needed}")
    if "xt_addr" in given and config.xt_token:
        no_effect("xt_addr", "with xt_token quotes come from the data service, not from a terminal")
    refuse_visible("xt_token")
    refuse_visible("push_key")
    return config


def _source_of(name: str) -> str:
    """Return which source alone the setting `name` is for; empty if it is for any."""
    by_head = {"sim": "sim", "xt": "xtquant", "push": "push", "pushers": "push"}
    return "replay" if name in REPLAY else by_head.get(name.partition("_")[0], "")
