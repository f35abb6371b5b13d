"""Where a code's data is late or lost, of what workers and feeder have seen. Pure (docs/administration.md, "Why")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from gateway.admin.watch import Passed, WhyPart
from qmt_bridge.wire.messages import FeedStatus
from qmt_bridge.wire.survey import TopicFound

# Seconds beyond which a hop is late. A tick of an exchange has the time of its snapshot, which takes up to a second to
# come; invented data has its own time.
LATE = 0.02
EXCHANGE = 1.0
# Seconds without a message after which a topic of the feeder is silent.
SILENT = 10.0
# In the order in which a message passes them, with what to look at.
_ADVICE: Mapping[str, str] = {
    "exchange_to_callback": "between the exchange and the terminal's callback: look at the terminal and its network",
    "callback_to_publish": "in the feeder, between callback and publication: look at the load of its machine",
    "publish_to_worker": "between the feeder and the worker: look at the network, and at the load of the worker",
    "worker_to_socket": "in the worker, between the feeder's message and the socket: look at the load of the worker",
    "socket_to_client": "between the socket and the client: look at the client and its network",
}
HOPS = (*_ADVICE,)


class HopSeen(msgspec.Struct, frozen=True):
    """One hop of the worker that is worst there: delays in seconds."""

    hop: str
    worker: str
    median: float
    worst: float
    count: int


class Why(msgspec.Struct, frozen=True):
    """The answer of `/api/why`: the hop that is late or loses, None if none does, and a sentence that says it."""

    code: str
    topic: str | None
    late: str | None
    lost: str | None
    verdict: str
    hops: list[HopSeen]
    messages: int
    missed: int
    # Of the client that was named, or the one that is most behind.
    client: str | None
    waiting: int
    skipped: int
    # What the feeder says of the topic.
    state: str | None
    age: float | None
    complete: bool
    missing: list[str]


class _Verdict(NamedTuple):
    late: str | None
    lost: str | None
    text: str


def judge(
    code: str,
    parts: Mapping[str, WhyPart],
    known: TopicFound | None,
    status: FeedStatus | None,
    absence: str,
    missing: list[str],
) -> Why:
    """Say where data of `code` is late or lost; `parts` are of those workers that have answered."""
    having = {worker: part for worker, part in parts.items() if part.topic}
    hops = [seen for hop in HOPS if (seen := _worst(hop, having)) is not None]
    of_client = max(having.values(), key=lambda part: _lag(part), default=None)
    messages = max((part.messages for part in having.values()), default=0)
    missed = sum(part.missed for part in having.values())
    skipped = 0 if of_client is None else of_client.skipped
    late, lost, text = _judged(having, known, status, absence, hops, messages, missed, skipped)
    return Why(
        code,
        next((part.topic for part in having.values()), None),
        late,
        lost,
        text,
        hops,
        messages,
        missed,
        None if of_client is None else of_client.client,
        0 if of_client is None else of_client.waiting,
        skipped,
        None if known is None else known.state,
        None if known is None else known.age,
        not missing,
        missing,
    )


def _judged(
    having: Mapping[str, WhyPart],
    known: TopicFound | None,
    status: FeedStatus | None,
    absence: str,
    hops: list[HopSeen],
    messages: int,
    missed: int,
    skipped: int,
) -> _Verdict:
    if status is None:
        return _Verdict(None, "publish_to_worker", f"no data comes from the feeder: {absence}")
    if status.state not in ("up", "stale"):
        reason = f": {status.reason}" if status.reason else ""
        return _Verdict(None, "exchange_to_callback", f"the source is {status.state}{reason}")
    if not having:
        return _Verdict(None, None, "no client has subscribed it")
    if known is not None and known.state == "refused":
        return _Verdict(None, "exchange_to_callback", f"the source refuses it: {known.code}: {known.reason}")
    if known is not None and known.state == "pending":
        return _Verdict(None, "exchange_to_callback", "the source has not decided yet whether it serves it")
    if missed:
        return _Verdict(None, "publish_to_worker", f"{missed} messages were lost between the feeder and a worker")
    if not messages:
        if known is not None and known.age is not None and known.age < SILENT and known.seq:
            return _Verdict(None, None, f"no message came while this looked; the newest is {known.age:.1f} s old")
        age = "there was none" if known is None or known.age is None else f"the newest is {known.age:.0f} s old"
        return _Verdict(None, "exchange_to_callback", f"the source publishes nothing of it; {age}")
    if skipped:
        told = f"the client is behind: {skipped} frames were replaced by newer ones; {_ADVICE['socket_to_client']}"
        return _Verdict("socket_to_client", "socket_to_client", told)
    worst = max(hops, key=lambda seen: _excess(seen, having, status), default=None)
    if worst is not None and _excess(worst, having, status) > 0:
        return _Verdict(worst.hop, None, f"{1000 * worst.median:.0f} ms late {_ADVICE[worst.hop]}")
    return _Verdict(None, None, "nothing is late or lost")


def _excess(seen: HopSeen, having: Mapping[str, WhyPart], status: FeedStatus) -> float:
    """Return by how many seconds a hop takes longer than it may."""
    allowed = LATE + (EXCHANGE if seen.hop == "exchange_to_callback" and not status.simulated else 0.0)
    own = having[seen.worker].hops.get("worker_to_socket")
    if seen.hop == "socket_to_client" and own is not None:
        # The ping to a client and its pong both wait for the loop of the worker.
        allowed += 2 * own.median
    return seen.median - allowed


def _worst(hop: str, parts: Mapping[str, WhyPart]) -> HopSeen | None:
    found: dict[str, Passed] = {worker: part.hops[hop] for worker, part in parts.items() if hop in part.hops}
    if not found:
        return None
    worker = max(found, key=lambda name: found[name].median)
    seen = found[worker]
    return HopSeen(hop, worker, seen.median, seen.worst, seen.count)


def _lag(part: WhyPart) -> float:
    return part.hops["socket_to_client"].median if "socket_to_client" in part.hops else 0.0
