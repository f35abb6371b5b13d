"""The report of `qmt-bridge bench` in words. Pure."""

from __future__ import annotations

from typing import Any

# Above this share of the time, the client processes may have been the limit.
BUSY = 0.9
# Columns of the labels.
LABEL = 12


def to_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of a report, each a name and what was found, in one part or several."""
    client, rate = report["client"], report["frames_per_second"]
    delivered = f"{rate:,.0f} frames/s, {report['bytes_per_second'] / 1e6:,.1f} MB/s"
    lines: list[tuple[str, ...]] = [("delivered", delivered)]
    if "url" in report:
        lines += _findings(report)
        if client["busy"] > BUSY:
            lines.append(("", "the clients may have been the limit: try --sample 100, or another machine"))
    else:
        lines.append(("", "by a loop that writes ready-made frames, and does nothing else"))
        if client["busy"] > 0:
            lines.append(("", f"the clients, if they were busy all the time, could take {rate / client['busy']:,.0f}"))
    each = "process" if client["processes"] == 1 else "processes"
    lines.append(("clients", f"{report['clients']} in {client['processes']} {each}, busy {client['busy']:.0%}"))
    host = report["machine"]
    lines.append(("machine", f"{host['cpu']}, {host['cores']} cores, {host['system']}, {host['python']}"))
    return lines


def _findings(report: dict[str, Any]) -> list[tuple[str, ...]]:
    lost = "not known"
    if report["lost"] is not None:
        lost = f"{report['lost']:,} of {report['frames'] + report['lost']:,} frames"
    notes = [
        f"{report[name]:,} {text}"
        for name, text in (
            ("skipped", "skipped by the gateway for slow clients"),
            ("repeated", "repeated"),
            ("unstamped", "without a position"),
            ("restarts", "restarts of the feeder"),
        )
        if report[name]
    ]
    lines: list[tuple[str, ...]] = [("lost", lost, *notes)]
    if not report["frames"]:
        lines.append(("", "nothing came; a market that is closed is silent"))
    for name, text in (
        ("latency", "source callback to client"),
        ("feeder", "of it, to publishing"),
        ("gateway", "of it, from there to the client"),
    ):
        times = report[f"{name}_ms"]
        if times["p50"] is not None:
            lines.append((name, "  ".join(f"{key} {ms:.3g}" for key, ms in times.items()) + f" ms, {text}"))
    server = report["server"]
    if server is None:
        lines.append(("server", "its CPU and memory are not known: not on this machine, or psutil is not installed"))
    else:
        per = server["connection_bytes"] / 1024
        rss = server["rss_bytes"] / 1024**2
        lines.append(("server", f"{server['cpu']:.0%} of a core, {rss:.0f} MiB, {per:.1f} KiB a connection"))
    lines += [("rejected", f"{what}, {count} times") for what, count in report["rejected"].items()]
    lines += [("trouble", f"{what}, {count} times") for what, count in report["trouble"].items()]
    return lines
