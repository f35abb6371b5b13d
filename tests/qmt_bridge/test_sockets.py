"""Both ends of the sockets over real TCP: which clients connect, which are refused, and what a key pair is."""

from __future__ import annotations

import socket as net
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from qmt_bridge import sockets
from qmt_bridge.curve import authenticator as authenticators
from qmt_bridge.curve.authenticator import Authenticator
from qmt_bridge.curve.certificate import read_certificate
from qmt_bridge.curve.key_folder import Curve, load_curve, make_keys
from qmt_bridge.errors import ConfigError
from qmt_bridge.process import holder
from qmt_bridge.wire.frames import BATCH_BYTES
from tests.support import zmtp
from tests.support.ports import ANY_PORT
from tests.support.waiting import SLOWNESS
from tests.support.wine import not_under_wine

SECONDS = 30.0 * SLOWNESS
Socket = zmq.Socket[bytes]


@pytest.fixture
def context() -> Iterator[zmq.Context[Socket]]:
    made: list[Socket] = []

    class Keeping(zmq.Context[Socket]):
        # A socket that is forgotten before it is closed is a ResourceWarning.
        def socket(self, *args: Any, **options: Any) -> Socket:
            made.append(super().socket(*args, **options))
            return made[-1]

    context = Keeping()
    try:
        yield context
    finally:
        context.destroy(linger=0)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "curve")
    return tmp_path / "curve"


@pytest.fixture
def authenticator(context: zmq.Context[Socket], keys: Path) -> Authenticator:
    return Authenticator(context, str(keys))


@pytest.fixture
def publisher(context: zmq.Context[Socket], keys: Path, authenticator: Authenticator) -> Socket:
    return sockets.bind_publisher(context, "market_addr", ANY_PORT, load_curve(str(keys), "feeder"))


def serve(authenticator: Authenticator, awaited: Socket, events: int = zmq.POLLIN) -> None:
    """Answer handshakes until `awaited` is ready."""
    poller = zmq.Poller()
    poller.register(authenticator.socket, zmq.POLLIN)
    poller.register(awaited, events)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ready = dict(poller.poll(1000))
        if authenticator.socket in ready:
            authenticator.answer()
        if awaited in ready:
            return
    raise AssertionError("nothing happened in time")


def address(socket: Socket) -> str:
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def stranger(keys: Path) -> Curve:
    """Return a key pair that the feeder does not allow, with the feeder's true public key."""
    public, secret = zmq.curve_keypair()
    return Curve(public, secret, read_certificate(keys / "feeder.key").public)


def demanded(socket: Socket) -> bytes:
    assert socket.poll(int(SECONDS * 1000)), "no subscription in time"
    return socket.recv()


# Reads a little every two seconds of what comes all the time.
HANGING = """
import threading, time, zmq
from qmt_bridge import sockets
from qmt_bridge.process import holder

sockets.HIGH_WATER_MARK = sockets.RECEIVE_MARK = 2000
context = zmq.Context()
publisher = sockets.bind_publisher(context, "market_addr", "tcp://127.0.0.1:*", None)
subscriber = sockets.connect_subscriber(context, publisher.getsockopt_string(zmq.LAST_ENDPOINT), None)
subscriber.subscribe("quote/")
publisher.recv()
over = time.monotonic() + 7

def publish():
    while time.monotonic() < over:
        for _ in range(500):
            publisher.send_multipart([b"quote/600519.SH/tick/", bytes(32), bytes(500)])
        time.sleep(0.001)

publishing = threading.Thread(target=publish)
publishing.start()
while time.monotonic() < over:
    for _ in range(500):
        subscriber.recv_multipart()
    time.sleep(2.2)
publishing.join()
# A client that was disconnected cancels its subscriptions and makes them again.
assert not publisher.poll(0), publisher.recv()
# libzmq 4.3.5 aborts when both ends of a connection close at once and half a message is on its way
# (session_base.cpp:233), so the publisher first sees that its client has left.
subscriber.close()
assert publisher.recv() == b"\\0quote/"
context.destroy(0)
print("still there")
"""


class MutePeer:
    """A SUB of ZMTP 3.0 by hand, as NetMQ and zmq.rs are: it reads every message, and answers no PING."""

    def __init__(self, address: str, topic: bytes) -> None:
        self._socket = net.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), SECONDS)
        self._stream = self._socket.makefile("rb")
        greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
        self._socket.sendall(greeting)
        assert len(self._stream.read(64)) == 64
        ready = b"\x05READY" + b"\x0bSocket-Type" + b"\0\0\0\x03SUB"
        self._socket.sendall(b"\x04" + bytes([len(ready)]) + ready)
        self._socket.sendall(b"\0" + bytes([len(topic) + 1]) + b"\1" + topic)

    def read(self) -> bytes | None:
        """Return the next part of a message; None for a command; raise EOFError when cut off."""
        head = self._stream.read(1)
        if not head:
            raise EOFError("cut off")
        flags = head[0]
        size = int.from_bytes(self._stream.read(8 if flags & 2 else 1), "big")
        body = self._stream.read(size)
        return None if flags & 4 else body

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def test_a_peer_that_answers_no_ping_stays_connected(context: zmq.Context[Socket]) -> None:
    publisher = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    peer = MutePeer(address(publisher), b"quote/")
    try:
        assert demanded(publisher) == b"\1quote/"
        # With ZMTP heartbeats it was cut off after 2 s, first of all those that published nothing for a while.
        start, age, sent, got = time.monotonic(), 0.0, 0, 0
        while age < 3.5:
            assert not publisher.poll(20), publisher.recv()
            publisher.send(b"quote/%d" % sent)
            sent += 1
            while (body := peer.read()) is None:
                pass
            assert body == b"quote/%d" % got
            got, age = got + 1, time.monotonic() - start
    finally:
        peer.close()
    # A client that disconnects is removed at once.
    assert demanded(publisher) == b"\0quote/"


@not_under_wine("it has no TCP_MAXRT")
def test_only_a_connecting_end_gives_up_what_is_not_acknowledged(context: zmq.Context[Socket]) -> None:
    publisher = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    router = sockets.bind_router(context, ANY_PORT, None)
    subscriber = sockets.connect_subscriber(context, address(publisher), None)
    dealer = sockets.connect_dealer(context, address(router), None)
    # Linux counts a closed receive window as not acknowledged: a stopped consumer would be cut off.
    assert [socket.getsockopt(zmq.TCP_MAXRT) for socket in (publisher, router)] == [0, 0]
    assert [socket.getsockopt(zmq.TCP_MAXRT) for socket in (subscriber, dealer)] == [sockets.UNANSWERED_MS] * 2
    assert {socket.tcp_keepalive for socket in (publisher, router, subscriber, dealer)} == {1}


def test_a_system_without_that_option_still_connects(
    context: zmq.Context[Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Wine refuses TCP_MAXRT, and libzmq then makes no connection; here -1 is an option that no system has.
    sockets._gives_up_unanswered.cache_clear()
    monkeypatch.setattr(sockets, "_MAXRT_OPTION", -1)
    try:
        subscriber = sockets.connect_subscriber(context, "tcp://127.0.0.1:9", None)
    finally:
        sockets._gives_up_unanswered.cache_clear()
    assert subscriber.getsockopt(zmq.TCP_MAXRT) == 0


def test_an_allowed_key_gets_data(
    context: zmq.Context[Socket], keys: Path, authenticator: Authenticator, publisher: Socket
) -> None:
    subscriber = sockets.connect_subscriber(context, address(publisher), load_curve(str(keys), "gateway"))
    subscriber.subscribe(b"quote/")
    serve(authenticator, publisher)
    assert publisher.recv() == b"\x01quote/"
    publisher.send_multipart([b"quote/x/", b"body"])
    assert subscriber.poll(int(SECONDS * 1000))
    assert subscriber.recv_multipart() == [b"quote/x/", b"body"]


def test_an_unknown_key_gets_nothing_and_is_logged_once(
    context: zmq.Context[Socket],
    keys: Path,
    authenticator: Authenticator,
    publisher: Socket,
    caplog: pytest.LogCaptureFixture,
) -> None:
    curve = stranger(keys)
    # ZeroMQ gives up after a refusal, so it takes two of them to be refused twice.
    for _ in range(2):
        refused = sockets.connect_subscriber(context, address(publisher), curve)
        monitor = refused.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        refused.subscribe(b"stranger/")
        serve(authenticator, monitor)
        assert recv_monitor_message(monitor)["value"] == 400
        refused.disable_monitor()
        monitor.close(linger=0)
    assert [record.args[0] for record in caplog.records if record.args] == [curve.public.decode()]  # type: ignore[index]
    # An allowed client connects later; the refused client's subscription never reached the feeder.
    allowed = sockets.connect_subscriber(context, address(publisher), load_curve(str(keys), "gateway"))
    allowed.subscribe(b"stranger/too/")
    serve(authenticator, publisher)
    assert publisher.recv() == b"\x01stranger/too/"
    publisher.send_multipart([b"stranger/too/", b"body"])
    assert allowed.poll(int(SECONDS * 1000))
    assert not refused.poll(0)


def ask_with(context: zmq.Context[Socket], publisher: Socket, curve: Curve, topic: bytes) -> Socket:
    subscriber = sockets.connect_subscriber(context, address(publisher), curve)
    subscriber.subscribe(topic)
    return subscriber


def test_a_slow_disk_holds_up_only_unknown_keys(
    context: zmq.Context[Socket],
    keys: Path,
    authenticator: Authenticator,
    publisher: Socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> authenticators.Stamp:
        reading.set()
        assert go_on.wait(SECONDS)
        return stamp(folder)

    stamp = authenticators._stamp
    monkeypatch.setattr(authenticators, "_stamp", slow)
    monkeypatch.setattr(authenticator, "_read_after", 0.0)
    added = stranger(keys)
    new = ask_with(context, publisher, added, b"new/")
    assert authenticator.socket.poll(int(SECONDS * 1000))
    authenticator.answer()
    assert reading.wait(SECONDS)
    known = ask_with(context, publisher, load_curve(str(keys), "gateway"), b"known/")
    serve(authenticator, publisher)
    assert publisher.recv() == b"\x01known/"
    (keys / "clients" / "added.key").write_text(f'curve\n    public-key = "{added.public.decode()}"\n')
    go_on.set()
    serve(authenticator, publisher)
    assert publisher.recv() == b"\x01new/"
    for socket in (new, known):
        socket.close()


def test_keys_that_cannot_be_read_are_told_once(
    context: zmq.Context[Socket],
    keys: Path,
    authenticator: Authenticator,
    publisher: Socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(folder: Path) -> authenticators.Stamp:
        raise OSError("no such disk")

    monkeypatch.setattr(authenticators, "_stamp", broken)
    for _ in range(2):
        monkeypatch.setattr(authenticator, "_read_after", 0.0)
        refused = sockets.connect_subscriber(context, address(publisher), stranger(keys))
        monitor = refused.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        serve(authenticator, monitor)
        refused.disable_monitor()
        monitor.close(linger=0)
    assert sum("no such disk" in record.getMessage() for record in caplog.records) == 1
    # Clients that were allowed before are still allowed.
    ask_with(context, publisher, load_curve(str(keys), "gateway"), b"known/")
    serve(authenticator, publisher)
    assert publisher.recv() == b"\x01known/"


def test_reading_many_keys_takes_a_tenth_of_the_time() -> None:
    assert authenticators._next_read(10.0, 10.001) == 10.001 + authenticators.KEYS_SECONDS
    assert authenticators._next_read(10.0, 12.0) == 12.0 + 18.0


def test_a_client_without_a_key_gets_nothing(
    context: zmq.Context[Socket], authenticator: Authenticator, publisher: Socket
) -> None:
    # The feeder's end watches, because the other one could fail before its monitor is read.
    monitor = publisher.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED)
    plain = sockets.connect_subscriber(context, address(publisher), None)
    plain.subscribe(b"plain/")
    serve(authenticator, monitor)
    publisher.disable_monitor()
    monitor.close(linger=0)
    assert not publisher.poll(0)


def test_questions_are_encrypted_too(context: zmq.Context[Socket], keys: Path, authenticator: Authenticator) -> None:
    router = sockets.bind_router(context, ANY_PORT, load_curve(str(keys), "feeder"))
    dealer = sockets.connect_dealer(context, address(router), load_curve(str(keys), "gateway"))
    serve(authenticator, dealer, zmq.POLLOUT)
    dealer.send(b"question")
    assert router.poll(int(SECONDS * 1000))
    assert router.recv_multipart()[1] == b"question"


def test_a_folder_without_clients_is_refused(context: zmq.Context[Socket], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the keys of clients"):
        Authenticator(context, str(tmp_path))


@pytest.mark.parametrize("where", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.168.1.5:5555", "tcp://[::]:0"])
def test_another_address_than_loopback_needs_curve(context: zmq.Context[Socket], where: str) -> None:
    with pytest.raises(ConfigError, match=r"trade_addr: .* needs curve_dir"):
        sockets.bind_publisher(context, "trade_addr", where, None)
    with pytest.raises(ConfigError, match="ask_addr"):
        sockets.bind_router(context, where, None)


def test_with_curve_another_address_may_be_bound(context: zmq.Context[Socket], keys: Path) -> None:
    curve = load_curve(str(keys), "feeder")
    assert address(sockets.bind_publisher(context, "market_addr", "tcp://0.0.0.0:0", curve)).startswith("tcp://0.0.0.0")


def test_a_port_in_use_is_named(context: zmq.Context[Socket]) -> None:
    with net.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"market_addr: cannot listen on {where}: ") as refused:
            sockets.bind_publisher(context, "market_addr", where, None)
    assert refused.value.setting == "market_addr"


def test_a_port_that_is_freed_soon_is_waited_for(context: zmq.Context[Socket], monkeypatch: pytest.MonkeyPatch) -> None:
    # The search for a holder starts a process, which takes longer than the wait on a busy machine.
    monkeypatch.setattr(holder, "holder", lambda port: pytest.fail("the holder was looked for"))
    taken = net.create_server(("127.0.0.1", 0))
    where = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    tries: list[None] = []

    def wait(seconds: float) -> None:
        tries.append(None)
        if len(tries) == 3:
            taken.close()

    monkeypatch.setattr(sockets.time, "sleep", wait)
    bound = sockets.bind_router(context, where, None, patience=SECONDS)
    assert (address(bound), len(tries)) == (where, 3)


def test_a_holder_is_named_by_the_number_that_libzmq_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    # On Windows libzmq says 100, and `errno.EADDRINUSE` is 10048.
    monkeypatch.setattr(zmq, "EADDRINUSE", 100)
    monkeypatch.setattr(holder, "holder", lambda port: f"; somebody has {port}")
    assert sockets._holder("tcp://127.0.0.1:5555", 100) == "; somebody has 5555"
    assert sockets._holder("tcp://127.0.0.1:5555", 10048) == ""


def test_a_question_to_a_feeder_that_is_away_is_not_queued(context: zmq.Context[Socket]) -> None:
    with net.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dealer = sockets.connect_dealer(context, f"tcp://127.0.0.1:{unused.getsockname()[1]}", None)
        with pytest.raises(zmq.Again):
            dealer.send(b"question", zmq.NOBLOCK)


def test_ten_thousand_subscriptions_at_once_all_arrive(context: zmq.Context[Socket]) -> None:
    publisher = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    subscriber = sockets.connect_subscriber(context, address(publisher), None)
    wanted = {f"quote/{number:06}.SH/tick/".encode() for number in range(10_000)}
    for topic in wanted:
        subscriber.subscribe(topic)
    # libzmq sends subscriptions only on a connection, and only while a thread uses the socket.
    assert {demanded(publisher)[1:] for _ in range(10_000)} == wanted


def test_a_full_consumer_holds_up_a_lossless_publisher(
    context: zmq.Context[Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HIGH_WATER_MARK", 5)
    monkeypatch.setattr(sockets, "RECEIVE_MARK", 5)
    publisher = sockets.bind_publisher(context, "market_addr", ANY_PORT, None, lossless=True)
    subscriber = sockets.connect_subscriber(context, address(publisher), None)
    subscriber.subscribe(b"")
    demanded(publisher)
    sent, held_up, deadline = 0, False, time.monotonic() + SECONDS
    while not held_up:
        assert time.monotonic() < deadline, "nothing held up the publisher"
        try:
            publisher.send(b"%08d" % sent + bytes(100_000), zmq.NOBLOCK)
            sent += 1
        except zmq.Again:
            held_up = True
    for number in range(sent):
        assert subscriber.poll(int(SECONDS * 1000))
        assert subscriber.recv()[:8] == b"%08d" % number


def test_a_consumer_that_hangs_with_a_full_queue_keeps_its_connection() -> None:
    # With heartbeats libzmq cuts it off, or aborts the process (zeromq/libzmq#3937); so in a process of its own.
    consumer = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=50 * SLOWNESS, check=False
    )
    assert (consumer.returncode, consumer.stdout) == (0, "still there\n"), consumer.stderr


def test_keygen_writes_all_keys_and_never_overwrites(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    written = make_keys(folder)
    names = ["feeder.key", "feeder.key_secret", "gateway.key", "gateway.key_secret", "clients/gateway.key"]
    assert sorted(written) == sorted(folder / name for name in names)
    assert all(path.exists() for path in written)
    before = {path: path.read_bytes() for path in written}
    with pytest.raises(ConfigError, match="exists already"):
        make_keys(folder)
    assert {path: path.read_bytes() for path in written} == before
    feeder, gateway = load_curve(str(folder), "feeder"), load_curve(str(folder), "gateway")
    assert feeder is not None
    assert gateway is not None
    assert gateway.server == feeder.public
    assert feeder.server is None
    assert gateway.secret != feeder.secret


def test_without_a_folder_there_is_no_curve() -> None:
    assert load_curve("", "gateway") is None


def test_missing_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the keys of the gateway"):
        load_curve(str(tmp_path), "gateway")


def test_a_public_key_in_the_place_of_a_secret_one_is_refused(keys: Path) -> None:
    (keys / "feeder.key_secret").write_bytes((keys / "feeder.key").read_bytes())
    with pytest.raises(ConfigError, match="holds no secret key"):
        load_curve(str(keys), "feeder")


def test_the_queue_of_a_stalled_consumer_is_bounded_in_bytes() -> None:
    assert sockets.HIGH_WATER_MARK * BATCH_BYTES <= 256 * 1024 * 1024
    assert sockets.ANSWER_MARK * BATCH_BYTES <= 4 * 1024 * 1024


# Reads nothing until it is told to.
BUSY = """
import sys, zmq
from qmt_bridge import sockets

context = zmq.Context()
if sys.argv[1] == "ask_addr":
    bound = sockets.bind_router(context, "tcp://127.0.0.1:*", None)
else:
    bound = sockets.bind_publisher(context, sys.argv[1], "tcp://127.0.0.1:*", None)
print(bound.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
sys.stdin.readline()
while bound.poll(300):
    bound.recv()
context.destroy(0)
"""


@pytest.mark.parametrize(("name", "kind"), [("market_addr", b"SUB"), ("ask_addr", b"DEALER")])
def test_a_peer_that_pings_and_leaves_ends_no_process(name: str, kind: bytes) -> None:
    command = [sys.executable, "-c", BUSY, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with zmtp.raw_peer(process.stdout.readline().strip(), kind) as peer:
            # One message more than the default of libzmq, in a buffer of its engine together with the PING.
            peer.sendall(zmtp.frame(0, b"\1a") * 1001 + zmtp.frame(zmtp.COMMAND, b"\4PING\0\0"))
            peer.settimeout(1.0)
            with suppress(TimeoutError):
                # Its answer: libzmq has read everything. If it has stopped before, none comes.
                peer.recv(100)
            # Its end is a reset.
            peer.setsockopt(net.SOL_SOCKET, net.SO_LINGER, struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0))
        process.communicate("\n", SECONDS)
    assert process.returncode == 0


def test_the_queue_of_a_stalled_consumer_ends_at_its_mark(context: zmq.Context[Socket]) -> None:
    publisher = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    deaf = context.socket(zmq.SUB)
    deaf.rcvhwm = 1
    deaf.connect(address(publisher))
    deaf.subscribe(b"")
    demanded(publisher)
    total = 20_000
    for _ in range(total):
        # 20 KB, since what the system holds beside it counts bytes.
        publisher.send(bytes(20_000))
    received = 0
    while deaf.poll(500):
        deaf.recv()
        received += 1
    held_by_system = 12 * 1024 * 1024 // 20_000
    assert sockets.HIGH_WATER_MARK <= received <= sockets.HIGH_WATER_MARK + held_by_system


@pytest.mark.skipif(not hasattr(net, "AF_UNIX"), reason="needs sockets with a path")
def test_an_address_of_a_users_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine", encoding="utf-8")
    with (
        zmq.Context() as context,
        pytest.raises(ConfigError, match="file or folder, and no socket"),
    ):
        sockets.bind_publisher(context, "market_addr", f"ipc://{path}", None)
    assert path.read_text(encoding="utf-8") == "mine"
