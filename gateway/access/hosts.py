"""By which hosts the gateway is reached: the header ``Host``. Pure.

A page of evil.example, whose name was changed to lead to our address after it was loaded (DNS rebinding), is of the
same origin as the gateway for its browser. Only ``Host`` shows the name then. An IP address depends on no name server:
a page at an address was loaded from there, so each literal address is accepted, whatever lies between (NAT, a
container's published port, a proxy).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.access.addresses import canonical, host_of, is_ip, is_loopback, shown


def host_allowed(host: str | None, names: Iterable[str], reached: Sequence[object] | None) -> bool:
    """Return whether a request for `host` (the header ``Host``) is meant for this gateway.

    `names` are the settings `host` and `hosts`, `reached` is the server's end of the connection. Only HTTP/1.0 has no
    ``Host``, and no browser speaks that.
    """
    if host is None:
        return True
    try:
        asked = host_of(host)
    except ValueError:
        return False
    if is_loopback(asked) or is_ip(asked):
        return True
    own = {canonical(name.rpartition("://")[2].partition(":")[0]) for name in names}
    return asked in own or bool(reached and asked == canonical(str(reached[0])))


def is_near(host: str | None, bound: str, reached: Sequence[object] | None) -> bool:
    """Return whether a connection came by loopback to a gateway that is bound to loopback.

    `bound` is the setting `host`. Another server may be bound to something else than the setting says, and a proxy on
    this machine connects by loopback too; therefore all three are compared.
    """
    if not is_loopback(canonical(bound)) or not reached or not is_loopback(canonical(str(reached[0]))):
        return False
    try:
        return host is None or is_loopback(host_of(host))
    except ValueError:
        return False


def why_unknown(host: str) -> str:
    """Return the sentence for a request whose ``Host`` is not known: what to do about it."""
    return f"add {shown(host)} to the setting hosts (QMT_BRIDGE_HOSTS)"
