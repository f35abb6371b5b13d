"""Find the key in a handshake or request. Pure (docs/websocket.md, "Keys")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs

# Browsers cannot set headers on a WebSocket; this item of Sec-WebSocket-Protocol carries the key instead.
KEY_SUBPROTOCOL = "key."


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
