"""Callbacks: the object that xttrader calls for each trade event, on the connection's thread of pushes.

A callback takes the time, reads the record, hands it over to `Reconciliation`, which publishes it, and returns.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from feeder.xt.trading.accounts import Accounts
from feeder.xt.trading.connection import Connection
from feeder.xt.trading.failures import Failures
from feeder.xt.trading.publication import Publication
from feeder.xt.trading.reconciliation import Reconciliation
from feeder.xt.trading.records import EVENTS, Reader
from qmt_bridge.system import clock


class Callbacks:
    """What xtquant calls during one connection."""

    def __init__(
        self,
        connection: Connection,
        reconciliation: Reconciliation,
        accounts: Accounts,
        publication: Publication,
        reader: Reader,
        failures: Failures,
    ) -> None:
        self._connection = connection
        self._reconciliation = reconciliation
        self._accounts = accounts
        self._publication = publication
        self._reader = reader
        self._failures = failures

    def make(self, base: type[Any]) -> Any:
        """Return the object for xttrader: an instance of `base`, its XtQuantTraderCallback, with each method ours."""
        methods = {name: staticmethod(partial(self._receive, event)) for name, event in EVENTS.items()}
        return type("Callback", (base,), methods)()

    def _receive(self, event: str, *objects: object) -> None:
        received_ns = clock.time_ns()
        self._connection.note_heard()
        try:
            if event == "disconnected":
                self._connection.lose(self._publication.publish_loss)
            elif not objects:
                for account in self._accounts.all:
                    self._publication.publish_session(event, account, received_ns)
            # None is no response: `Connection.stop` uses it to end a call that waits for one.
            elif objects[0] is not None:
                self._reconciliation.note_event(event, self._reader.read(event, objects[0]), received_ns)
        except Exception:
            self._failures.note(event)
