"""The gateway behind nginx and Caddy, as deploy/ sets them up, over TLS: everything real but the source of data."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from qmt_bridge import QMTClient
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import quote_topic
from tests.support.ports import ANY_ADDRESSES
from tests.support.programs import DEADLINE, Running, programs
from tests.support.proxies import Caddy, Nginx, Proxy, started
from tests.support.raw import opened
from tests.support.rig import Rig, running_rig
from tests.support.waiting import until

KEY = "the-key-of-the-desk"
CODE = "600519.SH"
TICK = quote_topic(CODE)
# Of this machine too, and not the proxy's own one, which the gateway trusts.
CLIENT = "127.0.0.2"
FORGED = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    config = Config(
        **ANY_ADDRESSES,
        api_key=KEY,
        data_dir=str(tmp_path / "data"),
        grace=0.0,
        lag_target=30.0,
        behind_proxy=("127.0.0.1",),
        require_key=True,
    )
    with running_rig(config) as rig:
        yield rig


Start = Callable[[type[Proxy]], tuple[Proxy, Running]]


@pytest.fixture
def start(tmp_path: Path, rig: Rig) -> Iterator[Start]:
    """Return a function that starts a proxy before the gateway; it ends with the test."""

    with programs() as run:
        yield lambda kind: started(kind, tmp_path, rig.serve().port, run)


both = pytest.mark.parametrize("kind", [Nginx, Caddy])


@both
async def test_client_gets_ticks_over_tls_and_after_a_reload(kind: type[Proxy], start: Start, rig: Rig) -> None:
    proxy, _ = start(kind)
    seen: list[Any] = []
    states: list[str] = []
    client = QMTClient(
        "localhost", proxy.port, KEY, proxy.authority.ca, on_state=lambda state: states.append(state.state)
    )
    reading = asyncio.create_task(client.subscribe_realtime([CODE], seen.append))
    await rig.wanted(TICK)
    rig.source.publish(TICK, {CODE: [{"n": 1}]})
    await until(lambda: seen == [{CODE: [{"n": 1}]}])
    issued = proxy.authority.issue()
    proxy.reload()
    async with asyncio.timeout(DEADLINE):
        while await proxy.certificate() != issued:
            pass
    if not proxy.keeps_sockets:
        await until(lambda: states.count("connected") == 2)
    # What is published before a new socket is served has no subscriber.
    async with asyncio.timeout(DEADLINE):
        while {CODE: [{"n": 2}]} not in seen:
            rig.source.publish(TICK, {CODE: [{"n": 2}]})
            await asyncio.sleep(0.05)
    assert ("disconnected" in states) is not proxy.keeps_sockets, states
    reading.cancel()


@both
async def test_events_are_passed_on_at_once(kind: type[Proxy], start: Start, rig: Rig) -> None:
    proxy, _ = start(kind)
    asked = f"GET /sse/realtime?stocks={CODE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    async with opened(proxy.port, ssl=proxy.context) as (reader, writer), asyncio.timeout(DEADLINE):
        writer.write(f"{asked}Accept-Encoding: gzip\r\n\r\n".encode())
        await rig.wanted(TICK)
        for number in range(3):
            # The next one is published when this one has arrived.
            rig.source.publish(TICK, {CODE: [{"n": number}]})
            while b'"n":%d' % number not in await reader.readline():
                pass


@both
async def test_wrong_keys_bar_the_client_and_not_the_proxy(
    kind: type[Proxy], start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    proxy, running = start(kind)

    async def code_of_wrong_key(address: str) -> int:
        try:
            async with proxy.connected(
                "/ws/realtime?api_key=a-wrong-key", additional_headers=FORGED, local_addr=(address, 0)
            ) as client:
                return (await client.closed())[0] or 0
        except InvalidStatus as refused:
            return refused.response.status_code

    assert [await code_of_wrong_key(CLIENT) for _ in range(6)] == [1008] * 5 + [429]
    assert await code_of_wrong_key("127.0.0.3") == 1008
    told = [record.getMessage() for record in caplog.records if record.name.startswith("gateway")]
    assert any(f"/ws/realtime from {CLIENT}" in line for line in told)
    assert not any("203.0.113.7" in line for line in told)
    running.close()
    assert "a-wrong-key" not in proxy.logs(running)


@both
async def test_proxy_logs_no_key_when_the_gateway_is_away(kind: type[Proxy], start: Start, rig: Rig) -> None:
    proxy, running = start(kind)
    rig.servers.pop().stop()
    with pytest.raises(InvalidStatus) as refused:
        async with proxy.connected(
            "/ws/realtime?api_key=key-in-the-url",
            additional_headers={"X-API-Key": "key-in-a-header"},
            subprotocols=["qmt-bridge", "key.key-in-a-protocol"],
        ):
            pass
    assert refused.value.response.status_code == 502
    running.close()
    logs = proxy.logs(running)
    assert "/ws/realtime" in logs
    assert "key-in-" not in logs
