"""What every URL takes: parameters and actions."""

from __future__ import annotations

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.hints import did_you_mean
from qmt_bridge.wire.requests import (
    shown_word,
)

# Parameters of every URL.
PARAMETERS = ("api_key", "ctl")


# The actions of every URL; some URLs have more.
ACTIONS = ("subscribe", "ping", "auth")


def unknown_action(action: object, *known: str, told: str = "") -> BadRequest:
    hint = did_you_mean(action, known) if isinstance(action, str) else ""
    expected = f"unknown action {shown_word(action)}; {hint}{'; ' if hint else ''}expected one of {', '.join(known)}"
    return BadRequest("unknown_action", expected + told)
