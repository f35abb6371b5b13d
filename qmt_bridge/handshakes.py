"""Why a ZeroMQ connection does not come about: nothing answers, a key is refused, what answers is no feeder.

libzmq says nothing of this on the socket itself, and after a refused key it never tries again. Its monitor events tell.
`Links` belongs to the thread that owns the watched sockets: the thread calls `look` now and then, which reads the
events, connects again where libzmq has given up, and returns what to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from itertools import count
from typing import NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

# A feeder that starts anew is back before this time is over; refused keys are told at once.
PATIENCE_SECONDS = 2.0
# libzmq tries again after 0.4 s at the most (sockets.RECONNECT_MAX_MS), if it tries again at all.
AGAIN_SECONDS = 1.0
# A line about the same trouble comes at most so often.
REPEAT_SECONDS = 60.0

# All of them have a meaning below; others would be read for nothing.
EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
)
# A context must not have two of the same name.
_numbers = count()


class Trouble(StrEnum):
    """What keeps a connection from coming about; the values are reasons of the gateway's feed state."""

    ABSENT = "feeder_absent"
    KEY_REFUSED = "key_refused"
    FEEDER_KEY = "feeder_key_wrong"
    CURVE_MISSING = "curve_missing"
    CURVE_UNEXPECTED = "curve_unexpected"
    NO_FEEDER = "no_feeder"
    # The connection is there, and what comes is of another version: see `WireVersionError`.
    WIRE_VERSION = "wire_version"


# Of a connecting end; {where} is one address or several, {names} their settings.
_ADVICE = {
    Trouble.ABSENT: "nothing answers at {where}: is the feeder running, and is this its address ({names}, data_dir)?",
    Trouble.KEY_REFUSED: "the feeder at {where} refuses this key: copy gateway.key into the folder clients/ of "
    "the feeder's curve_dir, or add a role to its file there (of {names})",
    Trouble.FEEDER_KEY: "the feeder at {where} ends the handshake: it has another key than the feeder.key in curve_dir "
    "here (copy that file from the feeder's machine), or no curve_dir at all",
    Trouble.CURVE_MISSING: "the feeder at {where} expects CURVE keys: set curve_dir to a folder with feeder.key and "
    "gateway.key_secret",
    Trouble.CURVE_UNEXPECTED: "what answers at {where} does not encrypt: give the feeder a curve_dir, or leave it "
    "out here",
    Trouble.NO_FEEDER: "what answers at {where} is not the feeder's socket ({names}), or expects CURVE keys "
    "(curve_dir), or hangs",
}
# Of a listening end; {name} is the setting of the address.
_REFUSALS = {
    Trouble.FEEDER_KEY: "a client of {name} has the public key of another feeder: copy feeder.key from here to it",
    Trouble.CURVE_MISSING: "a client of {name} connects without CURVE keys: it needs a curve_dir with feeder.key and "
    "gateway.key_secret",
    Trouble.CURVE_UNEXPECTED: "a client of {name} expects CURVE keys, but this feeder has no curve_dir",
    Trouble.NO_FEEDER: "a client of {name} is no ZeroMQ socket of the right type, or left during the handshake, "
    "as one does whose curve_dir does not fit",
}
# The other end has said so; the rest may be a feeder that is about to start.
_CERTAIN = {Trouble.KEY_REFUSED, Trouble.CURVE_MISSING, Trouble.CURVE_UNEXPECTED}


def _failure(event: int, value: int, curve: bool) -> Trouble:
    """Return what a failed handshake means to an end with or without CURVE."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return Trouble.KEY_REFUSED
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return Trouble.CURVE_UNEXPECTED if curve else Trouble.CURVE_MISSING
        if value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
            return Trouble.FEEDER_KEY
        return Trouble.NO_FEEDER
    # A feeder that cannot decrypt the first command of CURVE closes without a word.
    return Trouble.FEEDER_KEY if curve else Trouble.NO_FEEDER


class Outward:
    """The state of a connecting socket, by the events of its connection. Time is an argument."""

    def __init__(self, curve: bool, now: float) -> None:
        self.up = False
        self._curve = curve
        self._since = now
        self._failure: Trouble | None = None
        self._connected = False
        # When libzmq may have given up, unless another event follows.
        self._ended_at: float | None = None

    def note(self, event: int, value: int, now: float) -> None:
        """Take one event of the monitor."""
        self._ended_at = None
        if event == zmq.EVENT_CONNECTED:
            self._connected = True
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.up, self._failure = True, None
        elif event in _FAILED:
            failure = _failure(event, value, self._curve)
            # Both ends notice that they do not fit, and the first to leave is all that the other one sees.
            if self._failure not in _CERTAIN or failure in _CERTAIN:
                self._failure = failure
            self._ended_at = now
        elif event == zmq.EVENT_DISCONNECTED:
            if self.up:
                self.up, self._since = False, now
            elif self._failure is None:
                self._failure = Trouble.NO_FEEDER
            self._connected = False
            self._ended_at = now
        elif event == zmq.EVENT_CLOSED and not self._connected:
            # The connection was refused: whatever answered before does so no more.
            self._failure = None

    def trouble(self, now: float) -> Trouble | None:
        """Return why there is no connection; None while there is one, or may be soon."""
        if self.up or (self._failure not in _CERTAIN and now < self._since + PATIENCE_SECONDS):
            return None
        if self._failure is not None:
            return self._failure
        return Trouble.NO_FEEDER if self._connected else Trouble.ABSENT

    def given_up(self, now: float) -> bool:
        """Return once whether libzmq has left the connection for good, so that it has to be made again."""
        if self._ended_at is None or now < self._ended_at + AGAIN_SECONDS:
            return False
        self._ended_at = None
        return True


class Inward:
    """Clients that failed to connect to a listening socket, by its events."""

    def __init__(self, curve: bool) -> None:
        self._curve = curve
        self._handshaking: set[int] = set()

    def note(self, event: int, value: int) -> Trouble | None:
        """Take one event of the monitor; return what is wrong with the client, if it tells that."""
        if event == zmq.EVENT_ACCEPTED:
            self._handshaking.add(value)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED or event in _FAILED:
            # Which of several is not said; then none of them counts as one that failed when it leaves.
            self._handshaking.clear()
            # The authenticator names the clients that it refuses, with key and address.
            if event not in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH):
                # A client that leaves is no sign of a wrong key, which this end sees in the first command.
                seen = _failure(event, value, not self._curve)
                no_detail = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                return Trouble.NO_FEEDER if no_detail else seen
        elif event == zmq.EVENT_DISCONNECTED and value in self._handshaking:
            self._handshaking.discard(value)
            return Trouble.NO_FEEDER
        return None


class Notice(NamedTuple):
    """A sentence for the user or the log; `reason` is a `Trouble`, or "answers" when it is over."""

    text: str
    reason: str

    @property
    def good(self) -> bool:
        """Return whether all is well."""
        return self.reason == "answers"


class _Watched(NamedTuple):
    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    name: str
    address: str
    state: Outward | Inward


def connect_again(socket: zmq.Socket[bytes], address: str) -> None:
    """Connect anew where libzmq has given up."""
    socket.disconnect(address)
    socket.connect(address)


class Links:
    """The connections of the sockets that one thread owns."""

    def __init__(self, again: Callable[[zmq.Socket[bytes], str], None] = connect_again) -> None:
        """Let `again` connect a socket to an address anew, for which another thread may have to hand it over first."""
        self._again = again
        self._watched: list[_Watched] = []
        # What was told of connecting ends, and when which trouble was told last.
        self._told: dict[Trouble, tuple[str, ...]] = {}
        self._told_at: dict[tuple[str, Trouble], float] = {}

    def watch(
        self, socket: zmq.Socket[bytes], name: str, address: str, now: float, *, curve: bool, binds: bool
    ) -> None:
        """Watch `socket`, which is about to connect to, or to bind, the `address` of the setting `name`."""
        monitor = socket.context.socket(zmq.PAIR)
        # Without a limit, because libzmq's I/O thread would wait for a reader that is at something else.
        monitor.rcvhwm = 0
        monitor.linger = 0
        inproc = f"inproc://handshakes.{next(_numbers)}"
        socket.monitor(inproc, EVENTS)
        monitor.connect(inproc)
        self._watched.append(_Watched(socket, monitor, name, address, Inward(curve) if binds else Outward(curve, now)))

    def leave(self, socket: zmq.Socket[bytes]) -> None:
        """Watch `socket`, which its owner is about to close, no more."""
        for watched in [each for each in self._watched if each.socket is socket]:
            socket.disable_monitor()
            watched.monitor.close(linger=0)
            self._watched.remove(watched)

    def look(self, now: float) -> list[Notice]:
        """Read what has happened; return what is new of it: each trouble at most once a minute."""
        news = []
        for watched in self._watched:
            for event, value in _events(watched.monitor):
                if isinstance(watched.state, Outward):
                    watched.state.note(event, value, now)
                    continue
                refused = watched.state.note(event, value)
                if refused is not None and self._may_tell(watched.name, refused, now):
                    news.append(Notice(_REFUSALS[refused].format(name=watched.name), refused))
            if isinstance(watched.state, Outward) and watched.state.given_up(now):
                self._again(watched.socket, watched.address)
        return news + self._changes(now)

    def troubles(self, now: float) -> dict[str, Trouble | None]:
        """Return what is wrong with each connecting end by the name of its setting."""
        return {
            watched.name: watched.state.trouble(now) for watched in self._watched if isinstance(watched.state, Outward)
        }

    def close(self) -> None:
        """Watch no more; the watched sockets are their owner's to close."""
        for watched in self._watched:
            if not watched.socket.closed:
                watched.socket.disable_monitor()
            watched.monitor.close(linger=0)
        self._watched.clear()

    def _changes(self, now: float) -> list[Notice]:
        found: dict[Trouble, list[_Watched]] = {}
        for watched in self._watched:
            trouble = watched.state.trouble(now) if isinstance(watched.state, Outward) else None
            if trouble is not None:
                found.setdefault(trouble, []).append(watched)
        news = []
        for trouble, several in found.items():
            names = tuple(watched.name for watched in several)
            if self._told.get(trouble) != names and self._may_tell("", trouble, now):
                self._told[trouble] = names
                where = ", ".join(watched.address for watched in several)
                news.append(Notice(_ADVICE[trouble].format(where=where, names=", ".join(names)), trouble))
        if self._told and not found and self.all_up():
            where = ", ".join(_names(self._told.values()))
            self._told.clear()
            # The next time is news again.
            self._told_at = {key: at for key, at in self._told_at.items() if key[0]}
            news.append(Notice(f"the feeder answers: {where}", "answers"))
        return news

    def is_up(self, name: str) -> bool:
        """Return whether the connecting end of the setting `name` has its connection."""
        return any(of.state.up for of in self._watched if of.name == name and isinstance(of.state, Outward))

    def all_up(self) -> bool:
        """Return whether every connecting end has its connection."""
        return all(watched.state.up for watched in self._watched if isinstance(watched.state, Outward))

    def _may_tell(self, name: str, trouble: Trouble, now: float) -> bool:
        told = [at for key, at in self._told_at.items() if name and key[0] == name]
        if trouble == Trouble.NO_FEEDER and told and now < max(told) + REPEAT_SECONDS:
            # A client whose keys do not fit can also be the first to leave.
            return False
        if now < self._told_at.get((name, trouble), -REPEAT_SECONDS) + REPEAT_SECONDS:
            return False
        self._told_at[name, trouble] = now
        return True


def _names(told: Iterable[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(name for names in told for name in names))


def _events(monitor: zmq.Socket[bytes]) -> Iterable[tuple[int, int]]:
    while True:
        try:
            message = recv_monitor_message(monitor, zmq.NOBLOCK)
        except zmq.Again:
            return
        yield int(message["event"]), int(message["value"])
