"""Publication: complete each trade event, compare it with those already published, hand it to the sink, remember it.

The pushes of xttrader and the threads of the trade source publish. These steps run under the guard, so that no other
event comes between them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

from feeder.source import Sink
from feeder.xt.trading.accounts import ACCOUNT_TYPES, Account, Accounts
from feeder.xt.trading.failures import Failures
from feeder.xt.trading.guard import Guard
from feeder.xt.trading.intervals import PAST_MS
from feeder.xt.trading.published import Key, News, Published, Record
from feeder.xt.trading.records import Reader

logger = logging.getLogger(__name__)


class Publication:
    """Publishes under the account that an event names; an event that a query found has ``"recovered": true``."""

    def __init__(self, accounts: Accounts, reader: Reader, failures: Failures, guard: Guard) -> None:
        self.sink: Sink
        self._accounts = accounts
        self._reader = reader
        self._failures = failures
        self._guard = guard
        self._published = Published()
        self._is_restored = False

    @property
    def count(self) -> int:
        """Return how many events were published. It shows whether an event came before or after a query was asked."""
        return self._published.count

    def restore(self) -> None:
        """Read the journal, once. If it cannot be read, events are published again, marked as recovered."""
        if self._is_restored:
            return
        self._is_restored = True
        restored = 0
        try:
            for time_ms, event in self.sink.past_trades(time.time_ns() // 1_000_000 - PAST_MS):
                self._published.restore(event.type, event.data, time_ms * 1_000_000)
                restored += 1
        except Exception:
            logger.exception(
                "the trade journal cannot be read after %d events: the events of the day that the terminal lists are "
                "published again, marked as recovered",
                restored,
            )

    def publish(self, event: str, record: Record, received_ns: int, asked: int | None = None) -> None:
        """Publish one event if it is news; `asked` is the count at the query that found it, None for a push."""
        self._complete(event, record.data)
        with self._guard:
            news = self._published.judge(event, record, received_ns, asked)
            if news is not None:
                self._send(news, received_ns, is_recovered=asked is not None)

    def publish_loss(self, account: Account, received_ns: int) -> None:
        """Publish that an account lost its connection, and report it as down."""
        self.publish_session("disconnected", account, received_ns)
        self._accounts.set(account, "down", "disconnected")

    def publish_session(self, event: str, account: Account, received_ns: int) -> None:
        """Publish ``connected`` or ``disconnected`` of an account."""
        data: dict[str, object] = {"account_type": ACCOUNT_TYPES[account.type], "account_id": account.id}
        self.publish(event, Record(data), received_ns)

    def publish_answer(self, account: Key, event: str, records: list[Record], received_ns: int, asked: int) -> bool:
        """Publish the news in an answer; return whether all of it is published and no push was newer than it."""
        for record in records:
            self._complete(event, record.data)
        news, is_overtaken = self._published.answered(account, event, records, received_ns, asked)
        is_done = not is_overtaken
        for each in news:
            try:
                self._send(each, received_ns, is_recovered=True)
            except Exception:
                is_done = False
                self._failures.note(event)
        return is_done

    def sold_out(
        self, account_id: str, held: Iterable[Mapping[str, object]], asked: int
    ) -> dict[Key, dict[str, object]]:
        """Return the published positions that are not in `held`, as they are now (see `Published.sold_out`)."""
        return self._published.sold_out(account_id, held, asked)

    def _send(self, news: News, received_ns: int, is_recovered: bool) -> None:
        data = news.record.data
        if is_recovered:
            data["recovered"] = True
        self.sink.publish_trade(self._accounts.name(data), news.event, data, received_ns)
        self._published.remember(news)

    def _complete(self, event: str, data: dict[str, object]) -> None:
        self._reader.complete(event, data, self._accounts.types.get(self._accounts.name(data)))
