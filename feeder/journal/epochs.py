"""The epochs of a journal: one for each start of a feeder with it, and the newest positions kept from each epoch.

Only the journal's thread uses them. They are in the table `lives` of its file: one row per start, with the newest
positions at that time, over all accounts and of each account (JSON; MessagePack in older rows). A file without the
table gets it at the next start, and has no earlier epoch.
"""

from __future__ import annotations

import logging
import math
import sqlite3

import msgspec

from feeder.events import Positions
from qmt_bridge.errors import WireError
from qmt_bridge.journal_file import VERSION
from qmt_bridge.wire import earlier, frames
from qmt_bridge.wire.positions import JournalPosition

logger = logging.getLogger(__name__)

_TABLE = "CREATE TABLE IF NOT EXISTS lives (epoch INTEGER NOT NULL, newest INTEGER NOT NULL, numbers BLOB NOT NULL)"

# A feeder that is started every minute for two months; and the numbers of all accounts at these starts.
MOST_EPOCHS = 100_000
MOST_BYTES = 16 * 1024 * 1024
# In nanoseconds since 1970: the year 2116.
MOST_EPOCH = 2**62
_NS_PER_MS = 1_000_000

_numbers_decoder = msgspec.json.Decoder(dict[str, int])


class Epochs:
    """The epochs of one journal; the last one is that of this feeder, once it has begun."""

    def __init__(self) -> None:
        # The newest positions at the end of each epoch; None for the last one. The key is the epoch as a float, because
        # a browser rounds it to one.
        self._ends: dict[float, Positions | None] = {}
        self._last = 0
        # The last epoch until it is written, with the newest positions at its beginning.
        self._unsaved: tuple[int, Positions] | None = None

    @property
    def first_ms(self) -> int:
        """Return when the first feeder of this journal started, as far as it is known, in ms since 1970."""
        return int(next(iter(self._ends), 0.0)) // _NS_PER_MS

    @property
    def last(self) -> int:
        """Return the epoch of this feeder; 0 before it has begun."""
        return self._last

    @property
    def last_ms(self) -> int:
        """Return when this feeder started, in ms since 1970."""
        return self._last // _NS_PER_MS

    @property
    def are_saved(self) -> bool:
        """Return whether every epoch is on disk."""
        return self._unsaved is None

    def read(self, database: sqlite3.Connection) -> None:
        """Read the epochs of a file; raise `sqlite3.Error`."""
        self._ends.clear()
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'lives'").fetchone():
            return
        count, size = database.execute("SELECT count(*), sum(length(numbers)) FROM lives").fetchone()
        if count > MOST_EPOCHS or (size or 0) > MOST_BYTES:
            logger.warning("the trade journal has more epochs of the feeder than can be: they are not read")
            return
        for epoch, newest, numbers in database.execute("SELECT epoch, newest, numbers FROM lives ORDER BY epoch"):
            try:
                of_accounts = frames.read(_numbers_decoder, earlier.modern(numbers))
                if not 0 <= int(epoch) <= MOST_EPOCH:
                    # The next one would have more than 64 bits.
                    raise ValueError(f"{epoch} is no epoch")
                self._note(int(epoch), Positions(int(newest), of_accounts))
            except (TypeError, ValueError, OverflowError, WireError) as exc:
                # This row also has the last positions of the epoch before it, so none of the epochs can be checked.
                logger.warning("the trade journal has an epoch of the feeder that cannot be read: %s", exc)
                self._ends.clear()

    def begin(self, now_ns: int, newest: Positions) -> int:
        """Begin an epoch with the `newest` positions; return it: `now_ns`, or more if the last one is not earlier."""
        # The smallest number that a browser does not round to the epoch before.
        epoch = max(now_ns, math.ceil(math.nextafter(self._last, math.inf)))
        beginning = newest.copy()
        self._note(epoch, beginning)
        self._unsaved = epoch, beginning
        return epoch

    def save(self, database: sqlite3.Connection) -> None:
        """Write the last epoch if it is not written, in the transaction of the caller; raise `sqlite3.Error`."""
        if self._unsaved is None:
            return
        epoch, beginning = self._unsaved
        database.execute(_TABLE)
        # What follows is JSON, which a feeder of version 1 would take for damage.
        database.execute(f"PRAGMA user_version={VERSION}")
        database.execute(
            "INSERT INTO lives VALUES (?, ?, ?)", (epoch, beginning.newest, frames.encode(beginning.numbers))
        )

    def saved(self) -> None:
        """Note that the transaction of `save` is on disk."""
        self._unsaved = None

    def have(self, position: JournalPosition, account: str | None) -> bool:
        """Return whether this journal has the epoch of `position`, and had an exact position at the end of that epoch.

        A browser may have rounded the epoch. A position without an epoch fits every journal.
        """
        if position.epoch is None:
            return True
        epoch = float(position.epoch)
        if epoch not in self._ends:
            return False
        end = self._ends[epoch]
        return end is None or not position.exact or position.seq <= end.of(account)

    def _note(self, epoch: int, beginning: Positions) -> None:
        if self._ends:
            self._ends[float(self._last)] = beginning
        self._ends[float(epoch)] = None
        self._last = epoch
