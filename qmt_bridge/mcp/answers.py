"""What an AI application is told: whose data it is, times that it can read, and no more bytes than fit. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.shanghai import SHANGHAI

# Bytes of an answer as JSON: some 20,000 tokens, which every model takes.
MOST_BYTES = 64 * 1024
# Bytes left for what stands beside a list.
_REST_BYTES = 4 * 1024
# Numbers that are a time, and how many of them a second has.
_TIMES = {"time": 1000, "since": 1000, "from_ms": 1000, "until_ms": 1000, "order_time": 1, "traded_time": 1}
# What is behind is no year of ours: the field has another meaning.
_LAST_SECOND = 4_102_444_800
_SHOWN_DIGITS = 4

_SIMULATED = (
    "SIMULATED DATA: prices, volumes and account events are invented. They are those of no market and of no account; "
    "say so."
)
_REPLAY = "REPLAY: a recording is played. These are not the values of now."
_UNKNOWN = "Whether the data is simulated is not known: this API key may not ask for the state of the service."


def about(state: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what every answer begins with: source, whether the data is simulated, and the state of the feed.

    `state` is the answer of /api/state, None for a key that may not see it.
    """
    if state is None:
        return {"source": None, "simulated": None, "notice": _UNKNOWN}
    source, feed = state.get("source"), state.get("feed")
    notices = []
    if state.get("simulated"):
        notices.append(_SIMULATED)
    elif source == "replay":
        notices.append(_REPLAY)
    if feed != "up":
        reason = f" ({state['reason']})" if state.get("reason") else ""
        notices.append(f"The feed is {feed}{reason}: values may be old.")
    told = {"source": source, "simulated": state.get("simulated"), "feed": feed}
    return told | ({"notice": " ".join(notices)} if notices else {})


def shanghai(seconds: float) -> str:
    """Return a time in seconds since 1970 in ISO 8601, of Shanghai and to the millisecond."""
    return datetime.fromtimestamp(seconds, SHANGHAI).isoformat(timespec="milliseconds")


def dated(value: Any) -> Any:
    """Return a JSON value with a text of Shanghai's time behind each number that is a time: `time_shanghai`."""
    if isinstance(value, list):
        return [dated(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for name, each in value.items():
        found[name] = dated(each)
        a_second = _TIMES.get(name)
        if a_second and isinstance(each, int | float) and not isinstance(each, bool) and each > 0:
            seconds = each / a_second
            if seconds < _LAST_SECOND:
                found[f"{name.removesuffix('_ms')}_shanghai"] = shanghai(seconds)
    return found


def masked(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event without the number of its account, of which the last four digits stay.

    What an AI application reads goes to its provider.
    """
    data = event.get("data")
    if not isinstance(data, Mapping):
        return dict(event)
    hidden = {name: _masked(str(data[name])) for name in ("account_id", "secu_account") if data.get(name)}
    return {**event, "data": {**data, **hidden}}


def _masked(account: str) -> str:
    return f"******{account[-_SHOWN_DIGITS:]}" if len(account) > _SHOWN_DIGITS else "******"


def book(record: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """Return the order book in a tick or a depth: `asks` and `bids`, the best level first, no empty ones."""
    shown = {"time": record.get("time"), "last_price": record.get("lastPrice", record.get("price"))}
    for side in ("ask", "bid"):
        prices = record.get(f"{side}Price") or ()
        volumes = record.get(f"{side}Vol") or record.get(f"{side}Volume") or ()
        rows = zip(range(1, levels + 1), prices, volumes, strict=False)
        shown[f"{side}s"] = [
            {"level": level, "price": price, "volume": volume} for level, price, volume in rows if price
        ]
    return shown


def fitting(entries: Sequence[Any], *, newest: bool = True) -> list[Any]:
    """Return as many entries as fit into an answer, the newest (last) ones or the oldest."""
    left = MOST_BYTES - _REST_BYTES
    kept = []
    for entry in reversed(entries) if newest else entries:
        left -= len(orjson.dumps(entry)) + 1
        if left < 0:
            break
        kept.append(entry)
    return kept[::-1] if newest else kept


def as_text(answer: Mapping[str, Any], hint: str) -> str:
    """Return an answer as JSON; raise `BadRequest` with the hint if it has too many bytes."""
    found = orjson.dumps(answer)
    if len(found) > MOST_BYTES:
        raise BadRequest("bad_request", f"the answer would have {len(found)} bytes of {MOST_BYTES}; {hint}")
    return found.decode()


def chosen(record: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the fields `names` that a record has."""
    return {name: record[name] for name in names if name in record}
