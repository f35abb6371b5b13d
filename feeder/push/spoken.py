"""Topics as pushers spell them, an object of JSON, to and from topics of the wire. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from feeder.push.message import BadLine
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.topics import (
    FormulaSpec,
    Kind,
    Topic,
    TopicParts,
    download_topic,
    formula_spec,
    formula_topic,
    l2_topic,
    parse_topic,
    quote_topic,
    trade_topic,
    whole_topic,
)

# The kinds of topics that a pusher may serve.
SERVED = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA, Kind.DOWNLOAD, Kind.TRADE))
# Those whose codes have a market.
OF_MARKETS = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA))


class _Quote(msgspec.Struct, tag_field="kind", tag="quote"):
    code: str
    period: str = "tick"


class _Whole(msgspec.Struct, tag_field="kind", tag="whole"):
    code: str


class _L2(msgspec.Struct, tag_field="kind", tag="l2"):
    code: str
    gear_num: int = 0


class _Formula(msgspec.Struct, tag_field="kind", tag="formula"):
    formula_name: str
    stock_code: str
    period: str = "1d"
    count: int = -1
    dividend_type: str = "none"
    params: dict[str, int | float | str] = {}


class _Download(msgspec.Struct, tag_field="kind", tag="download"):
    job: str


class _Trade(msgspec.Struct, tag_field="kind", tag="trade"):
    account: str


_Spoken = _Quote | _Whole | _L2 | _Formula | _Download | _Trade
_decoder: msgspec.json.Decoder[_Spoken] = msgspec.json.Decoder(_Spoken)


def read_topic(spelled: bytes | msgspec.Raw) -> tuple[Topic, TopicParts]:
    """Return the topic that an object names; raise `BadLine`."""
    if not memoryview(spelled):
        raise BadLine("bad_request", "a topic is missing")
    try:
        topic = _topic(_decoder.decode(spelled))
        return topic, parse_topic(topic)
    except BadRequest as exc:
        raise BadLine("bad_request", f"topic: {exc.reason[:300]}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError) as exc:
        raise BadLine("bad_request", f"topic: {exc}") from None


def spell(parts: TopicParts) -> dict[str, Any]:
    """Return the object that names a topic."""
    match parts.kind:
        case Kind.QUOTE:
            return {"kind": "quote", "code": parts.name, "period": parts.detail}
        case Kind.L2:
            return {"kind": "l2", "code": parts.name, "gear_num": int(parts.detail)}
        case Kind.FORMULA:
            return {"kind": "formula", **msgspec.to_builtins(formula_spec(parts))}
        case Kind.DOWNLOAD:
            return {"kind": "download", "job": parts.name}
        case Kind.TRADE:
            return {"kind": "trade", "account": parts.name}
        case _:
            return {"kind": str(parts.kind), "code": parts.name}


def market_of(parts: TopicParts) -> str:
    """Return the market of a topic, such as ``SH``; empty for a kind without one."""
    if parts.kind not in OF_MARKETS:
        return ""
    code = formula_spec(parts).stock_code if parts.kind is Kind.FORMULA else parts.name
    return code.rpartition(".")[2]


def _topic(spoken: _Spoken) -> Topic:
    match spoken:
        case _Quote():
            return quote_topic(spoken.code, spoken.period)
        case _Whole():
            return whole_topic(spoken.code)
        case _L2():
            return l2_topic(spoken.code, spoken.gear_num)
        case _Download():
            return download_topic(spoken.job)
        case _Trade():
            return trade_topic(spoken.account)
        case _Formula():
            return formula_topic(FormulaSpec(**{name: getattr(spoken, name) for name in spoken.__struct_fields__}))
