"""Where the records of one topic go, and the body that is published of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from feeder.push.message import BadLine
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.topics import Kind, Topic, TopicParts, Versions, formula_spec

# A version of something: a newer one with the same key replaces it. Its key, the code of a part of a whole market (else
# empty), and the object that is published.
Version = tuple[object, str, object]


class Route:
    """One topic of a pusher."""

    __slots__ = ("_fields", "code", "is_listed", "kind", "may_wait", "parts", "topic", "versions")

    def __init__(self, topic: Topic, parts: TopicParts) -> None:
        self.topic = topic
        self.parts = parts
        self.kind = parts.kind
        self.code = parts.name
        self.versions: Versions = parts.behaviour.versions
        # Whether a newer record may replace an older one.
        self.may_wait = self.versions != "none"
        # Whether its records are in a list.
        self.is_listed = parts.kind is Kind.QUOTE or parts.kind is Kind.L2
        self._fields: dict[str, object] = {}
        if parts.kind is Kind.FORMULA:
            spec = formula_spec(parts)
            self._fields = {"formula_name": spec.formula_name, "stock_code": spec.stock_code}

    def body(self, data: Any) -> dict[str, Any]:
        """Return the object that is published of the `data` of a record; raise `BadLine`."""
        if self.is_listed:
            if type(data) is dict:
                return {self.code: [data]}
            if type(data) is list and data and all(type(each) is dict for each in data):
                return {self.code: data}
            raise BadLine("bad_request", "data: expected a record, or an array of records")
        if type(data) is not dict:
            raise BadLine("bad_request", "data: expected an object")
        if self.kind is Kind.WHOLE:
            ending = self.code if "." in self.code else f".{self.code}"
            for code, tick in data.items():
                if not code.endswith(ending) or type(tick) is not dict:
                    raise BadLine("bad_request", f"data: expected ticks by code of {self.code}, got {code[:40]!r}")
            if not data:
                raise BadLine("bad_request", "data: it has no code")
        elif self.kind is Kind.FORMULA:
            return {**self._fields, "data": data}
        elif self.kind is Kind.DOWNLOAD and data.get("status") == "error":
            # As in docs/websocket.md, whatever the pusher leaves out.
            return {"status": "error", "type": "error", "code": "upstream_refused", "error": "failed", **data}
        return data

    def count(self, body: dict[str, Any]) -> int:
        """Return how many versions a body has."""
        if self.kind is Kind.WHOLE:
            return len(body)
        return len(body[self.code]) if self.versions == "bar" else 1

    def split(self, body: dict[str, Any]) -> Iterator[Version]:
        """Yield the versions that a body has."""
        if self.kind is Kind.WHOLE:
            for code, tick in body.items():
                yield (self.topic, code), code, tick
        elif self.versions == "bar":
            for bar in body[self.code]:
                yield (self.topic, _hashable(bar.get("time"))), "", {self.code: [bar]}
        elif self.versions == "values":
            values = body["data"]
            outputs = values.get("outputs")
            names = sorted(outputs) if isinstance(outputs, dict) else None
            yield (self.topic, encoded((values.get("timelist"), names))), "", body
        else:
            yield self.topic, "", body


def encoded(body: object) -> bytes:
    """Return a body as JSON; raise `BadLine` for one that is nested deeper than can be encoded."""
    try:
        return frames.encode(body)
    except (TypeError, ValueError, RecursionError, WireError) as exc:
        raise BadLine("bad_request", f"data: {str(exc)[:200]}") from None


def _hashable(value: object) -> object:
    return value if isinstance(value, int | float | str | None) else encoded(value)
