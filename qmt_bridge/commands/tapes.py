"""`qmt-bridge tape`: look at tapes, verify and export them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmt_bridge.commands.options import fail, json_option
from qmt_bridge.commands.terminal.progress import progress
from qmt_bridge.commands.terminal.table import labelled
from qmt_bridge.errors import QMTBridgeError
from qmt_bridge.language.catalog import say

if TYPE_CHECKING:
    from qmt_bridge.tapes.survey import Survey

# Columns of the labels of `info`.
LABEL = 9


@click.group()
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
            with progress(str(file), _bytes(file), shown=not as_json) as done:
                found = survey.survey(file, done)
            click.echo(survey.to_object(found) if as_json else info_text(found))
    except QMTBridgeError as exc:
        fail(exc)


@tape.command("verify")
@_tapes
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each tape.")
def tape_verify(files: tuple[Path, ...], as_json: bool) -> None:
    """Check that nothing on tapes is damaged or missing; exit with 1 and say what, if it is."""
    from qmt_bridge.tapes import survey

    faults = 0
    try:
        for file in files:
            with progress(str(file), _bytes(file), shown=not as_json) as done:
                found = survey.survey(file, done)
            faults += len(found.faults)
            if as_json:
                click.echo(json.dumps({"file": str(file), "messages": found.tally.frames, "faults": found.faults}))
                continue
            for fault in found.faults:
                click.echo(f"{file}: {say(fault)}")
            if not found.faults:
                click.echo(f"{file}: {say(f'{found.tally.frames:,} messages, nothing is missing')}")
    except QMTBridgeError as exc:
        fail(exc)
    sys.exit(1 if faults else 0)


@tape.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--parquet", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
@json_option
def tape_export(file: Path, parquet: Path, as_json: bool) -> None:
    """Write a tape as Parquet files, one for each kind of row: quote-tick, whole, trade-order, ..."""
    from qmt_bridge.tapes import parquet as tables

    try:
        # A tape is read twice.
        with progress(str(file), 2 * _bytes(file), shown=not as_json) as done:
            written = tables.export(file, parquet, done)
    except QMTBridgeError as exc:
        fail(exc)
    if as_json:
        click.echo(json.dumps({"files": {str(path): rows for path, rows in written.items()}}))
        return
    for path, rows in written.items():
        click.echo(f"{path}: {say(f'{rows:,} rows')}")


def info_text(found: Survey) -> str:
    """Return what `tape info` prints of one tape."""
    from qmt_bridge.tapes import survey

    lines = [(name, say(text)) for name, text in survey.to_rows(found)]
    return "\n".join([f"{found.path}: {say(survey.title(found))}", labelled(lines, LABEL, "  ")])


def _bytes(file: Path) -> int:
    """Return the size of a file; one that is not there has none, and is named when it is read."""
    return file.stat().st_size if file.is_file() else 0
