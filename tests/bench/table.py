"""The results as text, as Markdown and as a picture. Pure except for `plot`, which writes a file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import sizing
from tests.bench.consumers import NUMBER as CONSUMERS
from tests.bench.loads import LOADS
from tests.bench.observing import Figures, Results
from tests.bench.record import Part, Record
from tests.bench.servers import MSGPACK, OURS, PICKING, PUBLIC
from tests.bench.targets import Verdict
from tests.bench.workers import BATCH
from tests.bench.workers import NUMBER as WORKERS

MARKS = ("<!-- bench -->", "<!-- /bench -->")
# Above this share of the load's core, the load was the limit: the server can deliver at least this rate.
LIMITED = 0.95
# The loads that the picture shows.
DRAWN = (1, 3)
# The load whose length is an option of its own.
SOAKED = 11
COMMON = (
    "Server on one core, publisher and clients on another (load 17: the workers on both, the clients on one of them); "
    "ticks of 480 bytes over loopback; medians over the rounds, the servers in turn. "
    "≥: the core of the load was full, the server was not."
)
# Rows of this gateway whose cost is compared with that of JSON in the same run.
COSTED = (MSGPACK.name, PICKING.name)
# The columns of the comparison: heading, load, figure.
COLUMNS = (
    ("100 clients x the same 10: most frames/s", 1, "rate"),
    ("1,000 clients x 10 of 5,000: most frames/s", 3, "rate"),
    ("p50 at 10,000/s", 4, "p50"),
    ("p99 at 50,000/s", 2, "p99"),
)


def frames(figures: Figures) -> str:
    """Return a rate of frames, marked if the load's core was full and the server's was not."""
    rate = figures.get("rate")
    if rate is None:
        return ""
    limited = (figures.get("load_core") or 0) > LIMITED > (figures.get("cpu") or 0)
    return f"{'≥ ' if limited else ''}{rate:,.0f}"


def cell(figures: Figures, name: str) -> str:
    """Return one figure of the comparison."""
    if name == "rate":
        return frames(figures)
    value = figures.get(name)
    return "" if value is None else f"{value:.2f} ms"


def cost(results: Results, load: int, name: str) -> str:
    """Return the frames for each second of the server's CPU, as a multiple of those of JSON in the same run.

    The rates alone would not tell where the core of the load was full before that of the server.
    """
    figures = [results.get((load, row), {}) for row in (name, OURS.name)]
    rate, plain = (of.get("rate") or 0 for of in figures)
    cpu, plain_cpu = (of.get("cpu") or 0 for of in figures)
    return f" ({rate / cpu / (plain / plain_cpu):.2f} x JSON)" if rate and cpu and plain and plain_cpu else ""


def comparison(results: Results, missing: Mapping[str, str]) -> list[list[str]]:
    """Return the table of servers, headings first; for a missing server it shows how to install it."""
    columns = [column for column in COLUMNS if any(load == column[1] for load, _ in results)]
    rows = [["server", *(heading for heading, _, _ in columns)]]
    for name in dict.fromkeys(name for load, name in results if load in {column[1] for column in columns}):
        cells = [cell(results.get((load, name), {}), figure) for _, load, figure in columns]
        if name in COSTED:
            cells = [item + cost(results, of[1], name) for item, of in zip(cells, columns, strict=True)]
        if name == PUBLIC.name:
            # This server is measured at the lower rate, because it does not deliver more.
            cells = [
                f"{item} at 8,000/s" if item and of[1] == 2 else item for item, of in zip(cells, columns, strict=True)
            ]
        rows.append([name, *cells])
    rows += [[name, f"missing: {how}", *([""] * (len(columns) - 1))] for name, how in missing.items() if columns]
    return rows


def targets(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Return the table of targets, its headings first."""
    names = {load.number: load.name for load in LOADS}
    said = {True: "met", False: "missed", None: "-"}
    rows = [["load", "target", "measured", ""]]
    before = 0
    for verdict in verdicts:
        # Each load is named in its first row only.
        shown = "" if verdict.load == before else f"{verdict.load}. {names[verdict.load]}"
        before = verdict.load
        rows.append([shown, verdict.target, verdict.here, said[verdict.met]])
    return rows


def text(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(item.ljust(width) for item, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = ["| " + " | ".join(item.replace("|", "\\|") for item in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def conditions(parts: Mapping[int, Part]) -> list[str]:
    """Return the conditions of the measurements: those that the loads share once, and what differs by load."""
    hosts: dict[str, dict[str, list[int]]] = {}
    for number, part in sorted(parts.items()):
        versions = ", ".join(f"{name} {version}" for name, version in part.versions.items() if version)
        host = "{cpu}, {cores} cores, {system}, {python}".format(**part.machine) + f"; {versions}"
        count = part.count()
        length = part.soak if number == SOAKED else part.seconds
        when = f"{part.date}, commit {part.commit or 'unknown'}, {count} {'round' if count == 1 else 'rounds'}"
        hosts.setdefault(host, {}).setdefault(f"{when} of {length:g} s", []).append(number)
    said = [
        f"{host}. " + ". ".join(f"{numbers(loads)}: {when}" for when, loads in whens.items()) + "."
        for host, whens in hosts.items()
    ]
    others = [share for part in parts.values() for share in part.others()]
    if others:
        median, most = statistics.median(others), max(others)
        said.append(
            f"Other programs used {median:.0%} of a core meanwhile (median), {most:.0%} in the worst measurement."
        )
    return [*said, COMMON] if said else []


def numbers(loads: Sequence[int]) -> str:
    """Return the numbers of loads as text: ``Loads 1 to 3, 5``."""
    runs: list[list[int]] = []
    for number in loads:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return f"{'Load' if len(loads) == 1 else 'Loads'} {text}"


def consumers(results: Results) -> list[list[str]]:
    """Return the table of the ZeroMQ consumers, headings first."""
    rows = [
        [
            "consumer, on one core",
            "ticks of 5,000 codes: messages/s",
            "batches of 100 codes: messages/s",
            "records/s",
        ]
    ]
    for (load, name), figures in results.items():
        if load != CONSUMERS:
            continue
        ticks, batches = (limited(figures, name) for name in ("ticks", "batches"))
        records = (figures.get("batches") or 0) * BATCH
        rows.append([name, ticks, batches, f"{records:,.0f}" if records else ""])
    return rows


def limited(figures: Figures, name: str) -> str:
    """Return a rate, marked if no rate was too high for the consumer: the sender could not send more."""
    rate = figures.get(name)
    return "" if rate is None else f"{'≥ ' if figures.get(f'{name}_limited') else ''}{rate:,.0f}"


def scaling(results: Results) -> list[list[str]]:
    """Return the table of a whole market by the number of workers, headings first."""
    rows = [
        ["workers", "MB/s of data", "MB/s sent", "batches/s to each client", "p99", "cores of the workers", "memory"]
    ]
    for (load, name), figures in results.items():
        if load == WORKERS:
            shown = [figures.get(key) for key in ("data_mb", "wire_mb", "batches", "p99", "cpu", "memory_mb")]
            forms = ("{:,.0f}", "{:,.0f}", "{:,.0f}", "{:.1f} ms", "{:.2f}", "{:,.0f} MB")
            cells = ["" if value is None else form.format(value) for form, value in zip(forms, shown, strict=True)]
            rows.append([name, *cells])
    return rows


def section(results: Results, verdicts: Sequence[Verdict], record: Record, image: str) -> str:
    """Return the text between the marks of docs/performance.md."""
    parts = [f"![Delivered frames a second, log scale]({image})"] if image else []
    for heading, rows in (
        ("Servers", comparison(results, record.missing)),
        ("Targets", targets(verdicts)),
        ("ZeroMQ consumers", consumers(results)),
        ("Workers", scaling(results)),
    ):
        if len(rows) > 1:
            parts += [f"## {heading}", markdown(rows)]
    for heading, lines in (
        ("Sizing", sizing.rules(results)),
        ("Not measured", [*missing(record.missing), *record.failures]),
        ("Conditions", conditions(record.parts)),
    ):
        if lines:
            parts += [f"## {heading}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts)


def missing(servers: Mapping[str, str]) -> list[str]:
    """Return a line for each server that is not installed."""
    return [f"{name} is not installed, so it was not measured: {how}" for name, how in servers.items()]


def with_speed(document: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a README with this gateway's row of the comparison; raise ValueError if it has no such row, or several."""
    begin = f"| {OURS.name} |"
    ours = next((row for row in rows if row[0] == OURS.name), None)
    lines = document.splitlines()
    found = [index for index, line in enumerate(lines) if line.startswith(begin)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} lines begin with {begin!r}; one is expected")
    if ours is not None:
        lines[found[0]] = "| " + " | ".join(ours) + " |"
    return "\n".join(lines) + "\n"


def replaced(document: str, text: str) -> str:
    """Return a document with `text` between its marks; raise ValueError if it has no marks."""
    begin, end = MARKS
    head, found, rest = document.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no {begin} ... {end} to put the table between")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def _color(name: str) -> str:
    return "#c8452f" if name == OURS.name else "#b9bec6" if name.startswith("limit") else "#5b7a99"


def plot(results: Results, under: str, path: Path) -> None:
    """Draw the frames a second of loads 1 and 3 as bars on a log scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [load for load in LOADS if load.number in (1, 3) and any(number == load.number for number, _ in results)]
    bars = {
        load.number: sorted(
            (figures["rate"] or 0, name) for (number, name), figures in results.items() if number == load.number
        )
        for load in shown
    }
    heights = [len(bars[load.number]) for load in shown]
    figure, axes = pyplot.subplots(
        len(shown), 1, figsize=(9, 1.2 + 0.42 * sum(heights) + 0.5 * len(shown)), height_ratios=heights, squeeze=False
    )
    most = max(rate for load in shown for rate, _ in bars[load.number])
    for load, axis in zip(shown, axes[:, 0], strict=True):
        rates, names = zip(*bars[load.number], strict=True)
        drawn = axis.barh(names, rates, color=[_color(name) for name in names], height=0.68)
        axis.bar_label(drawn, [f"{rate:,.0f}" for rate in rates], padding=4, fontsize=10)
        axis.set_xscale("log")
        axis.set_xlim(1000, most * 6)
        axis.set_title(load.name.partition(":")[0] + ": delivered frames/s", loc="left", fontsize=11, fontweight="bold")
        axis.tick_params(axis="y", length=0, labelsize=10)
        axis.tick_params(axis="x", labelsize=8, colors="#777777")
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.text(0.01, 0.005, under.partition(";")[0], fontsize=7, color="#777777")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
