"""Which pages may connect: the allowed origins of browsers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit


def origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    """Return whether the setting allows `origin`; None is always allowed, because programs send no origin."""
    return origin is None or "*" in allowed or _canonical(origin) in map(_canonical, allowed)


def _canonical(origin: str) -> str:
    """Return an origin as a browser writes it: in lower case, without a slash at its end or the default port."""
    origin = origin.strip().rstrip("/").lower()
    scheme = origin.partition("://")[0]
    return origin.removesuffix(f":{_DEFAULT_PORTS[scheme]}") if scheme in _DEFAULT_PORTS else origin


def is_own_origin(origin: str | None, host: str | None, user_agent: str | None, *, secure: bool) -> bool:
    """Return whether `origin` is the address that the client has connected to (header ``Host``).

    websocket-client and other libraries send such an origin although they show no page. `secure` says whether this
    connection uses TLS. An attacker's page sends such an origin too if its domain name has been changed to lead to our
    address (DNS rebinding). But that page runs in a browser, and a page cannot change the browser's ``User-Agent``.
    Therefore a browser is accepted only with an IP address or ``localhost``, which do not depend on a name server.
    """
    if origin is None or host is None:
        return False
    try:
        scheme, _, rest = origin.strip().lower().removesuffix("/").partition("://")
        # Behind a proxy that ends TLS, the scheme that the client used is not known here.
        if scheme not in (("https", "wss") if secure else _DEFAULT_PORTS):
            return False
        default = _DEFAULT_PORTS[scheme]
        name = _address(rest, default)
        if name != _address(host.strip().lower(), default):
            return False
    except ValueError:
        return False
    is_browser = (user_agent or "").lstrip().lower().startswith("mozilla/")
    return not is_browser or name[0] == "localhost" or _is_ip(name[0])


_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def _address(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of ``host:port``; raise ValueError for anything else."""
    if not text or any(letter in "/?#@\\" or letter.isspace() for letter in text):
        raise ValueError(f"not an address: {text[:80]!r}")
    parts = urlsplit(f"//{text}")
    port = parts.port
    host = parts.hostname or ""
    if not host:
        raise ValueError(f"no host in {text[:80]!r}")
    # An IPv6 address can be written in several ways.
    host = str(ip_address(host)) if _is_ip(host) else host.removesuffix(".")
    return host, default_port if port is None else port


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
