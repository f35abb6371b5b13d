"""`qmt-bridge key`: make, list, take back and replace API keys; gateways notice it within a second."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from qmt_bridge.commands.options import fail, json_option, load_settings, settings
from qmt_bridge.commands.terminal.table import on_terminal, table
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.key import (
    SCOPES,
    SIMPLE_NAME,
    Key,
    checked_accounts,
    checked_scopes,
    make_key,
    seconds_of,
    sha256,
)
from qmt_bridge.language.catalog import say
from qmt_bridge.wire.topics import mask


@click.group()
def key() -> None:
    """Make and take back the API keys of a gateway; each has a name and rights of its own."""


_count = click.IntRange(min=1)


@key.command()
@click.argument("name")
@click.option("--scopes", required=True, help=f"What it may do, some of {','.join(SCOPES)}.")
@click.option("--accounts", default="", help="Account numbers whose trade events it may see.  [default: all]")
@click.option("--expires", help="How long it is valid, such as 30d or 12h.  [default: until it is revoked]")
@click.option("--connections", type=_count, help="Sockets that it may open at one worker.")
@click.option("--codes", type=_count, help="Subscriptions that one of its sockets may hold.")
@click.option("--rate", type=_count, help="Requests a second that one of its sockets may send.")
@json_option
@settings("data_dir")
def add(
    config_file: Path | None,
    as_json: bool,
    name: str,
    scopes: str,
    accounts: str,
    expires: str | None,
    data_dir: str | None,
    **limits: int | None,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from qmt_bridge.keys.key_file import change_keys

    secret = make_key()
    now = int(time.time())
    try:
        made = _checked(
            name=name,
            sha256=sha256(secret),
            scopes=checked_scopes(scopes),
            accounts=checked_accounts(accounts),
            made=now,
            expires=now + seconds_of(expires) if expires is not None else 0,
            **{limit: number or 0 for limit, number in limits.items()},
        )

        def with_it(keys: tuple[Key, ...]) -> Iterable[Key]:
            if any(each.name == name for each in keys):
                raise ConfigError("NAME", f"there is a key {name} already; `key rotate {name}` replaces it")
            return (*keys, made)

        change_keys(_folder(config_file, data_dir), with_it)
    except ConfigError as exc:
        fail(exc)
    if as_json:
        click.echo(json.dumps({**_object(made), "key": secret}))
        return
    click.echo(say(f"key {name}: {_rights(made)}; it is shown this once"), err=True)
    click.echo(secret)


@key.command("list")
@json_option
@settings("data_dir")
def list_(config_file: Path | None, as_json: bool, data_dir: str | None) -> None:
    """Show the keys: names, rights and when each was last used; never the keys themselves."""
    from qmt_bridge.keys.key_file import read_keys, read_used

    folder = _folder(config_file, data_dir)
    try:
        keys, used = read_keys(folder), read_used(folder)
    except ConfigError as exc:
        fail(exc)
    if as_json:
        found = [{**_object(each), "used": used.get(each.sha256)} for each in keys]
        click.echo(json.dumps(found, indent=1))
        return
    if keys and on_terminal():
        heads = ("key", "rights", "made", "expires", "last used")
        rows = [
            (
                each.name,
                _rights(each),
                _day(each.made),
                _day(each.expires) if each.expires else "-",
                _day(used[each.sha256]) if each.sha256 in used else "-",
            )
            for each in keys
        ]
        click.echo(table(heads, rows))
        return
    for each in keys:
        ends = "expired" if each.expired(time.time()) else "expires"
        until = f"{ends} {_day(each.expires)}" if each.expires else "no expiry"
        last = f"last used {_day(used[each.sha256])}" if each.sha256 in used else "not used yet"
        click.echo(f"{each.name}  {_rights(each)}  made {_day(each.made)}  {until}  {last}")
    if not keys:
        click.echo(say(f"no keys in {folder}"), err=True)


@key.command()
@click.argument("name")
@json_option
@settings("data_dir")
def revoke(config_file: Path | None, name: str, as_json: bool, data_dir: str | None) -> None:
    """Take a key back: its sockets are closed within two seconds."""
    from qmt_bridge.keys.key_file import change_keys

    def without_it(keys: tuple[Key, ...]) -> Iterable[Key]:
        old = _of(keys, name)
        return [each for each in keys if each is not old]

    try:
        change_keys(_folder(config_file, data_dir), without_it)
    except ConfigError as exc:
        fail(exc)
    click.echo(json.dumps({"revoked": name}) if as_json else say(f"key {name} is revoked"))


@key.command()
@click.argument("name")
@json_option
@settings("data_dir")
def rotate(config_file: Path | None, name: str, as_json: bool, data_dir: str | None) -> None:
    """Replace a key by a new one with the same rights, and print it; the old one is revoked."""
    import msgspec

    from qmt_bridge.keys.key_file import change_keys

    secret = make_key()

    def rotated(keys: tuple[Key, ...]) -> Iterable[Key]:
        old = _of(keys, name)
        new = msgspec.structs.replace(old, sha256=sha256(secret), made=int(time.time()))
        return [new if each is old else each for each in keys]

    try:
        change_keys(_folder(config_file, data_dir), rotated)
    except ConfigError as exc:
        fail(exc)
    if as_json:
        click.echo(json.dumps({"name": name, "key": secret}))
        return
    click.echo(say(f"key {name} is replaced; the new one is shown this once"), err=True)
    click.echo(secret)


def _folder(config_file: Path | None, data_dir: str | None) -> Path:
    return load_settings(config_file, {"data_dir": data_dir}, only=True).data_path


def _of(keys: Iterable[Key], name: str) -> Key:
    for each in keys:
        if each.name == name:
            return each
    raise ConfigError("NAME", f"there is no key {name[:64]!r}")


def _checked(**fields: Any) -> Key:
    """Return a key; raise `ConfigError` for a name or number that the file may not hold."""
    import msgspec

    if fields["name"] == SIMPLE_NAME:
        raise ConfigError("NAME", f"{SIMPLE_NAME} is the key of the setting; choose another name")
    try:
        return msgspec.convert(fields, Key)
    except msgspec.ValidationError as exc:
        if str(exc).endswith("$.name`"):
            said = (
                f"expected up to 64 of the characters A-Z a-z 0-9 . _ -, the first no sign, got {fields['name'][:64]!r}"
            )
            raise ConfigError("NAME", said) from None
        raise ConfigError("NAME", f"no key can be made of this: {exc}") from None


def _object(key: Key) -> dict[str, Any]:
    """Return a key as JSON shows it: neither its hash nor the account numbers; times are seconds since 1970."""
    return {
        "name": key.name,
        "scopes": list(key.scopes),
        "accounts": [mask(account) for account in key.accounts],
        "made": key.made,
        "expires": key.expires or None,
        "connections": key.connections or None,
        "codes": key.codes or None,
        "rate": key.rate or None,
    }


def _rights(key: Key) -> str:
    parts = [",".join(key.scopes)]
    if key.accounts:
        parts.append(f"accounts {','.join(mask(account) for account in key.accounts)}")
    limits = {"connections": key.connections, "codes": key.codes, "rate": key.rate}
    parts += [f"{name} {number}" for name, number in limits.items() if number]
    return "  ".join(parts)


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "minutes")
