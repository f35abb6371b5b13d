"""Who reaches the address of pushers: other users, keys, TLS, local sockets, and addresses that cannot be had."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import ssl
import struct
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from feeder.push import connection, listener
from feeder.push.connection import Connection
from feeder.push.listener import Listener
from feeder.push.source import PushSource
from qmt_bridge.config import Config, hidden
from qmt_bridge.errors import ConfigError
from qmt_bridge.process import peer, windows_peer
from tests.support.authority import Authority
from tests.support.push_feeder import Desk, config_in, desk
from tests.support.pusher import KEY, Pusher
from tests.support.rig import DEADLINE
from tests.support.sink import Recording
from tests.support.waiting import wait_for

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="of Linux: it tells the user of a connection in a file")
AS_ROOT = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to be another user")
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no local sockets here")


def said_as_another(running: Desk, key: str = "") -> dict[str, Any]:
    """Return what a program of another user is told."""
    told: list[dict[str, Any] | None] = []

    def say() -> None:
        # Of this thread alone; a socket belongs to the user who makes it.
        ctypes.CDLL(None).setfsuid(65534)
        told.append(running.connect().hello(key=key))

    thread = threading.Thread(target=say)
    thread.start()
    thread.join(DEADLINE)
    assert told[0] is not None
    return told[0]


@LINUX
def test_without_a_key_this_user_may_connect(tmp_path: Path) -> None:
    with desk(tmp_path, push_key="") as running:
        running.pusher()


@LINUX
@AS_ROOT
def test_without_a_key_another_user_is_refused(tmp_path: Path) -> None:
    with desk(tmp_path, push_key="") as running:
        told = said_as_another(running)
        assert (told["type"], told["code"]) == ("refused", "forbidden")
        assert "set push_key" in str(told["error"])
        running.pusher()


@LINUX
@AS_ROOT
def test_with_the_key_another_user_may_connect(tmp_path: Path) -> None:
    with desk(tmp_path) as running:
        assert said_as_another(running, KEY)["type"] == "welcome"


def test_where_the_system_does_not_tell_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "is_ours", lambda *ends: None)
    with desk(tmp_path, push_key="") as running:
        refused = running.connect().line()
        assert refused is not None
        assert refused["code"] == "forbidden"
        assert "does not tell" in refused["error"]
        assert running.push.health().pushers_refused["forbidden"] == 1


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:9C40 0100007F:15B8 06 00000000:00000000 00:00000000 00000000     0        0 0 1
   1: 0100007F:9C41 0100007F:15B8 01 00000000:00000000 00:00000000 00000000  1000        0 777 1
   2: 0100007F:15B8 0100007F:9C41 01 00000000:00000000 00:00000000 00000000  1001        0 778 1
   3: 0100007F:9C42 0100007F:15B8 01 00000000:00000000 00:00000000 00000000  1000        0 0 1
   4: 0000000000000000FFFF00000100007F:9C43 0000000000000000FFFF00000100007F:15B8 01 0:0 00:0 0  1002        0 9 1
   5: 00000000000000000000000001000000:9C44 00000000000000000000000001000000:15B8 01 0:0 00:0 0  1003        0 9 1
"""


@pytest.mark.parametrize(
    ("host", "port", "user"),
    [
        pytest.param("127.0.0.1", 0x9C41, 1000, id="established"),
        pytest.param("127.0.0.1", 0x9C40, None, id="closed"),
        pytest.param("127.0.0.1", 0x9C42, None, id="of-no-process"),
        pytest.param("127.0.0.1", 0x9C43, 1002, id="mapped"),
        pytest.param("::1", 0x9C44, 1003, id="ipv6"),
        pytest.param("127.0.0.1", 0x9C45, None, id="unknown"),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the table is that of a little-endian machine")
def test_the_user_of_a_connection_stands_in_the_table(host: str, port: int, user: int | None) -> None:
    assert peer.owner_in(TABLE.splitlines(), (host, port), (host, 0x15B8)) == user


def table_of(*rows: bytes) -> bytes:
    return struct.pack("<I4x", len(rows)) + b"".join(rows)


def row(client: str, client_port: int, process: int, state: int = 5) -> bytes:
    """Return a row of Windows' table: an end at `client` of a connection to port 5560 of the same address."""
    local, ports = (
        socket.inet_pton(socket.AF_INET, client),
        [number.to_bytes(2, "big") for number in (client_port, 5560)],
    )
    return struct.pack("<I4s2s2x4s2s2xIQ128x", state, local, ports[0], local, ports[1], process, 7)


def row6(client: str, client_port: int, process: int) -> bytes:
    """Return a row of Windows' table of IPv6."""
    local, ports = (
        socket.inet_pton(socket.AF_INET6, client),
        [number.to_bytes(2, "big") for number in (client_port, 5560)],
    )
    return struct.pack("<16sI2s2x16sI2s2xIIQ128x", local, 0, ports[0], local, 0, ports[1], 5, process, 7)


TABLE_OF_WINDOWS = table_of(
    row("127.0.0.1", 50_001, 11, state=11),
    row("127.0.0.1", 50_001, 12),
    row("127.0.0.2", 50_001, 13),
    row("127.0.0.1", 50_002, 14),
)
TABLE6_OF_WINDOWS = table_of(row6("::1", 50_003, 15), row6("::ffff:127.0.0.1", 50_004, 16))


@pytest.mark.parametrize(
    ("host", "port", "process"),
    [
        pytest.param("127.0.0.1", 50_001, 12, id="established"),
        pytest.param("127.0.0.2", 50_001, 13, id="another-address"),
        pytest.param("127.0.0.1", 50_003, None, id="unknown"),
        pytest.param("::1", 50_003, 15, id="ipv6"),
        pytest.param("127.0.0.1", 50_004, 16, id="mapped"),
        pytest.param("::1", 50_001, None, id="unknown-ipv6"),
    ],
)
def test_the_process_of_a_connection_stands_in_the_table(host: str, port: int, process: int | None) -> None:
    peer_end, here = (host, port), (host, 5560)
    end = windows_peer.end_in(TABLE_OF_WINDOWS, peer_end, here, is_ipv6=False)
    end = end or windows_peer.end_in(TABLE6_OF_WINDOWS, peer_end, here, is_ipv6=True)
    assert end == (None if process is None else windows_peer.End(process, 7))
    assert windows_peer.end_in(b"", peer_end, here, is_ipv6=False) is None


@pytest.mark.skipif(sys.platform != "win32", reason="of Windows: it tells the process of a connection in a table")
def test_a_process_of_this_user_is_told_by_its_token() -> None:
    if sys.platform == "win32":
        assert windows_peer._is_of_this_user(windows_peer.End(os.getpid(), 0))
        # 1601: the process that made that connection is not the one that has the number now.
        assert windows_peer._is_of_this_user(windows_peer.End(os.getpid(), 1)) is None
        assert windows_peer._is_of_this_user(windows_peer.End(0, 0)) is None
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            table = windows_peer._table(2)
            assert windows_peer.end_in(table, client.getsockname(), server.getsockname(), is_ipv6=False) is not None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells it in a table")
def test_a_process_of_its_own_tells_the_user_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            there, here = accepted.getpeername(), accepted.getsockname()
            assert client.getsockname() == there
            # macOS does not tell it to every user: then both are the process of its own, and None.
            told = peer.is_ours(there, here)
            assert told or (told is None and sys.platform == "darwin")
            monkeypatch.setattr(sys, "platform", "darwin")
            assert peer.is_ours(there, here) == told
            monkeypatch.setattr(peer, "_LIMIT", 0.0)
            assert peer.is_ours(there, here) is None


@UNIX
def test_a_local_socket_of_the_own_folder_is_open(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    path = folder / "push.sock"
    # The socket of a feeder that was killed.
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    config = config_in(tmp_path, push_addr=f"ipc://{path}", push_key="")
    running = Desk(config)
    running.start()
    try:
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(str(path))
        pusher = Pusher(connected)
        assert pusher.hello()["type"] == "welcome"
        with pytest.raises(ConfigError, match="already in use"):
            Listener(config)
        pusher.close()
    finally:
        running.close()
    assert not path.exists()


@UNIX
def test_a_folder_of_all_users_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="another user could connect"):
        Listener(Config(push_addr=f"ipc://{folder}/push.sock"))
    (tmp_path / "file").touch()
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="it is a file"):
        Listener(Config(push_addr=f"ipc://{tmp_path}/file"))


@pytest.mark.parametrize(
    ("settings", "name", "reason"),
    [
        pytest.param({"push_addr": "tcp://0.0.0.0:0"}, "push_addr", "set push_key", id="no-key"),
        pytest.param({"push_addr": "tcp://*:0", "push_key": KEY}, "push_addr", "set tls_cert and tls_key", id="no-tls"),
        pytest.param({"push_key": "short"}, "push_key", "16 or more", id="short-key"),
        pytest.param({"push_addr": "inproc://push"}, "push_addr", "expected tcp://", id="inproc"),
    ],
)
def test_settings_that_would_be_open_are_refused(settings: dict[str, str], name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        Listener(Config(**settings))
    assert raised.value.setting == name
    assert "short" not in raised.value.reason


def test_a_taken_port_is_told_with_its_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError) as raised:
            Listener(Config(push_addr=address))
    assert raised.value.reason.startswith(f"cannot listen on {address}: Address already in use")
    if sys.platform == "linux":
        assert f"(pid {os.getpid()}" in raised.value.reason


def test_of_two_feeders_one_has_the_port(tmp_path: Path) -> None:
    first = Listener(config_in(tmp_path))
    try:
        with pytest.raises(ConfigError, match="Address already in use"):
            Listener(config_in(tmp_path, push_addr=first.address))
    finally:
        first.close()
    Listener(config_in(tmp_path, push_addr=first.address)).close()


class Reserved(OSError):
    """What Windows says of a port in a range that Hyper-V has reserved."""

    winerror = 10013


def test_a_reserved_port_is_told_with_what_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(*_: object) -> None:
        raise Reserved(errno.EACCES, "forbidden by its access permissions")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(ConfigError, match=r"Windows has reserved port 5560.*excludedportrange"):
        Listener(Config(push_addr="tcp://127.0.0.1:5560"))


@pytest.mark.skipif(sys.platform != "win32", reason="elsewhere there are local sockets")
def test_a_local_socket_is_refused_on_windows() -> None:
    with pytest.raises(ConfigError, match=r"no local sockets here: use tcp://127\.0\.0\.1:5560"):
        Listener(Config(push_addr="ipc:///C:/qmt-bridge/push.sock"))


def test_the_key_is_no_flag_and_in_no_log() -> None:
    config = Config(push_key=KEY)
    assert KEY in hidden(config)
    assert KEY not in repr(config)


class Secure:
    """A feeder whose pushers come by TLS."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.authority.issue()
        self.config = config_in(folder, push_addr="tcp://0.0.0.0:0", **self.authority.settings)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority.ca))


def test_off_the_machine_pushers_come_by_tls(tmp_path: Path) -> None:
    secure = Secure(tmp_path)
    running = Desk(secure.config)
    running.start()
    try:
        port = running.address[1]
        for key, answer in ((KEY, "welcome"), ("another-key-of-nobody", "refused")):
            plain = socket.create_connection(("127.0.0.1", port), DEADLINE)
            pusher = Pusher(secure.context().wrap_socket(plain, server_hostname="localhost"))
            assert pusher.hello(key=key)["type"] == answer
            if answer == "refused":
                assert pusher.line() is None
                pusher.close()
            else:
                good = pusher
        # Without TLS nothing is said, and the key is not taken.
        clear = Pusher(socket.create_connection(("127.0.0.1", port), DEADLINE))
        clear.say({"type": "hello", "protocol": 1, "name": "clear", "kinds": ["l2"], "key": KEY})
        while clear.socket.recv(100):
            pass
        assert [each.name for each in running.push.health().pushers] == ["desk"]
        clear.close()
        # Much at once, as a pusher sends it.
        good.raw(b'{"type":"heartbeat"}\n' * 20_000)
        good.say({"type": "nonsense"})
        assert good.until("error")["line"] == 20_002
        good.close()
    finally:
        running.close()


def test_handshakes_that_do_not_end_hold_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "ARRIVAL_SECONDS", 0.05)
    secure = Secure(tmp_path)
    running = Desk(secure.config)
    running.start()
    try:
        port = running.address[1]
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        plain = socket.create_connection(("127.0.0.1", port), DEADLINE)
        pusher = Pusher(secure.context().wrap_socket(plain, server_hostname="localhost"))
        assert pusher.hello()["type"] == "welcome"
        for each in (*idle, pusher):
            each.close()
    finally:
        running.close()


def test_the_end_takes_no_two_seconds(tmp_path: Path) -> None:
    with desk(tmp_path) as running:
        pushers = [running.pusher(name=f"p{number}", kinds=["trade"], accounts=[str(number)]) for number in range(9)]
        arriving = running.connect()
        thread = running.push._thread
        running.push.close()
        assert not thread.is_alive()
        wait_for(lambda: all(pusher.line() is None for pusher in (*pushers, arriving)), "the end")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(running.address, DEADLINE)


def test_at_the_end_no_connection_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Connection] = []
    begin = Connection.connection_made

    def note(connection: Connection, transport: asyncio.BaseTransport) -> None:
        made.append(connection)
        begin(connection, transport)

    monkeypatch.setattr(Connection, "connection_made", note)
    with desk(tmp_path) as running:
        leaving = running.pusher(kinds=["trade"])
        leaving.say({"type": "bye"})
        assert leaving.line() == {"type": "bye"}
        running.pusher(name="other")
        assert running.connect().hello(key="another-key-of-nobody")["type"] == "refused"
        running.push.close()
        assert [each.is_closed for each in made] == [True] * 3
        # The port is free at once.
        Listener(config_in(tmp_path, push_addr=running.push.address)).close()


def test_a_source_that_is_closed_at_once_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push = PushSource(config_in(tmp_path))
    monkeypatch.setattr(push._thread, "start", lambda: None)
    push.start(Recording())  # type: ignore[arg-type]
    push._closing.set()
    push._loop.call_soon(push._stop)
    push._run()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(push.address.rpartition(":")[2])), DEADLINE)


def test_a_connection_is_closed_before_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Listener(config_in(tmp_path))

    async def close_after_the_first() -> None:
        if found._arriving:
            found.close()

    monkeypatch.setattr(found, "_wait_place", close_after_the_first)
    with (
        socket.create_connection(("127.0.0.1", int(found.address.rpartition(":")[2])), DEADLINE) as connected,
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
    ):
        with pytest.raises(asyncio.CancelledError):
            runner.run(asyncio.wait_for(found.serve(Mock()), DEADLINE))
        assert Pusher(connected).line() is None


class Reset(asyncio.Transport):
    """The transport of a connection that was reset after its last line was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_aborted = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        raise OSError(10057, "the socket is not connected")

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted.set()


async def test_a_reset_at_the_last_line_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "END_SECONDS", 0)
    transport = Reset()
    Connection(Mock(), b"bye").connection_made(transport)
    assert transport.written == b"bye"
    async with asyncio.timeout(DEADLINE):
        await transport.is_aborted.wait()


def test_a_connection_reset_before_its_accept_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = socket.socket.accept
    resets = [ConnectionResetError(10054, "reset"), ConnectionAbortedError(10053, "aborted")]

    def reset(listening: socket.socket) -> Any:
        if resets:
            raise resets.pop()
        return accept(listening)

    with desk(tmp_path) as running:
        # Beginning there, a feeder makes pairs of sockets, which Windows connects to each other.
        monkeypatch.setattr(socket.socket, "accept", reset)
        running.pusher()
        assert not resets
    assert not [record for record in caplog.records if "no pusher can connect" in record.getMessage()]


def test_connections_that_are_reset_are_not_logged_as_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    at_once = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
    with desk(tmp_path) as running:
        good = running.pusher(name="good", kinds=["l2"])
        for number in range(10):
            arriving, pusher = (
                running.connect(),
                running.pusher(name=f"p{number}", kinds=["trade"], accounts=[str(number)]),
            )
            pusher.raw(b'{"type":"heartbeat"}\n' * 1000)
            for each in (arriving, pusher):
                # A close with this option is a reset.
                each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                each.close()
        wait_for(
            lambda: [each.name for each in running.push.health().pushers if each.state == "up"] == ["good"],
            "the loss of all others",
        )
        good.say({"type": "nonsense"})
        assert good.until("error")["line"] == 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
