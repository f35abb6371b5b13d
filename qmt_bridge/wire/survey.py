"""Questions that a worker asks all workers of all gateways, through the feeder (docs/wire.md, "Surveys"). Pure.

A worker attends: it tells the feeder its name once a second. A survey goes to the feeder, which passes it on to those
that attend, and each finding back to the worker that asked. What a survey is about and what was found is JSON that the
feeder does not read, but for its own part.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

What = Literal["state", "capabilities", "clients", "subscriptions", "kick", "end", "why"]
# The name of a worker: 8 hexadecimal digits, new at each start of its process.
WorkerName = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}\Z")]
# The name under which the feeder's own part comes.
FEEDER = "feeder"
# Bytes of what one worker finds: a question to the feeder, which the finding is on its way, has at most 256 KiB.
FINDING_BYTES = 200 * 1024
# Bytes of what the feeder finds.
FEEDER_BYTES = 1024 * 1024
_NOTHING = msgspec.Raw(b"null")


class Attend(msgspec.Struct, frozen=True, tag_field="ask", tag="attend"):
    """Say that a worker answers surveys from now on, or, with `leaves`, that it does so no longer."""

    id: int
    worker: WorkerName
    leaves: bool = False


class Survey(msgspec.Struct, frozen=True, tag_field="ask", tag="survey"):
    """Ask the feeder and all workers that attend but the one that asks, or one `worker` alone."""

    id: int
    what: What
    terms: msgspec.Raw = _NOTHING
    worker: WorkerName | None = None


class Finding(msgspec.Struct, frozen=True, tag_field="ask", tag="finding"):
    """What a worker has found; `id` is the number of the `Question`."""

    id: int
    worker: WorkerName
    found: msgspec.Raw


class Question(msgspec.Struct, frozen=True, tag_field="reply", tag="question"):
    """A survey on its way to a worker; `id` is the feeder's number of it."""

    id: int
    what: What
    terms: msgspec.Raw = _NOTHING


class Roll(msgspec.Struct, frozen=True, tag_field="reply", tag="roll"):
    """The first reply to a survey: who will be asked, the feeder included; or why it is refused.

    It is the reply to `Attend` too, if that is refused.
    """

    id: int
    asked: list[str] = []
    error: str | None = None


class Found(msgspec.Struct, frozen=True, tag_field="reply", tag="found"):
    """What one of those that were asked has found."""

    id: int
    worker: str
    found: msgspec.Raw


class StateTerms(msgspec.Struct, frozen=True):
    """The terms of a survey about states, capabilities: there are none."""


class SubscriptionTerms(msgspec.Struct, frozen=True):
    """Which topics are listed, in the order of their texts: at most `limit` after `after`.

    `topics` names them, where only these are meant; `client` lists those of one client.
    """

    limit: int
    after: str = ""
    prefix: str = ""
    topics: list[str] | None = None
    client: str | None = None


class TopicFound(msgspec.Struct, frozen=True, array_like=True):
    """What the feeder knows of a topic; `age` is seconds since its newest message, None before the first."""

    topic: str
    state: Literal["live", "pending", "refused"]
    code: str | None
    reason: str | None
    seq: int
    age: float | None


class TopicsFound(msgspec.Struct, frozen=True):
    """The topics of the feeder that a survey asks for; `total` are all that it would list without `limit`."""

    topics: list[TopicFound]
    total: int
    more: bool
