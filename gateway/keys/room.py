"""Room for the sockets of one worker: those without a key never take the places of those with one. Pure."""

from __future__ import annotations

from collections import Counter

from qmt_bridge.keys.key import Key

# One place of so many is kept for sockets with a key.
KEPT = 10


class Room:
    """The open sockets, of each address without a key and of each key.

    A socket that has not shown its key yet counts as one without.
    """

    def __init__(self, places: int, of_address: int) -> None:
        """Have so many places in all, and for one address without a key."""
        self._places = places
        self._of_address = of_address
        # At least one place is for everybody, and one is kept if there are two.
        self._open = max(1, places - -(-places // KEPT))
        # Sockets without a key by address, and with a key by its hash.
        self._addresses: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._anonymous = 0
        self._total = 0

    @property
    def crowded(self) -> bool:
        """Return whether there are more sockets than places, so that one without a key has to go."""
        return self._total > self._places and self._anonymous > 0

    def enter(self, address: str, key: Key | None) -> str:
        """Count a socket, or return the reason why there is no place for it."""
        if key is not None:
            if key.connections and self._keys[key.sha256] >= key.connections:
                return f"this worker serves at most {key.connections} sockets of the key {key.name}"
            if self._total - self._anonymous >= self._places:
                return f"this worker serves at most {self._places} sockets"
            self._keys[key.sha256] += 1
        else:
            if self._addresses[address] >= self._of_address:
                return f"this worker serves at most {self._of_address} sockets of one address"
            if self._anonymous >= self._open or self._total >= self._places:
                return f"this worker serves at most {self._places} sockets, {self._open} of them without a key"
            self._addresses[address] += 1
            self._anonymous += 1
        self._total += 1
        return ""

    def leave(self, address: str, key: Key | None) -> None:
        """Give back the place of a socket that had entered with these."""
        counts, name = (self._addresses, address) if key is None else (self._keys, key.sha256)
        counts[name] -= 1
        if not counts[name]:
            del counts[name]
        self._anonymous -= key is None
        self._total -= 1
