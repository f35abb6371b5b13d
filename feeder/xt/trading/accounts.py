"""The accounts of the setting `xt_accounts`, and how each of them is served at this moment."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feeder.source import Sink, mask
from feeder.xt.trading.guard import Guard
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.messages import AccountState, Session

logger = logging.getLogger(__name__)

# The account under which an event without one is published, if there are several accounts.
UNKNOWN_ACCOUNT = "*"

# A copy of xtconstant.ACCOUNT_TYPE_DICT: the settings are checked before xtquant is imported.
ACCOUNT_TYPES = {
    "FUTURE": 1,
    "STOCK": 2,
    "CREDIT": 3,
    "FUTURE_OPTION": 5,
    "STOCK_OPTION": 6,
    "HUGANGTONG": 7,
    "INCOME_SWAP": 8,
    "NEW3BOARD": 10,
    "SHENGANGTONG": 11,
    "OFFSITEBANKING": 13,
    "OUTTER_FUTURE": 1001,
    "IB": 1002,
    "NS_TRUSTBANK": 15001,
    "INTERBANK": 15002,
    "BANK": 15003,
    "OTC": 15005,
}
ACCOUNT_STATUS_OK = 0
# The statuses of an account that has events: ready, and after the close (xttrader.md 456-465).
_SERVED = frozenset((ACCOUNT_STATUS_OK, 6))
# The statuses of one that will have them: waiting for its login, logging in, being initialised, being corrected.
_COMING = frozenset((1, 2, 4, 5))


class Account(NamedTuple):
    """One account of the setting `xt_accounts`."""

    id: str
    type: str

    def __str__(self) -> str:
        return f"account {mask(self.id)} ({self.type})"


def parse_account(text: str) -> Account:
    """Return the account that `text` ("account:TYPE") names; raise `ConfigError` if it is malformed."""
    id, colon, type = text.rpartition(":")
    account = Account(id.strip(), type.strip().upper())
    if not account.id or account.type not in ACCOUNT_TYPES:
        # Mask both sides: a user may have written the account number on the wrong one.
        shown = f"{mask(id)}{colon}{type if type.isalpha() and colon else mask(type)}"
        raise ConfigError(
            "xt_accounts", f"expected account:TYPE, TYPE one of {', '.join(ACCOUNT_TYPES)}; got {shown!r}"
        )
    return account


class Accounts:
    """All accounts, each with its state. The sink gets every change; a state changes only under the `guard`."""

    def __init__(self, settings: Sequence[str], guard: Guard) -> None:
        self.all = tuple(dict.fromkeys(map(parse_account, settings)))
        ids = [account.id for account in self.all]
        self._default = ids[0] if len(set(ids)) == 1 else UNKNOWN_ACCOUNT
        # Without the accounts that are subscribed twice, as STOCK and as HUGANGTONG: their number has two types.
        self.types = {id: ACCOUNT_TYPES[type] for id, type in self.all if ids.count(id) == 1}
        self.sink: Sink
        self._guard = guard
        self._states: dict[Account, AccountState] = {}
        # The accounts whose failure is in the log already; None stands for the terminal.
        self._warned: set[Account | None] = set()

    @property
    def have_states(self) -> bool:
        """Return whether a state was ever set."""
        return bool(self._states)

    def name(self, data: Mapping[str, object]) -> str:
        """Return the account under which to publish an event: the one it names, else the only account, else ``*``."""
        account = data.get("account_id")
        return account if isinstance(account, str) and account else self._default

    def set_all(self, state: Session, reason: str, fault: bool = False) -> None:
        """Set the state of every account."""
        for account in self.all:
            self.set(account, state, reason, fault)

    def set(self, account: Account, state: Session, reason: str | None, fault: bool = False) -> None:
        """Set the state of one account; report all once each has a state. Account numbers in `reason` are masked."""
        if reason is not None:
            for id, _ in self.all:
                reason = reason.replace(id, mask(id))
        with self._guard:
            old = self._states.get(account)
            if old is not None and (old.state, old.reason, old.fault) == (state, reason, fault):
                return
            since = time.time_ns() // 1_000_000 if old is None or old.state != state else old.since
            self._states[account] = AccountState(mask(account.id), account.type, state, reason, since, fault)
            if len(self._states) == len(self.all):
                self.sink.set_accounts([self._states[each] for each in self.all])

    def assess(self, account: Account, status: object, names: Mapping[int, str], late: Sequence[str] = ()) -> None:
        """Set the state of an account that is subscribed, by its newest status; `late` queries have no answer."""
        reason = None
        if status != ACCOUNT_STATUS_OK:
            reason = names.get(status, f"status {status}") if isinstance(status, int) else "no status"
        if status in _COMING:
            self.set(account, "connecting", reason)
        elif status not in _SERVED:
            self.set(account, "refused", reason)
        elif late:
            self.set(account, "stale", f"no answer to {', '.join(late)}")
        else:
            self.set(account, "up", reason)

    def warn(self, account: Account | None, reason: str) -> None:
        """Log why an account (None: the terminal) has no events: the first time until `clear` as a warning."""
        with self._guard:
            is_new = account not in self._warned
            self._warned.add(account)
        level = logging.WARNING if is_new else logging.DEBUG
        logger.log(level, "no trade events from %s: %s; trying again", account or "the terminal", reason)

    def clear(self, account: Account) -> None:
        """Note that `account` is subscribed: the next failure of it or of the terminal is a warning again."""
        with self._guard:
            self._warned -= {account, None}
