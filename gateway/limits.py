"""What one client may cost: requests a second, origins. Pure; time is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit


class TokenBucket:
    """Lets `rate` requests a second pass, and four seconds' worth of them at once."""

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._tokens = rate * 4
        self._at = now

    def take(self, now: float) -> bool:
        """Return whether one more request may pass at `now` (seconds)."""
        self._tokens = min(self.rate * 4, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    """Return whether `origin` is one of those that the setting allows; programs send none and always may."""
    return origin is None or "*" in allowed or _canonical(origin) in map(_canonical, allowed)


def _canonical(origin: str) -> str:
    """Return an origin as a browser writes it: in small letters, without a slash at the end and the default port."""
    origin = origin.strip().rstrip("/").lower()
    scheme = origin.partition("://")[0]
    return origin.removesuffix(f":{_DEFAULT_PORTS[scheme]}") if scheme in _DEFAULT_PORTS else origin


def is_own_origin(origin: str | None, host: str | None, user_agent: str | None, *, secure: bool) -> bool:
    """Return whether `origin` is the very address that the client has connected to (header ``Host``).

    websocket-client and other libraries send that although no page is behind them; `secure` is whether the connection
    is TLS here. A page of a foreign name whose address an attacker has changed to ours (DNS rebinding) sends the same,
    but it runs in a browser, which says so in its ``User-Agent`` whatever the page does. So of a browser only an
    address, or this machine's own name, counts: no name server decides where these lead.
    """
    if origin is None or host is None:
        return False
    try:
        scheme, _, rest = origin.strip().lower().removesuffix("/").partition("://")
        # Behind a proxy that ends TLS the client's scheme is not known here.
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
    # An IPv6 address has many spellings.
    host = str(ip_address(host)) if _is_ip(host) else host.removesuffix(".")
    return host, default_port if port is None else port


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
