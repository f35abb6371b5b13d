"""Who may connect to which socket of the feeder: the answers to libzmq's questions about CURVE keys (ZAP, RFC 27)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

import zmq
from zmq.utils import z85

from qmt_bridge.curve.certificate import ROLES, Certificate
from qmt_bridge.curve.key_folder import CLIENTS, client_certificates
from qmt_bridge.errors import ConfigError

logger = logging.getLogger(__name__)

# The folder of keys is looked at so often, and at most so often for a client with an unknown key.
KEYS_SECONDS = 1.0
# Handshakes that wait for that; more are refused at once, and come again.
MAX_HELD = 100
# Files that are read; a folder with more is refused.
MOST_CLIENTS = 10_000
# The ZAP domain of a socket is its setting. One of these roles opens it: a question about market data needs none, so
# the socket for questions is open to every client key; what a question needs more is decided question by question.
OPENED_BY: dict[str, frozenset[str]] = {
    "market_addr": frozenset(("market",)),
    "trade_addr": frozenset(("trade",)),
    "ask_addr": frozenset(ROLES),
    "trade_ask_addr": frozenset(("ask", "download", "admin")),
    "store_addr": frozenset(ROLES),
}
# A forwarder opens its sockets to the same roles.
OPENED_BY |= {f"forward_{name}": OPENED_BY[name] for name in ("market_addr", "trade_addr", "ask_addr", "store_addr")}
# Where libzmq asks about keys, and what says there that the folder was read.
_ZAP = "inproc://zeromq.zap.01"
_KEYS_READ = b"keys read"
_WAKE_LINGER_MS = 1000
# `close` waits so many seconds for the thread that reads the folder.
CLOSE_SECONDS = 0.2

Stamp = tuple[tuple[str, int, int, int], ...]
Allowed = dict[bytes, Certificate]


class Authenticator:
    """Admits only the client keys in `folder`/clients, each to the sockets that its roles open.

    `own` is the public key of the feeder: the process that has started it asks with this key whether it answers.

    Without one CURVE accepts any key at all. Its owner makes it before anything is bound, polls `socket` and calls
    `answer`, which never waits for the disk. pyzmq's own authenticators need asyncio, whose loop on Windows cannot poll
    ZeroMQ.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str | Path, own: bytes | None = None) -> None:
        """Read the keys; raise `ConfigError` if there is no such folder."""
        self._context = context
        self._folder = Path(folder)
        self._own = own
        self._stamp: Stamp = ()
        self._told: set[str] = set()
        began = time.monotonic()
        try:
            self._stamp, self._allowed = _stamp(self._folder), self._load()
        except (OSError, ValueError) as exc:
            raise ConfigError("curve_dir", f"cannot read the keys of clients: {exc}") from exc
        self._read_after = _next_read(began, time.monotonic())
        # Keys that were admitted to each socket since it was bound.
        self._admitted: dict[str, set[bytes]] = {}
        # Handshakes whose key is looked for in the folder: a thread reads it, and says by a message to `socket` that
        # its answer is here.
        self._held: list[tuple[list[bytes], bytes, str, str]] = []
        self._is_reading = False
        self._reader: threading.Thread | None = None
        self._read: deque[tuple[Stamp, Allowed] | Exception | None] = deque()
        self._failure = ""
        self._refused: set[tuple[str, bytes]] = set()
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
        name, _, version, number, domain, address, _, _, *credentials = message
        reply = [name, b"", version, number]
        # Credentials of CURVE are the public key alone.
        key = z85.encode(credentials[0]) if len(credentials) == 1 and len(credentials[0]) == 32 else b""
        handshake = reply, key, domain.decode(errors="replace"), address.decode(errors="replace")
        if self._may(key, handshake[2]):
            self._reply(*handshake)
        elif len(self._held) < MAX_HELD and (self._is_reading or time.monotonic() >= self._read_after):
            # It may have been added meanwhile: a restart of the feeder would cost every client its data.
            self._held.append(handshake)
            self._read_soon()
        else:
            self._reply(*handshake)

    def look(self, now: float) -> None:
        """Look in the folder, if it is time: a key may be gone, or have other roles. Call it every second."""
        if now >= self._read_after:
            self._read_soon()

    def revoked(self) -> list[str]:
        """Return the settings of sockets that have admitted a key which may not use them any more.

        libzmq asks at the handshake only, and cannot end one connection: the socket has to be bound anew. Each is
        returned until `bound_anew` is called for it.
        """
        return [name for name, keys in self._admitted.items() if not all(self._may(key, name) for key in keys)]

    def bound_anew(self, name: str) -> None:
        """Note that the socket of the setting `name` has no connections any more."""
        self._admitted.pop(name, None)

    def client(self, user_id: bytes) -> Certificate | None:
        """Return the client whose message has this ``User-Id``; None for a key that is not allowed any more."""
        return self._allowed.get(user_id)

    def close(self) -> None:
        """Admit no more; a read that hangs is left behind."""
        if self._reader is not None:
            self._reader.join(CLOSE_SECONDS)
        self.socket.close(linger=0)

    def _may(self, key: bytes, domain: str) -> bool:
        client = self._allowed.get(key)
        return client is not None and not client.roles.isdisjoint(OPENED_BY.get(domain, frozenset()))

    def _reply(self, reply: list[bytes], key: bytes, domain: str, address: str) -> None:
        allowed = self._may(key, domain)
        if allowed:
            self._admitted.setdefault(domain, set()).add(key)
            # Messages of the connection have the key as their User-Id.
            self.socket.send_multipart([*reply, b"200", b"OK", key, b""])
            return
        # A refused client may come again and again; what is remembered is bounded.
        if (domain, key) not in self._refused and len(self._refused) < 100:
            self._refused.add((domain, key))
            self._tell_refused(key, domain, address)
        self.socket.send_multipart([*reply, b"400", b"unknown key", b"", b""])

    def _tell_refused(self, key: bytes, domain: str, address: str) -> None:
        client = self._allowed.get(key)
        if client is None:
            logger.warning(
                "client key %s of %s is not allowed: to let it in, copy its public key (gateway.key) into %s",
                key.decode(),
                address,
                self._folder / CLIENTS,
            )
            return
        logger.warning(
            "client key %s (%s) of %s is not allowed at %s: to let it in, add the role %s to its file in %s",
            key.decode(),
            client.name,
            address,
            domain,
            " or ".join(role for role in ROLES if role in OPENED_BY.get(domain, ())),
            self._folder / CLIENTS,
        )

    def _take_keys(self) -> None:
        self._is_reading = False
        found = self._read.popleft()
        if isinstance(found, Exception):
            # A client with an unknown key makes the feeder read again every second; the same failure is logged once.
            if str(found) != self._failure:
                logger.warning("cannot read the keys of clients again: %s", found)
            self._failure = str(found)
        else:
            self._failure = ""
            if found is not None:
                self._stamp, self._allowed = found
                # What is refused from now on is news.
                self._refused.clear()
        held, self._held = self._held, []
        for handshake in held:
            self._reply(*handshake)

    def _read_soon(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._reader = threading.Thread(target=self._read_keys, name="client-keys", daemon=True)
            self._reader.start()

    def _read_keys(self) -> None:
        # On a thread of its own, since a disk may be slow and the keys many.
        began = time.monotonic()
        try:
            stamp = _stamp(self._folder)
            self._read.append(None if stamp == self._stamp else (stamp, self._load()))
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

    def _load(self) -> Allowed:
        allowed: Allowed = {}
        if self._own is not None:
            # Its owner can pretend to be the feeder anyway, so this opens nothing more.
            allowed[self._own] = Certificate("the feeder", self._own, None, frozenset(("market",)))
        unread = set()
        for found in client_certificates(self._folder):
            if isinstance(found, ConfigError):
                # The other keys are read all the same: a damaged file must not keep a key that was taken back.
                unread.add(str(found))
                continue
            known = allowed.get(found.public)
            allowed[found.public] = found if known is None else known._replace(roles=known.roles | found.roles)
        for said in sorted(unread - self._told):
            logger.warning("the key of a client is not used: %s", said)
        self._told = unread
        return allowed


def _stamp(folder: Path) -> Stamp:
    """Return what changes when a file of ``clients/`` is added, changed or removed; raise `OSError`."""
    found = []
    with os.scandir(folder / CLIENTS) as entries:
        for entry in entries:
            if not entry.name.endswith(".key"):
                continue
            try:
                state = os.stat(entry.path)
            except FileNotFoundError:
                continue
            found.append((entry.name, state.st_mtime_ns, state.st_ctime_ns, state.st_size))
            if len(found) > MOST_CLIENTS:
                raise OSError(f"{folder / CLIENTS} has more than {MOST_CLIENTS} keys")
    return tuple(sorted(found))


def _next_read(began: float, ended: float) -> float:
    # However many keys there are, reading them takes a tenth of the time at the most.
    return ended + max(KEYS_SECONDS, 9 * (ended - began))
