"""Checks of the programs that push data to the feeder that answers (docs/push.md)."""

from __future__ import annotations

from qmt_bridge import sockets
from qmt_bridge.commands.doctor.findings.finding import Finding, lasted
from qmt_bridge.wire.messages import FeedStatus, PusherState

# A pusher is cut off after 15 s without a line; half of that is worth a look.
_SILENT = 7.5


def serves_pushers(source: str) -> bool:
    """Return whether `source`, a setting or what a heartbeat says, takes data from pushers."""
    return "push" in source.split("+")


def pushers(status: FeedStatus, address: str, *, has_key: bool) -> Finding:
    """Judge the pushers of the feeder that answers, which lists those of its setting `pushers` too.

    `address` is where the feeder listens for them, and `has_key` whether they need one; `address` is empty on a machine
    that does not have the settings of the feeder.
    """
    said = [_said(pusher, status.time) for pusher in status.pushers]
    away = [pusher.name for pusher in status.pushers if pusher.silent is None]
    where = f"; it connects to {address}, {_access(has_key)}" if address else ""
    if not said:
        advice = f"start a program that pushes records{where}"
        return Finding("pushers", "warn", "none has connected", advice)
    if any(pusher.state in ("down", "refused") for pusher in status.pushers):
        advice = f"start the program again: {' '.join(away)}{where}" if away else "see what the pusher itself logs"
        return Finding("pushers", "fail", "; ".join(said), advice)
    if away:
        return Finding("pushers", "warn", "; ".join(said), f"start the program: {' '.join(away)}{where}")
    if any(pusher.state != "up" or (pusher.silent or 0.0) > _SILENT for pusher in status.pushers):
        return Finding("pushers", "warn", "; ".join(said), "see what the pusher itself logs")
    return Finding("pushers", "ok", "; ".join(said))


def address(where: str, error: str | None, *, running: bool, has_key: bool, has_certificate: bool) -> Finding:
    """Judge the address at which pushers connect: it is free, or the `running` feeder uses it."""
    if not sockets.is_local(where) and not (has_key and has_certificate):
        said = f"{where} can be reached from other machines: a feeder starts there only with a key and TLS"
        advice = "set push_key, tls_cert and tls_key, or a push_addr of this machine alone"
        return Finding("push_addr", "fail", said, advice)
    if running:
        return Finding("push_addr", "ok", f"the running feeder has {where}")
    if error is not None:
        return Finding(
            "push_addr",
            "fail",
            f"cannot listen on {where}: {error}",
            "stop the program that uses it, or set --push-addr",
        )
    return Finding("push_addr", "ok", f"{where} is free")


def _access(has_key: bool) -> str:
    return "with push_key" if has_key else "without a key, as the user of the feeder"


def _said(pusher: PusherState, now: int) -> str:
    told = [f"{pusher.name}: {pusher.state}" + (f" ({pusher.reason})" if pusher.reason else "")]
    told.append(lasted(pusher.since, now).strip())
    if pusher.silent is not None and pusher.silent > _SILENT:
        told.append(f"silent for {pusher.silent:.0f} s")
    if pusher.kinds:
        told.append(f"serves {' '.join(pusher.kinds)}")
    if pusher.records or pusher.refused:
        told.append(f"has sent {pusher.records} records and {pusher.refused} bad lines")
    return ", ".join(filter(None, told))
