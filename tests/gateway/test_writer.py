"""The internals of uvicorn that prepared frames use: if uvicorn changes one, a test here fails first."""

from __future__ import annotations

import inspect
import json

import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.writer import PreparedFrames
from qmt_bridge.wire.frames import framed
from qmt_bridge.wire.topics import quote_topic
from tests.support.rig import Rig, readiness
from tests.support.waiting import until

TICK = quote_topic("600519.SH")


def test_uvicorn_protocol_has_the_attributes_that_we_use() -> None:
    source = inspect.getsource(WebSocketsSansIOProtocol)
    for attribute in ("self.writable = asyncio.Event()", "self.disconnected", "self.close_sent", "self.transport"):
        assert attribute in source
    # uvicorn must not need these after the handshake; the last use is in the answer to websocket.accept.
    after = source[source.index("self.conn.send_response(self.response)", source.index("async def send")) :]
    assert "self.request" not in after
    assert after.count("self.response") == 1
    # Replaced by one with our extension.
    assert "self.conn = ServerProtocol(" in source
    for attribute in ("handshake_complete", "self.config.ws_per_message_deflate", "max_size=self.config.ws_max_size"):
        assert attribute in source
    for method in ("connection_made", "handle_connect", "pause_writing", "resume_writing", "shutdown"):
        assert hasattr(WebSocketsSansIOProtocol, method)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 1_000_000])
async def test_frames_of_every_length_arrive(rig: Rig, size: int) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"])
        # {"a":"..."} has eight bytes besides the text.
        bodies = [{"a": "x" * max(0, size - 8)}, {"n": "字"}]
        for body in bodies:
            rig.source.publish(TICK, body)
        assert [await client.receive() for _ in bodies] == bodies
        assert len(framed(json.dumps(bodies[0], separators=(",", ":")).encode())) > size or size < 8


async def test_burst_for_one_client_is_in_order_in_few_writes(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"])
        for number in range(5000):
            rig.source.publish(TICK, {"n": number})
        assert [(await client.receive())["n"] for _ in range(5000)] == list(range(5000))
        assert readiness(rig.servers[0].port)["frames_sent"] == 5001


async def test_stalled_client_fills_the_transport_and_continues(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"])
        client.socket.transport.pause_reading()
        for number in range(400):
            rig.source.publish(TICK, {"600519.SH": [{"n": number, "padding": "x" * 50_000}]})
        port = rig.servers[0].port
        await until(lambda: readiness(port)["frames_received"] == 400, "the frames")
        assert readiness(port)["frames_sent"] < 400
        client.socket.transport.resume_reading()
        numbers: list[int] = []
        skipped = 0
        while len(numbers) + skipped < 400:
            frame = await client.receive()
            if frame.get("type") == "skipped":
                skipped += frame["count"]
            else:
                numbers.append(frame["600519.SH"][0]["n"])
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 399
        assert skipped


@pytest.mark.parametrize("rig", [PreparedFrames], ids=["prepared"], indirect=True)
async def test_client_that_never_reads_is_dropped(rig: Rig) -> None:
    # Plain ASGI cannot drop a connection: there only the session ends.
    server = rig.serve(outbox_bytes=100_000, slow_timeout=0.5)
    async with (
        rig.connect("/ws/realtime", server, close_timeout=0.1) as stalled,
        rig.connect("/ws/realtime", server) as other,
    ):
        for client in (stalled, other):
            await client.subscribed(stocks=["600519.SH"])
        stalled.socket.transport.pause_reading()
        for number in range(600):
            rig.source.publish(TICK, {"600519.SH": [{"n": number, "padding": "x" * 20_000}]})
            await other.receive()
        await until(lambda: readiness(server.port)["connections"] == 1, "the end of the stalled client")
        stalled.socket.transport.resume_reading()
        rig.source.publish(TICK, {"600519.SH": [{"n": "after"}]})
        assert await other.receive() == {"600519.SH": [{"n": "after"}]}


def test_prepared_frames_are_offered_after_a_handshake_only() -> None:
    assert PreparedFrames.sender is None
    assert issubclass(PreparedFrames, WebSocketsSansIOProtocol)
