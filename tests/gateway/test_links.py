"""A gateway whose key the feeder refuses: both say so, clients are told the reason, and it ends without a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from qmt_bridge import sockets
from qmt_bridge.config import Config
from tests.support.rig import Rig, Server, readiness
from tests.support.waiting import until

ADDRESSES = {"market_addr", "trade_addr", "ask_addr"}


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    """Return settings with keys; beside them is a gateway whose key no feeder allows."""
    for name in ("keys", "stranger"):
        sockets.make_keys(tmp_path / name)
    (tmp_path / "stranger" / "feeder.key").write_bytes((tmp_path / "keys" / "feeder.key").read_bytes())
    return msgspec.structs.replace(config, curve_dir=str(tmp_path / "keys"))


def refused(rig: Rig, curve_dir: str) -> Server:
    """Start a gateway that will not see the feeder."""
    server = Server(msgspec.structs.replace(rig.config, curve_dir=curve_dir), rig.ws)
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
        # As an operator does by the advice in the message; nothing is started again.
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
    # Which of both ends is the first to leave decides what the other one sees.
    assert readiness(server.port)["reason"] in ("curve_missing", "no_feeder", "feeder_absent")
