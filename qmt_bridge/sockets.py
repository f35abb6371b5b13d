"""Both ends of every ZeroMQ socket side by side: type, high-water mark, linger, keepalive, CURVE.

A socket belongs to the thread that made it; contexts may be shared, sockets may not.
"""

from __future__ import annotations

import functools
import logging
import re
import socket as system
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Literal, NamedTuple

import zmq
import zmq.auth
from zmq.utils import z85

from qmt_bridge.errors import ConfigError
from qmt_bridge.handshakes import Links
from qmt_bridge.wire.requests import ASK_BYTES
from qmt_bridge.wire.topics import TOPIC_BYTES

logger = logging.getLogger(__name__)

# Messages, not bytes, since libzmq counts those: two seconds of a whole market as quotes of their own, then loss by
# seq. What waits in the feeder for a consumer that hangs is at most 256 MiB, since the largest batch of a market has 64
# KiB (`frames.BATCH_BYTES`), and consumers of the same topics share it. It stays as it is while the feeder runs:
# libzmq 4.3.5 takes another one for its connections, but one lowered by more than half stops an idle consumer for good
# (its end has told of what it has read only in steps of half the old mark, and has nothing to read any more).
HIGH_WATER_MARK = 4096
# Of the consumer's own memory. A gateway's turn takes as many messages as may come while it lasts.
RECEIVE_MARK = 20_000
# Answers that wait for one asker beyond what the system holds, 4 MiB of a snapshot's batches: the rest waits as
# questions.
ANSWER_MARK = 64
# What peers send to a socket that binds has no mark. Beyond one libzmq 4.3.5 stops reading from the peer. If that sends
# a PING and ends its connection with a reset meanwhile, libzmq aborts the process when it reads on: it answers the PING
# on the connection that has failed (stream_engine_base.cpp:310). The mark did not bound memory either, since it does
# not count the parts of a message that never ends: 3 GB came in 6 s.
UNLIMITED = 0
# What ZeroMQ puts around a message: CURVE's nonce and signature, a command's name.
_FRAMING_BYTES = 100
# No ZMTP heartbeats: NetMQ, zmq.rs, old JeroMQ and libzmq before 4.2 do not answer them, and such a consumer would be
# cut off again and again. The operating system answers a keepalive for every peer that is connected, whatever its
# program does.
# A connection without traffic is given up after 4 + 3 * 2 s without such an answer. One with data under way is not:
# there the retransmissions of TCP end it, after some 20 s on Windows and 15 minutes on Linux.
# A stopped process keeps its connection: its messages wait up to the high-water mark, its topics stay subscribed.
KEEPALIVE_IDLE_SECONDS = 4
KEEPALIVE_SECONDS = 2
KEEPALIVE_PROBES = 3
# For connecting ends only: on Linux it also ends a connection whose other end answers but reads nothing (measured), as
# a stopped consumer of the feeder does. The feeder itself always reads, so a worker may make its connection anew.
UNANSWERED_MS = 10_000
# The system's option for it: TCP_MAXRT of Windows' ws2ipdef.h, which Python does not name. Where there is neither,
# libzmq sets nothing.
_MAXRT_OPTION: int | None = 5 if sys.platform == "win32" else getattr(system, "TCP_USER_TIMEOUT", None)
# A feeder that returns has its workers back within half a second, and a closed port is not hammered.
RECONNECT_MS = 50
RECONNECT_MAX_MS = 400
# A client with an unknown key makes the feeder read its folder of keys, at most so often.
KEYS_SECONDS = 1.0
# Handshakes that wait for that; more are refused at once, and come again.
MAX_HELD = 100
# Where libzmq asks about keys (RFC 27), and what says there that the folder was read.
_ZAP = "inproc://zeromq.zap.01"
_KEYS_READ = b"keys read"
_WAKE_LINGER_MS = 1000
# `close` waits so many seconds for the thread that reads the folder.
CLOSE_SECONDS = 0.2

_EVERYWHERE = {"://*:": "://127.0.0.1:", "://0.0.0.0:": "://127.0.0.1:", "://[::]:": "://[::1]:"}
_LOOPBACK = re.compile(r"(tcp://(127\.\d+\.\d+\.\d+|localhost|\[::1\]):|ipc://|inproc://)")
Role = Literal["feeder", "gateway"]


def is_local(address: str) -> bool:
    """Return whether only this machine can reach `address`, so that it needs no keys."""
    return _LOOPBACK.match(address) is not None


class Curve(NamedTuple):
    """Keys of one end: its own pair, and for a connecting end the feeder's public key."""

    public: bytes
    secret: bytes
    server: bytes | None


def load_curve(curve_dir: str, role: Role) -> Curve | None:
    """Read the keys of `role` from `curve_dir`; None without a folder; raise `ConfigError` if one is missing."""
    if not curve_dir:
        return None
    folder = Path(curve_dir)
    try:
        public, secret = zmq.auth.load_certificate(folder / f"{role}.key_secret")
        server = None if role == "feeder" else zmq.auth.load_certificate(folder / "feeder.key")[0]
    except (OSError, ValueError) as exc:
        raise ConfigError("curve_dir", f"cannot read the keys of the {role}: {exc}") from exc
    if secret is None:
        raise ConfigError("curve_dir", f"{folder / f'{role}.key_secret'} holds no secret key")
    return Curve(public, secret, server)


def make_keys(curve_dir: Path) -> list[Path]:
    """Write a key pair for the feeder and one for its gateways; return the files, never overwrite one.

    The feeder's machine needs ``feeder.key_secret`` and ``clients/``; another machine ``feeder.key`` and
    ``gateway.key_secret``.
    """
    clients = curve_dir / "clients"
    clients.mkdir(parents=True, exist_ok=True)
    written = []
    for role in ("feeder", "gateway"):
        if (curve_dir / f"{role}.key_secret").exists():
            raise ConfigError("curve_dir", f"{curve_dir / f'{role}.key_secret'} exists already")
        written += [Path(path) for path in zmq.auth.create_certificates(curve_dir, role)]
    allowed = clients / "gateway.key"
    allowed.write_text((curve_dir / "gateway.key").read_text(encoding="utf-8"), encoding="utf-8")
    for path in written:
        if path.suffix == ".key_secret":
            path.chmod(0o600)
    return [*written, allowed]


class Authenticator:
    """Admits only the client keys in `curve_dir`/clients (ZAP, RFC 27); without one CURVE accepts any key at all.

    Its owner makes it before anything is bound, polls `socket` and calls `answer`, which never waits for the disk.
    pyzmq's own authenticators need asyncio, whose loop on Windows cannot poll ZeroMQ.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], curve_dir: str) -> None:
        """Read the keys; raise `ConfigError` if there is no such folder."""
        self._context = context
        self._clients = Path(curve_dir) / "clients"
        began = time.monotonic()
        try:
            self._allowed = _load_keys(self._clients)
        except (OSError, ValueError) as exc:
            raise ConfigError("curve_dir", f"cannot read the keys of clients: {exc}") from exc
        self._read_after = _next_read(began, time.monotonic())
        # Handshakes whose key is looked for in the folder: a thread reads it, and says by a message to `socket` that
        # its answer is here.
        self._held: list[tuple[list[bytes], bytes, str]] = []
        self._is_reading = False
        self._reader: threading.Thread | None = None
        self._read: deque[frozenset[bytes] | Exception] = deque()
        self._failure = ""
        self._refused: set[bytes] = set()
        # Not a REP, which would have to answer in the order of the requests.
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(_ZAP)

    def answer(self) -> None:
        """Admit or refuse one client whose handshake waits, or those whose keys were looked for."""
        message = self.socket.recv_multipart()
        if message[1:] == [_KEYS_READ]:
            self._take_keys()
            return
        name, _, version, number, _, address, _, _, *credentials = message
        reply = [name, b"", version, number]
        # Credentials of CURVE are the public key alone.
        key = z85.encode(credentials[0]) if len(credentials) == 1 and len(credentials[0]) == 32 else b""
        shown = address.decode(errors="replace")
        if key in self._allowed:
            self._reply(reply, key, shown)
        elif len(self._held) < MAX_HELD and (self._is_reading or time.monotonic() >= self._read_after):
            # It may have been added meanwhile: a restart of the feeder would cost every client its data.
            self._held.append((reply, key, shown))
            if not self._is_reading:
                self._is_reading = True
                self._reader = threading.Thread(target=self._read_keys, name="client-keys", daemon=True)
                self._reader.start()
        else:
            self._reply(reply, key, shown)

    def close(self) -> None:
        """Admit no more; a read that hangs is left behind."""
        if self._reader is not None:
            self._reader.join(CLOSE_SECONDS)
        self.socket.close(linger=0)

    def _reply(self, reply: list[bytes], key: bytes, address: str) -> None:
        allowed = key in self._allowed
        # A refused client may come again and again; what is remembered is bounded.
        if not allowed and key not in self._refused and len(self._refused) < 100:
            self._refused.add(key)
            logger.warning(
                "client key %s of %s is not allowed: to let it in, copy its public key (gateway.key) into %s",
                key.decode(),
                address,
                self._clients,
            )
        status = (b"200", b"OK") if allowed else (b"400", b"unknown key")
        self.socket.send_multipart([*reply, *status, b"", b""])

    def _take_keys(self) -> None:
        self._is_reading = False
        keys = self._read.popleft()
        if isinstance(keys, Exception):
            # A client with an unknown key makes the feeder read again every second; the same failure is logged once.
            if str(keys) != self._failure:
                logger.warning("cannot read the keys of clients again: %s", keys)
            self._failure = str(keys)
        else:
            self._allowed = keys
            self._failure = ""
        held, self._held = self._held, []
        for reply, key, address in held:
            self._reply(reply, key, address)

    def _read_keys(self) -> None:
        # On a thread of its own, since a disk may be slow and the keys many.
        began = time.monotonic()
        try:
            self._read.append(_load_keys(self._clients))
        except Exception as exc:
            self._read.append(exc)
        self._read_after = _next_read(began, time.monotonic())
        try:
            with self._context.socket(zmq.DEALER) as waker:
                waker.linger = _WAKE_LINGER_MS
                waker.connect(_ZAP)
                waker.send(_KEYS_READ)
        except zmq.ZMQError as exc:
            # The owner has ended meanwhile.
            logger.debug("the keys of clients were read after the socket was closed: %s", exc)


def _load_keys(folder: Path) -> frozenset[bytes]:
    return frozenset(zmq.auth.load_certificates(folder))


def _next_read(began: float, ended: float) -> float:
    # However many keys there are, reading them takes a tenth of the time at the most.
    return ended + max(KEYS_SECONDS, 9 * (ended - began))


def bind_publisher(
    context: zmq.Context[zmq.Socket[bytes]],
    name: str,
    address: str,
    curve: Curve | None,
    *,
    lossless: bool = False,
    links: Links | None = None,
) -> zmq.Socket[bytes]:
    """Bind the XPUB of the setting `name`. `lossless` makes a full consumer hold the sender (EAGAIN on NOBLOCK).

    `links` of the same thread tells of clients that cannot connect.
    """
    socket = context.socket(zmq.XPUB)
    socket.sndhwm = HIGH_WATER_MARK
    socket.rcvhwm = UNLIMITED
    # An XPUB receives only subscriptions. A longer one ends its connection before libzmq stores it.
    socket.maxmsgsize = TOPIC_BYTES + _FRAMING_BYTES
    if lossless:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
    return _bind(socket, name, address, curve, links)


def bind_router(
    context: zmq.Context[zmq.Socket[bytes]], address: str, curve: Curve | None, links: Links | None = None
) -> zmq.Socket[bytes]:
    """Bind the ROUTER that answers questions; EAGAIN says that an asker is full, EHOSTUNREACH that it is gone."""
    socket = context.socket(zmq.ROUTER)
    socket.router_mandatory = True
    socket.sndhwm = ANSWER_MARK
    socket.rcvhwm = UNLIMITED
    socket.maxmsgsize = ASK_BYTES + _FRAMING_BYTES
    return _bind(socket, "ask_addr", address, curve, links)


def connect_subscriber(
    context: zmq.Context[zmq.Socket[bytes]],
    address: str,
    curve: Curve | None,
    links: Links | None = None,
    name: str = "market_addr",
) -> zmq.Socket[bytes]:
    """Connect a SUB; it subscribes again by itself after a reconnect, but only while the program reads from it.

    `links` of the same thread tells why there is no connection to the address, which is the setting `name`.
    """
    socket = context.socket(zmq.SUB)
    # With the default of 1,000 a burst of 10,000 subscriptions loses 9,000 of them without a word.
    socket.sndhwm = 0
    socket.rcvhwm = RECEIVE_MARK
    return _connect(socket, name, address, curve, links)


def connect_dealer(
    context: zmq.Context[zmq.Socket[bytes]], address: str, curve: Curve | None, links: Links | None = None
) -> zmq.Socket[bytes]:
    """Connect a DEALER to the feeder's ROUTER; sending raises `zmq.Again` while the feeder is away."""
    socket = context.socket(zmq.DEALER)
    socket.immediate = True
    socket.sndhwm = 100_000
    socket.rcvhwm = 100_000
    return _connect(socket, "ask_addr", address, curve, links)


def _bind(
    socket: zmq.Socket[bytes], name: str, address: str, curve: Curve | None, links: Links | None
) -> zmq.Socket[bytes]:
    try:
        if not is_local(address) and curve is None:
            raise ConfigError(name, f"{address} can be reached from other machines; it needs curve_dir")
        _prepare(socket, address)
        if curve is not None:
            socket.curve_publickey = curve.public
            socket.curve_secretkey = curve.secret
            socket.curve_server = True
            socket.zap_domain = b"qmt-bridge"
        reason = _why_not(address)
        if reason:
            raise ConfigError(name, f"cannot listen on {address}: {reason}")
        if links is not None:
            links.watch(socket, name, address, time.monotonic(), curve=curve is not None, binds=True)
        socket.bind(address.replace("://localhost:", "://127.0.0.1:", 1))
    except zmq.ZMQError as exc:
        socket.close(linger=0)
        number = exc.errno or 0
        reason = f"{zmq.strerror(number)}{_holder(address, number)}"
        raise ConfigError(name, f"cannot listen on {address}: {reason}") from exc
    except ConfigError:
        socket.close(linger=0)
        raise
    return socket


def _holder(address: str, number: int) -> str:
    port = address.rpartition(":")[2]
    # Of libzmq: on Windows it has another number than Winsock and `errno`.
    if number != zmq.EADDRINUSE or not port.isdecimal():
        return ""
    # Imported only for this message: the import takes 20 ms of a start.
    from qmt_bridge.process.holder import holder

    return holder(int(port))


def _why_not(address: str) -> str:
    """Return why an ipc address cannot be listened on, or nothing.

    ZeroMQ removes whatever has the path: a socket that another process listens on, and a file of the user's.
    """
    path = Path(address.removeprefix("ipc://"))
    if not address.startswith("ipc://") or not hasattr(system, "AF_UNIX"):
        return ""
    if path.exists() and not path.is_socket():
        return "it is a file or folder, and no socket"
    with system.socket(system.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            # There is no such socket, or the process that listened on it has ended.
            return ""
    return "address already in use"


def _connect(
    socket: zmq.Socket[bytes], name: str, address: str, curve: Curve | None, links: Links | None
) -> zmq.Socket[bytes]:
    _prepare(socket, address)
    # Where a feeder listens on every address, this machine reaches it by its own.
    for everywhere, here in _EVERYWHERE.items():
        address = address.replace(everywhere, here, 1)
    if _gives_up_unanswered():
        socket.tcp_maxrt = UNANSWERED_MS
    socket.reconnect_ivl = RECONNECT_MS
    socket.reconnect_ivl_max = RECONNECT_MAX_MS
    if curve is not None:
        socket.curve_publickey = curve.public
        socket.curve_secretkey = curve.secret
        socket.curve_serverkey = curve.server
    if links is not None:
        # Before it connects, or the first events are missed.
        links.watch(socket, name, address, time.monotonic(), curve=curve is not None, binds=False)
    try:
        socket.connect(address)
    except zmq.ZMQError as exc:
        socket.close(linger=0)
        raise ConfigError(name, f"cannot connect to {address!r}: {zmq.strerror(exc.errno or 0)}") from exc
    return socket


@functools.cache
def _gives_up_unanswered() -> bool:
    """Return whether the system takes the option behind `tcp_maxrt`.

    libzmq makes no connection at all, and says nothing, where it is refused: Wine 8 lacks it.
    """
    if _MAXRT_OPTION is None:
        return True
    try:
        with system.socket() as probe:
            probe.setsockopt(system.IPPROTO_TCP, _MAXRT_OPTION, UNANSWERED_MS // 1000)
    except OSError as exc:
        logger.debug("the system cannot end a connection that is not acknowledged: %s", exc)
        return False
    return True


def _prepare(socket: zmq.Socket[bytes], address: str) -> None:
    socket.linger = 0
    # Not for every address: an IPv4 one would then be shown in IPv6's form.
    socket.ipv6 = "[" in address
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = KEEPALIVE_IDLE_SECONDS
    socket.tcp_keepalive_intvl = KEEPALIVE_SECONDS
    socket.tcp_keepalive_cnt = KEEPALIVE_PROBES
