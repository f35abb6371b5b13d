"""A gateway that the feeder refuses, or whose version it does not have: both log it, and clients are told why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import zmq

from gateway.writer import PreparedFrames
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import make_keys
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import STATUS_TOPIC
from tests.support.rig import Rig, Server, readiness
from tests.support.waiting import until

ANY_PORT = "tcp://127.0.0.1:*"
STATUS = {"source": "sim", "simulated": True, "state": "up", "epoch": 1, "time": 2}
ADDRESSES = {"market_addr", "trade_addr", "ask_addr"}


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    """Return settings with keys; the folder "stranger" has the key of a gateway that the feeder does not allow."""
    for name in ("keys", "stranger"):
        make_keys(tmp_path / name)
    (tmp_path / "stranger" / "feeder.key").write_bytes((tmp_path / "keys" / "feeder.key").read_bytes())
    return msgspec.structs.replace(config, curve_dir=str(tmp_path / "keys"))


def refused(rig: Rig, curve_dir: str) -> Server:
    """Start a gateway that the feeder refuses."""
    # Without keys, questions about trade events have an address of their own.
    server = Server(msgspec.structs.replace(rig.config, curve_dir=curve_dir, trade_ask_addr=""), rig.ws)
    server.start()
    rig.servers.append(server)
    return server


async def test_reason_names_the_refused_key_until_it_is_allowed(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = refused(rig, str(tmp_path / "stranger"))
    await until(lambda: readiness(server.port)["links"] == dict.fromkeys(ADDRESSES, "key_refused"), "the refusal")
    shown = readiness(server.port)
    assert (shown["ready"], shown["feed"], shown["reason"]) == (False, "down", "key_refused")
    assert "refuses this key: copy gateway.key into" in caplog.text
    assert "is not allowed: to let it in, copy its public key" in caplog.text
    async with rig.connect("/ws/realtime?ctl=1", server) as client:
        assert (await client.receive())["reason"] == "key_refused"
        # What the message advises the operator to do; nothing is restarted.
        allowed = tmp_path / "keys" / "clients" / "late.key"
        allowed.write_bytes((tmp_path / "stranger" / "gateway.key").read_bytes())
        while (told := await client.receive()).get("state") != "up":
            pass
        assert told["type"] == "feed"
    await until(lambda: readiness(server.port)["links"] == dict.fromkeys(ADDRESSES), "the connections")
    assert readiness(server.port)["ready"]


async def test_feeder_logs_a_client_without_keys(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    server = refused(rig, "")
    await until(lambda: "a client of market_addr" in caplog.text, "the feeder's line")
    # The end that closes first determines what the other one logs.
    assert readiness(server.port)["reason"] in ("curve_missing", "no_feeder", "feeder_absent")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([STATUS_TOPIC.encode(), bytes(32), b"\x80"], id="earlier"),
        pytest.param(Frame(STATUS_TOPIC, 1, 1, 1, 1, encode(STATUS | {"wire": 3})).to_parts(), id="later"),
    ],
)
async def test_reason_names_a_feeder_of_another_version(
    config: Config, parts: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sources = [sockets.bind_publisher(context, "market_addr", ANY_PORT, None) for _ in range(2)]
    addresses = dict(zip(("market_addr", "trade_addr"), (each.last_endpoint.decode() for each in sources), strict=True))
    server = Server(msgspec.structs.replace(config, curve_dir="", open_trade_addr=True, **addresses), PreparedFrames)
    server.start()
    try:

        def reason() -> object:
            sources[0].send_multipart(parts)
            return readiness(server.port)["reason"]

        await until(lambda: reason() == "wire_version", "the reason")
        assert len([record for record in caplog.records if "of the wire, and this program" in record.message]) == 1
    finally:
        server.stop()
        context.destroy(linger=0)
