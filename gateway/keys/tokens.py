"""The tokens that one worker accepts, and the keys of their issuer, read or fetched again. Runs on the event loop.

A URL is fetched on a thread of its own, one at a time. While that fails, the known keys go on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress

from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.key import sha256
from qmt_bridge.private import stamp
from qmt_bridge.tokens.claims import TokenKey, rights
from qmt_bridge.tokens.key_set import KeySet, UnknownSigner, has_form
from qmt_bridge.tokens.location import is_url, read_keys

logger = logging.getLogger(__name__)

# Seconds between two fetches of the keys, and at least between two for tokens of an unknown key or after a failure.
FETCH_EVERY = 600.0
FETCH_AGAIN = 30.0
# Verified tokens that are remembered. To verify one takes some 100 microseconds.
MOST_KNOWN = 1000


class KeysPending(Exception):
    """The keys are being fetched, so it is not known yet whether a token is right."""


class Tokens:
    """The tokens of the issuer in the settings."""

    def __init__(self, config: Config) -> None:
        """Read the keys if they are a file; raise `ConfigError` for one that cannot be used."""
        self._config = config
        self._location = config.jwt_jwks
        self._fetches = is_url(self._location)
        self._keys: KeySet | None = None
        self._stamp: tuple[int, ...] = ()
        self._known: dict[str, TokenKey] = {}
        self._fetching = False
        self._began_at = float("-inf")
        self._again_at = float("-inf")
        self._failing = False
        if not self._fetches:
            self._stamp = stamp(self._location)
            self._keys = read_keys(self._location)

    def find(self, given: str, now: float, *, verify: bool = True) -> TokenKey | None:
        """Return the rights of a token, None if it is wrong; raise `KeysPending`.

        Without `verify` only a token that was verified before is accepted, which costs no more than a key does.
        """
        if not has_form(given):
            return None
        digest = sha256(given)
        known = self._known.get(digest)
        if known is not None and not known.expired(time.time()):
            return known
        if not verify:
            return None
        if self._keys is None:
            self._fetch(now)
            raise KeysPending
        try:
            found = self._keys.verify(given, self._config.jwt_issuer, self._config.jwt_audience)
        except UnknownSigner:
            if self._fetches:
                self._fetch(now)
            if self._fetching:
                raise KeysPending from None
            return None
        if found is None:
            return None
        claims, signed_by = found
        key = rights(claims, self._config.jwt_scope_claim, self._config.jwt_accounts_claim, signed_by)
        if key is not None:
            self._known[digest] = key
            while len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]
        return key

    def lapsed(self, key: TokenKey, now: float) -> str:
        """Return why a token is not valid any more at `now` (seconds since 1970); empty if it is."""
        if key.expired(now):
            return f"the token of {key.name} has expired"
        if self._keys is None or key.signed_by not in self._keys.digests:
            return f"the issuer has withdrawn the key of the token of {key.name}"
        return ""

    def tick(self, now: float) -> None:
        """Read or fetch the keys again if it is time. Called once a second."""
        if self._fetches:
            if now >= self._again_at:
                self._fetch(now)
            return
        found = stamp(self._location)
        if found == self._stamp:
            return
        self._stamp = found
        try:
            self._take(read_keys(self._location))
        except ConfigError as exc:
            logger.error("%s; the keys of tokens stay as they were", exc)

    def _fetch(self, now: float) -> None:
        if self._fetching or now - self._began_at < FETCH_AGAIN:
            return
        self._fetching, self._began_at = True, now
        loop = asyncio.get_running_loop()
        # No thread of a pool: a worker that ends would wait for a server that does not answer.
        threading.Thread(target=_fetch, args=(self._location, loop, self), name="jwks", daemon=True).start()

    def arrived(self, found: KeySet | ConfigError, now: float) -> None:
        """Take the keys that were fetched, or the reason why they were not."""
        self._fetching = False
        if isinstance(found, KeySet):
            self._again_at = now + FETCH_EVERY
            if self._failing:
                logger.info("the keys of tokens are there again: %s", self._location)
            self._failing = False
            self._take(found)
            return
        self._again_at = now + FETCH_AGAIN
        if not self._failing:
            self._failing = True
            meanwhile = "no token is accepted" if self._keys is None else "the known keys go on"
            logger.error("%s; until then %s", found, meanwhile)

    def _take(self, keys: KeySet) -> None:
        before = self._keys
        if before is not None and before.digests != keys.digests:
            logger.info("the keys of tokens have changed: %d in %s", len(keys), self._location)
        # Tokens of a key that is gone.
        self._known = {name: key for name, key in self._known.items() if key.signed_by in keys.digests}
        self._keys = keys


def _fetch(location: str, loop: asyncio.AbstractEventLoop, tokens: Tokens) -> None:
    found: KeySet | ConfigError
    try:
        found = read_keys(location)
    except ConfigError as exc:
        found = exc
    except Exception as exc:
        # A bug of ours must not end the fetches for good.
        found = ConfigError("jwt_jwks", f"cannot fetch {location}: {type(exc).__name__}")
    # The loop of a worker that has stopped meanwhile is closed.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(lambda: tokens.arrived(found, loop.time()))
