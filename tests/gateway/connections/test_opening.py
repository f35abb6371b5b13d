"""The bounds of one HTTP request (gateway/connections/opening.py)."""

from __future__ import annotations

import pytest

from gateway.connections.opening import BODY_BYTES, HEAD_BYTES, HEADERS, LINE_BYTES, Opening, Unserved

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde"


def taken(data: bytes, size: int) -> list[bytes]:
    """Return the requests of `data`, which comes in pieces of `size` bytes."""
    opening, found = Opening(), []
    for start in range(0, len(data), size):
        opening.add(data[start : start + size])
        while (request := opening.take()) is not None:
            found.append(request)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_whole_requests_are_taken_whatever_the_pieces(size: int) -> None:
    assert taken(GET + POST + b"\r\n" + GET, size) == [GET, POST, GET]


def test_lines_may_end_without_carriage_returns() -> None:
    request = b"GET / HTTP/1.1\nHost: a\n\n"
    assert taken(request, 1) == [request]


def test_rest_is_what_follows_the_request() -> None:
    opening = Opening()
    opening.add(GET + b"\x81\x80")
    assert opening.take() == GET
    assert opening.rest() == b"\x81\x80"
    assert not opening


def request(*headers: bytes, target: bytes = b"/") -> bytes:
    return b"\r\n".join((b"GET " + target + b" HTTP/1.1", *headers, b"", b""))


@pytest.mark.parametrize(
    "data",
    [
        request(*[b"a: b"] * HEADERS),
        request(b"a: " + b"b" * (LINE_BYTES - 4)),
        b"POST" + request(b"Content-Length: %d" % BODY_BYTES)[3:] + bytes(BODY_BYTES),
        request(b"Content-Length: 0"),
        request(b"Upgrade: websocket", b"Content-Length: 0"),
    ],
)
def test_request_within_the_bounds_is_taken(data: bytes) -> None:
    assert taken(data, len(data)) == [data]


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (request(*[b"a: b"] * (HEADERS + 1)), 431, "at most 64 headers"),
        (request(b"a: " + b"b" * LINE_BYTES), 431, "a header has at most"),
        (request(*[b"a: " + b"b" * 1000] * 17), 431, "together"),
        (request(target=b"/" + b"a" * LINE_BYTES), 414, "a URL has at most"),
        (b"GET /" + b"a" * LINE_BYTES, 414, "a URL has at most"),
        (b"GET / HTTP/1.1\r\na: " + b"b" * LINE_BYTES, 431, "a header has at most"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (HEADERS + 1), 431, "at most 64 headers"),
        (b"GET / HTTP/1.1\r\n" + (b"a: " + b"b" * 1000 + b"\r\n") * 17, 431, f"at most {HEAD_BYTES} bytes"),
        (request(b"Content-Length: 8193"), 413, "a body has at most"),
        (request(b"content-length : " + b"9" * 5000), 413, "a body has at most"),
        (request(b"Content-Length: five"), 400, "Content-Length"),
        (request(b"Content-Length: 5") + b"abcde", 400, "a GET has no body"),
        (b"HEAD" + request(b"Content-Length: 5")[3:], 400, "a GET has no body"),
        (request(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 411, "takes a body"),
        (request(b"Content-Length: -5"), 400, "Content-Length"),
        (request(b"Transfer-Encoding: chunked"), 411, "takes a body"),
        (request(b"Upgrade: WebSocket", b"Content-Length: 5"), 400, "a WebSocket has no body"),
        (b"\x16\x03\x01\x02\x00\x01", 400, "wss://"),
        (b"\x00\x01", 400, "no HTTP request"),
        (b"\xffabc", 400, "no HTTP request"),
    ],
)
def test_request_beyond_the_bounds_is_told_why(data: bytes, status: int, words: str) -> None:
    opening = Opening()
    opening.add(data)
    with pytest.raises(Unserved) as raised:
        opening.take()
    assert raised.value.status == status
    assert words in raised.value.sentence
