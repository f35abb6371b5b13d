"""Every frame that a gateway sends, by its URL: shapes for documents and tests (docs/websocket.md). Pure.

The gateway itself writes plain objects. `/asyncapi.json` has the schemas of these classes, and the client of the tests
refuses a frame that none of them fits, so the documents cannot differ from what is sent. A field that is absent is
UNSET here; one that may be null says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire.messages import TradeState, TradeType

# What a client has sent in `id`.
Id = int | float | str | UnsetType
# A code has a dot, which no name of a field has: a data frame is never taken for another one.
Code = Annotated[str, Meta(pattern=r"\.", description="A code such as 600519.SH.")]
Ms = Annotated[int | float, Meta(description="Milliseconds since 1970 (UTC).")]
Record = Annotated[
    dict[str, Any], Meta(description="The fields of the source, as it gave them; Tick, Bar and others list the known.")
]


class _Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


# Data. A source may add fields to what it sends.

Quotes = Annotated[dict[Code, list[Record]], Meta(description="Records of one code.")]
Market = Annotated[dict[Code, Record], Meta(description="The newest tick of each code that has changed.")]


class StampedQuotes(_Frame, frozen=True, kw_only=True):
    """Records with the position and the times of their message, for a subscription with the option `seq`."""

    type: Literal["data"]
    epoch: int
    seq: int
    time: Ms | None
    published: Ms | None
    market: str | UnsetType = UNSET
    data: Quotes


class StampedMarket(_Frame, frozen=True, kw_only=True):
    """The same of whole markets."""

    type: Literal["data"]
    epoch: int
    seq: int
    time: Ms | None
    published: Ms | None
    data: Market


class FormulaUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A value of a formula."""

    type: Literal["formula_update"]
    seq_id: int
    formula_name: str
    stock_code: str
    data: dict[str, Any]


class StampedFormula(_Frame, frozen=True, kw_only=True):
    """A value of a formula with its position and times."""

    type: Literal["data"]
    epoch: int
    seq: int
    time: Ms | None
    published: Ms | None
    data: FormulaUpdate


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a download is."""

    finished: int | float | None
    total: int | float | None
    stockcode: str | UnsetType | None = UNSET
    message: str | UnsetType | None = UNSET


class DownloadDone(msgspec.Struct, frozen=True, kw_only=True):
    """The download has ended well; close 1000 follows."""

    status: Literal["done"]


class DownloadFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The download has ended with an error; close 1011 follows."""

    status: Literal["error"]
    type: Literal["error"]
    code: ErrorCode
    error: str
    failed: dict[str, str]


class TradeEvent(_Frame, frozen=True, kw_only=True):
    """A callback of xttrader; `seq` counts the events of all accounts."""

    type: TradeType
    seq: int
    data: dict[str, Any]
    journaled: Literal[False] | UnsetType = UNSET


# Answers.


class Rejection(_Frame, frozen=True, kw_only=True):
    """A code that is not served."""

    code: str
    error: ErrorCode
    reason: str


class IgnoredName(_Frame, frozen=True, kw_only=True):
    """A name that means nothing here."""

    field: str
    hint: str


class Side(_Frame, frozen=True, kw_only=True):
    """A message beside what is missing, as far as it is known."""

    epoch: int | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    time: int | UnsetType = UNSET


class Beginning(_Frame, frozen=True, kw_only=True, rename={"begins": "from"}):
    """From when on a code is complete, or why it is not."""

    begins: str | None
    complete: bool
    reason: str | UnsetType = UNSET
    after: Side | UnsetType = UNSET
    before: Side | UnsetType = UNSET
    market: str | UnsetType = UNSET
    source: Literal["history"] | UnsetType = UNSET
    backfill: str | UnsetType = UNSET


class Play(_Frame, frozen=True, kw_only=True, rename={"begins": "from"}):
    """At which pace what is stored comes, from which time of day on, and whether it meets the live stream."""

    speed: float
    begins: str | None
    meets_live: bool


class Subscribed(_Frame, frozen=True, kw_only=True):
    """The ack of a subscription."""

    type: Literal["subscribed"]
    id: Id = UNSET
    added: list[str]
    rejected: list[Rejection]
    rejected_more: int | UnsetType = UNSET
    active: int
    pending: list[str] | UnsetType = UNSET
    recovered: bool | dict[str, bool] | UnsetType = UNSET
    start: dict[str, Beginning] | UnsetType = UNSET
    play: Play | UnsetType = UNSET
    ignored: list[IgnoredName] | UnsetType = UNSET
    unknown_fields: list[IgnoredName] | UnsetType = UNSET
    by_period: dict[str, list[str]] | UnsetType = UNSET
    by_gear_num: dict[str, list[str]] | UnsetType = UNSET


class Unsubscribed(_Frame, frozen=True, kw_only=True):
    """The ack of the end of subscriptions."""

    type: Literal["unsubscribed"]
    id: Id = UNSET
    removed: list[str]
    active: int
    rejected: list[Rejection] | UnsetType = UNSET
    rejected_more: int | UnsetType = UNSET
    ignored: list[IgnoredName] | UnsetType = UNSET
    by_period: dict[str, list[str]] | UnsetType = UNSET
    by_gear_num: dict[str, list[str]] | UnsetType = UNSET


class Subscriptions(_Frame, frozen=True, kw_only=True):
    """What the socket has subscribed: `stocks`, or `codes` on /ws/whole_quote."""

    type: Literal["subscriptions"]
    id: Id = UNSET
    stocks: list[str] | UnsetType = UNSET
    codes: list[str] | UnsetType = UNSET
    ignored: list[IgnoredName] | UnsetType = UNSET
    by_period: dict[str, list[str]] | UnsetType = UNSET
    by_gear_num: dict[str, list[str]] | UnsetType = UNSET


class FormulaSubscribed(_Frame, frozen=True, kw_only=True):
    """The ack of a formula."""

    action: Literal["subscribed"]
    seq_id: int
    id: Id = UNSET
    recovered: bool | UnsetType = UNSET
    start: Beginning | UnsetType = UNSET
    play: Play | UnsetType = UNSET
    ignored: list[IgnoredName] | UnsetType = UNSET


class FormulaUnsubscribed(_Frame, frozen=True, kw_only=True):
    """The ack of the end of a formula."""

    action: Literal["unsubscribed"]
    seq_id: int
    id: Id = UNSET
    ignored: list[IgnoredName] | UnsetType = UNSET


class SubscribedFormula(_Frame, frozen=True, kw_only=True):
    """A formula of the list: what is not the default is shown."""

    seq_id: int
    formula_name: str
    stock_code: str
    period: str | UnsetType = UNSET
    count: int | UnsetType = UNSET
    dividend_type: str | UnsetType = UNSET
    params: dict[str, int | float | str] | UnsetType = UNSET


class FormulaSubscriptions(_Frame, frozen=True, kw_only=True):
    """The formulas that the socket has subscribed."""

    type: Literal["subscriptions"]
    id: Id = UNSET
    formulas: list[SubscribedFormula]
    ignored: list[IgnoredName] | UnsetType = UNSET


class TradeSubscribed(_Frame, frozen=True, kw_only=True):
    """The ack of /ws/trade: the newest position of the journal, and the one that was asked for."""

    type: Literal["subscribed"]
    id: Id = UNSET
    seq: int
    epoch: int | UnsetType = UNSET
    after: int | UnsetType = UNSET
    start: Beginning | UnsetType = UNSET


class Pong(_Frame, frozen=True, kw_only=True):
    """The answer to `ping`."""

    type: Literal["pong"]
    id: Id = UNSET
    time: int
    ignored: list[IgnoredName] | UnsetType = UNSET


class Authenticated(_Frame, frozen=True, kw_only=True):
    """The answer to `auth`."""

    type: Literal["authenticated"]
    id: Id = UNSET


class Error(_Frame, frozen=True, kw_only=True):
    """Something that was asked for cannot be; `error` is a sentence for a person."""

    type: Literal["error"]
    id: Id = UNSET
    code: ErrorCode
    error: str
    retry: bool
    count: int | UnsetType = UNSET
    symbol: str | UnsetType = UNSET
    symbols: list[str] | UnsetType = UNSET
    period: str | UnsetType = UNSET
    gear_num: str | UnsetType = UNSET
    field: str | UnsetType = UNSET
    seq_id: int | UnsetType = UNSET
    formula_name: str | UnsetType = UNSET
    stock_code: str | UnsetType = UNSET
    oldest: int | UnsetType = UNSET
    newest: int | UnsetType = UNSET
    epoch: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    after: Side | UnsetType = UNSET
    before: Side | UnsetType = UNSET
    backfill: str | UnsetType = UNSET
    status: Literal["error"] | UnsetType = UNSET


# Notices.


class Limits(_Frame, frozen=True, kw_only=True):
    """What a socket may have and send."""

    max_topics: int
    max_rate: int


Feed = Literal["up", "down", "stale", "ended"]


class Welcome(_Frame, frozen=True, kw_only=True):
    """The first frame of a client that opted in when it connected."""

    type: Literal["welcome"]
    server: str
    feed: Feed
    reason: str | None
    epoch: int
    source: str | None
    simulated: bool | None
    trade: TradeState | None
    limits: Limits
    accounts: list[str] | UnsetType = UNSET
    ignored: list[IgnoredName] | UnsetType = UNSET


class FeedNotice(_Frame, frozen=True, kw_only=True):
    """The state of the feed has changed."""

    type: Literal["feed"]
    state: Feed
    reason: str | None
    data_lost: bool
    since: int | UnsetType = UNSET
    source: str | UnsetType = UNSET
    simulated: bool | UnsetType = UNSET
    epoch: int | UnsetType = UNSET


class SnapshotEnd(_Frame, frozen=True, kw_only=True):
    """The snapshot of markets has been sent completely."""

    type: Literal["snapshot_end"]
    codes: list[str]
    count: int


class Skipped(_Frame, frozen=True, kw_only=True):
    """Data was left out: replaced by newer, or lost on the way from the feeder."""

    type: Literal["skipped"]
    count: int
    reason: Literal["slow_client", "feed_gap"]


class Heartbeat(_Frame, frozen=True, kw_only=True):
    """Nothing else was sent for 15 s."""

    type: Literal["heartbeat"]
    time: int


class Closing(_Frame, frozen=True, kw_only=True):
    """The server stops; close 1012 follows."""

    type: Literal["closing"]
    reason: str


class GapNotice(_Frame, frozen=True, kw_only=True):
    """What is missing of a subscription with `start` or `complete`."""

    type: Literal["gap"]
    code: str | UnsetType = UNSET
    period: str | UnsetType = UNSET
    gear_num: str | UnsetType = UNSET
    seq_id: int | UnsetType = UNSET
    reason: str
    after: Side | UnsetType = UNSET
    before: Side | UnsetType = UNSET
    backfill: str | UnsetType = UNSET


class End(_Frame, frozen=True, kw_only=True):
    """All up to `end` was sent."""

    type: Literal["end"]
    id: Id = UNSET
    seq_id: int | UnsetType = UNSET


_ALWAYS = (Welcome, FeedNotice, Authenticated, Pong, Skipped, Heartbeat, Closing, Error)
_CODES = (Subscribed, Unsubscribed, Subscriptions, GapNotice, End)

# The frames of each URL. The documented layer has data, errors, and the answers of a formula.
FRAMES: Mapping[str, tuple[tuple[str, Any], ...]] = {
    path: tuple((each.__name__, each) if isinstance(each, type) else each for each in (*own, *_ALWAYS))
    for path, own in {
        "/ws/realtime": (("Quotes", Quotes), StampedQuotes, *_CODES),
        "/ws/whole_quote": (("Market", Market), StampedMarket, *_CODES, SnapshotEnd),
        "/ws/l2_thousand": (("Quotes", Quotes), StampedQuotes, *_CODES),
        "/ws/download_progress": (Progress, DownloadDone, DownloadFailed),
        "/ws/formula": (
            *(FormulaUpdate, StampedFormula, FormulaSubscribed, FormulaUnsubscribed, FormulaSubscriptions),
            *(GapNotice, End),
        ),
        "/ws/trade": (TradeEvent, TradeSubscribed, End),
    }.items()
}


class UndocumentedFrame(AssertionError):
    """A frame that the documents of its URL do not have."""


def name_of(path: str, frame: object) -> str:
    """Return the name of a frame of the URL `path`; raise `UndocumentedFrame` with the reason why none fits."""
    reasons = []
    for name, shape in FRAMES[path]:
        try:
            msgspec.convert(frame, shape)
        except msgspec.ValidationError as exc:
            reasons.append(f"{name}: {exc}")
        else:
            return name
    raise UndocumentedFrame(f"{path} has no such frame: {str(frame)[:400]}\n" + "\n".join(reasons))
