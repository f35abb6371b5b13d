"""The command `qmt-bridge`: up | feeder | gateway | tail | record | replay | tape | journal | keygen | doctor | bench.

Reads the settings and hands them down. Every setting is a flag of the commands that use it, made from the one table
in config.py.
"""

from __future__ import annotations

from qmt_bridge.process.start import prepare

if __name__ == "__main__":
    # Before anything else is imported.
    prepare()

import json
import logging
import os
import secrets
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import click
import msgspec
from click.core import ParameterSource

from qmt_bridge import __version__, log, private
from qmt_bridge.commands import supervisor
from qmt_bridge.config import (
    FEEDER,
    GATEWAY,
    LOG,
    WIRE,
    Config,
    choices,
    default,
    description,
    foreign_variables,
    given_settings,
    load_config,
)
from qmt_bridge.errors import ConfigError, QMTBridgeError, Unavailable
from qmt_bridge.process import child
from qmt_bridge.process.stop import Stop, interruptible, leave

if TYPE_CHECKING:
    from qmt_bridge.journal_file import Reader
    from qmt_bridge.sockets import Role

logger = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])

# The last ones are as `journal list` prints times.
_MOMENTS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")
# Of a journal that is beyond help the first ones say enough.
MAX_FAULTS = 100

# The settings of a replay, as their descriptions say.
REPLAY = tuple(name for name in FEEDER if description(name).startswith("replay: "))

# Settings that do nothing without another one.
_NEEDS = {"xt_home": "xt_token", "xt_servers": "xt_token", "xt_userdata": "xt_accounts"}


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


def _load(config_file: Path | None, flags: dict[str, Any], *, only: bool = False) -> Config:
    """Return the settings; with `only`, mistakes in those that are no flags of the command do not matter."""
    try:
        return load_config(config_file, None, flags, tuple(flags) if only else None)
    except ConfigError as exc:
        _fail(exc)


def _configure_log(config: Config) -> None:
    log.configure(config.log_level, config.log_format)
    for said in foreign_variables():
        logger.warning("%s", said)


def _load_feeder(config_file: Path | None, flags: dict[str, Any]) -> Config:
    """Read the settings of a feeder; refuse flags that would have no effect. A file may well have such settings."""
    config = _load(config_file, flags)
    given = [name for name, value in flags.items() if value is not None]
    if "file" in given and config.source == "auto" and "source" not in given:
        config = _load(config_file, {**flags, "source": "replay"})
    of_sources = {name: _source_of(name) for name in given if _source_of(name)}
    if not of_sources:
        return config
    source: str = config.source
    if source == "auto":
        from feeder import app

        source = app.source_name(config)
    for name, wanted in of_sources.items():
        if wanted != source:
            is_now = f"auto, which is {source} here" if config.source == "auto" else source
            meant = "--source replay --file FILE" if wanted == "replay" else f"--source {wanted}"
            _no_effect(name, f"the source is {is_now}; this is for {meant}")
    for name, needed in _NEEDS.items():
        if name in given and not getattr(config, needed):
            _no_effect(name, f"it needs {needed}")
    if "xt_addr" in given and config.xt_token:
        _no_effect("xt_addr", "with xt_token quotes come from the data service, not from a terminal")
    return config


def _source_of(name: str) -> str:
    """Return which source alone the setting `name` is for; empty if it is for any."""
    return "replay" if name in REPLAY else {"sim": "sim", "xt": "xtquant"}.get(name.partition("_")[0], "")


def _no_effect(name: str, why: str) -> NoReturn:
    shown = "URL" if name == "url" else f"--{name.replace('_', '-')}"
    raise click.UsageError(f"{shown} has no effect: {why}.")


def _refuse(why: str, *names: str) -> None:
    """Refuse those of the flags `names` that the command line has: they would have no effect."""
    for name in names:
        if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
            _no_effect(name, why)


class _TryAgain(click.ClickException):
    exit_code = child.TRY_AGAIN


def _fail(exc: Exception) -> NoReturn:
    raise (_TryAgain if isinstance(exc, Unavailable) else click.ClickException)(str(exc))


def _asked_to_stop(until_eof: bool) -> Stop:
    """Return what Ctrl-C, SIGTERM (Windows: Ctrl-Break) or the end of standard input sets from now on."""
    stop = Stop()
    stop.on_signals()
    if until_eof:
        stop.on_end_of_input()
    return stop


def _end(code: int) -> NoReturn:
    """End the process, also if a thread is left in a native call that does not return."""
    if any(not thread.daemon and thread is not threading.current_thread() for thread in threading.enumerate()):
        leave(code)
    sys.exit(code)


class _Commands(click.Group):
    """The commands; a signal ends any of them without a traceback (services take it for a request: `Stop`)."""

    def invoke(self, ctx: click.Context) -> Any:
        with interruptible():
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="qmt-bridge")
def main() -> None:
    """Real-time miniQMT market data and trade events for every language."""
    log.tolerate_any_text()


@main.command()
@settings(*FEEDER, *GATEWAY, *WIRE, *LOG)
def up(config_file: Path | None, **flags: Any) -> None:
    """Start the feeder and the gateway, and keep both running."""
    stop = _asked_to_stop(False)
    config = _load_feeder(config_file, flags)
    made_key = not config.api_key
    try:
        config = msgspec.structs.replace(
            config,
            api_key=config.api_key or secrets.token_urlsafe(24),
            port=config.port or _free_port(config.host),
        )
    except ConfigError as exc:
        _fail(exc)
    _configure_log(config)
    try:
        code = supervisor.run(
            config,
            {"feeder": (*FEEDER, *WIRE, *LOG), "gateway": (*GATEWAY, *WIRE, *LOG)},
            stop,
            lambda status, pids: _banner(config, status, pids, made_key),
        )
    except ConfigError as exc:
        _fail(exc)
    sys.exit(code)


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
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as exc:
        raise ConfigError("host", f"cannot listen on {host}: {getattr(exc, 'strerror', None) or exc}") from exc


@main.command()
@settings(*FEEDER, *WIRE, *LOG)
@click.option("--until-eof", is_flag=True, hidden=True)
def feeder(config_file: Path | None, until_eof: bool, **flags: Any) -> None:
    """Run the feeder alone: it owns the source and publishes on ZeroMQ."""
    stop = _asked_to_stop(until_eof)
    _run_feeder(_load_feeder(config_file, flags), stop)


def _run_feeder(config: Config, stop: Stop) -> NoReturn:
    from feeder import app

    _configure_log(config)
    try:
        code = app.run(config, stop)
    except ConfigError as exc:
        _fail(exc)
    _end(code)


@main.command()
@settings(*GATEWAY, *WIRE, *LOG)
@click.option("--until-eof", is_flag=True, hidden=True)
def gateway(config_file: Path | None, until_eof: bool, **flags: Any) -> None:
    """Run gateway workers alone; any number, also on another machine than the feeder."""
    stop = _asked_to_stop(until_eof)
    from gateway import server

    config = _load(config_file, flags)
    if flags["freeze_timeout"] is not None and config.workers == 1:
        _no_effect("freeze_timeout", "with one worker nothing watches it; `up` does, and several workers are watched")
    try:
        # A worker could say it in a traceback only.
        supervisor.check_addresses(config)
    except ConfigError as exc:
        _fail(exc)
    _configure_log(config)
    # Worker processes read the same settings from the environment; never from a command line, which others can see.
    env = child.environment(config, (*GATEWAY, *WIRE, *LOG))
    for name in set(os.environ) - set(env):
        del os.environ[name]
    os.environ.update(env)
    try:
        sys.exit(server.serve(config, stop))
    except ConfigError as exc:
        _fail(exc)


_codes_file = click.option(
    "--codes-file",
    metavar="FILE",
    help="Codes to add: one a line, or the first column of a CSV file; # begins a comment, - is standard input.",
)


def _quotes(codes_file: str | None, period: str) -> tuple[str, ...]:
    """Return the topics of the codes in a file."""
    from qmt_bridge.commands.codes_file import read_codes
    from qmt_bridge.wire.topics import check_period, quote_topic

    if codes_file is None:
        return ()
    check_period(period)
    codes = read_codes(codes_file, lambda code: quote_topic(code, period))
    return tuple(quote_topic(code, period) for code in codes)


@main.command()
@click.argument("topics", nargs=-1, metavar="TOPIC... | URL [CODE...]")
@click.option("--count", "-n", type=click.IntRange(min=1), help="Stop after that many messages.")
@_codes_file
@click.option("--period", default="tick", show_default=True, help="Period of codes: of a file, or for /ws/realtime.")
@click.option("--send", help="First frame to send to the URL, instead of one made from the codes.")
@click.option("--after", type=click.IntRange(min=0), help="Trade events: begin after this position.")
@settings("api_key", *WIRE)
def tail(
    config_file: Path | None,
    topics: tuple[str, ...],
    count: int | None,
    codes_file: str | None,
    period: str,
    send: str | None,
    after: int | None,
    **flags: Any,
) -> None:
    """Print what topics carry, one JSON object a line.

    From ZeroMQ: qmt-bridge tail quote/600519.SH/tick/ whole/SH/

    From a WebSocket: qmt-bridge tail ws://127.0.0.1:8000/ws/realtime 600519.SH 000001.SZ

    Many codes: qmt-bridge tail --codes-file codes.txt --period 1m
    """
    from qmt_bridge.commands import tail as tailing
    from qmt_bridge.commands.codes_file import read_codes
    from qmt_bridge.wire.topics import whole_topic

    if not topics and codes_file is None:
        raise click.UsageError("Missing argument 'TOPIC... | URL [CODE...]' (or --codes-file).")
    is_url = bool(topics) and topics[0].startswith(("ws://", "wss://"))
    if is_url:
        path = urlsplit(topics[0]).path.rstrip("/")
        _refuse("a gateway is asked, not the feeder", *WIRE)
        if send is not None:
            _refuse("--send is the whole request", "period", "codes_file")
            if len(topics) > 1:
                raise click.UsageError("The codes have no effect: --send is the whole request.")
        if not path.endswith("/realtime"):
            _refuse("only /ws/realtime has periods", "period")
        if not path.endswith("/trade"):
            _refuse("only /ws/trade has positions", "after")
        elif send is None:
            _refuse("/ws/trade has the events of all accounts, and takes no codes", "codes_file")
            if len(topics) > 1:
                raise click.UsageError("The codes have no effect: /ws/trade has the events of all accounts.")
    else:
        _refuse("it is for a URL; the feeder asks for CURVE keys (curve_dir)", "api_key")
        _refuse("it is for a URL", "send")
        if codes_file is None:
            _refuse("it is for --codes-file; a topic has its own, quote/600519.SH/1m/", "period")
    config = _load(config_file, flags, only=True)
    try:
        if is_url:
            codes = [*topics[1:], *(read_codes(codes_file, whole_topic) if codes_file else ())]
            tailing.from_url(topics[0], codes, period, send, config.api_key, count, after)
        else:
            tailing.from_wire([*topics, *_quotes(codes_file, period)], config, count, after)
    except BrokenPipeError:
        # `... | head` ends quietly: click sees to it.
        raise
    except tailing.ERRORS as exc:
        _fail(exc)


@main.command()
@click.argument("more", nargs=-1, metavar="TOPIC...")
@click.option("--topics", multiple=True, metavar="TOPIC...", help="Topics, and prefixes such as quote/ or trade/.")
@_codes_file
@click.option("--period", default="tick", show_default=True, help="Period of the codes in the file.")
@click.option("--out", required=True, help="The tape; .zst compresses it, {date} in it begins a new one every day.")
@click.option("--rotate", type=click.Choice(("day", "hour")), help="Begin a new tape every Shanghai day or hour.")
@settings(*WIRE, *LOG)
@click.option("--until-eof", is_flag=True, hidden=True)
def record(
    config_file: Path | None,
    more: tuple[str, ...],
    topics: tuple[str, ...],
    codes_file: str | None,
    period: str,
    out: str,
    rotate: Literal["day", "hour"] | None,
    until_eof: bool,
    **flags: Any,
) -> None:
    """Record what topics carry on a tape, until Ctrl-C; one that exists is continued.

    qmt-bridge record --topics whole/SH/ quote/ trade/ --out day-{date}.tape.zst

    qmt-bridge record --codes-file codes.txt --period 1m --out bars.tape.zst

    A whole topic is asked for; a prefix records what others ask for. Of trade events every one comes.
    """
    stop = _asked_to_stop(until_eof)
    from qmt_bridge.tapes.record import Recorder

    config = _load(config_file, flags, only=True)
    _configure_log(config)
    if not topics + more and codes_file is None:
        raise click.UsageError("missing topics to record (or --codes-file)")
    if codes_file is None:
        _refuse("it is for --codes-file; a topic has its own, quote/600519.SH/1m/", "period")
    try:
        wanted = topics + more + _quotes(codes_file, period)
        recorder = Recorder(wanted, out, rotate, config, __version__)
        try:
            recorder.run(stop)
        finally:
            click.echo(recorder.summary())
    except (QMTBridgeError, OSError) as exc:
        _fail(exc)


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@settings("speed", "delay", "loop", "grace", "journal_days", "journal_max_mb", "data_dir", *WIRE, *LOG)
@click.option("--until-eof", is_flag=True, hidden=True)
def replay(config_file: Path | None, file: str, until_eof: bool, **flags: Any) -> None:
    """Play a tape, or a CSV of ticks, as a feeder does: feeder --source replay --file FILE."""
    stop = _asked_to_stop(until_eof)
    _run_feeder(_load(config_file, {**flags, "source": "replay", "file": file}), stop)


@main.group()
def tape() -> None:
    """Look at tapes that `qmt-bridge record` has made."""


_tapes = click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))


@tape.command("info")
@_tapes
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each tape.")
def tape_info(files: tuple[Path, ...], as_json: bool) -> None:
    """Say what tapes hold: time, kinds of messages, topics, gaps."""
    from qmt_bridge.tapes import survey

    try:
        for file in files:
            click.echo((survey.to_object if as_json else survey.to_text)(survey.survey(file)))
    except QMTBridgeError as exc:
        _fail(exc)


@tape.command("verify")
@_tapes
def tape_verify(files: tuple[Path, ...]) -> None:
    """Check that nothing on tapes is damaged or missing; exit with 1 and say what, if it is."""
    from qmt_bridge.tapes import survey

    faults = 0
    try:
        for file in files:
            found = survey.survey(file)
            for fault in found.faults:
                click.echo(f"{file}: {fault}")
            faults += len(found.faults)
            if not found.faults:
                click.echo(f"{file}: {found.tally.frames:,} messages, nothing is missing")
    except QMTBridgeError as exc:
        _fail(exc)
    sys.exit(1 if faults else 0)


@tape.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--parquet", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
def tape_export(file: Path, parquet: Path) -> None:
    """Write a tape as Parquet files, one for each kind of row: quote-tick, whole, trade-order, ..."""
    from qmt_bridge.tapes import parquet as tables

    try:
        written = tables.export(file, parquet)
    except QMTBridgeError as exc:
        _fail(exc)
    for path, rows in written.items():
        click.echo(f"{path}: {rows:,} rows")


@main.group()
def journal() -> None:
    """Look at the trade journal, and copy it; the feeder may run meanwhile."""


def _which_journal(command: Command) -> Command:
    file = click.option("--file", "path", type=click.Path(path_type=Path), help="The journal, wherever it is.")
    source = click.option("--source", type=click.Choice(choices("source")[1:]), help="Whose, if there are several.")
    return source(file(settings("data_dir")(command)))


def _open_journal(config_file: Path | None, source: str | None, path: Path | None, flags: dict[str, Any]) -> Reader:
    from qmt_bridge import journal_file

    if path is not None:
        _refuse("--file is the journal", "source", "data_dir")
    else:
        config = _load(config_file, {**flags, "source": source}, only=True)
        path = journal_file.find_journal(config.data_path, config.source)
    return journal_file.Reader(path)


@journal.command("list")
@_which_journal
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def journal_list(config_file: Path | None, source: str | None, path: Path | None, as_json: bool, **flags: Any) -> None:
    """Say which events there are, of each account and of all: number, positions, times.

    First and last of an account are the numbers of its events, as on its ZeroMQ topic; of (all) they are positions in
    the journal, which /ws/trade counts by. A client that has seen less than "replayable after" has missed events.
    """
    from qmt_bridge import journal_file

    try:
        with _open_journal(config_file, source, path, flags) as reader:
            shown = json.dumps(journal_file.to_object(reader)) if as_json else journal_file.to_text(reader)
    except (ConfigError, sqlite3.Error) as exc:
        _fail(exc)
    click.echo(shown)


@journal.command("export")
@_which_journal
@click.option("--account", help="The events of this account only.")
@click.option("--after", default=0, type=click.IntRange(min=0), help="Begin after this position of the journal (seq).")
@click.option("--since", type=click.DateTime(_MOMENTS), help="Begin at this local time.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write, instead of the output.")
def journal_export(
    config_file: Path | None,
    source: str | None,
    path: Path | None,
    account: str | None,
    after: int,
    since: datetime | None,
    out: Path | None,
    **flags: Any,
) -> None:
    """Print events as JSON, one a line: seq, account, number within it, time written (ms), type, data."""
    from qmt_bridge import journal_file

    since_ms = None if since is None else int(since.timestamp() * 1000)
    try:
        with _open_journal(config_file, source, path, flags) as reader:
            lines = map(journal_file.to_line, reader.rows(account, after, since_ms))
            if out is None:
                sys.stdout.buffer.writelines(lines)
                return
            if not journal_file.may_be_written(out):
                raise ConfigError("out", f"{out} is a database, such as a journal; an export does not replace it")
            if out.exists() and not out.is_file():
                # /dev/null and the like are no files to replace.
                with out.open("wb") as device:
                    device.writelines(lines)
                return
            # Whole or not there: half an export looks like all of it.
            part = private.make_part(out)
            try:
                with part.open("wb") as written:
                    written.writelines(lines)
                part.replace(out)
            finally:
                part.unlink(missing_ok=True)
    except BrokenPipeError:
        # `... | head` ends quietly: click sees to it.
        raise
    except (QMTBridgeError, sqlite3.Error, OSError) as exc:
        _fail(exc)


@journal.command("backup")
@click.argument("out", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@_which_journal
def journal_backup(config_file: Path | None, source: str | None, path: Path | None, out: Path, **flags: Any) -> None:
    """Copy the journal to a new FILE while the feeder runs; a copy of its main file alone would lack the newest events.

    The copy is a journal: list, export and verify take it with --file, and a feeder that is stopped begins with it
    once it has the name and the folder of the old one, whose -wal and -shm must not lie there any more.
    """
    try:
        with _open_journal(config_file, source, path, flags) as reader:
            held = reader.backup(out)
    except (ConfigError, sqlite3.Error, OSError) as exc:
        _fail(exc)
    click.echo(f"{out}: {held.events:,} events, {held.first} to {held.last}")


@journal.command("verify")
@_which_journal
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def journal_verify(
    config_file: Path | None, source: str | None, path: Path | None, as_json: bool, **flags: Any
) -> None:
    """Check that no event is missing, there twice or damaged; exit with 1 and say what, if it is."""
    faults: list[str] = []
    try:
        with _open_journal(config_file, source, path, flags) as reader:
            path = reader.path
            try:
                faults.extend(islice(reader.faults(), MAX_FAULTS))
                total, _ = reader.holdings()
            except sqlite3.DatabaseError as exc:
                faults.append(f"the file is damaged: {exc}")
    except ConfigError as exc:
        _fail(exc)
    if as_json:
        click.echo(json.dumps({"file": str(path), "faults": faults}))
    elif not faults:
        click.echo(f"{path}: {total.events:,} events, {total.first} to {total.last}: nothing is missing")
    for fault in () if as_json else faults:
        click.echo(f"{path}: {fault}")
    sys.exit(1 if faults else 0)


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
@click.option(
    "--for",
    "role",
    type=click.Choice(("feeder", "gateway")),
    help="What runs on this machine.  [default: by the settings that are given, else both]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def doctor(config_file: Path | None, role: Role | None, as_json: bool, **flags: Any) -> None:
    """Say what is right and wrong on this machine; exit with 1 if something is wrong."""
    from qmt_bridge.commands import doctor as examination

    try:
        config = load_config(config_file, None, flags)
        if role is None:
            given = given_settings(config_file, None, flags)
            role = examination.role_of(config, bool(given & set(FEEDER)), bool(given & set(GATEWAY)))
        findings = examination.examine(config, __version__, role, foreign_variables())
    except ConfigError as exc:
        findings = [examination.settings(exc)]
    click.echo((examination.to_json if as_json else examination.to_text)(findings))
    sys.exit(examination.exit_code(findings))


@main.command()
@click.argument("url", required=False)
@click.argument("codes", nargs=-1, metavar="[CODE...]")
@click.option("--clients", "-c", default=100, show_default=True, type=click.IntRange(min=1), help="WebSockets to open.")
@click.option("--seconds", "-s", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="Time to count.")
@click.option("--each", default=0, type=click.IntRange(min=0), help="Codes of each client, in turn.  [default: all]")
@click.option("--period", default="tick", show_default=True, help="Period, for the URL of /ws/realtime.")
@click.option("--send", default="", help="First frame of each client, instead of one made from the codes.")
@click.option("--stalled", default=0, type=click.IntRange(min=0), help="Clients that stop reading.  [default: 0]")
@click.option(
    "--sample",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Look at one frame in so many, count the others; for rates that the clients could not keep up with otherwise.",
)
@click.option("--selftest", is_flag=True, help="Measure the clients alone, against ready-made frames; needs no URL.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON; times in ms.")
@settings("api_key")
def bench(
    config_file: Path | None,
    url: str | None,
    codes: tuple[str, ...],
    seconds: float,
    selftest: bool,
    as_json: bool,
    api_key: str | None,
    **load: Any,
) -> None:
    """Measure a running gateway: frames a second, loss by seq, latency by hop, its CPU and memory.

    \b
    qmt-bridge bench ws://127.0.0.1:8000/ws/realtime 600519.SH 000001.SZ --clients 200
    qmt-bridge bench ws://127.0.0.1:8000/ws/whole_quote SH SZ --clients 50 --seconds 30
    """
    from qmt_bridge.commands import bench as benchmark
    from qmt_bridge.commands.load import Load

    if url is None and not selftest:
        raise click.UsageError("Missing argument 'URL' (or --selftest).")
    given = click.get_current_context().get_parameter_source
    used_by_url = ("url", "each", "period", "send", "api_key")
    for name in used_by_url if selftest else ():
        if given(name) is ParameterSource.COMMANDLINE:
            _no_effect(name, "--selftest measures the clients alone, without a gateway")
    if load["send"] and given("period") is ParameterSource.COMMANDLINE:
        _no_effect("period", "--send is the whole request")
    if (
        url
        and not urlsplit(url).path.rstrip("/").endswith("/realtime")
        and given("period") is ParameterSource.COMMANDLINE
    ):
        _no_effect("period", "only /ws/realtime has periods")
    if load["each"] and not codes:
        _no_effect("each", "no codes are given")
    if load["stalled"] >= load["clients"]:
        raise click.UsageError("--stalled must leave at least one client that reads.")
    key = _load(config_file, {"api_key": api_key}, only=True).api_key
    headers = (("X-API-Key", key),) if key else ()
    wanted = Load(url or "", codes, headers=headers, **load)
    try:
        found = (benchmark.selftest if selftest else benchmark.measure)(wanted, seconds)
    except benchmark.ERRORS as exc:
        _fail(exc)
    click.echo(json.dumps(found, indent=1) if as_json else benchmark.to_text(found))


if __name__ == "__main__":
    main()
