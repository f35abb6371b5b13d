"""`qmt-bridge journal`: look at the journal of trade events, export, verify and copy it."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmt_bridge import private
from qmt_bridge.commands.options import (
    Command,
    fail,
    json_option,
    load_settings,
    refuse,
    settings,
)
from qmt_bridge.commands.terminal.completion import complete_source
from qmt_bridge.commands.terminal.progress import progress
from qmt_bridge.commands.terminal.table import table
from qmt_bridge.errors import ConfigError, QMTBridgeError
from qmt_bridge.language.catalog import say
from qmt_bridge.system.in_use import patiently

if TYPE_CHECKING:
    from qmt_bridge.journal_file import Reader


# The last two are the formats in which `journal list` prints times.
_MOMENTS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")
# A badly damaged journal has thousands of faults; the first ones are enough to see that.
MAX_FAULTS = 100


def _named(exc: Exception, reader: Reader | None) -> Exception:
    """Return an error about the content of a journal with the name of the file."""
    if reader is None or isinstance(exc, ConfigError | OSError):
        return exc
    return ConfigError("file", f"{reader.path}: {exc}")


@click.group()
def journal() -> None:
    """Look at the trade journal, and copy it; the feeder may run meanwhile."""


def _which_journal(command: Command) -> Command:
    file = click.option("--file", "path", type=click.Path(path_type=Path), help="The journal, wherever it is.")
    source = click.option(
        "--source",
        metavar="NAME",
        shell_complete=complete_source,
        help="The journal of this source.",
    )
    return source(file(settings("data_dir")(command)))


@contextmanager
def _reading(reader: Reader, *, shown: bool = True) -> Iterator[None]:
    """Show how far a journal is read."""
    try:
        held, _ = reader.holdings()
    except sqlite3.DatabaseError:
        # The check of the events, which follows, names the damaged one.
        yield
        return
    with progress(str(reader.path), held.last - held.first + 1, shown=shown and held.events > 0) as done:
        reader.on_read = lambda position: done(position - held.first + 1)
        yield


def _open_journal(config_file: Path | None, source: str | None, path: Path | None, flags: dict[str, Any]) -> Reader:
    from qmt_bridge import journal_file

    if path is not None:
        refuse("--file is the journal", "source", "data_dir")
    else:
        config = load_settings(config_file, {**flags, "source": source}, only=True)
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

    reader = None
    try:
        with _open_journal(config_file, source, path, flags) as reader:
            shown = json.dumps(journal_file.to_object(reader)) if as_json else list_text(reader)
    except (ConfigError, sqlite3.Error) as exc:
        fail(_named(exc, reader))
    click.echo(shown)


def list_text(reader: Reader) -> str:
    """Return what `journal list` prints."""
    from qmt_bridge import journal_file

    held = table(journal_file.HEADS, journal_file.to_rows(reader))
    return f"{reader.path}: {say(journal_file.title(reader))}\n{held}"


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
    reader = None
    try:
        with _open_journal(config_file, source, path, flags) as reader:
            lines: Iterable[bytes] = map(journal_file.to_line, reader.rows(account, after, since_ms))
            if out is None:
                sys.stdout.buffer.writelines(lines)
                return
            if not journal_file.may_be_written(out):
                raise ConfigError("out", f"{out} is a database, such as a journal; an export does not replace it")
            if out.exists() and not out.is_file():
                # /dev/null and other devices are written to; they cannot be replaced.
                with out.open("wb") as device:
                    device.writelines(lines)
                return
            # Written beside its place and renamed at the end, because half an export looks like a whole one.
            part = private.make_part(out)
            try:
                with part.open("wb") as written, _reading(reader):
                    written.writelines(lines)
                patiently(lambda: part.replace(out))
            finally:
                private.remove(part)
    except BrokenPipeError:
        # click ends the command without a message if the reader of a pipe (`... | head`) has ended.
        raise
    except (QMTBridgeError, sqlite3.Error, OSError) as exc:
        fail(_named(exc, reader))


@journal.command("backup")
@click.argument("out", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@_which_journal
@json_option
def journal_backup(
    config_file: Path | None, source: str | None, path: Path | None, out: Path, as_json: bool, **flags: Any
) -> None:
    """Copy the journal to a new FILE while the feeder runs; a copy of its main file alone would lack the newest events.

    The copy is a journal: list, export and verify take it with --file, and a feeder that is stopped begins with it
    once it has the name and the folder of the old one, whose -wal and -shm must not lie there any more.
    """
    reader = None
    try:
        with _open_journal(config_file, source, path, flags) as reader:
            held = reader.backup(out)
    except (ConfigError, sqlite3.Error, OSError) as exc:
        fail(_named(exc, reader))
    if as_json:
        click.echo(json.dumps({"file": str(out), "events": held.events, "first": held.first, "last": held.last}))
    else:
        click.echo(f"{out}: {say(f'{held.events:,} events, {held.first} to {held.last}')}")


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
                with _reading(reader, shown=not as_json):
                    faults.extend(islice(reader.faults(), MAX_FAULTS))
                total, _ = reader.holdings()
            except sqlite3.DatabaseError as exc:
                faults.append(f"the file is damaged: {exc}")
    except ConfigError as exc:
        fail(exc)
    if as_json:
        click.echo(json.dumps({"file": str(path), "faults": faults}))
    elif not faults:
        held = f"{total.events:,} events, {total.first} to {total.last}: nothing is missing"
        click.echo(f"{path}: {say(held)}")
    for fault in () if as_json else faults:
        click.echo(f"{path}: {say(fault)}")
    sys.exit(1 if faults else 0)
