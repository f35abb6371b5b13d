"""`qmt-bridge keygen`, `doctor` and `bench`: keys, this machine, and the speed of a gateway."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from qmt_bridge import __version__
from qmt_bridge.commands.options import (
    ca_option,
    fail,
    json_option,
    load_settings,
    no_effect,
    refuse,
    refuse_visible,
    settings,
    trusted,
    warn_visible,
)
from qmt_bridge.commands.terminal.completion import complete_code
from qmt_bridge.commands.terminal.progress import progress, waiting
from qmt_bridge.commands.terminal.table import label, labelled, on_terminal, table
from qmt_bridge.config import (
    CREDENTIALS,
    FEEDER,
    FORWARD,
    GATEWAY,
    WIRE,
    foreign_variables,
    given_settings,
    load_config,
)
from qmt_bridge.curve.certificate import ROLES, checked_roles
from qmt_bridge.errors import ConfigError
from qmt_bridge.language.catalog import say, speaks_english

if TYPE_CHECKING:
    from qmt_bridge.commands.doctor.findings.finding import Finding
    from qmt_bridge.curve.key_folder import End


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", help="Add one client of this name to FOLDER, which has the keys of a feeder.")
@click.option("--roles", help=f"What that client may do, some of {','.join(ROLES)}.")
@click.option("--forward", is_flag=True, help="Complete FOLDER, which has the keys of one client, for a forwarder.")
@json_option
@settings("curve_dir", "data_dir")
def keygen(
    config_file: Path | None,
    folder: Path | None,
    name: str | None,
    roles: str | None,
    forward: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Write CURVE key pairs for the feeder and its gateways, or add the key of one client.

    \b
    qmt-bridge keygen keys
    qmt-bridge keygen keys --name desk --roles trade,ask
    qmt-bridge keygen desk --forward

    Without FOLDER, --name adds to curve_dir, or else to the keys that the feeder has made in its data folder. The file
    of a client in clients/ admits it: to remove it ends its connections within two seconds.
    """
    from qmt_bridge.addresses.endpoint import own_key_folder
    from qmt_bridge.curve.key_folder import add_client, add_forwarder, make_keys

    config = load_settings(config_file, flags, only=True)
    try:
        if forward and name is not None:
            no_effect("forward", "it completes a folder, and --name adds to one")
        if name is not None:
            home = folder or (Path(config.curve_dir) if config.curve_dir else own_key_folder(config))
            own = add_client(home, name, checked_roles(roles or ""))
            if as_json:
                click.echo(json.dumps({"folder": str(own)}))
                return
            click.echo(own)
            click.echo(
                say(f"copy this folder to the machine of {name}, and set curve_dir to it there; then remove it here")
            )
            return
        if roles is not None:
            no_effect("roles", "it is for --name")
        if folder is None:
            raise click.UsageError("Missing argument 'FOLDER' (or --name).")
        written = add_forwarder(folder) if forward else make_keys(folder)
    except ConfigError as exc:
        fail(exc)
    if as_json:
        click.echo(json.dumps({"files": [str(path) for path in written]}))
        return
    for path in written:
        click.echo(path)
    if forward:
        click.echo(
            say(f"forwarder's machine: {folder}; add its gateways: qmt-bridge keygen {folder} --name NAME --roles ...")
        )
        return
    click.echo(
        say(f"feeder's machine: {folder} with clients/; gateway's machine: feeder.key and gateway.key_secret only")
    )


@click.command()
@settings(*FEEDER, *GATEWAY, *FORWARD, *WIRE)
@click.option(
    "--for",
    "role",
    type=click.Choice(("feeder", "gateway", "forward")),
    help="What runs on this machine.  [default: by the settings that are given, else feeder and gateway]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def doctor(config_file: Path | None, role: End | None, as_json: bool, **flags: Any) -> None:
    """Say what is right and wrong on this machine; exit with 1 if something is wrong."""
    for name in sorted(CREDENTIALS):
        refuse_visible(name)
    from qmt_bridge.commands.doctor import examination, report
    from qmt_bridge.commands.doctor.findings import machine

    try:
        config = load_config(config_file, None, flags)
        if role is None:
            given = given_settings(config_file, None, flags)
            feeders = given & {*FEEDER} - {"data_dir"}
            role = examination.role_of(config, bool(feeders), bool(given & {*GATEWAY}), bool(given & {*FORWARD}))
        findings = examination.examine(config, __version__, role, foreign_variables())
    except ConfigError as exc:
        findings = [machine.settings(exc)]
    if as_json:
        click.echo(report.to_json(findings))
    elif on_terminal():
        rows = [
            (each.level, each.check, each.said + (f"\n-> {each.advice}" if each.advice else ""))
            for each in map(_spoken, findings)
        ]
        click.echo(table(("", "check", "result"), rows))
    else:
        click.echo(report.to_text([_spoken(each) for each in findings]))
    sys.exit(report.exit_code(findings))


def _spoken(found: Finding) -> Finding:
    """Return a finding in the language of the user; its name stays, because advice and documents name it."""
    return found._replace(said=say(found.said), advice=say(found.advice))


@click.command()
@click.argument("url", required=False, shell_complete=complete_code)
@click.argument("codes", nargs=-1, metavar="[CODE...]", shell_complete=complete_code)
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
@ca_option
@settings("api_key")
def bench(
    config_file: Path | None,
    url: str | None,
    codes: tuple[str, ...],
    seconds: float,
    selftest: bool,
    as_json: bool,
    api_key: str | None,
    ca: str | None,
    **load: Any,
) -> None:
    """Measure a running gateway: frames a second, loss by seq, latency by hop, its CPU and memory.

    \b
    qmt-bridge bench ws://127.0.0.1:8000/ws/realtime 600519.SH 000001.SZ --clients 200
    qmt-bridge bench ws://127.0.0.1:8000/ws/whole_quote SH SZ --clients 50 --seconds 30
    """
    from qmt_bridge.commands import bench as benchmark
    from qmt_bridge.commands.load.load import Load
    from qmt_bridge.commands.load.report import LABEL

    if url is None and not selftest:
        raise click.UsageError("Missing argument 'URL' (or --selftest).")
    if selftest:
        refuse(
            "--selftest measures the clients alone, without a gateway", "url", "each", "period", "send", "api_key", "ca"
        )
    _refuse_for_load(url, codes, load)
    warn_visible("api_key")
    key = load_settings(config_file, {"api_key": api_key}, only=True).api_key
    headers = (("X-API-Key", key),) if key else ()
    trusted(url, ca)
    wanted = Load(url or "", codes, headers=headers, ca=ca or "", **load)
    try:
        with progress("measuring", seconds, shown=not as_json) as done:
            found = (benchmark.selftest if selftest else benchmark.measure)(
                wanted, seconds, lambda duration: waiting(done, duration)
            )
    except benchmark.ERRORS as exc:
        fail(exc)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif on_terminal():
        click.echo(table(("", ""), [(label(name), text) for name, text in measured_lines(found)], ("bold",)))
    else:
        click.echo(labelled(measured_lines(found), LABEL))


def measured_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of a report of `bench` in the language of the user, each with its label."""
    from qmt_bridge.commands.load.report import to_rows

    comma = ", " if speaks_english() else "，"
    return [(name, comma.join(map(say, parts))) for name, *parts in to_rows(found)]


def _refuse_for_load(url: str | None, codes: tuple[str, ...], load: dict[str, Any]) -> None:
    """Refuse flags without an effect, and a load without a client that is measured."""
    if load["send"]:
        refuse("--send is the whole request", "period")
    if url and not urlsplit(url).path.rstrip("/").endswith("/realtime"):
        refuse("only /ws/realtime has periods", "period")
    if load["each"] and not codes:
        no_effect("each", "no codes are given")
    if load["stalled"] >= load["clients"]:
        raise click.UsageError("--stalled must leave at least one client that reads.")
