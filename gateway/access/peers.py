"""Where a request comes from: from this machine or from elsewhere, directly or through a proxy. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from gateway.access.addresses import canonical, is_ip, is_loopback

# A proxy on this machine connects by loopback for its clients, and sends at least one of these.
_OF_PROXIES = frozenset(("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"))
# Entries of a proxy's header that are read: a client can send any number of them to the proxy.
_MOST_HOPS = 32
# One parameter of the header Forwarded (RFC 7239, 4), whose value may be a quoted string.
_PARAMETER = re.compile(r'\s*(for|proto)\s*=\s*(?:"([^"]*)"|([^\s;,"]*))', re.IGNORECASE)
_SECURE = {"http": "https", "ws": "wss"}


class Proxies:
    """The proxies that are trusted to name their clients: the settings `behind_proxy` and `proxy_header`."""

    def __init__(self, trusted: Iterable[str], header: str) -> None:
        self._networks = [ip_network(text) for text in trusted]
        self._header = header.encode("ascii")

    def resolve(self, scope: MutableMapping[str, Any]) -> None:
        """Put the client's own address and scheme into the scope of a request that a trusted proxy has passed on.

        What any other peer says about its address is ignored.
        """
        client = scope.get("client")
        if not self._networks or not client or not self.trusts(str(client[0])):
            return
        told = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == self._header]
        entries = ",".join(told).split(",")[-_MOST_HOPS:]
        if self._header == b"forwarded":
            hops = [dict(_parameters(entry)) for entry in entries]
            addresses, protocols = [hop.get("for", "") for hop in hops], [hop.get("proto", "") for hop in hops[-1:]]
        else:
            addresses = entries
            protocols = [
                value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"x-forwarded-proto"
            ]
        scope["client"] = (self._client(str(client[0]), addresses), 0)
        if protocols and protocols[-1].strip().lower() in ("https", "wss"):
            scope["scheme"] = _SECURE.get(scope["scheme"], scope["scheme"])

    def _client(self, peer: str, addresses: Sequence[str]) -> str:
        """Return the right-most address that no trusted proxy has.

        Each proxy appends the address of its peer, so all that stands left of this one came from the client. An entry
        that is no address hides who it is; the client then counts under the address of the proxy that wrote it.
        """
        found = canonical(peer)
        for entry in reversed(addresses):
            address = _address(entry)
            if not address:
                break
            found = address
            if not self.trusts(address):
                break
        return found

    def trusts(self, address: str) -> bool:
        """Return whether what the peer with this address says of its client is believed."""
        address = canonical(address)
        return is_ip(address) and any(ip_address(address) in network for network in self._networks)


def _parameters(entry: str) -> Iterable[tuple[str, str]]:
    for part in entry.split(";"):
        found = _PARAMETER.fullmatch(part.strip())
        if found is not None:
            yield found[1].lower(), found[2] if found[2] is not None else found[3]


def _address(entry: str) -> str:
    """Return the IP address of ``address``, ``address:port`` or ``[address]:port``; empty if there is none."""
    host = entry.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    # A zone names an interface of the machine that wrote it, and may be any text.
    return canonical(host) if is_ip(host) and "%" not in host else ""


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


def from_elsewhere(
    client: Sequence[object] | None, reached: Sequence[object] | None, headers: Mapping[str, str]
) -> bool:
    """Return whether a request comes from another machine, or through a proxy.

    A client without an address (a local socket, a test client) is of this machine.
    """
    if not _OF_PROXIES.isdisjoint(headers):
        return True
    known = client is not None and is_ip(canonical(str(client[0])))
    return known and not from_this_machine(client, reached, headers)
