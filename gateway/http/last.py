"""The page `/api/last`: the newest record of each code, for programs without a connection. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from gateway.http.admission import Caller, Host, admit, afford
from gateway.http.formats import table
from gateway.http.leases import Lease
from gateway.http.problems import Denied
from gateway.http.query import read_query
from gateway.sending.depth import kept_levels, served_by
from gateway.sending.view import View, in_one_order
from qmt_bridge.errors import BadCode, BadRequest, ErrorCode, WireError
from qmt_bridge.system import clock
from qmt_bridge.wire import frames
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.messages import told_feed
from qmt_bridge.wire.requests import FieldNames
from qmt_bridge.wire.topics import Topic, check_period, l2_topic, quote_topic

Item = TypeVar("Item")
Made = TypeVar("Made")

# Codes that are rendered in one piece, in 1 to 3 ms. A request may name some 1,500.
PART = 50
# Seconds after the subscription of a topic in which its last value has to come.
ANSWER_TIMEOUT = 2.0


class LastQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of `/api/last`."""

    codes: list[object]
    period: str = "tick"
    # For depth in place of quotes: levels a side, 0 = every one.
    gear_num: int | None = None
    # The names of the fields to send of each record; empty: all.
    fields: FieldNames = []
    format: Literal["json", "csv"] = "json"


class Missing(msgspec.Struct, frozen=True):
    """Why there is no record of a code; `no_record`: nothing was published since it was subscribed, or known before."""

    code: ErrorCode | Literal["no_record"]
    reason: str


class Last(msgspec.Struct, frozen=True):
    """The answer of `/api/last`."""

    # The newest record of each code in the order of the request, as it was published; null where there is none.
    records: dict[str, Any]
    # For each code whose record is null, why.
    missing: dict[str, Missing]
    # The state of the feed: `up`, `stale`, `down` or `ended`. Records are no newer than it says.
    feed: str


async def last(host: Host, scope: Scope) -> Response:
    """Return the newest record of each code; raise `Denied` or `BadRequest`."""
    caller = admit(host, scope)
    asked = read_query(scope["query_string"], LastQuery)
    check_period(asked.period)
    if asked.gear_num is not None and asked.period != "tick":
        raise BadRequest("bad_request", "gear_num is of depth and period of quotes; choose one")
    caller.require("market" if asked.gear_num is None else "l2")
    if asked.period.startswith("l2"):
        caller.require("l2")
    await afford(host, caller, len(asked.codes))
    topics, missing = _topics(asked)
    leases = _take(host, caller, list(topics.values()))
    await _decided(list(leases.values()))
    view = View(fields=in_one_order(asked.fields), levels=kept_levels(asked.gear_num or 0))
    by_code = {code: leases[topics[code]] if code in topics else None for code in map(str, asked.codes)}
    records = dict(await _in_parts(host, list(by_code.items()), partial(_records, view)))
    for code, lease in by_code.items():
        if lease is not None and records[code] is None:
            missing[code] = _why(host, lease)
    status = host.feed.status
    answer = Last(records, missing, "down" if status is None else told_feed(status.state))
    if asked.format == "csv":
        return Response(await _csv(host, answer, asked.fields), media_type="text/csv")
    return Response(msgspec.json.encode(answer) + b"\n", media_type="application/json")


def _topics(asked: LastQuery) -> tuple[dict[str, Topic], dict[str, Missing]]:
    """Return the topic that serves each code, and why codes have none."""
    topics: dict[str, Topic] = {}
    missing: dict[str, Missing] = {}
    for given in asked.codes:
        try:
            code = check_code(given)
            wanted = quote_topic(code, asked.period) if asked.gear_num is None else l2_topic(code, asked.gear_num)
            topics[code] = served_by(wanted)
        except BadCode as exc:
            missing[str(given)] = Missing(exc.code, exc.reason)
    return topics, missing


def _take(host: Host, caller: Caller, topics: Sequence[Topic]) -> dict[Topic, Lease]:
    try:
        leases = host.leases.take(
            caller.name,
            topics,
            caller.most_topics(host.config),
            with_key=caller.key is not None,
            bounded=host.entry.configured,
        )
    except BadRequest as exc:
        host.limited["codes"] += 1
        raise Denied(exc.code, exc.reason) from None
    return dict(zip(topics, leases, strict=True))


async def _decided(leases: Sequence[Lease]) -> None:
    """Wait until each lease has a record or a refusal, or its time is over."""
    waiting = [lease for lease in leases if not lease.decided.done()]
    left = max((lease.began + ANSWER_TIMEOUT for lease in waiting), default=0.0) - clock.monotonic()
    if left > 0:
        await asyncio.wait([lease.decided for lease in waiting], timeout=left)


async def _in_parts(host: Host, items: Sequence[Item], make: Callable[[Sequence[Item]], Iterable[Made]]) -> list[Made]:
    """Return what `make` makes of all items, a part in one turn of the loop: other clients have turns between."""
    made: list[Made] = []
    for at in range(0, len(items), PART):
        made += await host.slices.make(partial(_all, make, items[at : at + PART]))
    return made


def _all(make: Callable[[Sequence[Item]], Iterable[Made]], part: Sequence[Item]) -> list[Made]:
    # A generator would do its work later.
    return list(make(part))


def _records(view: View, part: Sequence[tuple[str, Lease | None]]) -> list[tuple[str, msgspec.Raw | None]]:
    return [(code, None if lease is None else _record(lease, code, view)) for code, lease in part]


def _record(lease: Lease, code: str, view: View) -> msgspec.Raw | None:
    """Return the newest record of a code, still encoded."""
    if lease.newest is None:
        return None
    try:
        body = lease.newest.body if view == View() else view.render(lease.newest)
        records = frames.split_lists(body).get(code)
    except WireError:
        return None
    return records[-1] if records else None


def _why(host: Host, lease: Lease) -> Missing:
    if lease.refusal is not None:
        return Missing(lease.refusal.code, lease.refusal.reason)
    status = host.feed.status
    if status is None or told_feed(status.state) == "down":
        reason = host.feed.absence if status is None else status.reason
        return Missing("upstream_unavailable", f"the feed is down: {reason}")
    return Missing("no_record", f"no record within {ANSWER_TIMEOUT:.0f} s of its subscription")


async def _csv(host: Host, answer: Last, fields: Sequence[str]) -> bytes:
    """Return the records as a table: a row for each code, and why one has no record in the last column."""
    order = {name: place for place, name in enumerate(fields)}
    shown: list[tuple[str, dict[str, Any]]] = await _in_parts(
        host, list(answer.records.items()), partial(_decoded, order)
    )
    names = table.columns(record for _, record in shown)
    head = table.lines([["code", *names, "missing"]])
    return head + b"".join(await _in_parts(host, shown, partial(_lines, names, answer.missing)))


def _decoded(
    order: Mapping[str, int], part: Sequence[tuple[str, msgspec.Raw | None]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each code with its record, the fields in the order in which they were asked for."""
    for code, record in part:
        found: dict[str, Any] = {} if record is None else frames.decode(bytes(record))
        yield code, dict(sorted(found.items(), key=lambda item: order.get(item[0], 0)))


def _lines(
    names: Sequence[str], missing: Mapping[str, Missing], part: Sequence[tuple[str, dict[str, Any]]]
) -> Iterator[bytes]:
    for code, record in part:
        row, why = table.cells(record), missing.get(code)
        told = "" if why is None else f"{why.code}: {why.reason}"
        yield table.lines([[table.cells({"code": code})["code"], *(row.get(name, "") for name in names), told]])
