"""Checks of a forwarder: its keys, the addresses where it listens, and what it tells about itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmt_bridge.commands.doctor.findings.finding import Finding


def keys(curve_dir: str, problem: str, clients: int) -> Finding:
    """Judge the keys in `curve_dir`, which admit `clients`; `problem` says why a forwarder does not start with them."""
    if problem:
        said = f"a forwarder does not start: {problem}"
        return Finding("forward keys", "fail", said, "see docs/deploy.md, Many gateway hosts")
    if not curve_dir:
        return Finding("forward keys", "ok", "none: every program that reaches its addresses gets market data")
    if not clients:
        said = f"{curve_dir} has them, but admits no client"
        return Finding("forward keys", "warn", said, f"add them: qmt-bridge keygen {curve_dir} --name NAME --roles ...")
    return Finding("forward keys", "ok", f"{curve_dir} has them, and admits {clients} clients")


def listens(name: str, address: str, error: str | None, running: bool, asked: bool) -> Finding:
    """Judge an address of the forwarder: it is free, or the `running` one has it.

    Without the address of health none was `asked`.
    """
    if running:
        return Finding(name, "ok", f"the running forwarder has {address}")
    if error is None:
        return Finding(name, "ok", f"{address} is free")
    if not asked:
        said = f"{error}; that may be a forwarder, which cannot be asked"
        return Finding(name, "warn", said, "set forward_health_addr")
    return Finding(name, "fail", error, f"stop the program that uses it, or set --{name.replace('_', '-')}")


def health(address: str, shown: Mapping[str, Any] | None, error: str | None) -> Finding:
    """Judge what answers at the address of health: /readyz of a forwarder is `shown`, else why it is not free."""
    if not address:
        return Finding("forwarder", "ok", "cannot be asked: forward_health_addr is empty")
    if shown is not None:
        if shown.get("ready"):
            return Finding("forwarder", "ok", f"answers at {address}, and passes the feeder's heartbeats on")
        links = [f"{name} ({why})" for name, why in shown["links"].items() if why is not None]
        said = f"answers at {address}, but no heartbeat of the feeder comes"
        said += f", and it has no connection to {', '.join(links)}" if links else ""
        return Finding("forwarder", "warn", said, "see the lines above, and the forwarder's log")
    if error is None:
        return Finding("forwarder", "ok", f"none runs: {address} is free")
    said = f"another program than a forwarder has {address}: {error}"
    return Finding("forwarder", "fail", said, "stop the program that uses it, or set --forward-health-addr")
