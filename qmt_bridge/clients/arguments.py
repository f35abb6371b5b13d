"""What a caller of a client gives it, checked: codes, options of a subscription, host, port, TLS."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, TypedDict

from qmt_bridge.errors import BadRequest, ConfigError

# Characters of a code by which a gateway names it; those that exist have at most 38.
_LONGEST_CODE = 40


class QuoteOptions(TypedDict, total=False):
    """How a subscription is served, by a gateway that knows the control layer (docs/websocket.md)."""

    # The names of the fields to send of each record.
    fields: Iterable[str]
    # At most one frame of a code in this many milliseconds: the newest tick, the newest state of each bar, every print.
    max_rate_ms: int
    # "all": do not conflate, here or at the gateway; a client that does not keep up is disconnected instead.
    mode: Literal["latest", "all"]
    # False: do not send the last known value first.
    snapshot: bool
    # Begin with what the store of the day has: from a time on ("09:30:00", ISO 8601, or milliseconds since 1970).
    start: str | int
    # With `start`: up to then, and nothing live; the stream ends there.
    end: str | int
    # With `start`: what is stored as so many times the pace of its own times; 0 is as fast as it is read.
    speed: float
    # Leave nothing out: what is lost, on the way to the gateway or with the connection, is read from the store.
    complete: bool


def trusting(tls: str | os.PathLike[str] | ssl.SSLContext) -> ssl.SSLContext:
    """Return what trusts a certificate authority, given as its file; raise `ConfigError` for a wrong file."""
    if isinstance(tls, ssl.SSLContext):
        return tls
    try:
        return ssl.create_default_context(cafile=tls)
    except OSError as exc:
        reason = exc.reason if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ConfigError("tls", f"{os.fspath(tls)} holds no certificate authority: {reason}") from exc


def checked_codes(name: str, codes: Iterable[str]) -> list[str]:
    """Return the codes as a list; raise `BadRequest` for a single string, none, or what cannot be a code."""
    # A single string would be taken as an iterable of letters. Whether each code exists is checked by the gateway.
    checked = [] if isinstance(codes, str) else list(codes)
    if not checked:
        raise BadRequest("bad_request", f"{name} must be a non-empty list of codes, got {codes!r}")
    for code in checked:
        # A refusal would name a number, as a column of a table has them, as text, and a longer code by its beginning:
        # neither is found among the codes of the stream, which would wait for ever.
        if not isinstance(code, str) or not 0 < len(code) <= _LONGEST_CODE:
            raise BadRequest("bad_request", f"{name} must be codes such as '600519.SH', got {repr(code)[:60]}")
    return checked


def checked_options(options: QuoteOptions) -> dict[str, Any]:
    """Return the options as a request has them; raise `BadRequest` for some that exclude each other."""
    for name in options.keys() - QuoteOptions.__annotations__.keys():
        raise TypeError(f"unknown option {name!r}; expected one of {', '.join(QuoteOptions.__annotations__)}")
    given: dict[str, Any] = dict(options)
    if "fields" in options:
        # A single string would be taken as an iterable of letters.
        fields = [] if isinstance(options["fields"], str) else list(options["fields"])
        if not fields:
            raise BadRequest("bad_request", f"fields must be a non-empty list of names, got {options['fields']!r}")
        given["fields"] = fields
    complete = given.pop("complete", False)
    if complete and given.get("max_rate_ms"):
        raise BadRequest("bad_request", "complete leaves nothing out, and max_rate_ms does; choose one")
    if "end" in given and "start" not in given:
        raise BadRequest("bad_request", "end is that of a part of the day, which needs a start")
    if given.get("speed") and "start" not in given:
        raise BadRequest("bad_request", "speed is that of the day so far, which needs a start")
    if complete or "start" in given:
        # With its position a code goes on where it was.
        given["seq"] = True
    return given | {"mode": "all", "complete": True} if complete else given


def checked_port(port: int) -> int:
    """Return the port; raise `ConfigError` for one that cannot be."""
    if not 0 < port < 65536:
        raise ConfigError("port", f"must be from 1 to 65535, got {port!r}")
    return port


def netloc(host: str) -> str:
    """Return a host as a URL has it; raise `ConfigError` for more than a name or an address."""
    bare = host.removeprefix("[").removesuffix("]")
    with suppress(ValueError):
        return f"[{ipaddress.IPv6Address(bare)}]"
    if not host or any(letter in "/?#@:[]%\\" or letter.isspace() for letter in host):
        raise ConfigError("host", f"must be a name or an address alone, got {host!r}")
    return host
