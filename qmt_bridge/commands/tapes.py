"""`qmt-bridge tape`: look at tapes, verify and export them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qmt_bridge.commands.options import (
    fail,
)
from qmt_bridge.errors import QMTBridgeError


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
            click.echo((survey.to_object if as_json else survey.to_text)(survey.survey(file)))
    except QMTBridgeError as exc:
        fail(exc)


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
        fail(exc)
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
        fail(exc)
    for path, rows in written.items():
        click.echo(f"{path}: {rows:,} rows")
