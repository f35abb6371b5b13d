"""What a source says of itself, checked before anything is made of it: nonsense would reach each gateway. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

import msgspec

from feeder.source import FeedState
from qmt_bridge.errors import ERROR_CODES, ErrorCode
from qmt_bridge.journal_file import MOST_NAME
from qmt_bridge.wire.messages import AccountState, Session
from qmt_bridge.wire.topics import STATUS_TOPIC

_STATES = (*get_args(Session), "ended")
_accounts_decoder = msgspec.json.Decoder(tuple[AccountState, ...])


def check_topic(topic: object) -> None:
    """Raise `ValueError` or `TypeError` for what can be no topic of a source."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a text, not {type(topic).__name__}")
    if topic == STATUS_TOPIC:
        raise ValueError("the status is the feeder's own topic")


def check_event(account: object, event: object, data: object) -> None:
    """Raise `ValueError` or `TypeError` for what can be no trade event."""
    if not isinstance(account, str) or not isinstance(event, str):
        raise TypeError("account and type of a trade event are texts")
    if not 0 < len(account) <= MOST_NAME:
        raise ValueError(f"an account has 1 to {MOST_NAME} characters")
    if not isinstance(data, Mapping):
        raise TypeError(f"the data of a trade event is a mapping, not {type(data).__name__}")


def known_state(state: object) -> FeedState:
    """Return a state of the feed; raise `ValueError` for any other word."""
    if state not in _STATES:
        raise ValueError(f"a state is one of {', '.join(_STATES)}, not {state!r}"[:200])
    return cast(FeedState, state)


def known_accounts(accounts: Sequence[AccountState]) -> tuple[AccountState, ...]:
    """Return the states of accounts with texts that can be encoded; raise `ValueError` or `TypeError` for others."""
    told = [msgspec.structs.replace(each, reason=plain(each.reason)) for each in accounts]
    return _accounts_decoder.decode(msgspec.json.encode(told))


def known_code(code: object) -> ErrorCode:
    """Return an error code; raise `ValueError` for any other word."""
    if code not in ERROR_CODES:
        raise ValueError(f"{code!r} is no error code"[:200])
    return cast(ErrorCode, code)


def plain(reason: object) -> str | None:
    """Return a reason as a text that can be encoded."""
    return None if reason is None else str(reason).encode("utf-8", "backslashreplace").decode()
