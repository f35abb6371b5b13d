"""Holdings: find published positions that are gone, from the answers of the terminal. The caller holds the guard.

A terminal that has just logged in may not list all positions. So a position is gone only if it is missing in two
answers some seconds apart, the account is ready, and the account's asset does not show that there are positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from feeder.xt.trading import intervals
from feeder.xt.trading.accounts import Account
from feeder.xt.trading.published import Key, Record

# The count of published events at which a query was asked, and the positions that are missing in its answers.
Gone = tuple[int, dict[Key, dict[str, object]]]


class Holdings:
    """The positions that the terminal listed on one connection."""

    def __init__(
        self,
        accounts: tuple[Account, ...],
        sold_out: Callable[[str, list[dict[str, object]], int], dict[Key, dict[str, object]]],
    ) -> None:
        self._accounts = accounts
        self._sold_out = sold_out
        # The newest answer of each account, if it could be read in full, with the count at which it was asked.
        self._positions: dict[Account, tuple[int, list[dict[str, object]]]] = {}
        # The market value of an account's positions, from its asset, by account id and type.
        self._worth: dict[tuple[object, object], object] = {}
        # The positions that are missing in the last answers, and since when (s, monotonic), by account id.
        self.missing: dict[str, tuple[float, frozenset[Key]]] = {}

    def note_worth(self, data: Mapping[str, object]) -> None:
        """Note an asset."""
        self._worth[(data.get("account_id"), data.get("account_type"))] = data.get("market_value")

    def note_answer(self, account: Account, asked: int, records: list[Record], is_whole: bool) -> bool:
        """Note an answer with an account's positions; return whether a position that it does not list may be gone."""
        self._positions.pop(account, None)
        # A record that cannot be read may be the position that seems to be gone.
        if not is_whole or not all(_is_code(record.data.get("stock_code")) for record in records):
            return False
        self._positions[account] = asked, [record.data for record in records]
        return not self._is_contradicted(account)

    def forget_missing(self, account: Account) -> None:
        """Note an answer that proves nothing: from now on two new answers have to agree."""
        self.missing.pop(account.id, None)

    def gone(self, account: Account, now: float, is_ready: bool) -> tuple[list[Record], int, float | None]:
        """Return the positions missing in two answers, the count, and when to ask again about those missing in one."""
        missing = self.missing.pop(account.id, None)
        asked, gone = self._lacking(account) if is_ready else (0, {})
        confirmed: set[Key] = set()
        since = now
        if missing is not None and now - missing[0] < intervals.CONFIRM_SECONDS:
            since = missing[0]
            gone = {key: data for key, data in gone.items() if key in missing[1]}
        elif missing is not None:
            confirmed = gone.keys() & missing[1]
        ask_at = None
        if unsure := gone.keys() - confirmed:
            self.missing[account.id] = since, frozenset(unsure)
            ask_at = since + intervals.CONFIRM_SECONDS
        return [Record(gone[key]) for key in confirmed], asked, ask_at

    def _lacking(self, account: Account) -> Gone:
        # One number may belong to two accounts, and their positions may not show which account they belong to.
        sharing = [each for each in self._accounts if each.id == account.id]
        answers = [self._positions[each] for each in sharing if each in self._positions]
        if len(answers) < len(sharing):
            return 0, {}
        asked = min(asked for asked, _ in answers)
        return asked, self._sold_out(account.id, [data for _, told in answers for data in told], asked)

    def _is_contradicted(self, account: Account) -> bool:
        """Return whether no position of an account is listed although its asset shows some: it is not ready then."""
        answers = [told for each, (_, told) in self._positions.items() if each.id == account.id]
        worth = [worth for (id, _), worth in self._worth.items() if id == account.id]
        return not any(answers) and any(isinstance(each, int | float) and each > 0 for each in worth)


def _is_code(code: object) -> bool:
    return isinstance(code, str) and bool(code) and code.isascii()
