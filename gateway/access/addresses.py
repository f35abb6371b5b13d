"""The host in a ``Host`` or ``Origin`` header, in one spelling. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

_SHOWN = 44
_BRACKETS = re.compile(r"\[[^\[\]]*\](:\d*)?")


def host_of(address: str) -> str:
    """Return the host of ``host`` or ``host:port``, in one spelling; raise ValueError for anything else."""
    text = address.strip(" \t").lower()
    if not text.isascii() or not text.isprintable() or any(letter in "/?#@\\ " for letter in text):
        raise ValueError(f"not an address: {address[:80]!r}")
    if "]" in text and not _BRACKETS.fullmatch(text):
        # Some versions of CPython read only what is between the brackets.
        raise ValueError(f"not an address: {address[:80]!r}")
    parts = urlsplit(f"//{text}")
    # Reading the port checks it.
    host, _ = parts.hostname or "", parts.port
    if not host:
        raise ValueError(f"no host in {address[:80]!r}")
    return canonical(host)


def canonical(host: str) -> str:
    """Return a host, without brackets and port, in one spelling: an IPv6 address can be written in several ways."""
    host = host.strip().lower().removeprefix("[").removesuffix("]")
    try:
        found = ip_address(host)
    except ValueError:
        return host.removesuffix(".")
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or found)


def is_ip(host: str) -> bool:
    """Return whether a host is a literal IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a host, as `canonical` writes it, leads to this machine whatever a name server says."""
    return host == "localhost" or (is_ip(host) and ip_address(host).is_loopback)


def shown(header: str) -> str:
    """Return what a sentence shows of a header: plain letters, and few: a close reason has room for 123 bytes."""
    return repr(ascii(header)[1:-1][:_SHOWN]).replace("\\\\", "\\")
