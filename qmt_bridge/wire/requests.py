"""What may be asked: by a WebSocket client of the gateway, and by the gateway of the feeder.

Pure. Source: docs/websocket.md ("The documented layer", "Opting in"), docs/wire.md ("catch_up", "start_download").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import orjson

from qmt_bridge.errors import BadRequest, ErrorCode, WireError
from qmt_bridge.wire.frames import read
from qmt_bridge.wire.hints import NAME_CHARACTERS, Ignored, did_you_mean
from qmt_bridge.wire.history import Hole
from qmt_bridge.wire.parts.report import Report
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.survey import Attend, Finding, Found, Question, Roll, Survey

# A request larger than this is closed with 1009.
REQUEST_BYTES = 64 * 1024
# The longest `id` that is repeated in answers.
ID_CHARACTERS = 256
# Objects and arrays within each other. The deepest request, positions by code, has three. Python raises
# RecursionError when it formats about a thousand.
REQUEST_DEPTH = 16
# At most so many unknown names are reported for one request or one socket.
IGNORED_NAMES = 20


# Names of fields of a record.
FieldNames = Annotated[list[Annotated[str, msgspec.Meta(max_length=100)]], msgspec.Meta(max_length=200)]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a subscription is served (docs/websocket.md, "Options of a subscription"); an unset option costs nothing."""

    # The last value first.
    snapshot: bool = True
    # One frame of a code in that many milliseconds: the newest version of each thing (topics.Versions), so the newest
    # tick but the newest state of each bar and every print; 0: every frame.
    max_rate_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)] = 0
    # "all" never conflates: a client that does not keep up is closed with 1013.
    mode: Literal["latest", "all"] = "latest"
    # The names of the fields to send of each record; empty: all.
    fields: FieldNames = []
    # Frames with their position and times.
    seq: bool = False
    # A `Position`, or one by code.
    resume: dict[str, Any] = {}
    # What the store of the day has from then on (`wire.moments`), or after a `Position`, or after one by code.
    start: int | str | dict[str, Any] | None = None
    # Up to then, and nothing live.
    end: int | str | None = None
    # What is stored as so many times the pace of its own times (`wire.playback`); 0: as fast as it is read.
    speed: float = 0
    # Nothing is left out: what is lost on the way from the feeder is read from the store, or told as a gap.
    complete: bool = False


class QuoteRequest(Options, frozen=True):
    """`/ws/realtime`: quotes of single instruments."""

    stocks: list[object]
    period: str = "tick"


class WholeRequest(Options, frozen=True):
    """`/ws/whole_quote`: whole markets, single codes, or both."""

    codes: list[object]


class L2Request(Options, frozen=True):
    """`/ws/l2_thousand`: depth; `gear_num` levels a side, 0 = every one."""

    stocks: list[object]
    gear_num: int = 0


class DownloadStart(msgspec.Struct, frozen=True):
    """`/ws/download_progress`: download history and watch it."""

    stocks: list[object]
    period: str = "1d"
    start_time: str = ""
    end_time: str = ""


class FormulaRequest(Options, frozen=True):
    """`/ws/formula`: one formula on one instrument."""

    formula_name: str
    stock_code: object
    period: str = "1d"
    count: int = -1
    dividend_type: str = "none"
    params: dict[str, int | float | str] = {}


class Ack(msgspec.Struct, frozen=True):
    """Action ``ack``: the program has processed the data frame with this `seq`, and all that came before it."""

    seq: int


class TradeResume(msgspec.Struct, frozen=True):
    """`/ws/trade`: begin again after a position."""

    resume: JournalPosition


class TradeStart(msgspec.Struct, frozen=True):
    """`/ws/trade`: begin again at a moment (`wire.moments`), or after a position; up to `end`, if there is one."""

    start: int | str | JournalPosition
    end: int | str | None = None


class FormulaUnsubscribe(msgspec.Struct, frozen=True):
    """`/ws/formula`: end the subscription that was answered with `seq_id`."""

    seq_id: int


# Which URL has which fields of its own; options are everywhere but at a download.
_FIELDS: Mapping[str, frozenset[str]] = {
    path: frozenset(shape.__struct_fields__) - frozenset(Options.__struct_fields__)
    for path, shape in (
        ("/ws/realtime", QuoteRequest),
        ("/ws/whole_quote", WholeRequest),
        ("/ws/l2_thousand", L2Request),
        ("/ws/download_progress", DownloadStart),
        ("/ws/formula", FormulaRequest),
    )
}
# What other gateways call the codes.
_NAMES_OF_CODES = frozenset("symbol code stock stock_list stock_code ticker instrument security topic".split())


def parse_request(payload: str | bytes) -> dict[str, Any]:
    """Return the object of a client's frame, text (JSON) or binary (MessagePack); raise `BadRequest` otherwise."""
    try:
        request = orjson.loads(payload) if isinstance(payload, str) else msgspec.msgpack.decode(payload)
    except (orjson.JSONDecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest("bad_json", f"not {'JSON' if isinstance(payload, str) else 'MessagePack'}: {exc}") from None
    if not isinstance(request, dict):
        raise BadRequest("bad_request", f"a request is an object, not {json_type(request)}")
    _check_shape(request)
    return request


def _check_shape(request: dict[Any, Any]) -> None:
    """Raise `BadRequest` for values nested too deep, and for names that are not strings: MessagePack allows them."""
    level: list[Any] = [request]
    for _ in range(REQUEST_DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                for name in each:
                    if not isinstance(name, str):
                        raise BadRequest("bad_request", f"a name is a string, not {json_type(name)}")
            below += [
                item for item in (each.values() if isinstance(each, dict) else each) if isinstance(item, _CONTAINERS)
            ]
        if not below:
            return
        level = below
    raise BadRequest("bad_request", f"a request has at most {REQUEST_DEPTH} objects and arrays within each other")


# A union would take three times as long, and a request may have 30,000 values.
_CONTAINERS = (dict, list)

Request = TypeVar("Request", bound=msgspec.Struct)


def read_request(request: dict[str, Any], shape: type[Request]) -> Request:
    """Return `request` as `shape`; raise `BadRequest` naming the field that is missing or of a wrong type."""
    for name in ("stocks", "codes"):
        if name in shape.__struct_fields__ and (not isinstance(request.get(name), list) or not request[name]):
            raise BadRequest("bad_request", f"{name} must be a non-empty list of codes{_instead(request, shape, name)}")
    for name, values in _choices(shape).items():
        if name in request and request[name] not in values:
            hint = did_you_mean(request[name], values) if isinstance(request[name], str) else ""
            told = f"{name} must be one of {', '.join(values)}, not {shown_word(request[name])}"
            raise BadRequest("bad_request", f"{told}; {hint}" if hint else told)
    try:
        return msgspec.convert(request, shape)
    except msgspec.ValidationError as exc:
        told = str(exc)[:1].lower() + str(exc)[1:]
        missing = told.partition("missing required field `")[2].partition("`")[0]
        raise BadRequest("bad_request", told + (_instead(request, shape, missing) if missing else "")) from None


def ignored_fields(request: Mapping[str, Any], shape: type[msgspec.Struct] | None) -> list[Ignored]:
    """Return what of `request` means nothing where `shape` is asked for (None: where no field is)."""
    known = _known(shape)
    strange = islice((name for name in request if name not in known), IGNORED_NAMES)
    found = [Ignored(name[:NAME_CHARACTERS], _hint(name, shape)) for name in strange]
    for option in ("resume", "start"):
        if option in known and isinstance(request.get(option), dict):
            found += _ignored_in_position(option, request[option])
    return found


def _ignored_in_position(option: str, resume: dict[Any, Any]) -> list[Ignored]:
    """Return the names in a position, or in one by code, that no position has: without its epoch it is another one."""
    by_code = [each for each in resume.values() if isinstance(each, dict)]
    known = (*Position.__struct_fields__, *(("market",) if option == "start" else ()))
    names = dict.fromkeys(name for position in by_code or [resume] for name in position if name not in known)
    return [
        Ignored(f"{option}.{name}"[:NAME_CHARACTERS], did_you_mean(name, known) or f"known here: {', '.join(known)}")
        for name in islice(names, IGNORED_NAMES)
    ]


def ignored_parameters(query: Iterable[tuple[str, str]], known: Iterable[str]) -> list[Ignored]:
    """Return which parameters of a URL mean nothing; their values may be keys and are not shown."""
    known = list(known)
    found: dict[str, str] = {}
    for name, value in query:
        if len(found) == IGNORED_NAMES:
            break
        if name not in known:
            found[name[:NAME_CHARACTERS]] = did_you_mean(name, known) or f"known here: {', '.join(known)}"
        elif name == "ctl" and value not in ("", "0", "1"):
            found["ctl"] = "ctl=1 opts in"
    return [Ignored(name, hint) for name, hint in found.items()]


def _hint(name: str, shape: type[msgspec.Struct] | None) -> str:
    known = [] if shape is None else shape.__struct_fields__
    hint = did_you_mean(name, known)
    elsewhere = [path for path, fields in _FIELDS.items() if name in fields]
    if elsewhere and shape is not None:
        belongs = f"a field of {', '.join(elsewhere)}"
        # Codes have two names, which is the most common mistake of all.
        other = next((each for each in known if {name, each} == {"stocks", "codes"}), "")
        return f"{belongs}; here it is {other}" if other else belongs
    if not hint and name.rstrip("s").lower() in _NAMES_OF_CODES:
        hint = next((f"did you mean {each}" for each in known if each in ("stocks", "codes", "stock_code")), "")
    return hint or (f"known here: {', '.join(known)}" if known else "this action takes no other field than id")


def _instead(request: Mapping[str, Any], shape: type[msgspec.Struct], missing: str) -> str:
    """Return a text about unknown names given in place of the `missing` one, if there are any."""
    if missing in request:
        return ""
    strange = ignored_fields(request, shape)
    return f"; {strange[0].field!r} is not known here: {strange[0].hint}" if strange else ""


@cache
def _known(shape: type[msgspec.Struct] | None) -> frozenset[str]:
    return frozenset(("action", "id", *(() if shape is None else shape.__struct_fields__)))


@cache
def _choices(shape: type[msgspec.Struct]) -> dict[str, tuple[str, ...]]:
    """Return the fields that take one of a few words, with these."""
    hints = get_type_hints(shape)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def request_id(request: Mapping[str, Any]) -> int | float | str | None:
    """Return the client's own number of a request, which its answer repeats; raise `BadRequest` if it cannot be one.

    A number may have a fraction, since all numbers of JavaScript may; one that JSON does not have cannot be repeated.
    """
    given = request.get("id")
    if isinstance(given, str):
        if len(given) > ID_CHARACTERS:
            raise BadRequest("bad_request", f"id has at most {ID_CHARACTERS} characters, not {len(given)}")
        return given
    if given is None or (isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)):
        return given
    raise BadRequest("bad_request", f"id must be a number or a string, not {json_type(given)}")


def json_type(value: object) -> str:
    """Return what a client sent as its type: the value itself may be deep, large or not printable."""
    for kind, name in _TYPES.items():
        if isinstance(value, kind):
            return name
    # MessagePack has more types than JSON.
    return "binary data"


# A boolean is a number too, so it comes first.
_TYPES = {
    dict: "an object",
    list | tuple: "an array",
    str: "a string",
    bool: "a boolean",
    type(None): "null",
    int: "a number",
    float: "a number",
}


def shown_word(value: object) -> str:
    """Return a word that a client sent, or its type if it is no word."""
    return repr(value[:NAME_CHARACTERS]) if isinstance(value, str) else json_type(value)


# The longest question that the feeder's socket takes. Workers and consumers ask about 1,000 topics at a time, some
# 30 KB, and about fewer if their names are long (`parts_of`). The largest takes some 25 ms to decode, whatever is
# in it: 1 MiB would be 100 ms without a tick.
ASK_BYTES = 256 * 1024
# Topics of one question.
MAX_ASK_TOPICS = 10_000
TOPICS_AN_ASK = 1000
# Codes of one download: twice what all stock exchanges of China list.
MAX_DOWNLOAD_STOCKS = 10_000


def parts_of(topics: Sequence[str]) -> Iterator[list[str]]:
    """Yield `topics` in parts, each for a question of its own: at most `TOPICS_AN_ASK`, and half of `ASK_BYTES`."""
    part: list[str] = []
    size = 0
    for topic in topics:
        # With quotes and comma; a topic that is not ASCII, which is refused, takes six bytes a character at most.
        cost = len(topic) + 3 if topic.isascii() else 6 * len(topic) + 3
        if part and (len(part) == TOPICS_AN_ASK or size + cost > ASK_BYTES // 2):
            yield part
            part, size = [], 0
        part.append(topic)
        size += cost
    if part:
        yield part


class CatchUp(msgspec.Struct, frozen=True, tag_field="ask", tag="catch_up"):
    """Ask for the position of topics: last value, or a trade journal `after` a position; one reply a topic or more.

    The feeder sends a journal as fast as the socket takes it. With `room` it sends only the first chunk, of about so
    many bytes; a program that has taken it asks for the next. `after`, `epoch` and `exact` are a `JournalPosition`,
    flat on the wire: see there.

    A store takes the same question about what it has kept (`wire.history`): from `start` on (`wire.moments`), or after
    the position of `epoch` and `after`, up to `end` or, without it, up to the newest record. `code` is for a market: of
    its messages only the records of this code, each as ``{code: [record]}`` at the position of its message. A journal
    takes `start` and `end` too.
    """

    id: int
    topics: Annotated[list[str], msgspec.Meta(max_length=MAX_ASK_TOPICS)]
    after: int | None = None
    room: int = 0
    epoch: int | float | None = None
    exact: bool = False
    start: int | str | None = None
    end: int | str | None = None
    code: str | None = None

    @classmethod
    def after_position(cls, id: int, topics: list[str], position: JournalPosition | None, room: int = 0) -> CatchUp:
        """Return a question about what follows `position` of a journal; None asks where topics are now."""
        if position is None:
            return cls(id, topics, room=room)
        if position.start is not None:
            return cls(id, topics, room=room, start=position.start, end=position.end)
        return cls(id, topics, position.seq, room, position.epoch, position.exact, end=position.end)

    @property
    def position(self) -> JournalPosition | None:
        """Return the position in a journal, None where there is none."""
        if self.after is None and self.start is None:
            return None
        return JournalPosition(self.after or 0, self.epoch, self.exact, self.start, self.end)


class StartDownload(msgspec.Struct, frozen=True, tag_field="ask", tag="start_download"):
    """Ask for a download; equal requests share a job."""

    id: int
    stocks: Annotated[list[str], msgspec.Meta(max_length=MAX_DOWNLOAD_STOCKS)]
    period: str
    start_time: str = ""
    end_time: str = ""


class AskHistory(msgspec.Struct, frozen=True, tag_field="ask", tag="history"):
    """Ask the feeder what its source has of the day so far of a topic that is subscribed (`wire.source_history`)."""

    id: int
    topic: str
    # A time in the day that is meant, in ms since 1970; 0: the newest day of the source.
    day_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0


class TopicState(msgspec.Struct, frozen=True, tag_field="reply", tag="topic_state"):
    """The reply to CatchUp for one topic: position, and the body of the last value.

    The snapshot of a market comes in several replies, a journal in chunks whose body is an array of events;
    all but the last say `more`.
    """

    id: int
    topic: str
    state: Literal["live", "pending", "refused"]
    error: str | None = None
    # The error's code, where `state` is refused.
    code: ErrorCode | None = None
    epoch: int = 0
    seq: int = 0
    body: bytes | None = None
    more: bool = False
    # Where a position has expired: the smallest `after` that would be accepted.
    oldest: int = 0
    # Of a journal: the moments that `start` and `end` mean in ms since 1970 (0: none), when the first event from
    # `start` on came, and what is missing before it.
    start_ms: int = 0
    end_ms: int = 0
    from_ms: int | None = None
    holes: list[Hole] = []


class DownloadStarted(msgspec.Struct, frozen=True, tag_field="reply", tag="download_started"):
    """The reply to StartDownload: the topic to subscribe, or the refusal."""

    id: int
    topic: str | None = None
    code: ErrorCode | None = None
    error: str | None = None


Ask = CatchUp | StartDownload | AskHistory | Attend | Survey | Finding | Report
Surveyed = Question | Roll | Found
Reply = TopicState | DownloadStarted | Surveyed


class _Encoded(msgspec.Struct, frozen=True, tag_field="reply", tag="topic_state"):
    """`TopicState` as it is on the wire: the body is a part of the JSON."""

    id: int
    topic: str
    state: Literal["live", "pending", "refused"]
    error: str | None = None
    code: ErrorCode | None = None
    epoch: int = 0
    seq: int = 0
    body: msgspec.Raw = msgspec.Raw(b"null")
    more: bool = False
    oldest: int = 0


class _EncodedSpan(_Encoded, frozen=True, tag_field="reply", tag="topic_state"):
    """The same with what only answers about a moment have: a gateway asks about thousands of topics without one."""

    start_ms: int = 0
    end_ms: int = 0
    from_ms: int | None = None
    holes: list[Hole] = []


_encoder = msgspec.json.Encoder()
_ask_decoder: msgspec.json.Decoder[Ask] = msgspec.json.Decoder(Ask)
_reply_decoder: msgspec.json.Decoder[_EncodedSpan | DownloadStarted | Surveyed] = msgspec.json.Decoder(
    _EncodedSpan | DownloadStarted | Surveyed
)


def encode_ask(ask: Ask) -> bytes:
    """Return a question as it is sent."""
    return _encoder.encode(ask)


def decode_ask(data: bytes) -> Ask:
    """Return a question that has arrived; raise `WireError` if it is none."""
    ask = read(_ask_decoder, data)
    # JSON has integers of any size, and Python cannot make a float of each.
    numbers = (ask.id, ask.after, ask.room, ask.epoch, ask.start, ask.end) if isinstance(ask, CatchUp) else (ask.id,)
    for number in numbers:
        if isinstance(number, int) and number.bit_length() > 64:
            raise WireError(f"an integer of {number.bit_length()} bits")
    return ask


def encode_reply(reply: Reply) -> bytes:
    """Return a reply as it is sent."""
    if not isinstance(reply, TopicState):
        return _encoder.encode(reply)
    shape = _EncodedSpan if reply.start_ms or reply.end_ms else _Encoded
    return _encoder.encode(shape(**_fields(reply, shape)))


def decode_reply(data: bytes) -> Reply:
    """Return a reply that has arrived; raise `WireError` if it is none."""
    reply = read(_reply_decoder, data)
    if not isinstance(reply, _Encoded):
        return reply
    body = bytes(reply.body)
    return TopicState(**{**msgspec.structs.asdict(reply), "body": None if body == b"null" else body})


def _fields(reply: TopicState, shape: type[_Encoded]) -> dict[str, Any]:
    values = {name: getattr(reply, name) for name in shape.__struct_fields__}
    return values | {"body": msgspec.Raw(b"null" if reply.body is None else reply.body)}
