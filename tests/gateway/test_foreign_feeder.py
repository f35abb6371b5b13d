"""Another process that takes the feeder's addresses while it is away: it reaches no client of trade events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from gateway.writer import PreparedFrames
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import add_client, load_curve, make_keys
from qmt_bridge.wire.messages import AccountState
from tests.support.foreigner import QUOTE, foreigner
from tests.support.ports import free_port, tcp
from tests.support.rig import KEY, Client, Rig, readiness, running_rig
from tests.support.waiting import until


@pytest.fixture(params=["ipc", "own-keys"])
def owner(config: Config, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Return a feeder and a gateway with what protects trade events on Unix, and on Windows."""
    if request.param == "own-keys":
        config = msgspec.structs.replace(config, trade_addr=tcp(free_port()), trade_ask_addr=tcp(free_port()))
    with running_rig(config, PreparedFrames) as rig:
        rig.serve()
        yield rig


async def follow(rig: Rig, client: Client) -> None:
    """Let the client receive an event before the feeder is away."""
    rig.source.trade("order", n=1)
    assert (await client.receive())["seq"] == 1
    rig.feeder.stop()


async def go_on(rig: Rig, client: Client) -> None:
    """Check that the next event that the client receives is the next one of its own feeder."""
    rig.start_feeder()
    await until(lambda: readiness(rig.servers[0].port).get("simulated") is True, "the feeder")
    rig.source.trade("order", n=2)
    event = await client.receive()
    assert (event["seq"], event["data"]) == (2, {"n": 2})


async def test_fills_of_a_foreign_feeder_are_not_delivered(owner: Rig) -> None:
    where = owner.config
    own = where.trade_addr.startswith("tcp:")
    async with owner.connect(f"/ws/trade?api_key={quote(KEY)}") as client:
        await follow(owner, client)
        with foreigner(
            [where.market_addr, *([where.trade_addr] if own else [])],
            [where.ask_addr, *([where.trade_ask_addr] if own else [])],
        ) as foreign:
            done = foreign.rounds + 50
            await until(lambda: foreign.rounds > done, "many forged fills")
        await go_on(owner, client)


@pytest.mark.parametrize("owner", ["ipc"], indirect=True)
async def test_heartbeats_of_a_foreign_feeder_are_not_believed(owner: Rig) -> None:
    where, port = owner.config, owner.servers[0].port
    async with owner.connect("/ws/realtime?ctl=1") as client:
        assert (await client.receive())["feed"] == "up"
        await client.send({"action": "subscribe", "id": 1, "stocks": ["600519.SH"]})
        await owner.wanted(QUOTE)
        owner.feeder.stop()
        with foreigner([where.market_addr], [where.ask_addr]) as foreign:
            await until(lambda: readiness(port)["source"] is None, "the absence of the own feeder")
            # Its quotes arrive: market data is open to every user of the machine.
            before, done = readiness(port)["frames_received"], foreign.rounds + 50
            await until(lambda: foreign.rounds > done, "many forged heartbeats")
            assert readiness(port)["frames_received"] > before
            shown = readiness(port)
            assert (shown["ready"], shown["feed"], shown["source"]) == (False, "down", None)
            assert (shown["reason"], shown["links"]["market_addr"]) == ("feeder_absent", None)
        owner.start_feeder()
        await until(lambda: readiness(port)["ready"], "the own feeder")
        assert readiness(port)["source"] == "hand"


async def test_trade_is_down_without_its_connection(config: Config, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    quotes = add_client(tmp_path / "keys", "quotes", frozenset({"market", "ask", "download"}))
    with running_rig(msgspec.structs.replace(config, curve_dir=str(tmp_path / "keys")), PreparedFrames) as rig:
        server = rig.serve(curve_dir=str(quotes))
        rig.source.sink.set_accounts([AccountState("******0365", "STOCK", "up", None, 7)])
        await until(lambda: readiness(server.port)["accounts"], "the account")
        await until(lambda: readiness(server.port)["links"]["trade_addr"] == "key_refused", "the refusal")
        assert (readiness(server.port)["trade"], readiness(server.port)["ready"]) == ("down", True)


@pytest.mark.parametrize("owner", ["own-keys"], indirect=True)
async def test_a_foreign_curve_key_delivers_no_event(owner: Rig, tmp_path: Path) -> None:
    make_keys(tmp_path / "foreign")
    where, curve = owner.config, load_curve(str(tmp_path / "foreign"), "feeder")
    async with owner.connect(f"/ws/trade?api_key={quote(KEY)}") as client:
        await follow(owner, client)
        with foreigner([where.trade_addr], [where.trade_ask_addr], curve):
            links = ("trade_addr", "trade_ask_addr")
            port = owner.servers[0].port
            await until(
                lambda: all(readiness(port)["links"][name] == "feeder_key_wrong" for name in links), "the refusals"
            )
        await go_on(owner, client)
