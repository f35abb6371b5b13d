"""The gateway behind nginx and Caddy, as deploy/ sets them up, over TLS: everything real but the source of data."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from qmt_bridge import QMTClient
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import quote_topic
from tests.support.authority import Authority
from tests.support.paths import ROOT
from tests.support.ports import ANY_ADDRESSES, free_ports
from tests.support.programs import DEADLINE, Running, check, listens, needs, programs
from tests.support.raw import opened
from tests.support.rig import Client, Rig, running_rig
from tests.support.waiting import until, wait_for

KEY = "the-key-of-the-desk"
CODE = "600519.SH"
TICK = quote_topic(CODE)
# Of this machine too, and not the proxy's own one, which the gateway trusts.
CLIENT = "127.0.0.2"
FORGED = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7"}


class Proxy:
    """A proxy over TLS before a gateway, with the configuration of deploy/ at other addresses."""

    def __init__(self, folder: Path, gateway: int, authority: Authority) -> None:
        self.folder, self.gateway, self.authority = folder, gateway, authority
        self.port, self.other = free_ports(2)
        self.context = ssl.create_default_context(cafile=authority.ca)
        self.write()

    def write(self) -> None:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def reload(self) -> None:
        raise NotImplementedError

    @property
    def keeps_sockets(self) -> bool:
        """Whether open WebSockets survive a reload."""
        raise NotImplementedError

    def logs(self, running: Running) -> str:
        """Return all that it has written; it has to have ended."""
        return "".join(running.lines) + "".join(path.read_text("utf-8") for path in sorted(self.folder.glob("*.log")))

    @asynccontextmanager
    async def connected(self, path: str, **options: Any) -> AsyncIterator[Client]:
        url = f"wss://localhost:{self.port}{path}"
        async with connect(url, host="127.0.0.1", ssl=self.context, proxy=None, **options) as socket:
            yield Client(socket)

    async def certificate(self) -> bytes:
        """Return the certificate that a new connection gets."""
        async with opened(self.port, ssl=self.context) as (_, writer):
            found: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
            return found


class Nginx(Proxy):
    keeps_sockets = True

    def write(self) -> None:
        site = (ROOT / "deploy/nginx/qmt-bridge.conf").read_text(encoding="utf-8")
        # TLS is a comment there.
        site = re.sub(r"^    # (listen 443 ssl|ssl_\w+ )", r"    \1", site.replace("    listen 80;\n", ""), flags=re.M)
        for shipped, here in {
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "/etc/ssl/certs/qmt-bridge.pem": str(self.authority.cert),
            "/etc/ssl/private/qmt-bridge.key": str(self.authority.key),
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{self.gateway};",
            "/var/log/nginx/": f"{self.folder}/",
        }.items():
            assert shipped in site
            site = site.replace(shipped, here)
        (self.folder / "site.conf").write_text(site, encoding="utf-8")
        (self.folder / "nginx.conf").write_text(
            f"daemon off; pid {self.folder}/nginx.pid; error_log {self.folder}/start.log; events {{}}\n"
            f"http {{ client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy;\n"
            f"include {self.folder}/site.conf; }}\n",
            encoding="utf-8",
        )

    def command(self) -> list[str]:
        return [needs("nginx"), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def reload(self) -> None:
        check([*self.command(), "-s", "reload"])


class Caddy(Proxy):
    @property
    def version(self) -> tuple[int, ...]:
        numbers = re.search(r"(\d+)\.(\d+)", check([needs("caddy"), "version"]))
        assert numbers is not None
        return tuple(map(int, numbers.groups()))

    @property
    def keeps_sockets(self) -> bool:
        return self.version >= (2, 7)

    def write(self) -> None:
        site = (ROOT / "deploy/caddy/Caddyfile").read_text(encoding="utf-8")
        if self.keeps_sockets:
            # A comment there, because Debian's Caddy is older.
            site = site.replace("# stream_close_delay", "stream_close_delay")
            assert "\t\tstream_close_delay 24h\n" in site
        for shipped, here in {
            # Neither are ports used that need rights, nor is the administration of another Caddy.
            "\n{\n": f"\n{{\n\tadmin localhost:{self.other}\n\tauto_https disable_redirects\n",
            "\nquotes.example {\n": f"\nhttps://localhost:{self.port} {{\n\tbind 127.0.0.1\n\tlog\n",
            "# A certificate of your own: tls": "tls",
            "/etc/ssl/certs/qmt-bridge.pem": str(self.authority.cert),
            "/etc/ssl/private/qmt-bridge.key": str(self.authority.key),
            "reverse_proxy 127.0.0.1:8000 {": f"reverse_proxy 127.0.0.1:{self.gateway} {{",
        }.items():
            assert site.count(shipped) == 1, shipped
            site = site.replace(shipped, here)
        (self.folder / "Caddyfile").write_text(site, encoding="utf-8")

    def command(self) -> list[str]:
        return [needs("caddy"), "run", "--config", str(self.folder / "Caddyfile"), "--adapter", "caddyfile"]

    def reload(self) -> None:
        check([needs("caddy"), "reload", *self.command()[2:], "--force", "--address", f"localhost:{self.other}"])


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

    def started(kind: type[Proxy]) -> tuple[Proxy, Running]:
        needs(kind.__name__.lower())
        authority = Authority(tmp_path)
        authority.issue()
        proxy = kind(tmp_path, rig.serve().port, authority)
        running = run(proxy.command(), env=dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(tmp_path)))
        wait_for(lambda: listens(proxy.port) or running.process.poll() is not None, "the proxy")
        assert running.process.poll() is None, running.lines
        return proxy, running

    with programs() as run:
        yield started


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
