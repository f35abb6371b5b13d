"""Every topic name: build it, parse it, and the one table of how each kind of topic behaves.

Pure. Feeder, hub, outbox and key check all read ``KINDS``; none of them asks what kind a topic is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, NamedTuple, NewType
from urllib.parse import quote, unquote

import msgspec

from qmt_bridge.errors import BadRequest, WireError
from qmt_bridge.wire.codes import check_code, check_market_or_code
from qmt_bridge.wire.hints import did_you_mean

Topic = NewType("Topic", str)
# ASCII digits only, and few enough for int() whatever Python's limit is.
_GEAR_NUM = re.compile(r"[0-9]{1,4}")

# Bars, in xtquant's names (doc/xtdata.md, 127-181).
BAR_PERIODS = ("1m", "5m", "15m", "30m", "60m", "1h", "1d", "1w", "1mon", "1q", "1hy", "1y")
LEVEL2_PERIODS = (
    "l2quote",
    "l2order",
    "l2transaction",
    "l2quoteaux",
    "l2orderqueue",
    "l2transactioncount",
)
# Only the research edition of the terminal serves these; they pass as they are.
RESEARCH_PERIODS = (
    "warehousereceipt futureholderrank interactiveqa transactioncount1m transactioncount1d delistchangebond "
    "replacechangebond specialtreatment northfinancechange1m northfinancechange1d dividendplaninfo "
    "historycontract optionhistorycontract historymaincontract stoppricedata snapshotindex stocklistchange "
    "limitupperformance announcement hktstatistics hktdetails riskfreerate etfstatistics etfstatisticsl2 "
    "etfredemptionlist brokerqueue brokerqueue2 brokerinfo etfiopv etfiopv1m etfiopv1d hfetfstatistics hfiopv "
    "l2thousandqueue fullspeedorderbook hftransactioncount"
).split()
PERIODS = frozenset(("tick", *BAR_PERIODS, *LEVEL2_PERIODS, *RESEARCH_PERIODS))
# A formula's request is its topic, which every ZeroMQ socket on the way keeps.
FORMULA_CHARACTERS = 4096
# The longest topic in bytes, a formula's percent-encoded: 4,096 letters, or some 850 Chinese characters. libzmq keeps a
# node of some 40 bytes for each byte of a subscription at either end, and deletes them by recursion, for which a
# thread's stack of 1 MiB (Windows) has to be deep enough.
TOPIC_BYTES = 8192
# The deepest book that there is has a thousand levels a side.
MAX_GEAR_NUM = 1000
# Integers of 64 bits are what every encoding on the way, and xtquant, take.
_MAX_NUMBER = 2**63
DIVIDEND_TYPES = ("none", "front", "back", "front_ratio", "back_ratio")


class Kind(StrEnum):
    """The first word of a topic."""

    QUOTE = "quote"
    WHOLE = "whole"
    L2 = "l2"
    FORMULA = "formula"
    DOWNLOAD = "download"
    TRADE = "trade"
    STATUS = "status"


# Which records of one topic are versions of one thing, so that a newer one may replace an older one that was not sent:
# topic   whatever the topic says: only its newest message counts (progress, heartbeat);
# code    the records of one code: each describes the whole state (tick, depth);
# bar     the records of one code with the same `time`: the bar that began next is another thing;
# values  a formula's values of the same bars (`timelist`) and the same outputs;
# none    nothing: each record is an event of its own (order, trade print, document).
Versions = Literal["topic", "code", "bar", "values", "none"]


class Behaviour(NamedTuple):
    """How a kind of topic is kept, repaired, conflated and protected."""

    socket: Literal["market", "trade"]
    # What the feeder can answer a CatchUp with.
    keeps: Literal["last", "by_code", "journal"]
    # Does a subscription make the feeder subscribe at its source?
    on_demand: bool
    # What a gateway does when a sequence number is missing. A quote that has just arrived is newer than
    # anything a snapshot could bring; a market batch is not, and a trade event may not be lost at all.
    on_gap: Literal["count", "snapshot", "replay"]
    # What may be left out for a slow client, and for one that asked for few frames (docs/websocket.md, "Slow clients").
    versions: Versions
    # Never without a key, whatever the settings say.
    needs_key: bool


# A quote's versions depend on its period as well (`VERSIONS`); the row of the kind is for periods that are not there.
KINDS: Mapping[Kind, Behaviour] = {
    Kind.QUOTE: Behaviour("market", "last", True, "count", "none", False),
    Kind.WHOLE: Behaviour("market", "by_code", True, "snapshot", "code", False),
    Kind.L2: Behaviour("market", "last", True, "count", "code", False),
    Kind.FORMULA: Behaviour("market", "last", True, "count", "values", False),
    Kind.DOWNLOAD: Behaviour("market", "last", False, "snapshot", "topic", False),
    Kind.TRADE: Behaviour("trade", "journal", False, "replay", "none", True),
    Kind.STATUS: Behaviour("market", "last", False, "count", "topic", False),
}

# Only periods each of whose records is known to replace the one before (doc/xtdata.md, 1197-1440). Not among them:
# l2order and l2transaction are events; l2transactioncount counts what was added since the record before; of
# l2orderqueue the exchange sends buyers and sellers in records of their own; announcements and the other periods of the
# research edition are documents. What is not known is never left out.
VERSIONS: Mapping[str, Versions] = {
    "tick": "code",
    "l2quote": "code",
    "l2quoteaux": "code",
    "fullspeedorderbook": "code",
    **dict.fromkeys(BAR_PERIODS, "bar"),
}

_BY_NAME = {str(kind): behaviour for kind, behaviour in KINDS.items()}
_BY_PERIOD = {period: KINDS[Kind.QUOTE]._replace(versions=versions) for period, versions in VERSIONS.items()}
# The same, keyed by the text after the code in a topic.
_BY_ENDING = {f"{period}/": behaviour for period, behaviour in _BY_PERIOD.items()}


def behaviour_of(topic: str) -> Behaviour:
    """Return how `topic`, or a prefix with its first word, behaves; raise KeyError for an unknown one.

    A worker asks it for each of ten thousand topics; to make a `Kind` of the word would take five times as long.
    """
    head, _, rest = topic.partition("/")
    behaviour = _BY_NAME[head]
    return _BY_ENDING.get(rest.partition("/")[2], behaviour) if head == "quote" else behaviour


STATUS_TOPIC = Topic("status/feeder/")
# A store answers about itself; nothing is published there.
STORE_TOPIC = Topic("status/store/")
# The only prefix that a gateway listens to: the journal numbers the events of all accounts in one row.
ALL_TRADES = Topic("trade/")


class TopicParts(NamedTuple):
    """A parsed topic: ``quote/600519.SH/tick/`` is ``(Kind.QUOTE, "600519.SH", "tick")``."""

    kind: Kind
    # Code, market, canonical formula request (decoded), job or account.
    name: str
    # Period of a quote, gear_num of a depth; else empty.
    detail: str

    @property
    def behaviour(self) -> Behaviour:
        """Return how the topic behaves, as `behaviour_of` does for its name."""
        behaviour = KINDS[self.kind]
        return _BY_PERIOD.get(self.detail, behaviour) if self.kind is Kind.QUOTE else behaviour


class FormulaSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One formula subscription as xtdata.subscribe_formula takes it; equal ones share a topic.

    `count` is the number of bars to calculate over, -1 for all; `params` are the formula's own parameters,
    without the ``MODEL:`` that xtquant expects before each name.
    """

    formula_name: str
    stock_code: str
    period: str = "1d"
    count: int = -1
    dividend_type: str = "none"
    params: dict[str, int | float | str] = {}


def check_period(text: str) -> str:
    """Return `text` if xtquant knows such a period, else raise `BadRequest` (unsupported_period)."""
    if text not in PERIODS:
        known = ", ".join(("tick", *BAR_PERIODS, *LEVEL2_PERIODS))
        hint = did_you_mean(text, PERIODS)
        told = f"unknown period {text[:40]!r}; {hint}{'; ' if hint else ''}expected one of {known}"
        raise BadRequest("unsupported_period", f"{told}, or one of the research edition")
    return text


def quote_topic(code: str, period: str = "tick") -> Topic:
    """Return the topic of one instrument's quotes: ``{"<code>": [record]}``, as subscribe_quote pushes."""
    return Topic(f"quote/{check_code(code)}/{check_period(period)}/")


def whole_topic(market_or_code: str) -> Topic:
    """Return the whole-quote topic of a market (``SH``) or a single code: ``{"<code>": tick, ...}``."""
    return Topic(f"whole/{check_market_or_code(market_or_code)}/")


def l2_topic(code: str, gear_num: int = 0) -> Topic:
    """Return the thousand-level depth topic: ``{"<code>": [depth]}``; `gear_num` levels, 0 = every one."""
    if gear_num < 0:
        raise BadRequest("bad_request", f"gear_num must not be negative, got {gear_num}")
    if gear_num > MAX_GEAR_NUM:
        # Of any length: Python refuses to write a number of more than 4,300 digits.
        raise BadRequest("bad_request", f"gear_num must be at most {MAX_GEAR_NUM}, or 0 for every level")
    return Topic(f"l2/{check_code(code)}/{gear_num}/")


def formula_topic(spec: FormulaSpec) -> Topic:
    """Return the topic of a formula's values; the name is the canonical request, percent-encoded."""
    check_code(spec.stock_code)
    check_period(spec.period)
    if not spec.formula_name:
        raise BadRequest("bad_request", "formula_name must not be empty")
    if spec.dividend_type not in DIVIDEND_TYPES:
        known = ", ".join(DIVIDEND_TYPES)
        raise BadRequest("bad_request", f"unknown dividend_type {spec.dividend_type[:40]!r}; expected one of {known}")
    numbers = [number for number in (spec.count, *spec.params.values()) if isinstance(number, int)]
    if not all(-_MAX_NUMBER <= number < _MAX_NUMBER for number in numbers):
        raise BadRequest("bad_request", "a number of a formula's request has more than 64 bits")
    for name, value in spec.params.items():
        # Python has these numbers, but JSON, in which the topic is written, does not.
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRequest(
                "bad_request", f"parameter {name[:40]!r} of a formula must be a finite number, not {value}"
            )
    try:
        canonical = msgspec.json.encode(spec, order="deterministic").decode()
    except (OverflowError, TypeError, ValueError, RecursionError) as exc:
        # Half of a surrogate pair, or something that has no JSON form.
        raise BadRequest("bad_request", f"a formula's request cannot be written as JSON: {exc}") from None
    if len(canonical) > FORMULA_CHARACTERS:
        raise BadRequest("bad_request", f"a formula's request is at most {FORMULA_CHARACTERS} characters")
    topic = Topic(f"formula/{quote(canonical, safe='')}/")
    if len(topic) > TOPIC_BYTES:
        raise BadRequest("bad_request", f"a formula's request is a topic of at most {TOPIC_BYTES} bytes")
    return topic


def download_topic(job: str) -> Topic:
    """Return the topic of a download job's progress."""
    return Topic(f"download/{quote(job, safe='')}/")


def trade_topic(account: str) -> Topic:
    """Return the topic of one account's trade events, whose `seq` counts them; that of a body counts all accounts."""
    return Topic(f"trade/{quote(account, safe='')}/")


def mask(account: str) -> str:
    """Return an account number as a log or a heartbeat may show it: its last four characters, of four none."""
    shown = account[-4:] if len(account) > 4 else ""
    return "*" * (len(account) - len(shown)) + shown


def shown_topic(topic: str) -> str:
    """Return a topic, or what was meant as one, as a log may show it: cut, and an account's number masked."""
    head, slash, rest = topic.partition("/")
    if head == Kind.TRADE and rest:
        account, end, more = rest.partition("/")
        topic = f"{head}{slash}{mask(account)}{end}{more}"
    return topic[:80]


def parse_topic(text: str) -> TopicParts:
    """Parse a whole topic; raise `WireError` for anything else, prefixes such as ``quote/`` included.

    A topic has one spelling: what would be built otherwise from its parts is no topic. Whether its code and period can
    exist is asked by `parse_demand`.
    """
    parts = _split(text)
    try:
        _check_spelling(text, parts)
    except _SpellingError as exc:
        raise WireError(exc.reason) from None
    except BadRequest:
        pass
    return parts


def parse_demand(text: str) -> TopicParts | None:
    """Return what a ZeroMQ subscription asks of a source, or None if it only listens.

    A prefix, an unknown topic and the kinds that need no demand return None; a topic whose code or period
    cannot exist, that has another spelling or is too long, raises `BadRequest`, so that a source never sees it.
    """
    if len(text) > TOPIC_BYTES or not text.isascii():
        raise BadRequest("bad_request", f"a topic is at most {TOPIC_BYTES} characters of ASCII, not {text[:80]!r}")
    try:
        parts = _split(text)
    except WireError:
        return None
    _check_spelling(text, parts)
    return parts if KINDS[parts.kind].on_demand else None


def formula_spec(parts: TopicParts) -> FormulaSpec:
    """Return the request that a formula topic names; raise `BadRequest` if it is not one."""
    try:
        spec = msgspec.json.decode(parts.name, type=FormulaSpec)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise BadRequest("bad_request", f"bad formula topic {parts.name[:200]!r}: {exc}") from None
    # Two spellings of one request would be two subscriptions upstream.
    if formula_topic(spec) != f"formula/{quote(parts.name, safe='')}/":
        raise BadRequest("bad_request", f"formula topic is not in canonical form: {parts.name[:200]!r}")
    return spec


class _SpellingError(BadRequest):
    """A topic is spelled otherwise than it would be built."""


def _split(text: str) -> TopicParts:
    if len(text) > TOPIC_BYTES or not text.isascii():
        raise WireError(f"a topic is at most {TOPIC_BYTES} characters of ASCII, not {text[:80]!r}")
    head, *rest = text.split("/", 4)
    try:
        kind = Kind(head)
    except ValueError:
        raise WireError(f"unknown topic {text[:80]!r}") from None
    detailed = kind in (Kind.QUOTE, Kind.L2)
    if len(rest) != (3 if detailed else 2) or rest[-1] or not all(rest[:-1]):
        raise WireError(f"not a whole topic: {text[:80]!r}")
    return TopicParts(kind, unquote(rest[0]), rest[1] if detailed else "")


def _check_spelling(text: str, parts: TopicParts) -> None:
    """Build the topic again from its parts and compare.

    Two spellings of one topic would be two subscriptions at the source, where one takes the other's data.
    """
    built = _build(parts)
    if built != text:
        raise _SpellingError("bad_request", f"topic {shown_topic(text)!r} is spelled {shown_topic(built)!r}")


def _build(parts: TopicParts) -> Topic:
    match parts.kind:
        case Kind.QUOTE:
            return quote_topic(parts.name, parts.detail)
        case Kind.WHOLE:
            return whole_topic(parts.name)
        case Kind.L2:
            if not _GEAR_NUM.fullmatch(parts.detail):
                raise BadRequest("bad_request", f"gear_num must be 0 to {MAX_GEAR_NUM}, got {parts.detail[:20]!r}")
            return l2_topic(parts.name, int(parts.detail))
        case Kind.FORMULA:
            return formula_topic(formula_spec(parts))
        case Kind.DOWNLOAD:
            return download_topic(parts.name)
        case Kind.TRADE:
            return trade_topic(parts.name)
        case Kind.STATUS:
            return Topic(f"status/{quote(parts.name, safe='')}/")
