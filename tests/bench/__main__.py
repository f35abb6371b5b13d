"""`python -m tests.bench`: measure this gateway and other servers in one run, and compare it with its targets.

Needs a system with at least two cores, and `pip install -e .[bench]`. Servers that are not installed are listed.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import click

from qmt_bridge.commands.bench import machine
from tests.bench import table
from tests.bench.loads import LOADS, Figures, Settings, medians, verdicts
from tests.bench.servers import OURS, ROOT, Missing, versions

PICTURE = ROOT / "tests" / "bench" / "results.png"
TABLES = ROOT / "docs" / "performance.md"


def _numbers(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    known = [load.number for load in LOADS]
    try:
        chosen = [int(item) for item in value.split(",")] if value else known
    except ValueError:
        chosen = [0]
    if not set(chosen) <= set(known):
        raise click.BadParameter(f"expected numbers of {known[0]} to {known[-1]}, such as 1,4")
    return chosen


class Measured(NamedTuple):
    """The figures of each round by load and server, the servers that are not installed, and the failures."""

    seen: dict[tuple[int, str], list[Figures]]
    missing: dict[str, str]
    failures: list[str]

    def run(self, only: list[int], ours: bool, rounds: int, settings: Settings) -> None:
        """Measure every load with every server, and its limits, in each round."""
        for number in range(1, rounds + 1):
            for load in LOADS:
                if load.number not in only or (load.once and number > 1):
                    continue
                for row in load.rows:
                    if row.name not in self.missing and (row is OURS or not ours):
                        self._attempt(number, load.number, row.name, partial(load.run, row, settings))
                newest = {key: figures[-1] for key, figures in self.seen.items()}
                for name, limit in load.limits.items():
                    self._attempt(number, load.number, name, partial(limit, settings, newest))

    def _attempt(self, number: int, load: int, name: str, run: Callable[[], Figures]) -> None:
        click.echo(f"round {number}, load {load}: {name}", err=True)
        try:
            figures = run()
        except Missing as exc:
            self.missing[name] = str(exc)
        except (OSError, RuntimeError) as exc:
            # Continue, because the other results are useful without this one.
            self.failures.append(f"round {number}, load {load}, {name}: {exc}")
            click.echo(self.failures[-1], err=True)
        else:
            self.seen.setdefault((load, name), []).append(figures)


@click.command(help=(__doc__ or "") + "\n\n\b\n" + "\n".join(f"{load.number:>4}  {load.name}" for load in LOADS))
@click.option("--only", default="", callback=_numbers, help="Run only the loads with these numbers, such as 1,4.")
@click.option("--ours", is_flag=True, help="Measure only this gateway, no other servers.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Rounds; medians are shown.")
@click.option(
    "--seconds", default=1.5, show_default=True, type=click.FloatRange(min=0.2), help="Length of each measurement."
)
@click.option("--soak", default=30.0, show_default=True, type=click.FloatRange(min=5), help="Length of load 11.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures to a file.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw loads 1 and 3 into a PNG file.")
@click.option("--readme", is_flag=True, help="Write the tables into docs/performance.md.")
def main(
    only: list[int],
    ours: bool,
    rounds: int,
    seconds: float,
    soak: float,
    json_file: Path | None,
    plot_file: Path | None,
    readme: bool,
) -> None:
    began = time.monotonic()
    if readme:
        plot_file = PICTURE
        # Checked before the measurements, which take ten minutes.
        try:
            table.replaced(TABLES.read_text(encoding="utf-8"), "")
        except ValueError as exc:
            raise click.ClickException(f"{TABLES}: {exc}") from exc
    if plot_file is not None:
        importlib.import_module("matplotlib")
        if not set(only) & set(table.DRAWN):
            raise click.UsageError(f"the picture shows loads {' and '.join(map(str, table.DRAWN))}; neither is to run")
    measured = Measured({}, {}, [])
    measured.run(only, ours, rounds, Settings(seconds, soak, {}))
    seen, missing, failures = measured
    results = {key: medians(figures) for key, figures in seen.items()}
    found = list(verdicts(results))
    host, of = machine(), versions()
    of.update({name: metadata.version(name) for name in ("uvicorn", "starlette", "uvloop", "pyzmq")})
    under = table.conditions(host, of, rounds, seconds)
    for rows in (table.comparison(results, missing), table.targets(found)):
        if len(rows) > 1:
            click.echo(table.text(rows) + "\n")
    for failure in failures:
        click.echo(f"failed: {failure}")
    click.echo(f"{under}\n{time.monotonic() - began:.0f} s")
    if json_file is not None:
        report = {
            "machine": host,
            "versions": of,
            "rounds": rounds,
            "seconds": seconds,
            "missing": missing,
            "failures": failures,
            "results": [{"load": load, "server": name, **figures} for (load, name), figures in results.items()],
            "rounds_of": [{"load": load, "server": name, "rounds": all_} for (load, name), all_ in seen.items()],
            "targets": [verdict._asdict() for verdict in found],
        }
        json_file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if plot_file is not None:
        table.plot(results, under, plot_file)
    if readme:
        shown = table.section(results, found, missing, under, f"../{PICTURE.relative_to(ROOT).as_posix()}")
        TABLES.write_text(table.replaced(TABLES.read_text(encoding="utf-8"), shown), encoding="utf-8")


if __name__ == "__main__":
    main()
