"""Who may enter one worker: keys, failed attempts and places together. Runs on the event loop.

The same rule holds for WebSockets and pages: a key that is presented is checked, also where none is needed. A client
with a revoked key so learns that, instead of being served as one without a key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from gateway.access.peers import from_elsewhere
from gateway.keys.attempts import Attempts
from gateway.keys.keyring import KeyRing
from gateway.keys.presented_key import presented_key
from gateway.keys.room import Room
from gateway.keys.tokens import KeysPending, Tokens
from qmt_bridge.config import Config
from qmt_bridge.keys.key import EXAMPLE_KEY, SIMPLE_NAME, Key
from qmt_bridge.tokens.claims import TokenKey
from qmt_bridge.tokens.key_set import has_form
from qmt_bridge.tokens.location import check_tokens

logger = logging.getLogger(__name__)


class WrongKey(Exception):
    """A key that is not accepted; the text says why."""


class NotYet(Exception):
    """It is not known yet whether a token is right; the text says why."""


class Entry:
    """The keys, failed attempts and places of one worker."""

    def __init__(self, config: Config, places: int | None = None) -> None:
        """Read the keys; raise `ConfigError` for a file that is damaged.

        The loop has `places` WebSockets; None: as many as the settings say.
        """
        self.keys = KeyRing(config.data_path, config.api_key)
        check_tokens(config)
        self.tokens = Tokens(config) if config.jwt_jwks else None
        self.attempts = Attempts()
        self.room = Room(config.max_connections if places is None else places, config.max_connections_per_address)
        # Whether the feeder's data is invented, as far as is known.
        self.simulated = False
        self._require_key = config.require_key
        self._open_market_data = config.open_market_data
        self._needs_simulation = config.api_key == EXAMPLE_KEY
        self._noting: asyncio.Future[None] | None = None

    @property
    def configured(self) -> bool:
        """Return whether there is any key, or tokens are accepted."""
        return self.tokens is not None or self.keys.table.configured

    @property
    def sees_trades(self) -> bool:
        """Return whether a key or a token may have trade events."""
        return self.tokens is not None or self.keys.table.sees_trades

    def check(self, given: str, address: str) -> Key:
        """Return the key that a client of `address` has given; raise `WrongKey`, and count the attempt.

        It may be a token, with the same answer to a wrong one. Raise `NotYet` for one of which nothing is known yet.
        """
        try:
            key = self._find(given, address)
        except KeysPending:
            raise NotYet("the keys of the tokens' issuer are being fetched; try again") from None
        reason = "the API key is wrong" if key is None else self.lapsed(key, time.time())
        if key is None or reason:
            self.attempts.fail(address, _now())
            raise WrongKey(reason)
        if not isinstance(key, TokenKey):
            self.keys.use(key, time.time())
        return key

    def is_valid(self, given: object, address: str) -> bool:
        """Return whether a value is a key that is accepted now.

        No attempt is counted, but for a wrong token: it costs more than a wrong key, so it is not tried without end.
        """
        if self._accepts(given, address):
            return True
        if self.tokens is not None and isinstance(given, str) and has_form(given):
            self.attempts.fail(address, _now())
        return False

    def _accepts(self, given: object, address: str) -> bool:
        try:
            key = self._find(given, address) if isinstance(given, str) else None
        except KeysPending:
            return False
        return key is not None and not self.lapsed(key, time.time())

    def _find(self, given: str, address: str) -> Key | None:
        """Return the key or the rights of the token; raise `KeysPending`.

        From an address in back-off only a token that was verified before is accepted: to verify one takes a hundred
        times as long as to find a key.
        """
        key = self.keys.table.find(given)
        if key is not None or self.tokens is None:
            return key
        now = _now()
        return self.tokens.find(given, now, verify=not self.attempts.refused(address, now))

    def lapsed(self, key: Key, now: float) -> str:
        """Return why a key is not valid any more; empty if it is."""
        if isinstance(key, TokenKey):
            return "tokens are not accepted" if self.tokens is None else self.tokens.lapsed(key, now)
        if self._needs_simulation and key.name == SIMPLE_NAME and not self.simulated:
            return "this key is an example, and opens the simulator only"
        return self.keys.table.lapsed(key, now)

    def needs_key(self, scope: Mapping[str, Any], *, always: bool) -> bool:
        """Return whether this client has to show a key: on URLs that `always` need one, or because of where it is.

        `qmt-bridge gateway` does not start without a decision about market data for other machines. Other servers
        start in any case, so clients of other machines are asked for a key here.
        """
        if always or self._require_key:
            return True
        elsewhere = from_elsewhere(scope.get("client"), scope.get("server"), headers_of(scope))
        return elsewhere and not self._open_market_data

    def barred(self, scope: Mapping[str, Any], *, needs_key: bool) -> int:
        """Return the seconds for which this client is refused because of wrong keys from its address; 0 if it is not.

        A client with a valid key is not refused, nor is one that needs no key and shows none.
        """
        address = address_of(scope)
        seconds = self.attempts.refused(address, _now())
        if not seconds:
            return 0
        given = presented(scope)
        if given is None:
            return int(seconds) + 1 if needs_key else 0
        if self._accepts(given, address):
            return 0
        self.attempts.fail(address, _now())
        return int(seconds) + 1

    def tick(self) -> None:
        """Read the keys again if they have changed, and write what is due. Called once a second."""
        self.keys.refresh()
        if self.tokens is not None:
            self.tokens.tick(_now())
        self.attempts.tell(_now(), _tell)
        used = self.keys.unnoted(_now())
        if used:
            self._noting = asyncio.get_running_loop().run_in_executor(None, self.keys.note, used)


def address_of(scope: Mapping[str, Any]) -> str:
    """Return the address of the client."""
    address: str = (scope.get("client") or ("?",))[0]
    return address


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of a request, their names in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def presented(scope: Mapping[str, Any]) -> str | None:
    """Return the key of a request or handshake; None if there is none."""
    return presented_key(headers_of(scope), scope.get("subprotocols", []), scope["query_string"])


def _now() -> float:
    return asyncio.get_running_loop().time()


def _tell(count: int, newest: str) -> None:
    logger.warning("attempts with a wrong API key since the last such line: %d, the newest from %s", count, newest)
