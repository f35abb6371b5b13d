"""The ids of server-sent events: the position of the client in all topics of its URL. Pure (docs/http.md, "Events").

An id is ``<epoch>:<seq>``, with a sequence number for each name of the URL in its order:
``1795904066368280443:41,0,7``. A browser keeps only the newest id, and sends it when it connects again; so each id says
all. 0 is a topic of which nothing was sent. All topics of one feeder process have its epoch; with another epoch all
positions begin anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.codes import MARKETS, is_code

# Beyond so many names events have no id: one would be longer than a record, and than a header may be.
MOST_NAMES = 200
# The id of the notice that all was sent up to `end`. A browser connects again, and is told then not to.
END = "end"
# The name of the one topic of a formula's URL.
FORMULA = "formula"
# Of an epoch; larger numbers are no position (wire.md).
_MOST_EPOCH = 2**62
_ID = re.compile(r"([0-9]{1,20}):([0-9]{1,18}(?:,[0-9]{1,18})*)", re.ASCII)


class Marks:
    """Where a client is in each of its topics."""

    def __init__(self, names: Iterable[str]) -> None:
        """Follow the topics that a URL names."""
        self.names: Sequence[str] = list(dict.fromkeys(names))
        self._places = {name: place for place, name in enumerate(self.names)}
        self._epoch = 0
        self._seqs = [0] * len(self.names)
        # Whether the epoch is what a client says: it may be one that no feeder has, or a later one than the feeder's
        # if its clock was set back.
        self._is_claimed = False

    @property
    def kept(self) -> bool:
        """Return whether events have ids."""
        return len(self.names) <= MOST_NAMES

    def begin(self, id: str) -> None:
        """Go on after an event that the client had; raise `BadRequest` for an id of another URL."""
        found = _ID.fullmatch(id.strip())
        seqs = [] if found is None else found[2].split(",")
        if found is None or int(found[1]) > _MOST_EPOCH or len(seqs) != len(self.names) or not self.kept:
            raise BadRequest("bad_request", "Last-Event-ID is the id of an event of this URL, with the same names")
        self._epoch, self._seqs = int(found[1]), [int(seq) for seq in seqs]
        self._is_claimed = True

    def resume(self, request: dict[str, Any]) -> None:
        """Change a request so that it asks for what follows the client's positions.

        Without a `start`, a name of which the client has nothing begins with its last value. With one it has the same
        store as the others, and begins with the feeder's process: the moment of `start` cannot be named beside them.
        """
        option = "start" if "start" in request else "resume"
        positions = {
            name: {"epoch": self._epoch, "seq": seq}
            for name, seq in zip(self.names, self._seqs, strict=True)
            if seq or (option == "start" and (is_code(name) or name in MARKETS))
        }
        request[option] = positions.get(FORMULA, positions)

    def name_of(self, code: str) -> str:
        """Return which name of the URL a record of `code` comes by: its market if that is named, else the code."""
        market = code.rpartition(".")[2]
        return market if market in self._places else code

    def reach(self, name: str, epoch: int, seq: int) -> None:
        """Note that the client is sent the message with this position; one of an older epoch is passed over."""
        place = self._places.get(name)
        if place is None or (epoch < self._epoch and not self._is_claimed):
            return
        self._is_claimed = False
        if epoch != self._epoch:
            self._epoch, self._seqs = epoch, [0] * len(self.names)
        self._seqs[place] = seq

    def id(self) -> str:
        """Return the id of an event that brings the client here; empty without one."""
        return f"{self._epoch}:{','.join(map(str, self._seqs))}" if self.kept and self._epoch else ""
