"""QuoteClient: xtdata's one client of this process, made anew for each session. The thread `xtquant-calls` uses it.

Each function of xtdata begins with `get_client()`, which would replace a client that lost its connection, without a
word, and lose every subscription with it. So `is_alive` comes before each call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from feeder.xt.calls import Calls
from feeder.xt.quotes.subscription import Callback, NativeSubscription

logger = logging.getLogger(__name__)


class QuoteClient:
    """`xtdata` is xtquant's module, `running` notes each call into it, and `wake` wakes the thread that calls."""

    def __init__(self, xtdata: Any, running: Calls, wake: Callable[[], None]) -> None:
        self.xtdata = running.through(xtdata)
        self._running = running
        self._wake = wake
        self._client: Any = None
        self._native: Any = None
        # The number of attempts to connect: what an earlier client still says is ignored.
        self._session = 0
        self._lost_session = 0

    def connect(self, host: str, port: int) -> bool:
        """Connect; return whether there is a connection."""
        self._session += 1
        # Only a client that connects after this call reports its status to the callback.
        self.xtdata.watch_xtquant_status(partial(self._watch, self._session))
        try:
            # Always a new client, also where xtquant has connected again by itself: whether such a client still has
            # its subscriptions is not documented, and shutting it down ends them all for certain.
            self._native = self.xtdata.reconnect(host, port)
            self._client = self._running.through(self._native)
        except Exception as exc:
            logger.debug("cannot connect to the terminal: %s", exc)
            return False
        return True

    def _watch(self, session: int, info: object) -> None:
        # On a thread of xtquant's.
        status = info.get("status") if isinstance(info, Mapping) else None
        if status == "disconnected" and session == self._session:
            self._lost_session = session
            self._wake()

    def is_alive(self) -> bool:
        """Return whether our client is connected: checked before each call of xtdata, and after it."""
        if self._client is None or self._lost_session == self._session or not self._client.is_connected():
            return False
        try:
            # A call that met a lost connection has put a client of its own in the place of ours.
            return bool(self.xtdata.get_client() is self._native)
        except Exception as exc:
            logger.debug("the terminal went away: %s", exc)
            return False

    def forget(self) -> None:
        """Note that the session has ended."""
        self._client = self._native = None

    def subscribe(
        self,
        subscription: NativeSubscription,
        deliver: Callable[[NativeSubscription, object], None],
        lose: Callable[[NativeSubscription, Exception], None],
    ) -> str:
        """Subscribe; return why it is not held, empty if it is."""
        function, arguments = subscription.request()
        try:
            if subscription.parts.detail == "brokerqueue2" and not self.xtdata.get_hk_broker_dict():
                # Its wrapper would ask for the names in each callback (xtdata.py 1165, 3400).
                raise LookupError("no broker names")
            callback = Callback(subscription, deliver, lose)
            subscription.handle = getattr(self.xtdata, function)(**arguments, callback=callback)
        except Exception as exc:
            answer = f"raised {type(exc).__name__}: {exc}"
        else:
            # A formula's request id, or a number above 0 (doc/xtdata.md 239).
            handle = subscription.handle
            if handle if subscription.spec is not None else isinstance(handle, int) and handle > 0:
                return ""
            answer = f"returned {handle!r}"
        subscription.live = False
        return f"{subscription} {answer}"

    def unsubscribe(self, subscription: NativeSubscription) -> None:
        """Give a subscription back; its callbacks are ignored from now on."""
        subscription.live = False
        if not self.is_alive():
            return
        try:
            if subscription.spec is not None:
                self.xtdata.unsubscribe_formula(subscription.handle)
            else:
                self.xtdata.unsubscribe_quote(subscription.handle)
        except Exception:
            # The terminal may go on pushing; the pushes are ignored.
            logger.warning("cannot unsubscribe %s", subscription, exc_info=True)
