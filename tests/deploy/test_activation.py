"""The gateway with a port that a service manager has opened (systemd's socket activation)."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.connections import activation
from gateway.connections.activation import inherited
from qmt_bridge import cli
from qmt_bridge.errors import ConfigError
from tests.support.ports import free_port
from tests.support.programs import DEADLINE, Running, needs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows hands no sockets over in this way")

PROGRAM = str(Path(sys.executable).with_name("qmt-bridge"))
# A service manager gives the socket the number 3, and tells the process its own id.
HAND_OVER = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def handed(descriptor: int, pid: int = 7, count: str = "1") -> socket.socket | None:
    environ = {"LISTEN_PID": str(pid), "LISTEN_FDS": count, "LISTEN_FDNAMES": "qmt-bridge-gateway.socket", "HOME": "/"}
    found = inherited(environ, 7, descriptor)
    assert environ == {"HOME": "/"}
    return found


def test_socket_is_taken_and_its_variables_are_removed(listening: socket.socket) -> None:
    descriptor = os.dup(listening.fileno())
    os.set_inheritable(descriptor, True)
    found = handed(descriptor)
    assert found is not None
    with found:
        assert found.getsockname() == listening.getsockname()
        assert not os.get_inheritable(descriptor)


def test_socket_of_another_process_is_not_taken(listening: socket.socket) -> None:
    assert handed(listening.fileno(), pid=8) is None
    assert inherited({}, 7) is None


@pytest.mark.parametrize("count", ["0", "2", "many", ""])
def test_any_other_number_of_sockets_is_refused(listening: socket.socket, count: str) -> None:
    with pytest.raises(ConfigError, match=r"^LISTEN_FDS: one socket is served"):
        handed(listening.fileno(), count=count)


@pytest.mark.parametrize("kind", ["datagram", "local", "connecting", "file", "none"])
def test_what_is_no_listening_tcp_socket_is_refused(tmp_path: Path, kind: str) -> None:
    families = {"datagram": (socket.AF_INET, socket.SOCK_DGRAM), "local": (socket.AF_UNIX, socket.SOCK_STREAM)}
    if kind == "file":
        descriptor = os.open(tmp_path / "file", os.O_CREAT)
    elif kind == "none":
        descriptor = os.dup(0)
        os.close(descriptor)
    else:
        made = socket.socket(*families.get(kind, (socket.AF_INET, socket.SOCK_STREAM)))
        if kind == "local":
            made.bind(str(tmp_path / "socket"))
            made.listen()
        descriptor = made.detach()
    with pytest.raises(ConfigError, match=rf"^LISTEN_FDS: descriptor {descriptor} is no "):
        handed(descriptor)
    if kind == "file":
        os.close(descriptor)


def ask(port: int) -> socket.socket:
    """Connect, and ask without waiting for an answer."""
    client = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return client


def answer(client: socket.socket) -> bytes:
    with client, client.makefile("rb") as stream:
        return stream.read()


def test_systemd_starts_the_gateway_at_the_first_request(tmp_path: Path, run: Callable[..., Running]) -> None:
    port = free_port()
    command = [needs("systemd-socket-activate"), f"--listen=127.0.0.1:{port}"]
    command += [f"--setenv={name}" for name in os.environ]
    gateway = run([*command, PROGRAM, "gateway", "--workers=2", f"--data-dir={tmp_path}"])
    gateway.wait_for("Listening on")
    assert not any("gateway listens" in line for line in gateway.lines)
    assert answer(ask(port)).startswith(b"HTTP/1.1 200 OK")
    gateway.wait_for(rf"gateway listens on http://127\.0\.0\.1:{port}, 2 workers")


def test_connections_wait_while_the_gateway_restarts(
    listening: socket.socket, tmp_path: Path, run: Callable[..., Running]
) -> None:
    port = listening.getsockname()[1]

    def start() -> Running:
        number = listening.fileno()
        command = [sys.executable, "-c", HAND_OVER, str(number), PROGRAM, "gateway", f"--data-dir={tmp_path}"]
        return run(command, pass_fds=[number])

    first = start()
    first.wait_for("gateway listens on")
    assert answer(ask(port)).startswith(b"HTTP/1.1 200 OK")
    first.process.terminate()
    assert first.process.wait(DEADLINE) == 0
    waiting = [ask(port) for _ in range(20)]
    start().wait_for("gateway listens on")
    assert all(answer(client).startswith(b"HTTP/1.1 200 OK") for client in waiting)


@pytest.mark.parametrize("flag", ["--port=8000", "--host=127.0.0.1"])
def test_flags_that_a_given_socket_overrules_are_refused(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setattr(activation, "inherited", lambda *_: listening)
    refused = CliRunner().invoke(cli.main, ["gateway", flag])
    assert f"{flag.partition('=')[0]} has no effect: the service manager has opened the socket" in refused.output


def test_exposure_goes_by_the_address_of_the_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        monkeypatch.setattr(activation, "inherited", lambda *_: everywhere)
        monkeypatch.setenv("QMT_BRIDGE_HOST", "127.0.0.1")
        refused = CliRunner().invoke(cli.main, ["gateway", f"--data-dir={tmp_path}"])
    assert (refused.exit_code, "host: other machines reach 0.0.0.0" in refused.output) == (1, True)
