"""`qmt-bridge state`, `clients`, `subscriptions`, `kick` and `why`: what a gateway tells of all workers, as tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qmt_bridge.commands.options import fail, load_settings, settings, warn_visible
from qmt_bridge.commands.terminal.completion import complete_code
from qmt_bridge.commands.terminal.table import label, labelled, table
from qmt_bridge.errors import QMTBridgeError
from qmt_bridge.language.catalog import say

if TYPE_CHECKING:
    from qmt_bridge.commands.gateway_pages import Pages

# Entries that are asked for at a time.
AT_A_TIME = 2000
# Columns of the labels of `state`.
LABEL = 10

Command = TypeVar("Command", bound=Callable[..., Any])


def _asking(command: Command) -> Command:
    """Give a command what names the gateway, and its key."""
    command = settings("host", "port", "api_key")(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(command)
    command = click.option(
        "--ca",
        type=click.Path(dir_okay=False),
        help="https: PEM file of the certificate authority to trust, instead of those of the system.",
    )(command)
    return click.option("--url", help="The gateway, such as https://quotes.example.  [default: by host and port]")(
        command
    )


def _pages(config_file: Path | None, url: str | None, ca: str | None, flags: Mapping[str, Any]) -> Pages:
    import ssl

    from qmt_bridge.commands.gateway_pages import Pages

    if ca is not None and not (url or "").startswith("https://"):
        raise click.UsageError("--ca has no effect: only a URL that begins with https:// has a certificate.")
    warn_visible("api_key")
    config = load_settings(config_file, dict(flags), only=True)
    try:
        return Pages(url, config, None if ca is None else ssl.create_default_context(cafile=ca))
    except (QMTBridgeError, OSError) as exc:
        fail(exc)


@click.command()
@_asking
def state(config_file: Path | None, url: str | None, ca: str | None, as_json: bool, **flags: Any) -> None:
    """Show what the service does now: sessions, workers, rates, delays by hop, what has happened lately."""
    try:
        found = _pages(config_file, url, ca, flags).get("/api/state")
    except QMTBridgeError as exc:
        fail(exc)
    click.echo(json.dumps(found, indent=1) if as_json else _state_text(found))


@click.command()
@click.option("--key", help="Only clients with a key of this name.")
@click.option("--address", help="Only clients of this address.")
@click.option("--endpoint", help="Only clients of this URL, such as /ws/realtime.")
@_asking
def clients(
    config_file: Path | None,
    key: str | None,
    address: str | None,
    endpoint: str | None,
    url: str | None,
    ca: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """List the connected clients of all workers of all gateways; needs a key with the scope admin."""
    chosen = {"key": key, "address": address, "endpoint": endpoint}
    try:
        found = _all(_pages(config_file, url, ca, flags), "/api/clients", "clients", chosen)
    except QMTBridgeError as exc:
        fail(exc)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    rows = [
        (
            each["id"],
            each["address"],
            each["key"] or "-",
            _time(each["since"]),
            each["endpoint"],
            each["subscriptions"],
            each["frames"],
            each["outbox_bytes"],
            each["skipped"],
            f"{each['lag']:.3f} s",
        )
        for each in found["clients"]
    ]
    heads = "client address key since endpoint topics frames waiting skipped lag".split()
    click.echo(table(heads, rows))
    click.echo(say(f"{found['total']} clients"))
    _tell_missing(found)


@click.command()
@click.option("--prefix", help="Only topics that begin so, such as l2/ or quote/600519.SH/.")
@click.option("--client", help="Only the topics of the client with this id; with --end, only for it.")
@click.option("--end", "ended", metavar="TOPIC", help="End the subscription of a topic for all clients.")
@_asking
def subscriptions(
    config_file: Path | None,
    prefix: str | None,
    client: str | None,
    ended: str | None,
    url: str | None,
    ca: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """List what is subscribed at the terminal, and by whom; needs a key with the scope admin."""
    from qmt_bridge.commands.gateway_pages import encoded

    if ended is not None and prefix is not None:
        raise click.UsageError("--prefix has no effect: --end names one topic.")
    pages = _pages(config_file, url, ca, flags)
    try:
        if ended is not None:
            found = pages.delete(f"/api/subscriptions/{encoded(ended)}", client=client)
        else:
            chosen = {"prefix": prefix, "client": client}
            found = _all(pages, "/api/subscriptions", "subscriptions", chosen)
    except QMTBridgeError as exc:
        fail(exc)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    if ended is not None:
        click.echo(say(f"{found['topic']} was ended for {found['ended']} clients"))
    else:
        heads = ("topic", "state", "age", "clients", "held by")
        click.echo(table(heads, map(_subscription, found["subscriptions"])))
        click.echo(say(f"{found['total']} topics"))
    _tell_missing(found)


@click.command()
@click.argument("client", metavar="ID")
@click.option("--reason", help="What the client is told.")
@_asking
def kick(
    config_file: Path | None,
    client: str,
    reason: str | None,
    url: str | None,
    ca: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Close the connection of the client ID, as `qmt-bridge clients` shows it; needs a key with the scope admin."""
    from qmt_bridge.commands.gateway_pages import encoded

    try:
        found = _pages(config_file, url, ca, flags).delete(f"/api/clients/{encoded(client)}", reason=reason)
    except QMTBridgeError as exc:
        fail(exc)
    click.echo(json.dumps(found) if as_json else say(f"{found['id']} is closed"))


@click.command()
@click.argument("code", shell_complete=complete_code)
@click.option("--client", metavar="ID", help="Look at this client, as `qmt-bridge clients` shows it.")
@click.option("--seconds", type=click.IntRange(1, 5), help="For how long the workers look.  [default: 3]")
@_asking
def why(
    config_file: Path | None,
    code: str,
    client: str | None,
    seconds: int | None,
    url: str | None,
    ca: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Say where the data of CODE is late or lost now, hop by hop; needs a key with the scope admin.

    \b
    qmt-bridge why 600519.SH
    qmt-bridge why 600519.SH --client a3f09c1d-17

    CODE may be a market such as SH, or a topic. Exit with 1 if something is late or lost.
    """
    try:
        found = _pages(config_file, url, ca, flags).get("/api/why", code=code, client=client, seconds=seconds)
    except QMTBridgeError as exc:
        fail(exc)
    click.echo(json.dumps(found, indent=1) if as_json else _why_text(found))
    sys.exit(1 if found["late"] or found["lost"] else 0)


def _why_text(found: Mapping[str, Any]) -> str:
    lines = [f"{found['code']}: {say(found['verdict'])}"]
    if found["topic"] is not None:
        age = "-" if found["age"] is None else f"{found['age']:.1f} s"
        state = found["state"] or say("unknown")
        lines.append(say(f"topic {found['topic']}, {state} at the feeder, newest message {age} old"))
        lines.append(say(f"{found['messages']} messages seen, {found['missed']} missed"))
    if found["client"] is not None:
        lines.append(say(f"client {found['client']}: {found['waiting']} bytes wait, {found['skipped']} frames skipped"))
    if found["hops"]:
        mark = found["late"] or found["lost"]
        rows = [
            (
                _hop(each["hop"]),
                _ms(each["median"]),
                _ms(each["worst"]),
                each["count"],
                each["worker"],
                label("<-- here") if each["hop"] == mark else "",
            )
            for each in found["hops"]
        ]
        lines += ["", table(("hop", "median", "worst", "samples", "worker", ""), rows)]
    if found["missing"]:
        lines.append(_missing(found))
    return "\n".join(lines)


def _all(pages: Pages, path: str, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return all entries of a page, which come a part at a time."""
    found = pages.get(path, limit=AT_A_TIME, **chosen)
    part = found
    while part["next"] is not None:
        part = pages.get(path, limit=AT_A_TIME, after=part["next"], **chosen)
        found[name] += part[name]
        found["complete"] &= part["complete"]
        found["missing"] = sorted({*found["missing"], *part["missing"]})
    found["next"] = None
    return found


def _subscription(each: Mapping[str, Any]) -> tuple[object, ...]:
    told = each["state"] or "-"
    if each["code"]:
        told += f" ({each['code']})"
    names = each["client_ids"][:3]
    more = each["clients"] - len(names)
    held = ", ".join([*names, *([f"{more} more"] if more > 0 else [])]) or "the store or a ZeroMQ program"
    if not each["clients"] and each["workers"]:
        held = "no client now"
    return each["topic"], told, "-" if each["age"] is None else f"{each['age']:.1f} s", each["clients"], held


def _state_text(found: Mapping[str, Any]) -> str:
    lines = _session_lines(found)
    if not found["full"]:
        return "\n".join([labelled(lines, LABEL), say("more is for a key with the scope admin")])
    for account in found["accounts"]:
        why = f": {say(account['reason'])}" if account["reason"] else ""
        lines.append(("account", f"{account['account']} ({account['type']}) {account['state']}{why}"))
    # A gateway of a version before the pushers tells none.
    lines += [("pusher", _pusher(each)) for each in found.get("pushers", [])]
    if found["journal"]:
        lines.append(("journal", say(found["journal"])))
    feeder, totals = found["feeder"], found["totals"]
    if feeder is not None:
        said = (
            f"{feeder['version'] or '-'}, {feeder['topics']} topics, {feeder['upstream']} subscriptions at the source, "
            f"{feeder['published_rate']:g} messages/s"
        )
        lines.append(("feeder", say(said)))
    lines += _part_lines(found)
    said = (
        f"{totals['clients']} at {totals['workers']} workers, {totals['frames_rate']:g} frames/s, "
        f"{totals['slow_clients']} slow, lag {totals['lag']:.3f} s"
    )
    lines.append(("clients", say(said)))
    said = f"{totals['gaps_hour']} gaps, {totals['lost_hour']} messages lost, {totals['skipped_hour']} skipped"
    lines.append(("last hour", say(said)))
    rows = [(_hop(hop), _ms(of["p50"]), _ms(of["p99"]), of["count"]) for hop, of in found["latency"].items()]
    shown = [labelled(lines, LABEL), "", table(("hop", "p50", "p99", "samples"), rows), ""]
    heads = "worker gateway clients topics messages/s frames/s waiting lag".split()
    names = "worker gateway clients topics messages_rate frames_rate waiting_bytes lag".split()
    shown.append(table(heads, [[each[name] for name in names] for each in found["workers"]]))
    events = [f"{_time(each['time'])}  {each['where']:8}  {say(each['text'])}" for each in found["events"][:20]]
    shown += ["", *events]
    if found["missing"]:
        shown.append(_missing(found))
    return "\n".join(shown).rstrip()


def _session_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the source and of what came last, which every client may see."""
    marked = f"  {say('SIMULATED: the prices are invented')}" if found["simulated"] else ""
    reason = f": {found['reason']}" if found["reason"] else ""
    source, trade = found["source"] or say("no feeder"), found["trade"] or "-"
    said = say(f"{source}, feed {found['feed']}{reason}, trade events {trade}")
    ages = "  ".join(f"{name} {age:.1f} s" for name, age in found["markets"].items())
    return [("source", f"{said}{marked}"), ("newest", ages or say("nothing has come"))]


def _pusher(pusher: Mapping[str, Any]) -> str:
    """Return how a program is that pushes data to the source, and what it has sent."""
    why = f" ({pusher['reason']})" if pusher["reason"] else ""
    said = (
        f"{pusher['name']}: {pusher['state']}{why}, {pusher['records']} records, {pusher['conflated']} conflated, "
        f"{pusher['refused']} lines refused"
    )
    return say(said)


def _part_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a line about each part that reports to the feeder."""
    lines = []
    store, alerts = found.get("store"), found.get("alerts")
    if store is not None:
        how = store["failure"] or f"{store['topics']} topics, {store['stored']} messages, lag {store['lag']:.3f} s"
        lines.append(("store", say(how) if store["up"] else _silent(store)))
    if alerts is not None:
        opened = ", ".join(f"{each['rule']} {each['subject']}".rstrip() for each in alerts["open"]) or say("none")
        failing = [each["target"] for each in alerts["targets"] if each["failing"]]
        told = say(f"open: {opened}; not taken by {', '.join(failing)}") if failing else say(f"open: {opened}")
        lines.append(("alerts", told if alerts["up"] else _silent(alerts)))
    return lines


def _silent(part: Mapping[str, Any]) -> str:
    return say(f"SILENT: has not reported for {part['age']:.0f} s")


def _tell_missing(found: Mapping[str, Any]) -> None:
    if found["missing"]:
        click.echo(_missing(found), err=True)


def _missing(found: Mapping[str, Any]) -> str:
    return say(f"incomplete: no answer in time from {', '.join(found['missing'])}")


def _hop(name: str) -> str:
    return label(name.replace("_", " "))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000).strftime("%m-%d %H:%M:%S")
