"""Whether what a source publishes has the documented shape (docs/websocket.md, docs/wire.md). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qmt_bridge.errors import ERROR_CODES, BadRequest
from qmt_bridge.wire import frames
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.messages import TRADE_TYPES, view_of
from qmt_bridge.wire.topics import Kind, TopicParts, formula_spec

# Milliseconds from 1970 to 1990, when the exchanges opened; a time in seconds is below.
_FIRST_MS = 631_152_000_000
# A bar has the time of its end: that of a year may be a year ahead.
_AHEAD_MS = {"tick": 86_400_000}
_AHEAD_BAR_MS = 400 * 86_400_000


def as_read(body: object) -> Any:
    """Return a body as a client reads it; raise what prevents that it is encoded."""
    return frames.decode(frames.encode(body))


def fault(parts: TopicParts, body: Any, now_ms: int) -> str:
    """Return what is wrong with a body, as a client reads it, at the time `now_ms`; empty if nothing is."""
    if not isinstance(body, Mapping):
        return f"a body is an object, not {type(body).__name__}"
    match parts.kind:
        case Kind.QUOTE | Kind.L2:
            return _by_one_code(parts, body, now_ms)
        case Kind.WHOLE:
            return _whole(parts, body, now_ms)
        case Kind.FORMULA:
            return _formula(parts, body)
        case Kind.DOWNLOAD:
            return _download(body)
    return f"topics of the kind {parts.kind} are not published so"


def times(body: Any) -> list[float]:
    """Return the times of the records of one code, in ms."""
    found = [each.get("time") for records in body.values() for each in records]
    return [each for each in found if isinstance(each, int | float)]


def _by_one_code(parts: TopicParts, body: Mapping[str, Any], now_ms: int) -> str:
    if list(body) != [parts.name]:
        return f"the keys are {list(body)[:3]}, and the code is {parts.name}"
    records = body[parts.name]
    if not isinstance(records, Sequence) or isinstance(records, str) or not records:
        return "the value of the code is no array of records"
    return next(filter(None, (_record(parts, each, now_ms) for each in records)), "")


def _whole(parts: TopicParts, body: Mapping[str, Any], now_ms: int) -> str:
    for code, tick in body.items():
        try:
            check_code(code)
        except BadRequest:
            return f"{code[:40]!r} is no code"
        if code != parts.name and code.rpartition(".")[2] != parts.name:
            return f"{code} does not belong to {parts.name}"
        if found := _record(parts, tick, now_ms):
            return found
    return "" if body else "there is no tick"


def _record(parts: TopicParts, record: Any, now_ms: int) -> str:
    if not isinstance(record, Mapping):
        return f"a record is an object, not {type(record).__name__}"
    if view_of(parts.kind, parts.detail) is None or (parts.kind is Kind.L2 and "timeTag" in record):
        return ""
    time = record.get("time")
    if not isinstance(time, int | float) or isinstance(time, bool):
        return f"the time of a record is a number, not {time!r}"
    ahead = _AHEAD_MS.get(parts.detail, _AHEAD_BAR_MS)
    if not _FIRST_MS <= time <= now_ms + ahead:
        return f"the time of a record is in ms since 1970, and not {time}"
    return ""


def _formula(parts: TopicParts, body: Mapping[str, Any]) -> str:
    spec = formula_spec(parts)
    if (body.get("formula_name"), body.get("stock_code")) != (spec.formula_name, spec.stock_code):
        return "formula_name and stock_code are not those of the topic"
    data = body.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("timelist"), list):
        return "data has no timelist"
    outputs = data.get("outputs")
    if not isinstance(outputs, Mapping) or not all(isinstance(values, list) for values in outputs.values()):
        return "data has no outputs, arrays by name"
    return ""


def _download(body: Mapping[str, Any]) -> str:
    if "status" not in body:
        finished, total = body.get("finished"), body.get("total")
        if not isinstance(finished, int | float) or not isinstance(total, int | float) or not 0 <= finished <= total:
            return f"progress is finished of total, and not {finished!r} of {total!r}"
        return ""
    if body["status"] == "done":
        return ""
    if body["status"] != "error":
        return f"the status is done or error, not {body['status']!r}"
    if body.get("code") not in ERROR_CODES:
        return f"{body.get('code')!r} is no error code"
    if not isinstance(body.get("error"), str) or not body["error"]:
        return "an end by an error says no error"
    failed = body.get("failed", {})
    if not isinstance(failed, Mapping) or not all(isinstance(reason, str) for reason in failed.values()):
        return "failed has the reasons by code"
    return ""


def trade_fault(account: object, event: object, data: Any) -> str:
    """Return what is wrong with a trade event; empty if nothing is."""
    if not isinstance(account, str) or not account:
        return "the account of a trade event is no text"
    if event not in TRADE_TYPES:
        return f"{event!r} is no type of trade events"
    if not isinstance(data, Mapping):
        return "the data of a trade event is no object"
    return ""
