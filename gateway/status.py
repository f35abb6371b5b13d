"""/healthz, /readyz and /metrics; the last two show the numbers of counters.py. Run on the event loop.

Which parts a client may see depends on where it is and on its key (`Viewer`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from gateway import metrics
from gateway.keys.table import missing_scope
from gateway.worker import Worker
from qmt_bridge.keys.key import Key
from qmt_bridge.process import child
from qmt_bridge.wire import frames


class Viewer(NamedTuple):
    """The client that asks for a page."""

    # Whether it is a program of this machine.
    near: bool
    # The valid key that it has shown.
    key: Key | None = None

    @property
    def sees_all(self) -> bool:
        """Return whether it may see the numbers and states of the gateway, and not only whether it works."""
        return self.near or (self.key is not None and self.key.allows("admin"))


Page = Callable[[Worker, Viewer], Response]

# The counters that an operator needs; those that explain a fault are in /metrics only.
SHOWN = ("frames_received", "frames_sent", "bytes_sent", "skipped", "gaps")


def health(worker: Worker, viewer: Viewer) -> Response:
    """Return 200: the worker's event loop is running."""
    return _json({"status": "ok"})


def readiness(worker: Worker, viewer: Viewer) -> Response:
    """Return 200 while the feeder is connected and can write its trade journal, whatever the state of its sessions.

    A terminal logs accounts out at night; a load balancer must not stop the market data because of that. The answer is
    503 if every account has a fault that only a change of the settings can mend. Other machines without the scope
    ``admin`` are told no more than that.
    """
    status, numbers = worker.feed.status, worker.numbers()
    journal = None if status is None else status.journal
    accounts = () if status is None else status.accounts
    misconfigured = bool(accounts) and all(account.fault for account in accounts)
    serving = status is not None and journal is None
    ready = serving and not misconfigured
    if not viewer.sees_all:
        return _json({"ready": ready}, 200 if ready else 503)
    shown = {
        "ready": ready,
        # Market data is served and trade events are kept; `qmt-bridge up` waits for this only.
        "serving": serving,
        # The process that has these numbers; with several workers, any of them may answer.
        "worker": os.getpid(),
        **worker.feed_state(),
        # Since when `feed` is what it is (ms since 1970); the version of xtquant; and the call into it that runs now,
        # with its age in seconds.
        "since": 0 if status is None else status.since,
        "sdk": "" if status is None else status.sdk,
        "call": None if status is None else status.call,
        "call_age": 0.0 if status is None else status.call_age,
        # For each address of the feeder, why there is no connection; null if there is one.
        "links": worker.feed.links,
        # Why trade events cannot be written to the journal; they are published nevertheless.
        "journal": journal,
        # Each account with its state and reason; account numbers are masked.
        "accounts": [msgspec.structs.asdict(account) for account in accounts],
        # What an operator should look at; it does not make the worker unready.
        "journal_note": None if status is None else status.journal_note,
        # The store and the alerts, as far as they have reported to the feeder: up or silent.
        "parts": {} if status is None else status.parts,
        # The programs that push data to the source; account numbers are masked.
        "pushers": [] if status is None else [msgspec.structs.asdict(pusher) for pusher in status.pushers],
        "newest_tick_age": numbers.newest_tick_age,
        "connections": sum(numbers.connections.values()),
        "topics": numbers.topics,
        "slow_clients": numbers.slow_clients,
        "client_lag": numbers.client_lag,
        **{name: getattr(numbers.counts, name) for name in SHOWN},
        "tasks": len(asyncio.all_tasks()),
        **_instances(worker),
    }
    return _json(shown, 200 if ready else 503)


def prometheus(worker: Worker, viewer: Viewer) -> Response:
    """Return the metrics of all workers."""
    if not viewer.sees_all:
        return _withheld(viewer.key)
    worker.export()
    return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _withheld(key: Key | None) -> Response:
    """Refuse a page to another machine without a key, or with one that lacks the scope ``admin``."""
    if key is None:
        return unauthorized(
            "other machines see the metrics with a key of the scope admin (Authorization: Bearer <key>)"
        )
    return PlainTextResponse(f"forbidden: {missing_scope(key, 'admin')}\n", HTTPStatus.FORBIDDEN)


def unauthorized(sentence: str) -> Response:
    """Refuse a page because of its key."""
    headers = {"WWW-Authenticate": "Bearer"}
    return PlainTextResponse(f"unauthorized: {sentence}\n", HTTPStatus.UNAUTHORIZED, headers)


def _instances(worker: Worker) -> dict[str, object]:
    """Return the runs of `qmt-bridge up` that started this gateway and its feeder; empty if none did."""
    status = worker.feed.status
    return {"instance": child.instance(), "feeder_instance": "" if status is None else status.instance}


def _json(body: dict[str, object], status: int = 200) -> Response:
    return Response(frames.encode(body), status, media_type="application/json")
