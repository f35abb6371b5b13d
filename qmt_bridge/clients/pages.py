"""The pages of a gateway that answer a question once: newest records and stored records, over HTTP (docs/http.md).

Blocking; the asynchronous client asks in a thread. Every answer is read whole, one request a connection.
"""

from __future__ import annotations

import http.client
import logging
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

import orjson

from qmt_bridge.clients.arguments import checked_codes
from qmt_bridge.clients.stream import StreamState
from qmt_bridge.errors import Disconnected, ServerError
from qmt_bridge.frames import Library, last_to_df, records_to_df

logger = logging.getLogger(__name__)
# A URL has at most 8,190 bytes; a code has at most 38 characters, and a list its commas.
_CODES_A_PAGE = 150
_TIMEOUT = 30.0
# The error codes of answers that are a sentence of plain text.
_CODES = {401: "unauthorized", 403: "forbidden", 421: "host_denied", 429: "rate_limited"}

Shown = Library | Literal["records"] | None


class Part(NamedTuple):
    """What the store has of an instrument, as the caller wants it, and what is missing of it."""

    shown: Any
    gaps: list[StreamState]


class Pages:
    """The pages of the gateway at `host` and `port`; `tls` is its context, None for plain HTTP."""

    def __init__(
        self,
        host: str,
        port: int,
        headers: Mapping[str, str],
        parameters: Mapping[str, str | int],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._host, self._port = host, port
        self._headers, self._parameters = dict(headers), dict(parameters)
        self._tls = tls

    def shown(self, path: str) -> dict[str, Any]:
        """Return the answer of a page that is one JSON object, such as /api/state (docs/administration.md)."""
        return self._object(path, self._ask(path, {}))

    def last(
        self, codes: Iterable[str], period: str, gear_num: int | None, fields: Iterable[str] | None, library: Shown
    ) -> Any:
        """Return the newest record of each code, in the order of `codes`: `QMTClient.last`."""
        named = checked_codes("codes", codes)
        found: dict[str, Any] = {"records": {}, "missing": {}, "feed": None}
        for start in range(0, len(named), _CODES_A_PAGE):
            asked = {"codes": ",".join(named[start : start + _CODES_A_PAGE])}
            asked |= {"period": period} if gear_num is None else {"gear_num": str(gear_num)}
            answer = self._object("/api/last", self._ask("/api/last", asked | _fields(fields)))
            if not isinstance(answer.get("records"), dict):
                raise self._strange("/api/last has no records")
            found["records"] |= answer["records"]
            found["missing"] |= answer.get("missing") or {}
            found["feed"] = answer.get("feed")
        return found if library == "records" else last_to_df(found, library)

    def ticks(
        self,
        code: str,
        start: str | int | None,
        end: str | int | None,
        period: str,
        fields: Iterable[str] | None,
        library: Shown,
    ) -> Part:
        """Return what the store has of `code` from `start` up to `end`: `QMTClient.ticks`."""
        moments = {name: str(moment) for name, moment in (("start", start), ("end", end)) if moment is not None}
        asked = {"period": period, **moments, **_fields(fields)}
        (code,) = checked_codes("code", [code])
        path = f"/api/ticks/{quote(code, safe='')}"
        records = [self._object("/api/ticks", line) for line in self._ask(path, asked).splitlines()]
        if not records or records[-1].get("type") != "end":
            raise Disconnected(None, f"the answer about {code} was cut off after {len(records)} records")
        last = records.pop()
        gaps = [StreamState("gap", path, hole["reason"], codes=(code,), gap=hole) for hole in last["missing"]]
        for gap in gaps:
            logger.warning("%s lacks records: %s", path, gap.reason)
        return Part((records, last) if library == "records" else records_to_df(code, records, library), gaps)

    def _object(self, path: str, text: bytes) -> dict[str, Any]:
        """Return the JSON object that a page, or a line of it, is."""
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise self._strange(f"{path} is no JSON object")
        return found

    def _strange(self, reason: str) -> Disconnected:
        return Disconnected(None, f"{self._host}:{self._port} is no gateway: {reason}")

    def _ask(self, path: str, parameters: Mapping[str, str]) -> bytes:
        target = f"{path}?{urlencode({**self._parameters, **parameters}, quote_via=quote)}"
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT)
            if self._tls is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT, context=self._tls)
        )
        try:
            connection.request("GET", target, headers=self._headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            where = f"{self._host}:{self._port}{path}"
            raise Disconnected(None, f"cannot read {where}: {exc or type(exc).__name__}") from exc
        finally:
            connection.close()
        if answer.status != 200:
            raise _error(answer.status, body)
        return body


def _fields(fields: Iterable[str] | None) -> dict[str, str]:
    return {} if fields is None else {"fields": ",".join([fields] if isinstance(fields, str) else fields)}


def _error(status: int, body: bytes) -> ServerError:
    try:
        frame = orjson.loads(body)
    except orjson.JSONDecodeError:
        frame = None
    if not isinstance(frame, dict):
        frame = {"code": _CODES.get(status, "internal"), "error": body.decode("utf-8", "replace").strip()}
    return ServerError(frame.get("code") or "internal", frame.get("error") or f"status {status}", frame)
