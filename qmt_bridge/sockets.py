"""Both ends of every ZeroMQ socket side by side: type, high-water mark, linger, keepalive, CURVE.

A socket belongs to the thread that made it; contexts may be shared, sockets may not.
"""

from __future__ import annotations

import functools
import logging
import re
import socket as system
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from qmt_bridge.curve.key_folder import Curve
from qmt_bridge.errors import ConfigError
from qmt_bridge.handshakes import Links
from qmt_bridge.system import clock, ports
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
# For the store, whose answers are large: an asker that reads nothing for so long loses its connection, with what waits
# for it. It connects again and asks for what it needs.
UNREAD_MS = 30_000
# The system's option for it: TCP_MAXRT of Windows' ws2ipdef.h, which Python does not name. Where there is neither,
# libzmq sets nothing.
_MAXRT_OPTION: int | None = 5 if sys.platform == "win32" else getattr(system, "TCP_USER_TIMEOUT", None)
# The system has a port free again some milliseconds after its socket was closed (measured: 0.3 to 2 ms); if it has not
# by the second time, the port cannot be had.
BIND_AGAIN_SECONDS = 0.001
BIND_SECONDS = 2.0
# Questions, and answers, that wait in a connecting end.
ASKER_MARK = 100_000
# A feeder that returns has its workers back within half a second, and a closed port is not hammered.
RECONNECT_MS = 50
RECONNECT_MAX_MS = 400

_EVERYWHERE = {"://*:": "://127.0.0.1:", "://0.0.0.0:": "://127.0.0.1:", "://[::]:": "://[::1]:"}
_LOOPBACK = re.compile(r"(tcp://(127\.\d+\.\d+\.\d+|localhost|\[::1\]):|ipc://|inproc://)")


def is_local(address: str) -> bool:
    """Return whether only this machine can reach `address`, so that it needs no keys."""
    return _LOOPBACK.match(address) is not None


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
    context: zmq.Context[zmq.Socket[bytes]],
    address: str,
    curve: Curve | None,
    links: Links | None = None,
    name: str = "ask_addr",
    mark: int = ANSWER_MARK,
    unread_ms: int = 0,
) -> zmq.Socket[bytes]:
    """Bind the ROUTER of the setting `name`; EAGAIN says that an asker is full, EHOSTUNREACH that it is gone.

    At most `mark` answers wait for one asker beyond what the system holds. One that reads nothing for `unread_ms` loses
    its connection, where the system can do that; 0: never.
    """
    socket = context.socket(zmq.ROUTER)
    socket.router_mandatory = True
    socket.sndhwm = mark
    socket.rcvhwm = UNLIMITED
    socket.maxmsgsize = ASK_BYTES + _FRAMING_BYTES
    if unread_ms and _gives_up_unanswered():
        socket.tcp_maxrt = unread_ms
    return _bind(socket, name, address, curve, links)


def connect_subscriber(
    context: zmq.Context[zmq.Socket[bytes]],
    address: str,
    curve: Curve | None,
    links: Links | None = None,
    name: str = "market_addr",
    mark: int = RECEIVE_MARK,
) -> zmq.Socket[bytes]:
    """Connect a SUB; it subscribes again by itself after a reconnect, but only while the program reads from it.

    At most `mark` messages wait here. `links` of the same thread tells why there is no connection to the address, which
    is the setting `name`.
    """
    socket = context.socket(zmq.SUB)
    # With the default of 1,000 a burst of 10,000 subscriptions loses 9,000 of them without a word.
    socket.sndhwm = 0
    socket.rcvhwm = mark
    return _connect(socket, name, address, curve, links)


def connect_relay(
    context: zmq.Context[zmq.Socket[bytes]], address: str, curve: Curve | None, links: Links, name: str
) -> zmq.Socket[bytes]:
    """Connect the XSUB of a forwarder: what subscribers send goes up by it, and messages come down."""
    socket = context.socket(zmq.XSUB)
    # See `connect_subscriber`.
    socket.sndhwm = 0
    socket.rcvhwm = HIGH_WATER_MARK
    return _connect(socket, name, address, curve, links)


def connect_dealer(
    context: zmq.Context[zmq.Socket[bytes]],
    address: str,
    curve: Curve | None,
    links: Links | None = None,
    name: str = "ask_addr",
    mark: int = ASKER_MARK,
) -> zmq.Socket[bytes]:
    """Connect a DEALER to the feeder's ROUTER; sending raises `zmq.Again` while the feeder is away.

    At most `mark` questions, and as many answers, wait here.
    """
    socket = context.socket(zmq.DEALER)
    socket.immediate = True
    socket.sndhwm = mark
    socket.rcvhwm = mark
    return _connect(socket, name, address, curve, links)


def bind_again(bind: Callable[[], zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Bind at an address whose socket was just closed; raise `ConfigError` if the system does not give it in time."""
    until = clock.monotonic() + BIND_SECONDS
    while True:
        try:
            return bind()
        except ConfigError:
            if clock.monotonic() >= until:
                raise
            time.sleep(BIND_AGAIN_SECONDS)


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
            # The authenticator has a list of its own for each socket.
            socket.zap_domain = name.encode()
        reason = _why_not(address)
        if reason:
            raise ConfigError(name, f"cannot listen on {address}: {reason}")
        if links is not None:
            links.watch(socket, name, address, clock.monotonic(), curve=curve is not None, binds=True)
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
    if not port.isdecimal():
        return ""
    # Of libzmq: on Windows it has another number than Winsock and `errno`.
    if number != zmq.EADDRINUSE:
        return ports.reserved(number, int(port))
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
        links.watch(socket, name, address, clock.monotonic(), curve=curve is not None, binds=False)
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
