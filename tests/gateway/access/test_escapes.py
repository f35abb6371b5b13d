"""The log of a real gateway to which an outsider sends text that looks like lines of the log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from qmt_bridge import log
from tests.support.raw import HEADERS, TEXT, frame, opened
from tests.support.rig import DEADLINE, Rig


async def send(port: int, head: str, *frames: bytes) -> None:
    async with asyncio.timeout(DEADLINE), opened(port) as (reader, writer):
        writer.write(head.encode("latin-1") + b"".join(frames))
        if frames:
            # On Windows the loop drops a request whose end of input comes with it.
            await reader.readexactly(1)
        writer.write_eof()
        await reader.read()


async def test_log_has_no_line_of_an_outsider(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure("debug", "text")
    try:
        port = rig.servers[0].port
        for path in ("/ws/realtime?a=%0aFORGED", "/ws/realtime/%0aFORGED", "/%0d%0aFORGED"):
            for extra in ("Origin: http://a\x85FORGED", "Origin: a\x0bFORGED", "Sec-WebSocket-Protocol: a\x85FORGED"):
                question = frame(TEXT, b'{"action":"a\\nFORGED","id":"\\nFORGED","stocks":["\\nFORGED"]}')
                await send(port, f"GET {path} HTTP/1.1\r\n{HEADERS}{extra}\r\n\r\n", question)
        await send(port, f"GET /ws/realtime HTTP/1.1\r\n{HEADERS.replace('localhost', 'a' + chr(0x85) + 'FORGED')}\r\n")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.lstrip().startswith("FORGED")] == []
    assert all(line.isprintable() for line in lines)
    assert any("/ws/realtime from 127.0.0.1" in line for line in lines)
