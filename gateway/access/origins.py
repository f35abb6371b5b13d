"""Which pages may connect: the origins of browsers. Pure.

A browser tells by ``Origin`` which site a page comes from, and a page cannot change that. Programs send none, or the
address that they connect to. Which hosts the gateway is reached by was checked before (hosts.py), so a page of that
host was loaded from this machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.access.addresses import host_of, is_loopback, shown

# What browsers send for a page that was opened from a file. A sandboxed frame of any page sends "null" too.
FILES = frozenset(("null", "file://"))
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def origin_allowed(
    origin: str | None, host: str | None, allowed: Sequence[str], *, secure: bool = False, to_files: bool = False
) -> bool:
    """Return whether a page of `origin` may connect to `host` (the header ``Host``); None is a program.

    `allowed` is the setting `origins`; `secure` says whether the connection uses TLS; `to_files` whether a page that
    was opened from a file may have what it asks for.
    """
    if origin is None or "*" in allowed or _canonical(origin) in map(_canonical, allowed):
        return True
    if _canonical(origin) in FILES:
        return to_files
    return _is_near(origin, host, secure=secure)


def _is_near(origin: str, host: str | None, *, secure: bool) -> bool:
    """Return whether `origin` is of a loopback name, or of the host to which it connects, on any port."""
    scheme, _, rest = origin.strip().lower().removesuffix("/").partition("://")
    if scheme not in _DEFAULT_PORTS:
        return False
    try:
        page = host_of(rest)
        if is_loopback(page):
            return True
        # A page without TLS could have been changed on its way. Behind a proxy that ends TLS this is not known here.
        return (scheme in ("https", "wss") or not secure) and host is not None and page == host_of(host)
    except ValueError:
        return False


def _canonical(origin: str) -> str:
    """Return an origin as a browser writes it: in lower case, without a slash at its end or the default port."""
    origin = origin.strip().lower()
    origin = origin if origin == "file://" else origin.rstrip("/")
    scheme = origin.partition("://")[0]
    return origin.removesuffix(f":{_DEFAULT_PORTS[scheme]}") if scheme in _DEFAULT_PORTS else origin


def why_denied(origin: str) -> str:
    """Return the sentence for a page that may not connect: what to do about it."""
    if _canonical(origin) in FILES:
        return "a page from a file gets quotes only, from ws://127.0.0.1; the setting origins may name it"
    return f"add {shown(origin)} to the setting origins (QMT_BRIDGE_ORIGINS)"
