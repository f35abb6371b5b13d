"""What a pusher says and what it is told, a line each (docs/push.md): shapes, decoding and encoding. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from qmt_bridge.errors import QMTBridgeError
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.topics import mask

# The version of docs/push.md.
PROTOCOL = 1
# What a line can be refused with; and a connection.
LineCode = Literal["bad_json", "bad_request", "too_long", "not_wanted", "late"]
RefusalCode = Literal["taken", "forbidden", "unsupported", "replaced", "bad_request"]
# What a pusher may refuse a topic with.
TopicCode = Literal[
    "unknown_symbol",
    "unsupported_period",
    "unsupported_sdk",
    "not_entitled",
    "symbol_limit",
    "upstream_unavailable",
    "upstream_refused",
]
# Characters of a reason, an error and a name of an event: what others are told of it is bounded.
_Text = Annotated[str, Meta(max_length=1000)]
# A kind, a market or an account: no spaces or control characters, because the log and tables show them in a line.
_Name = Annotated[str, Meta(pattern=r"^[!-~\w]{1,64}\Z")]
# How many of them a pusher may name.
_Names = Annotated[list[_Name], Meta(min_length=1, max_length=200)]
# Characters of a hello in the log, which has a line of each connection.
_MOST_SHOWN = 500
# Characters of the `id` of a trade event.
ID_CHARACTERS = 128


class BadLine(QMTBridgeError):
    """A line that cannot be used; `code` is why."""

    def __init__(self, code: LineCode, reason: str) -> None:
        super().__init__(reason)
        self.code: LineCode = code
        self.reason = reason


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record, which has no `type`: the one message that comes often. The fields are checked where they are used."""

    topic: msgspec.Raw = msgspec.Raw(b"")
    data: Any = None
    time: Any = None
    more: bool = False
    id: Any = None
    event: Any = None
    type: Any = None


class Hello(msgspec.Struct, frozen=True, tag_field="type", tag="hello"):
    """Which program connects, and what it serves; `markets` and `accounts` are None for all that it may serve."""

    protocol: int
    name: Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,32}\Z")]
    kinds: _Names
    markets: _Names | None = None
    accounts: _Names | None = None
    simulated: bool = False
    history: bool = False
    key: str = ""

    def __repr__(self) -> str:
        """Return it as a log may show it: without the key, with masked accounts, and cut."""
        parts = [f"kinds {' '.join(self.kinds)}"]
        if self.markets is not None:
            parts.append(f"markets {' '.join(self.markets)}")
        if self.accounts is not None:
            parts.append(f"accounts {' '.join(map(mask, self.accounts))}")
        return ", ".join([*parts, *(["simulated"] if self.simulated else [])])[:_MOST_SHOWN]


class State(msgspec.Struct, frozen=True, tag_field="type", tag="state"):
    """How the pusher's own source is."""

    state: Literal["up", "stale", "down"]
    reason: _Text | None = None
    data_lost: bool = False


class Account(msgspec.Struct, frozen=True):
    """How the trade events of one account are served."""

    account: _Name
    type: Annotated[str, Meta(max_length=32)] = ""
    state: Literal["connecting", "up", "down", "stale", "refused"] = "up"
    reason: _Text | None = None


class Accounts(msgspec.Struct, frozen=True, tag_field="type", tag="accounts"):
    """All accounts of the pusher."""

    accounts: Annotated[list[Account], Meta(max_length=200)]


class Accept(msgspec.Struct, frozen=True, tag_field="type", tag="accept"):
    """A topic is served; records follow."""

    topic: msgspec.Raw


class Refuse(msgspec.Struct, frozen=True, tag_field="type", tag="refuse"):
    """A topic cannot be served, or the history of the question `id` not be found."""

    code: TopicCode
    error: _Text
    topic: msgspec.Raw = msgspec.Raw(b"")
    id: int | None = None


class History(msgspec.Struct, frozen=True, tag_field="type", tag="history"):
    """A part of the answer to the question `id`."""

    id: int
    data: list[dict[str, Any]]
    more: bool = False


class Heartbeat(msgspec.Struct, frozen=True, tag_field="type", tag="heartbeat"):
    """Says only that the pusher is still there."""


class Bye(msgspec.Struct, frozen=True, tag_field="type", tag="bye"):
    """The pusher ends and will not come back."""


Message = Record | Hello | State | Accounts | Accept | Refuse | History | Heartbeat | Bye

_record_decoder = msgspec.json.Decoder(Record)
_message_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(
    Hello | State | Accounts | Accept | Refuse | History | Heartbeat | Bye
)


def decode(line: bytes) -> Message:
    """Return what a line says; raise `BadLine`."""
    try:
        record = _record_decoder.decode(line)
        return record if record.type is None else _message_decoder.decode(line)
    except msgspec.ValidationError as exc:
        raise BadLine("bad_request", str(exc)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadLine("bad_json", f"not JSON: {exc}") from None
    except RecursionError:
        raise BadLine("bad_json", "nested too deep") from None


def one_line(text: str) -> str:
    """Return a reason of a pusher without ends of lines and control characters: it is shown in lines of tables."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def told(type_: str, **fields: object) -> bytes:
    """Return a line of the feeder's."""
    return encode({"type": type_, **fields}) + b"\n"
