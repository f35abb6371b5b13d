"""Find the key in a handshake, and check it. Pure (docs/websocket.md, "Keys").

Keys are compared as hashes and in constant time, so that the duration of a refusal reveals nothing about the key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs

# Browsers cannot set headers on a WebSocket; this item of Sec-WebSocket-Protocol carries the key instead.
KEY_SUBPROTOCOL = "key."


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _from_header(key: str) -> str:
    try:
        return key.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return key


class Keys:
    """The configured key; only its hash is kept."""

    def __init__(self, api_key: str) -> None:
        self._digest = _digest(api_key) if api_key else None

    @property
    def configured(self) -> bool:
        """Return whether a key is configured; without one no key is accepted."""
        return self._digest is not None

    def name(self, key: str) -> str:
        """Return what stands for an accepted key where its costs are counted, without showing it."""
        return "" if self._digest is None else self._digest.hex()[:16]

    def accepts(self, key: str) -> bool:
        """Return whether `key` is the configured one, as text or as its UTF-8 bytes read as ISO 8859-1.

        A header has no encoding of its own: servers read ISO 8859-1, and programs write UTF-8. Both spellings are
        compared in any case, so the duration says nothing.
        """
        if self._digest is None:
            return False
        as_text = hmac.compare_digest(self._digest, _digest(key))
        return hmac.compare_digest(self._digest, _digest(_from_header(key))) | as_text


def presented_key(headers: Mapping[str, str], subprotocols: Iterable[str], query_string: bytes) -> str | None:
    """Return the key of a handshake: Bearer, X-API-Key, subprotocol ``key.<token>``, or ``?api_key=``, in that order.

    `headers` has lower-case names. None means that the client may still send one in its first frame.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    # Only ASCII's blanks: other ones may be bytes of a character in UTF-8.
    if scheme.lower() == "bearer" and (token := token.strip(" \t")):
        return token
    if headers.get("x-api-key"):
        return headers["x-api-key"]
    for item in subprotocols:
        if item.startswith(KEY_SUBPROTOCOL) and item != KEY_SUBPROTOCOL:
            return item.removeprefix(KEY_SUBPROTOCOL)
    values = parse_qs(query_string.decode("latin-1"), keep_blank_values=False).get("api_key")
    return values[0] if values else None
