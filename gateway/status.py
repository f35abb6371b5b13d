"""/healthz, /readyz, /metrics: renderings of the same numbers. Run on the event loop."""

from __future__ import annotations

import asyncio
import os

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gateway import metrics
from gateway.worker import Worker
from qmt_bridge.process import child
from qmt_bridge.wire.frames import to_json


def health(worker: Worker) -> Response:
    """Return 200: the worker's loop turns."""
    return _json({"status": "ok", **worker.feed_state(), **_instances(worker)})


def readiness(worker: Worker) -> Response:
    """Return 200 while the feeder is there and can write its trade journal, whatever the state of its sessions.

    A terminal that logs an account out for the night must not take the market data from a load balancer. But where no
    trade session could ever be opened, and only a change of the settings helps, the answer is 503.
    """
    status = worker.feed.status
    journal = None if status is None else status.journal
    accounts = () if status is None else status.accounts
    misconfigured = bool(accounts) and all(account.fault for account in accounts)
    serving = status is not None and journal is None
    ready = serving and not misconfigured
    shown = {
        "ready": ready,
        # Market data is served, and what there is of trade events is kept; all that `up` waits for.
        "serving": serving,
        # Whose numbers these are: any of several workers answers.
        "worker": os.getpid(),
        **worker.feed_state(),
        # Why there is no connection to an address of the feeder; null where there is one.
        "links": worker.feed.links,
        # Why trade events cannot be written; they are published all the same.
        "journal": journal,
        # Each with its state and reason; their numbers are masked.
        "accounts": [msgspec.structs.asdict(account) for account in accounts],
        # What an operator should look at; it does not make the worker unready.
        "journal_note": None if status is None else status.journal_note,
        "newest_tick_age": worker.newest_age,
        "connections": len(worker.sessions),
        "topics": len(worker.feed.hub.streams),
        "frames_received": worker.feed.hub.received,
        "frames_sent": worker.frames_sent,
        "bytes_sent": worker.bytes_sent,
        "skipped": worker.skipped,
        "gaps": worker.feed.hub.gaps,
        "tasks": len(asyncio.all_tasks()),
        **_instances(worker),
    }
    return _json(shown, 200 if ready else 503)


def prometheus(worker: Worker) -> Response:
    """Return the metrics of all workers."""
    worker.export()
    return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _instances(worker: Worker) -> dict[str, object]:
    """Return which run of `qmt-bridge up` has started this gateway, and which its feeder; empty without one."""
    status = worker.feed.status
    return {"instance": child.instance(), "feeder_instance": "" if status is None else status.instance}


def _json(body: dict[str, object], status: int = 200) -> Response:
    return Response(to_json(body), status, media_type="application/json")
