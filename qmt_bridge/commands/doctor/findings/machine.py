"""Checks of the settings, the Python version and the disk of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.errors import ConfigError
from qmt_bridge.process.other_project import MEND

# The trade journal of a busy month is far smaller than 1 GiB.
LITTLE_DISK = 1 << 30
NO_DISK = 100 << 20


def settings(error: ConfigError | None) -> Finding:
    """Judge whether the settings can be read."""
    if error is not None:
        return Finding("settings", "fail", str(error), "correct that setting; nothing else was checked")
    return Finding("settings", "ok", "can be read")


def environment(foreign: Sequence[str]) -> Finding:
    """Judge environment variables that look like settings but are not."""
    if not foreign:
        return Finding("environment", "ok", "every QMT_BRIDGE_ variable is a setting")
    return Finding("environment", "warn", "; ".join(foreign), "unset them, or set the setting that was meant")


def package(other: str) -> Finding:
    """Judge whether the project `qmt-bridge` is installed too, whose import name is ours; `other` is its version."""
    if other:
        said = f"another project, qmt-bridge {other}, is installed too: it has the same import name, qmt_bridge"
        return Finding("package", "fail", said, MEND)
    return Finding("package", "ok", "qmt_bridge is of this project alone")


def python(version: tuple[int, int], bits: int, needs_xtquant: bool) -> Finding:
    """Judge the Python version: with xtquant it decodes the data of the callbacks."""
    said = f"{version[0]}.{version[1]}, {bits}-bit"
    if not needs_xtquant:
        return Finding("python", "ok", said)
    if bits != 64:
        return Finding("python", "fail", f"{said}, but xtquant is 64-bit only", "install the 64-bit Python 3.11")
    if version > (3, 11):
        slow = "decodes xtquant's data without its C code: 32 us a code, 160 ms for a push of 5,000"
        return Finding("python", "warn", f"{said}, which {slow}", "run the feeder with Python 3.11")
    return Finding("python", "ok", said)


def folder(path: Path, error: str | None) -> Finding:
    """Judge whether the feeder may write its files."""
    if error is not None:
        return Finding(
            "data folder", "fail", f"{path} cannot be written: {error}", "set --data-dir, or grant the permission"
        )
    return Finding("data folder", "ok", f"{path} can be written")


def disk(free: int) -> Finding:
    """Judge the space for the trade journal, in bytes."""
    said = f"{free / (1 << 30):.1f} GiB free for the trade journal"
    if free < LITTLE_DISK:
        return Finding("disk", "fail" if free < NO_DISK else "warn", said, "free some space, or set --data-dir")
    return Finding("disk", "ok", said)
