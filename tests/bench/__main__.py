"""`python -m tests.bench`: measure this gateway and other servers, and compare it with its targets.

Needs a system with at least two cores, and `pip install -e .[bench]`. Servers that are not installed are listed. With
--readme or --keep each figure is kept in a file as soon as it is measured: --only measures some loads anew and shows
those that were measured before, --resume continues a run that was interrupted, --only none measures nothing. Figures
are compared within one load, which is measured in one run.
"""

from __future__ import annotations

import importlib
import subprocess
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path

import click

from qmt_bridge.commands.bench import machine
from tests.bench import sizing, table
from tests.bench.loads import LOADS, Kind
from tests.bench.observing import Figures, Others, Settings
from tests.bench.record import Part, Record
from tests.bench.servers import OURS, ROOT, Missing, versions
from tests.bench.targets import SOAK, over_rounds, verdicts

PICTURE = ROOT / "tests" / "bench" / "results.png"
KEPT = ROOT / "tests" / "bench" / "results.json"
TABLES = ROOT / "docs" / "performance.md"
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")


def _numbers(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    known = [load.number for load in LOADS]
    if value == "none":
        return []
    try:
        chosen = [int(item) for item in value.split(",")] if value else known
    except ValueError:
        chosen = [0]
    if not set(chosen) <= set(known):
        raise click.BadParameter(f"expected numbers of {known[0]} to {known[-1]}, such as 1,4, or none")
    return chosen


class Run:
    """The measurements of one run, each kept in the record at once."""

    def __init__(self, record: Record, rounds: int, settings: Settings, ours: bool, resume: bool) -> None:
        self._record = record
        self._rounds = rounds
        self._settings = settings
        self._ours = ours
        self._resume = resume

    def measure(self, loads: list[Kind]) -> None:
        """Measure the loads one after the other, in each round every server and the limits."""
        missing = self._prepared(loads)
        for load in loads:
            rows = [row for row in load.rows if row is OURS or not self._ours]
            absent = {row.name: missing[row.name] for row in rows if row.name in missing}
            part = self._record.begin(load.number, self._part(absent), self._resume)
            for number in range(1, 2 if load.once else self._rounds + 1):
                for row in rows:
                    if row.name not in absent:
                        self._attempt(part, load.number, number, row.name, partial(load.run, row, self._settings))
                newest = {(load.number, name): figures[-1] for name, figures in part.rounds.items()}
                for name, limit in load.limits.items():
                    self._attempt(part, load.number, number, name, partial(limit, self._settings, newest))
            click.echo(f"load {load.number}: {part.took:.0f} s", err=True)

    def _prepared(self, loads: list[Kind]) -> dict[str, str]:
        """Install what the servers need; return those that cannot be, and how to install them."""
        missing = {}
        rows = {row.name: row for load in loads for row in load.rows if row is OURS or not self._ours}
        for row in rows.values():
            try:
                row.prepare()
            except Missing as exc:
                missing[row.name] = str(exc)
        for line in table.missing(missing):
            click.echo(line, err=True)
        return missing

    def _part(self, missing: dict[str, str]) -> Part:
        of = versions()
        of.update({name: metadata.version(name) for name in ("uvicorn", "starlette", "uvloop", "pyzmq")})
        seconds, soak, _ = self._settings
        return Part(date.today().isoformat(), _commit(), machine(), of, seconds, soak, missing, [], {})

    def _attempt(self, part: Part, load: int, number: int, name: str, run: Callable[[], Figures]) -> None:
        if len(part.rounds.get(name, ())) >= number:
            return
        click.echo(f"load {load}, round {number}: {name}", err=True)
        began, others = time.monotonic(), Others()
        try:
            figures = run()
        except (OSError, RuntimeError) as exc:
            # Continue, because the other results are useful without this one.
            part.failures.append(f"load {load}, round {number}, {name}: {exc}")
            click.echo(part.failures[-1], err=True)
        else:
            part.rounds.setdefault(name, []).append({**figures, "others": others.share()})
        part.took += time.monotonic() - began
        self._record.keep(load, part)


def _commit() -> str:
    """Return the newest commit that has changed what is measured, or how; empty without git."""
    try:
        command = [
            "git",
            "log",
            "-1",
            "--format=%h",
            "--",
            "feeder",
            "gateway",
            "qmt_bridge",
            ":(glob)tests/bench/**/*.py",
        ]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.stdout.strip()


def _rates(record: Record) -> dict[tuple[int, str], float]:
    """Return the rates that were delivered before on this machine, with which the search begins."""
    host = machine()
    return {
        (load.number, row.name): rate
        for load in LOADS
        if (part := record.parts.get(load.number)) is not None and part.machine == host
        for row in load.rows
        if load.number in row.guesses and (rate := part.rounds.get(row.name, [{}])[-1].get("rate"))
    }


@click.command(help=(__doc__ or "") + "\n\n\b\n" + "\n".join(f"{load.number:>4}  {load.name}" for load in LOADS))
@click.option(
    "--only", default="", callback=_numbers, help="Run only the loads with these numbers, such as 1,4; or none."
)
@click.option("--ours", is_flag=True, help="Measure only this gateway, no other servers.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Rounds; medians are shown.")
@click.option(
    "--seconds", default=1.5, show_default=True, type=click.FloatRange(min=0.2), help="Length of each measurement."
)
@click.option("--soak", default=SOAK, show_default=True, type=click.FloatRange(min=5), help="Length of load 11.")
@click.option("--keep", "kept", type=click.Path(path_type=Path), help="Keep all figures in a file (JSON).")
@click.option("--resume", is_flag=True, help="Measure only what the file does not have, of the same commit.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw loads 1 and 3 into a PNG file.")
@click.option("--readme", is_flag=True, help="Keep the figures in tests/bench, and write the tables of the documents.")
def main(
    only: list[int],
    ours: bool,
    rounds: int,
    seconds: float,
    soak: float,
    kept: Path | None,
    resume: bool,
    plot_file: Path | None,
    readme: bool,
) -> None:
    began = time.monotonic()
    if readme:
        if ours:
            raise click.UsageError("the documents compare servers: --readme and --ours exclude each other")
        kept, plot_file = kept or KEPT, PICTURE
        # Checked before the measurements, which take half an hour.
        _write_documents(Record(), check=True)
    record = Record(kept)
    shown = {*only, *record.parts}
    if plot_file is not None and not shown & set(table.DRAWN):
        raise click.UsageError(f"the picture shows loads {' and '.join(map(str, table.DRAWN))}; neither is to run")
    if readme and (absent := sorted({load for _, load, _ in table.COLUMNS} - shown)):
        raise click.UsageError(f"the documents compare servers by further loads: --only {','.join(map(str, absent))}")
    if plot_file is not None:
        # Imported now, and not after the measurements.
        importlib.import_module("matplotlib")
    run = Run(record, rounds, Settings(seconds, soak, _rates(record)), ours, resume)
    run.measure([load for load in LOADS if load.number in only])
    results = {key: over_rounds(figures) for key, figures in record.rounds()}
    found = list(verdicts(results))
    for rows in (
        table.comparison(results, record.missing),
        table.targets(found),
        table.consumers(results),
        table.scaling(results),
    ):
        if len(rows) > 1:
            click.echo(table.text(rows) + "\n")
    for line in (*sizing.rules(results), *table.missing(record.missing)):
        click.echo(line)
    for failure in record.failures:
        click.echo(f"failed: {failure}")
    for line in table.conditions(record.parts):
        click.echo(line)
    click.echo(f"{time.monotonic() - began:.0f} s")
    if plot_file is not None:
        table.plot(results, " ".join(table.conditions(record.parts)), plot_file)
    if readme:
        _write_documents(record)
    if record.failures:
        raise click.exceptions.Exit(1)


def document_of(path: Path, document: str, record: Record) -> str:
    """Return a document with the tables of what is kept; raise ValueError if it has no place for them."""
    results = {key: over_rounds(figures) for key, figures in record.rounds()}
    if path == TABLES:
        image = f"../{PICTURE.relative_to(ROOT).as_posix()}"
        return table.replaced(document, table.section(results, list(verdicts(results)), record, image))
    return table.with_speed(document, table.comparison(results, record.missing))


def _write_documents(record: Record, check: bool = False) -> None:
    """Write the tables into the documents; with `check` only see whether they have places for them."""
    for path in (TABLES, *READMES):
        try:
            changed = document_of(path, path.read_text(encoding="utf-8"), record)
        except ValueError as exc:
            raise click.ClickException(f"{path}: {exc}") from exc
        if not check:
            path.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
