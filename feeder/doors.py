"""The four sockets of the feeder, and who may use them: market data, trade events, and two for questions.

The publisher's thread owns it. Questions about trade events, and downloads, have a socket of their own, unless the key
of each asker is known on the first one, or everybody may ask (`qmt_bridge.addresses.endpoint`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from typing import NamedTuple

import zmq

from feeder.answers import ALL, Rights
from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint, ipc_folder
from qmt_bridge.addresses.endpoint import Endpoint
from qmt_bridge.answering.askers import Peer
from qmt_bridge.config import Config
from qmt_bridge.curve.authenticator import Authenticator
from qmt_bridge.demand.departures import Departures
from qmt_bridge.errors import ConfigError
from qmt_bridge.handshakes import Links
from qmt_bridge.system import clock

logger = logging.getLogger(__name__)

Socket = zmq.Socket[bytes]
_OPEN = "open_trade_addr lets every user of the machine ask; leave it out, or set curve_dir"


class Asked(NamedTuple):
    """A socket for questions; `mark` precedes the names of its connections, which the other one may have too."""

    endpoint: Endpoint
    socket: Socket
    mark: bytes
    # Of askers without a key; the key of others decides.
    rights: Rights


class Doors:
    """The sockets that clients connect to."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], config: Config, links: Links, *, lossless: bool
    ) -> None:
        """Bind; raise `ConfigError`. `lossless` lets a full consumer of market data hold the sender."""
        self._context = context
        self._links = links
        self._lossless = lossless
        market, ask = endpoint.market_endpoints(config, "feeder")
        trade, trade_ask = endpoint.trade_endpoints(config, "feeder", makes=True)
        keys = endpoint.key_folder(config)
        # Before anything is bound: until then CURVE would accept any key.
        own = None if ask.curve is None else ask.curve.public
        self._authenticator = Authenticator(context, keys, own) if keys is not None else None
        # Where each is bound.
        self._bound: dict[str, str] = {}
        self._endpoints = {"market_addr": market, "trade_addr": trade, "ask_addr": ask, "trade_ask_addr": trade_ask}
        self.market = self._publisher(market)
        self.departures = Departures(context, self.market)
        # Never lossless: a loss is repaired from the journal, and a slow consumer of trades must not delay the market.
        try:
            self.trade = self._publisher(trade)
        except ConfigError as exc:
            if not endpoint.is_own(config, trade):
                raise
            # The user knows the folder, and has not set the address.
            reason = f"another feeder has its trade journal in {config.data_path}: {exc.reason}"
            raise ConfigError("data_dir", reason) from exc
        one = trade_ask.name == ask.name
        elsewhere = endpoint.addresses(config)["trade_ask_addr"]
        advice = f"{config.ask_addr} (ask_addr) answers about market data alone; ask at {elsewhere} (trade_ask_addr)"
        # Where every user of the machine may ask, none of them is an administrator.
        owner = ALL if not config.open_trade_addr else ALL._replace(administers=False, advice=_OPEN)
        self.asked = [self._asked(ask, b"a", owner if one else Rights(False, False, False, advice))]
        if not one:
            self.asked.append(self._asked(trade_ask, b"t", owner))

    @property
    def addresses(self) -> dict[str, str]:
        """Return where each setting's socket is bound."""
        return {**self._bound, "trade_ask_addr": self._bound[self.asked[-1].endpoint.name]}

    def readable(self) -> list[Socket]:
        """Return the sockets that the owner polls, until `end_revoked` returns True."""
        found = [self.market, self.trade, *(asked.socket for asked in self.asked)]
        return found if self._authenticator is None else [*found, self._authenticator.socket]

    def admit(self, events: Container[object]) -> None:
        """Answer clients that wait to be admitted."""
        if self._authenticator is not None and self._authenticator.socket in events:
            self._authenticator.answer()

    def look(self, now: float) -> None:
        """Look for keys that were taken back; call it every second."""
        if self._authenticator is not None:
            self._authenticator.look(now)

    def end_revoked(self, market_left: Callable[[float], None]) -> bool:
        """End the connections of clients whose key was taken back; return whether there are new sockets.

        The socket is closed with what waits in it, and bound anew, which ends the others' connections too: they come
        back by themselves, and ask for what they have missed. `market_left` is called if those of market data end.
        """
        names = self._authenticator.revoked() if self._authenticator is not None else []
        for name in names:
            logger.warning("a client key was taken back: the connections of %s end, and the others come again", name)
            if name == "market_addr":
                self.departures.close()
                self.market = self._anew(self.market, name, self._publisher)
                self.departures = Departures(self._context, self.market)
                market_left(clock.monotonic())
            elif name == "trade_addr":
                self.trade = self._anew(self.trade, name, self._publisher)
            else:
                self.asked = [
                    asked._replace(socket=self._anew(asked.socket, name, self._router))
                    if asked.endpoint.name == name
                    else asked
                    for asked in self.asked
                ]
        return bool(names)

    def take(self, asked: Asked) -> tuple[Peer, bytes, Rights]:
        """Return a question: its envelope, its bytes, and what the asker may have; raise `zmq.Again` for none."""
        if asked.endpoint.curve is None or self._authenticator is None:
            name, *envelope, payload = asked.socket.recv_multipart(zmq.NOBLOCK)
            return (asked.mark + name, *envelope), payload, asked.rights
        parts = asked.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        name, *envelope, payload = (part.bytes for part in parts)
        return (asked.mark + name, *envelope), payload, self._rights_of(parts[-1])

    def send(self, peer: Peer, payload: bytes) -> None:
        """Send a reply; raise `zmq.Again` if its connection is full, another `zmq.ZMQError` if it is gone."""
        mark, name = peer[0][:1], peer[0][1:]
        for asked in self.asked:
            if asked.mark == mark:
                asked.socket.send_multipart([name, *peer[1:], payload], zmq.NOBLOCK)

    def close(self) -> None:
        """Admit no more; the context closes the sockets."""
        self.departures.close()
        if self._authenticator is not None:
            self._authenticator.close()

    def _rights_of(self, message: zmq.Frame) -> Rights:
        assert self._authenticator is not None
        try:
            user = str(message.get("User-Id"))
        except zmq.ZMQError:
            user = ""
        client = self._authenticator.client(user.encode())
        if client is None:
            return Rights(False, False, False, "its key was taken back")
        roles = client.roles
        if roles >= {"ask", "download", "admin"}:
            return ALL
        advice = f"the client key {client.name} lacks the role, which its file in clients/ can be given"
        return Rights("ask" in roles, "download" in roles, "admin" in roles, advice)

    def _publisher(self, where: Endpoint, patience: float = 0.0) -> Socket:
        lossless = self._lossless and where.name == "market_addr"
        bound = sockets.bind_publisher(
            self._context,
            where.name,
            where.address,
            where.curve,
            lossless=lossless,
            links=self._links,
            patience=patience,
        )
        return self._note(bound, where)

    def _router(self, where: Endpoint, patience: float = 0.0) -> Socket:
        bound = sockets.bind_router(
            self._context, where.address, where.curve, self._links, where.name, patience=patience
        )
        return self._note(bound, where)

    def _note(self, bound: Socket, where: Endpoint) -> Socket:
        self._bound[where.name] = bound.getsockopt_string(zmq.LAST_ENDPOINT)
        if where.name.startswith("trade") and ipc_folder.is_ipc(where.address) and where.curve is None:
            ipc_folder.share(where.address)
        return bound

    def _asked(self, where: Endpoint, mark: bytes, rights: Rights) -> Asked:
        return Asked(where, self._router(where), mark, rights)

    def _anew(self, old: Socket, name: str, bind: Callable[[Endpoint, float], Socket]) -> Socket:
        """Close a socket and bind another one at its address; raise `ConfigError` if the system does not give it.

        The feeder then ends, and is started again.
        """
        assert self._authenticator is not None
        address = self._bound[name]
        self._links.leave(old)
        old.unbind(address)
        old.close(linger=0)
        self._authenticator.bound_anew(name)
        return bind(self._endpoints[name]._replace(address=address), sockets.FREED_SECONDS)
