"""Where a request comes from: from this machine, or from elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.access.addresses import canonical, is_loopback

# A proxy on this machine connects by loopback for its clients, and sends at least one of these.
_OF_PROXIES = frozenset(("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"))


def from_this_machine(
    client: Sequence[object] | None, reached: Sequence[object] | None, headers: Mapping[str, str]
) -> bool:
    """Return whether a program of this machine asks, and not through a proxy.

    `client` and `reached` are both ends of the connection. A program that connects to this machine's own address from
    this machine has that address too; no other machine can, because the answers would not reach it.
    """
    if not client or not reached or not _OF_PROXIES.isdisjoint(headers):
        return False
    address = canonical(str(client[0]))
    return is_loopback(address) or address == canonical(str(reached[0]))
