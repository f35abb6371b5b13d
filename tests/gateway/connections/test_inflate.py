"""Compressed messages of clients: how far they are inflated (gateway/writer.py)."""

from __future__ import annotations

import zlib

import pytest

from gateway.writer import PreparedFrames
from qmt_bridge.wire.frames import DEFLATE_WINDOW
from qmt_bridge.wire.requests import REQUEST_BYTES
from tests.support.raw import CLOSE, CONT, TEXT, Raw, frame, raw_socket
from tests.support.rig import Rig

pytestmark = pytest.mark.parametrize("rig", [PreparedFrames], ids=["prepared"], indirect=True)
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover\r\n"
# RSV1 says that a message is compressed (RFC 7692).
COMPRESSED = 4
TOLD = b"bad_request: a request is at most 65536 bytes"


def fragments(*pieces: bytes) -> list[bytes]:
    """Return a compressed message, one frame for each piece."""
    deflate = zlib.compressobj(9, wbits=-DEFLATE_WINDOW)
    frames = []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        payload = deflate.compress(piece) + deflate.flush(zlib.Z_SYNC_FLUSH)
        opcode, reserved = (CONT, 0) if number else (TEXT, COMPRESSED)
        frames.append(
            frame(opcode, payload.removesuffix(b"\0\0\xff\xff") if last else payload, fin=last, reserved=reserved)
        )
    return frames


async def answers(socket: Raw) -> tuple[bool, bytes]:
    """Return whether an error frame came, and the reason of the close with 1009."""
    frames = await socket.frames()
    opcode, payload = frames[-1]
    assert (opcode, payload[:2]) == (CLOSE, (1009).to_bytes(2, "big")), frames
    return any(opcode == TEXT and b'"error"' in payload for opcode, payload in frames), payload[2:]


def spaces(size: int) -> bytes:
    return b'{"action":"ping","id":1}'.ljust(size)


async def test_compressed_requests_are_served(rig: Rig) -> None:
    async with raw_socket(rig.serve(deflate=True).port, headers=OFFER) as socket:
        half = REQUEST_BYTES // 2
        for message in (fragments(spaces(100)), fragments(spaces(REQUEST_BYTES)), fragments(spaces(half), b" " * half)):
            socket.write(*message)
            while (found := await socket.frame())[0] != TEXT:
                pass
            assert b'"pong"' in found[1]


async def test_compressed_request_that_is_a_little_too_large_gets_an_error(rig: Rig) -> None:
    async with raw_socket(rig.serve(deflate=True).port, headers=OFFER) as socket:
        socket.write(*fragments(spaces(REQUEST_BYTES + 1)))
        assert await answers(socket) == (True, TOLD)


@pytest.mark.parametrize("pieces", [1, 2, 50], ids=["one-frame", "two-frames", "fifty-frames"])
async def test_message_is_not_inflated_beyond_the_limit(rig: Rig, pieces: int) -> None:
    async with raw_socket(rig.serve(deflate=True).port, headers=OFFER) as socket:
        size = (2 * REQUEST_BYTES + 1000) // pieces + 1
        socket.write(*fragments(*[b" " * size] * pieces))
        # Our own error frame would say that the session has got the message.
        assert await answers(socket) == (False, TOLD)


async def test_flood_of_bombs_ends_with_the_first(rig: Rig) -> None:
    async with raw_socket(rig.serve(deflate=True).port, headers=OFFER) as socket:
        socket.write(*fragments(b" " * 1_900_000) * 20)
        assert await answers(socket) == (False, TOLD)


async def test_uncompressed_request_that_is_too_large_is_told_so(rig: Rig) -> None:
    async with raw_socket(rig.servers[0].port) as socket:
        socket.write(frame(TEXT, b" " * 1_000_000))
        assert await answers(socket) == (True, TOLD)
    async with raw_socket(rig.servers[0].port) as socket:
        # It is never received whole: the client reads the close although it is still sending.
        socket.write(frame(TEXT, b" " * 8_000_000))
        assert await answers(socket) == (False, TOLD)
