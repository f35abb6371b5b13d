"""TLS: certificates that change while clients are connected, and every way to reach a gateway that has one."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Self

import pytest
from websockets.asyncio.client import connect

from gateway import server as gateway_server
from qmt_bridge import QMTClient
from qmt_bridge.addresses import certificate
from qmt_bridge.addresses.certificate import Certificate
from qmt_bridge.errors import ConfigError, Disconnected
from tests.support.authority import Authority
from tests.support.raw import opened
from tests.support.up import Up, running
from tests.support.waiting import SLOWNESS, until, wait_for

DEADLINE = 30.0 * SLOWNESS
CODES = ["600519.SH"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path)
    authority.issue()
    return authority


def context(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca)


class Echo:
    """A server that echoes over TLS, in this loop."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self._served = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        made = Certificate(str(self.authority.cert), str(self.authority.key))
        self._server = await asyncio.start_server(self._echo, "127.0.0.1", 0, ssl=made.context)
        self._port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        # The clients have left.
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*self._served)

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served.add(task)
        try:
            while data := await reader.read(100):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    def connected(self) -> AbstractAsyncContextManager[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return opened(self._port, ssl=context(self.authority))

    async def served(self) -> bytes:
        """Return the certificate that a new connection gets, as DER."""
        async with self.connected() as (_, writer):
            found: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
            return found


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"x")
    async with asyncio.timeout(DEADLINE):
        return await reader.read(1) == b"x"


async def serves(server: Echo, issued: bytes) -> None:
    async with asyncio.timeout(DEADLINE):
        served = await server.served()
        while served != issued:
            served = await server.served()


async def test_new_certificate_is_served_and_connections_stay(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "LOOK_EVERY", 0.02)
    async with Echo(authority) as server, server.connected() as before:
        await serves(server, authority.issue())
        assert await answers(*before)


async def test_broken_certificate_leaves_the_one_before(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificate, "LOOK_EVERY", 0.02)
    async with Echo(authority) as server:
        first = await server.served()
        # A certificate without its key is what a reader sees between two writes.
        authority.key.write_bytes(authority.ca.read_bytes())
        await until(lambda: "cannot be used" in caplog.text, "the line of the log")
        assert await server.served() == first
        authority.key.unlink()
        await until(lambda: "cannot read" in caplog.text, "the second line")
        assert await server.served() == first
        told = len(caplog.records)
        await serves(server, authority.issue())
        assert caplog.records[told:] == [] or "has changed" in caplog.text


async def test_key_that_others_can_read_is_warned_of(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    Certificate(*authority.settings.values())
    assert "can be read" not in caplog.text
    authority.key.chmod(0o644)
    Certificate(*authority.settings.values())
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize("fault", ["missing", "no-pem", "foreign-key", "password"])
def test_certificate_that_cannot_be_used_is_refused_by_name(authority: Authority, tmp_path: Path, fault: str) -> None:
    said = "tls_cert: "
    if fault == "missing":
        authority.key.unlink()
        said = "tls_key: cannot read"
    elif fault == "no-pem":
        authority.cert.write_text("x", encoding="ascii")
    elif fault == "foreign-key":
        cert = authority.cert.read_bytes()
        authority.issue()
        authority.cert.write_bytes(cert)
        said = "does not belong to the certificate"
    else:
        from cryptography.hazmat.primitives import serialization as of

        key = of.load_pem_private_key(authority.key.read_bytes(), None)
        closed = of.BestAvailableEncryption(b"password")
        authority.key.write_bytes(key.private_bytes(of.Encoding.PEM, of.PrivateFormat.PKCS8, closed))
        said = "has a password"
    with pytest.raises(ConfigError, match=said):
        certificate.load(str(authority.cert), str(authority.key))


def test_old_versions_of_tls_are_refused(authority: Authority) -> None:
    assert certificate.load(*authority.settings.values()).minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.fixture(params=[1, 2], ids=["one-worker", "two-workers"])
def up(authority: Authority, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Up:
    monkeypatch.setenv("QMT_BRIDGE_API_KEY", "0123456789abcdef")
    tls = [f"--tls-cert={authority.cert}", f"--tls-key={authority.key}"]
    with running(tmp_path / "data", "--source=sim", f"--workers={request.param}", *tls) as up:
        yield up


async def ticks(client: QMTClient) -> object:
    async for frame in client.realtime(CODES):
        return frame
    return None


async def test_gateway_with_tls_serves_clients_and_commands(up: Up, authority: Authority) -> None:
    assert f"wss://127.0.0.1:{up.port}/ws/realtime" in up.text
    for tls in (authority.ca, str(authority.ca), context(authority)):
        assert await ticks(QMTClient("127.0.0.1", up.port, tls=tls))
    with pytest.raises(Disconnected, match="certificate verify failed"):
        await ticks(QMTClient("127.0.0.1", up.port, tls=True))
    url = f"wss://127.0.0.1:{up.port}/ws/realtime"
    commands = (
        ["tail", url, *CODES, "--count=1", "--ca", str(authority.ca)],
        ["bench", url, *CODES, "--clients=3", "--seconds=0.5", "--ca", str(authority.ca)],
    )
    for command in commands:
        done = await asyncio.to_thread(run, *command)
        assert done.returncode == 0, done.stderr
    refused = await asyncio.to_thread(run, "tail", url, *CODES, "--count=1")
    assert (refused.returncode, "certificate verify failed" in refused.stderr) == (1, True)
    # Other bytes than TLS end the connection, and nothing but a line of the gateway's own is logged.
    for garbage in (b"GET /healthz HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 100, b"\0" * 100):
        with socket.create_connection(("127.0.0.1", up.port), DEADLINE) as plain:
            plain.sendall(garbage)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(1000):
                pass
    # A new certificate reaches every worker, and open sockets stay.
    async with connect(f"{url}?ctl=1", ssl=context(authority), proxy=None) as socket_before:
        await socket_before.send(json.dumps({"stocks": CODES, "id": 1}))
        issued = authority.issue()
        wait_for(lambda: "has changed" in up.text, "the new certificate")
        served = {await asyncio.to_thread(certificate_of, up.port, authority) for _ in range(20)}
        async with asyncio.timeout(DEADLINE):
            while issued not in served or len(served) > 1:
                served = {await asyncio.to_thread(certificate_of, up.port, authority) for _ in range(20)}
        async with asyncio.timeout(DEADLINE):
            assert await (await socket_before.ping()) is not None
    assert "Traceback" not in up.text


def certificate_of(port: int, authority: Authority) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), DEADLINE) as plain,
        context(authority).wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        found = encrypted.getpeercert(True)
        assert found is not None
        return found


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qmt_bridge.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=50 * SLOWNESS, check=False)


def test_authority_that_is_no_certificate_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("x", encoding="ascii")
    with pytest.raises(ConfigError, match=r"tls: .*holds no certificate authority"):
        QMTClient("127.0.0.1", tls=path)
    done = run("tail", "wss://127.0.0.1:9/ws/realtime", "--ca", str(path))
    assert (done.returncode, "holds no certificate authority" in done.stderr) == (1, True)
    done = run("tail", "ws://127.0.0.1:9/ws/realtime", "--ca", str(path))
    assert (done.returncode, "wss://" in done.stderr) == (2, True)


@pytest.mark.parametrize("command", ["up", "gateway"])
def test_gateway_for_other_machines_without_tls_does_not_start(command: str, tmp_path: Path) -> None:
    done = run(command, "--host=0.0.0.0", "--port=0", f"--data-dir={tmp_path}")
    assert done.returncode == 1
    for line in ("require_key = true", "tls_cert = ", "tls_key = "):
        assert f"    {line}" in done.stderr


def test_client_that_never_ends_its_tls_handshake_is_closed(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_server, "REQUEST_TIMEOUT", 0.3)

    async def silent() -> bytes:
        server = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, "127.0.0.1", 0, ssl=Certificate(str(authority.cert), str(authority.key)).context
        )
        async with server, asyncio.timeout(DEADLINE), opened(server.sockets[0].getsockname()[1]) as (reader, _):
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""

    with asyncio.Runner(loop_factory=gateway_server.new_event_loop) as runner:
        assert runner.run(silent()) == b""
