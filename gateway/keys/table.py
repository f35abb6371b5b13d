"""The keys in force: which key a client presented, and whether it still holds. Pure; time is an argument.

Keys are compared as hashes and in constant time, so that the duration of a refusal reveals nothing about a key.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from qmt_bridge.keys.key import Key, Scope, sha256, simple_key

# Compared with where no key has the hash, so that an unknown key takes as long as a known one.
_NONE = "0" * 64


class Table:
    """The keys of the file and the key of the setting `api_key`, by their hashes."""

    def __init__(self, keys: Iterable[Key] = (), api_key: str = "") -> None:
        self._simple = simple_key(api_key) if api_key else None
        self._keys = {key.sha256: key for key in keys}
        if self._simple is not None:
            self._keys[self._simple.sha256] = self._simple

    @property
    def configured(self) -> bool:
        """Return whether there is any key; without one no key is accepted."""
        return bool(self._keys)

    @property
    def sees_trades(self) -> bool:
        """Return whether a key may have trade events."""
        return any(key.allows("trade") for key in self._keys.values())

    def find(self, given: str) -> Key | None:
        """Return the key that a client has given as text, or as its UTF-8 bytes read as ISO 8859-1; None if unknown.

        A header has no encoding of its own: servers read ISO 8859-1, and programs write UTF-8. Both spellings are
        compared in any case, so the duration says nothing.
        """
        as_text, as_bytes = self._of(given), self._of(_from_header(given))
        return as_text or as_bytes

    def lapsed(self, key: Key, now: float) -> str:
        """Return why a key that was found is no longer valid, at `now` (seconds since 1970); empty if it is."""
        current = self._keys.get(key.sha256)
        if current is None:
            return f"the key {key.name} was revoked"
        if current.expired(now):
            return f"the key {key.name} has expired"
        return "" if current == key else f"the rights of the key {key.name} have changed"

    def _of(self, given: str) -> Key | None:
        digest = sha256(given)
        found = self._keys.get(digest)
        same = hmac.compare_digest(digest, _NONE if found is None else found.sha256)
        return found if same else None


def missing_scope(key: Key, scope: Scope) -> str:
    """Return the sentence that says which scope a key lacks; empty if it has it."""
    return "" if key.allows(scope) else f"the key {key.name} has no scope {scope}"


def _from_header(key: str) -> str:
    try:
        return key.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return key
