"""The check of the store of the day: whether it answers, what it keeps, and what keeps it from storing."""

from __future__ import annotations

from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.commands.doctor.findings.machine import LITTLE_DISK
from qmt_bridge.wire.history import StoreStatus

_MIB = 1 << 20
_GIB = 1 << 30


def store(
    status: StoreStatus | None,
    unasked: str,
    refused: str,
    where: str,
    version: str,
    days: int,
    max_mb: int,
    feeder_runs: bool,
) -> Finding:
    """Judge the store at the address `where`, without which feeder and gateway do their work.

    `unasked` says why it cannot be asked, `refused` why there is no answer from what listens. `days` and `max_mb` are
    settings, `version` is the installed one. That none answers is worth a warning only beside a feeder.
    """
    if unasked:
        return Finding("store", "warn", f"not checked: {unasked}", "see curve_dir and store_addr")
    if refused:
        said, _, advice = refused.partition(": ")
        return Finding("store", "warn", said, advice)
    if status is not None:
        return _judge(status, version, max_mb)
    if not days:
        return Finding("store", "ok", "none is wanted (store_days = 0)")
    if not feeder_runs:
        return Finding("store", "ok", f"none answers at {where}")
    said = f"none answers at {where}: a program that asks for the day so far gets what is live alone"
    return Finding("store", "warn", said, "run qmt-bridge store, best on the feeder's machine, or correct store_addr")


def _judge(status: StoreStatus, version: str, max_mb: int) -> Finding:
    said = _kept(status)
    if status.failure is not None:
        said = f"nothing is stored: {status.failure}; {said}"
        return Finding("store", "fail", said, "make room on that disk, or lower store_max_mb or store_days")
    if status.free < max(LITTLE_DISK, _growth(status, max_mb)):
        said += ", which may be full within a day: then nothing is stored"
        return Finding("store", "warn", said, "make room on that disk, or lower store_max_mb or store_days")
    # A store that runs from a folder without an installed package has no version.
    if status.version not in ("", version):
        return Finding("store", "warn", f"{said}; it is {status.version}, but installed is {version}", "start it again")
    return Finding("store", "ok", said)


def _kept(status: StoreStatus) -> str:
    """Return what a store keeps, in words."""
    said = "keeps nothing yet"
    if status.days:
        many = f"{len(status.days)} day{'s' if len(status.days) > 1 else ''} since {status.days[0]}"
        said = f"keeps {status.topics} topics, {_size(status.size)}, {many}"
    if status.left_out:
        said += f", {status.left_out} messages left out since its start"
    return f"{said}, {_size(status.free)} free on its disk"


def _growth(status: StoreStatus, max_mb: int) -> int:
    """Return by how many bytes a store grows in one more day: as much as on those before, up to its limit."""
    a_day = status.size // max(1, len(status.days))
    return min(a_day, max(0, max_mb * _MIB - status.size)) if max_mb else a_day


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.0f} MiB"
