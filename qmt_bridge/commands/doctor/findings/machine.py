"""Checks of the settings, the Python version and the disk of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.errors import ConfigError

# The journal of a busy month is far below a gibibyte.
LITTLE_DISK = 1 << 30
NO_DISK = 100 << 20


def settings(error: ConfigError | None) -> Finding:
    """Judge the settings as they were read."""
    if error is not None:
        return Finding("settings", "fail", str(error), "correct that setting; nothing else was looked at")
    return Finding("settings", "ok", "can be read")


def environment(foreign: Sequence[str]) -> Finding:
    """Judge variables that look like settings and are none."""
    if not foreign:
        return Finding("environment", "ok", "every QMT_BRIDGE_ variable is a setting")
    return Finding("environment", "warn", "; ".join(foreign), "take them away, or set the settings that are meant")


def python(version: tuple[int, int], bits: int, needs_xtquant: bool) -> Finding:
    """Judge the interpreter: it decodes what xtquant pushes."""
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
        return Finding("data folder", "fail", f"{path} cannot be written: {error}", "set --data-dir, or give the right")
    return Finding("data folder", "ok", f"{path} can be written")


def disk(free: int) -> Finding:
    """Judge the space for the trade journal, in bytes."""
    said = f"{free / (1 << 30):.1f} GiB free for the trade journal"
    if free < LITTLE_DISK:
        return Finding("disk", "fail" if free < NO_DISK else "warn", said, "make room, or set --data-dir")
    return Finding("disk", "ok", said)
