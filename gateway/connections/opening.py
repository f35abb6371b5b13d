"""The start of a connection: the bytes of one HTTP request, which has bounds. Pure.

A server's parsers have bounds of their own, but some of them answer nothing when a request is beyond (websockets: a
header of 8 KB, 128 headers, a body), and none of them tells which bound it was.
"""

from __future__ import annotations

import re
from http import HTTPStatus

# Bytes of all lines before the body, and of one line. The key, cookies and the URL of a real client take some 2 KB.
HEAD_BYTES = 16 * 1024
LINE_BYTES = 8 * 1024 - 2
HEADERS = 64
# No page here reads a body.
BODY_BYTES = 8 * 1024

_END = re.compile(rb"\r?\n\r?\n")
_EMPTY = re.compile(rb"[\r\n]+")
_TLS = b"\x16\x03"
_VERSION = b"sec-websocket-version"
# RFC 6455, 4.2.2: a client of another version is told ours.
_UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


class Unserved(Exception):
    """A request that is not served; `sentence` says why, `headers` what the client may do instead."""

    def __init__(self, status: HTTPStatus, sentence: str, headers: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers


class Opening:
    """What a client has sent and was not yet handed on."""

    __slots__ = ("_data", "_searched")

    def __init__(self) -> None:
        self._data = bytearray()
        # Bytes in which there is no end of the headers.
        self._searched = 0

    def __len__(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        """Take what was received."""
        self._data += data

    def rest(self) -> bytes:
        """Give up what came after the requests that were taken."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def take(self) -> bytes | None:
        """Return the next whole request with its body, or None before it is there; raise `Unserved`."""
        if not self._searched:
            # RFC 9112, 2.2: empty lines before a request are ignored.
            empty = _EMPTY.match(self._data)
            if empty is not None:
                del self._data[: empty.end()]
            if self._data and not 0x21 <= self._data[0] <= 0x7E:
                raise _not_http(self._data)
        end = _END.search(self._data, max(0, self._searched - 3))
        if end is None:
            self._searched = len(self._data)
            _check_head(bytes(self._data[: HEAD_BYTES + 1]))
            return None
        head = bytes(self._data[: end.start()])
        _check_head(head)
        size = end.end() + _body_size(head)
        if len(self._data) < size:
            return None
        request = bytes(self._data[:size])
        del self._data[:size]
        self._searched = 0
        return request


def _not_http(data: bytearray) -> Unserved:
    hint = "; this port speaks no TLS: use ws:// and not wss://" if data.startswith(_TLS) else ""
    return Unserved(HTTPStatus.BAD_REQUEST, f"this is no HTTP request{hint}")


def _check_head(head: bytes) -> None:
    request, *headers = head.split(b"\n")
    if len(request) > LINE_BYTES:
        raise Unserved(HTTPStatus.REQUEST_URI_TOO_LONG, f"a URL has at most {LINE_BYTES} bytes")
    too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    if any(len(header) > LINE_BYTES for header in headers):
        raise Unserved(too_large, f"a header has at most {LINE_BYTES} bytes")
    if len(headers) > HEADERS:
        raise Unserved(too_large, f"a request has at most {HEADERS} headers")
    if len(head) > HEAD_BYTES:
        raise Unserved(too_large, f"the headers have at most {HEAD_BYTES} bytes together")


def headers_in(head: bytes) -> list[tuple[bytes, bytes]]:
    """Return the names, in lower case, and the values of the headers, in their order."""
    lines = (line.partition(b":") for line in head.split(b"\n")[1:])
    return [(name.strip().lower(), value.strip()) for name, _, value in lines]


def _body_size(head: bytes) -> int:
    """Return how many bytes of a body follow."""
    headers = dict(headers_in(head))
    if b"transfer-encoding" in headers:
        raise Unserved(HTTPStatus.LENGTH_REQUIRED, "a body in chunks is not accepted; no URL here takes a body")
    given = headers.get(b"content-length", b"0")
    if not given.isdigit():
        raise Unserved(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
    # Beyond 18 digits int() would only take time.
    size = int(given[:18])
    if headers.get(b"upgrade", b"").lower() == b"websocket":
        _check_websocket(headers, size)
    if size > BODY_BYTES:
        raise Unserved(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {BODY_BYTES} bytes")
    if size and head.startswith((b"GET ", b"HEAD ")):
        # Servers on the way disagree about where such a request ends, so what follows may not be a request.
        raise Unserved(HTTPStatus.BAD_REQUEST, "a GET has no body")
    return size


def _check_websocket(headers: dict[bytes, bytes], size: int) -> None:
    if size:
        raise Unserved(HTTPStatus.BAD_REQUEST, "a request for a WebSocket has no body")
    if headers.get(_VERSION, b"13") != b"13":
        raise Unserved(HTTPStatus.UPGRADE_REQUIRED, "Sec-WebSocket-Version is 13 here", _UPGRADE)
