"""The tools: what each takes, what it answers, and what an AI application reads about it. None changes anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from qmt_bridge.errors import BadRequest
from qmt_bridge.mcp.answers import about, as_text, book, chosen, dated, fitting, masked
from qmt_bridge.mcp.bars import LENGTHS, bars_of
from qmt_bridge.mcp.gateway import Failure, Gateway

CODES, FIELDS, LEVELS, BARS, EVENTS = 50, 50, 100, 1000, 200
# Levels of a side that a tick has; more are level-2 data.
_OF_TICKS = 5
_EVENTS_OF_STATE = 20

Code = Annotated[
    str,
    Meta(description="A code with its market, such as 600519.SH, 000001.SZ, 430047.BJ.", min_length=1, max_length=40),
]
BarPeriod = Literal["1m", "5m", "15m", "30m", "60m", "1h", "1d", "1w", "1mon", "1q", "1hy", "1y"]
_MOMENT = (
    'A time: of day in Shanghai ("09:30:00", of the day of the newest record), ISO 8601 (without an offset of '
    "Shanghai), or milliseconds since 1970."
)


class LastValues(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of last_values."""

    codes: Annotated[list[Code], Meta(description="At most 50 codes.", min_length=1, max_length=CODES)]
    fields: Annotated[
        list[Annotated[str, Meta(max_length=64)]],
        Meta(description="Only these fields, such as lastPrice and volume; empty is all.", max_length=FIELDS),
    ] = []


class Bars(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of bars."""

    code: Code
    period: Annotated[BarPeriod, Meta(description="The length of a bar.")] = "1m"
    start: Annotated[str | int | None, Meta(description=f"{_MOMENT} Without it the day from its begin.")] = None
    end: Annotated[str | int | None, Meta(description=f"{_MOMENT} Without it up to now.")] = None
    limit: Annotated[int, Meta(description="At most so many bars, the newest.", ge=1, le=BARS)] = 240


class Book(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of book."""

    code: Code
    levels: Annotated[int, Meta(description="Levels of a side, the best ones.", ge=1, le=LEVELS)] = _OF_TICKS


class AccountEvents(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of account_events."""

    limit: Annotated[int, Meta(description="At most so many events.", ge=1, le=EVENTS)] = 50
    since: Annotated[
        str | int | None,
        Meta(description=f"{_MOMENT} The newest events since then are given; without it those of the newest day."),
    ] = None
    after: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="Instead of since: the seq of an event; the events that followed it, the oldest first."),
    ] = None
    types: Annotated[
        list[Annotated[str, Meta(max_length=64)]],
        Meta(
            description="Only events of these types: order, trade (a fill), order_error, cancel_error, position, "
            "asset, account_status and others; empty is all.",
            max_length=20,
        ),
    ] = []


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of a tool that takes none."""


async def last_values(gateway: Gateway, asked: LastValues) -> str:
    """Answer with the newest tick of each code."""
    told = about(await gateway.state())
    # A record without its time would not say how old it is.
    fields = [*asked.fields, "time"] if asked.fields else []
    found = await gateway.last(asked.codes, fields=fields)
    answer = {"records": dated(found["records"]), "missing": found["missing"]}
    return as_text(told | answer, "name fewer codes, or the fields that are needed")


async def bars(gateway: Gateway, asked: Bars) -> str:
    """Answer with the bars of a code that the store has, and with bars of its ticks where it has none."""
    told = about(await gateway.state())
    records, last = await gateway.stored(asked.code, asked.period, asked.start, asked.end)
    names = ("time", "open", "high", "low", "close", "volume", "amount")
    found = {record["time"]: chosen(record, names) for record in records}
    missing: Any = last["missing"]
    if missing and asked.period in LENGTHS:
        start = "00:00" if asked.start is None else asked.start
        ticks, missing = await gateway.ticks(asked.code, start, asked.end, ["time", "lastPrice", "volume", "amount"])
        for bar in bars_of(ticks, asked.period):
            found.setdefault(bar["time"], {**bar, "computed": True})
    entries = [dated(found[time]) for time in sorted(found)]
    kept = fitting(entries[-asked.limit :])
    answer = {
        "code": asked.code,
        "period": asked.period,
        "bars": kept,
        "left_out": len(entries) - len(kept),
        "missing": dated(_shown(missing)),
    }
    return as_text(told | answer, "ask for fewer bars")


async def order_book(gateway: Gateway, asked: Book) -> str:
    """Answer with the order book of a code: of its tick, or of level-2 depth for more levels than that has."""
    told = about(await gateway.state())
    gear_num = asked.levels if asked.levels > _OF_TICKS else None
    found = await gateway.last([asked.code], gear_num=gear_num)
    record = found["records"].get(asked.code)
    if record is None:
        reason = found["missing"].get(asked.code) or {}
        raise Failure(f"{asked.code} has no order book: {reason.get('reason') or reason.get('code') or 'no record'}")
    answer = {"code": asked.code, "level_2": gear_num is not None, **dated(book(record, asked.levels))}
    return as_text(told | answer, "ask for fewer levels")


async def account_events(gateway: Gateway, asked: AccountEvents) -> str:
    """Answer with events of the accounts that the key may see."""
    if asked.after is not None and asked.since is not None:
        raise BadRequest("bad_request", "since and after both say where to begin; choose one")
    told = about(await gateway.state())
    start = ("00:00" if asked.since is None else asked.since) if asked.after is None else None
    events, left_out, missing = await gateway.events(asked.limit, frozenset(asked.types), start, asked.after)
    entries = [dated(masked(event)) for event in events]
    kept = fitting(entries, newest=asked.after is None)
    answer = {
        "events": kept,
        "left_out": left_out + len(entries) - len(kept),
        "next_after": kept[-1]["seq"] if kept else asked.after,
        "missing": dated(_shown(missing)),
    }
    return as_text(told | answer, "ask for fewer events")


async def state(gateway: Gateway, _: Nothing) -> str:
    """Answer with what the service does now."""
    found = await gateway.page("/api/state")
    names = (
        "time",
        "version",
        "reason",
        "since",
        "trade",
        "markets",
        "accounts",
        "store",
        "alerts",
        "totals",
        "complete",
    )
    # Those of clients name addresses, and what an AI application reads goes to its provider.
    events = [event for event in found.get("events", ()) if event["kind"] != "client"][:_EVENTS_OF_STATE]
    happened = {"events": events} if "events" in found else {}
    return as_text(about(found) | dated(chosen(found, names) | happened), "ask the gateway for /api/state")


async def capabilities(gateway: Gateway, _: Nothing) -> str:
    """Answer with what source, SDK and accounts can serve."""
    found = await gateway.page("/api/capabilities")
    return as_text(about(found) | dated(found), "ask the gateway for /api/capabilities")


def _shown(holes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what is missing without the positions, which no tool takes."""
    return [chosen(hole, ("reason", "from", "from_ms", "until_ms", "backfill")) for hole in holes]


class Tool(msgspec.Struct, frozen=True):
    """A tool: its name, what people and models are told of it, what it takes and what it does."""

    name: str
    title: str
    description: str
    takes: type[msgspec.Struct]
    run: Callable[[Gateway, Any], Awaitable[str]]

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the arguments."""
        (_,), components = msgspec.json.schema_components([self.takes])
        # What a model reads is the tool's description.
        return {name: value for name, value in components[self.takes.__name__].items() if name != "description"}


_ABOUT = (
    " Every answer begins with source, simulated and, where it matters, a notice, which has to be told to the reader."
    " Times are milliseconds since 1970, with the same time in Shanghai beside them."
)
TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "last_values",
            "Last values",
            "The newest tick of each code (Chinese A-shares, funds, indices): prices in CNY (yuan), volume in lots "
            "(手, of 100 shares for a stock) and amount in CNY since the open, pvolume in shares, five levels of the "
            "order book with volumes in lots. missing says why a code has no record." + _ABOUT,
            LastValues,
            last_values,
        ),
        Tool(
            "bars",
            "Bars of the day",
            "The bars of a code today, or since a time that the store of the service still has (some days): open, "
            "high, low and close in CNY, volume in lots (手), amount in CNY; time is the end of a bar, of a daily one "
            "its day. The newest bar may not be complete yet. A bar with computed: true was made of stored ticks. "
            "missing says what the store does not have; left_out counts older bars that were not given. It is no "
            "history of past years." + _ABOUT,
            Bars,
            bars,
        ),
        Tool(
            "book",
            "Order book",
            "The order book of a code now, the best level first: prices in CNY, volumes in lots (手). Up to five "
            "levels come from its tick; more are level-2 data, which the source and the key have to have." + _ABOUT,
            Book,
            order_book,
        ),
        Tool(
            "account_events",
            "Events of the account",
            "What happened to orders, fills, positions and money of the accounts that the key may see, as xttrader "
            "reports it: volumes in shares, prices and amounts in CNY, order_time and traded_time in seconds since "
            "1970, order_type 23 buys and 24 sells, order_status 50 is reported, 54 cancelled, 55 filled in part, 56 "
            "filled, 57 rejected. Needs an API key with the scope trade. Account numbers are masked. Nothing can be "
            "ordered or cancelled. left_out counts events that were not given; next_after goes on behind the last "
            "one." + _ABOUT,
            AccountEvents,
            account_events,
        ),
        Tool(
            "state",
            "State of the service",
            "What the service does now: source, whether the data is simulated, state of the feed (up, stale, down, "
            "...) and of the trade events, seconds since each market's newest tick, store, alerts and what has "
            "happened lately." + _ABOUT,
            Nothing,
            state,
        ),
        Tool(
            "capabilities",
            "Capabilities",
            "What the source, the installed SDK and the accounts can serve: kinds of data, periods, limits, and what "
            "is lacking." + _ABOUT,
            Nothing,
            capabilities,
        ),
    )
}
