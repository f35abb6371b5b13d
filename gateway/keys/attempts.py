"""Attempts with wrong keys: counted by address, refused for a while, told once a minute. Pure; time is an argument.

A valid key is accepted from an address in back-off too. Every program on one machine has the same address, and so has
everybody behind one proxy: otherwise one program with an old key would keep the others out. Guesses gain nothing: keys
are random, so 10,000 attempts a minute find none. What the back-off saves is the work for a handshake, and the log.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

# Attempts in `WINDOW` seconds after which an address is refused for `BACK_OFF` seconds.
ATTEMPTS = 5
WINDOW = 60.0
BACK_OFF = 60.0
# Seconds between two lines in the log.
TELL_EVERY = 60.0
# Addresses that are remembered.
MOST_ADDRESSES = 10_000


class _Address:
    """The attempts of one address since `began`."""

    __slots__ = ("began", "count", "until")

    def __init__(self, now: float) -> None:
        self.began = now
        self.count = 0
        # When it is served again.
        self.until = 0.0


class Attempts:
    """The failed attempts of one worker."""

    def __init__(self) -> None:
        self.total = 0
        # The one that failed longest ago comes first.
        self._addresses: dict[str, _Address] = {}
        self._told_at = float("-inf")
        self._untold = 0
        self._newest = ""

    def fail(self, address: str, now: float) -> None:
        """Count an attempt with a wrong key."""
        self.total += 1
        self._untold += 1
        self._newest = address
        name = _network(address)
        of = self._addresses.pop(name, None)
        if of is None or (now >= of.until and now - of.began >= WINDOW):
            of = _Address(now)
        self._addresses[name] = of
        of.count += 1
        if of.count >= ATTEMPTS and now >= of.until:
            of.until = now + BACK_OFF
            # The count begins anew after the back-off.
            of.began, of.count = of.until, 0
        while len(self._addresses) > MOST_ADDRESSES:
            del self._addresses[next(iter(self._addresses))]

    def refused(self, address: str, now: float) -> float:
        """Return for how many seconds an address is still refused; 0 if it is not."""
        of = self._addresses.get(_network(address)) if self._addresses else None
        return 0.0 if of is None else max(0.0, of.until - now)

    def tell(self, now: float, write: Callable[[int, str], None]) -> None:
        """Call `write` with the number of attempts since the last call and the newest address; once in `TELL_EVERY`."""
        if self._untold and now - self._told_at >= TELL_EVERY:
            self._told_at = now
            count, self._untold = self._untold, 0
            write(count, self._newest)


def why_barred(seconds: int) -> str:
    """Return the sentence for a client whose address is still refused for so many seconds."""
    return f"too many attempts with a wrong API key; try again in {seconds} s, or with the right key"


def _network(address: str) -> str:
    """Return what stands for one client: an IPv6 client can use every address of its network of 64 bits."""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((parsed, 64), strict=False).network_address)
