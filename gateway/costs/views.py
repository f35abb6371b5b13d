"""In how many forms the frames of topics are made for the sockets of one address. Pure.

A frame is rendered once for each view, whatever the number of clients with it. A view that leaves out fields or levels
has to be made out of the records, which takes some 0.2 ms for a market's batch: with a thousand lists of fields, one
address would take a whole worker.
"""

from __future__ import annotations

from collections import Counter

from gateway.sending.view import View


class Views:
    """The views with fewer fields or levels that the sockets of each address use on one worker."""

    __slots__ = ("_used", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # How many sockets of each address use a view.
        self._used: dict[str, Counter[View]] = {}

    def admits(self, address: str, view: View) -> bool:
        """Return whether one more socket of an address may use a view."""
        used = self._used.get(address, ())
        return view in used or len(used) < self.limit

    def add(self, address: str, view: View) -> None:
        """Note that one more socket uses a view."""
        self._used.setdefault(address, Counter())[view] += 1

    def remove(self, address: str, view: View) -> None:
        """Note that a socket uses a view no longer."""
        used = self._used[address]
        used[view] -= 1
        if not used[view]:
            del used[view]
            if not used:
                del self._used[address]


class SocketViews:
    """The views that the topics of one socket have."""

    __slots__ = ("_address", "_topics", "_views")

    def __init__(self, views: Views, address: str) -> None:
        self._views = views
        self._address = address
        # How many topics have each view.
        self._topics: Counter[View] = Counter()

    def admits(self, view: View) -> bool:
        """Return whether topics may have this view."""
        return view in self._topics or self._views.admits(self._address, view)

    def add(self, view: View) -> None:
        """Note that one more topic has a view."""
        self._topics[view] += 1
        if self._topics[view] == 1:
            self._views.add(self._address, view)

    def remove(self, view: View) -> None:
        """Note that a topic has a view no longer."""
        if view not in self._topics:
            # The socket has ended, and has given up all its views.
            return
        self._topics[view] -= 1
        if not self._topics[view]:
            del self._topics[view]
            self._views.remove(self._address, view)

    def close(self) -> None:
        """Give up all views: the socket has ended."""
        for view in list(self._topics):
            self._views.remove(self._address, view)
        self._topics.clear()
