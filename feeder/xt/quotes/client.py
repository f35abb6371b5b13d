"""QuoteClient: the one xtdata client of this process, made anew for each session. The thread `xtquant-calls` uses it.

Each function of xtdata begins with `get_client()`. If the connection was lost, that replaces the client without a
report, and every subscription is lost. Therefore `is_alive` is called before each call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from feeder.xt.calls import Calls
from feeder.xt.capabilities import Capabilities
from feeder.xt.quotes.subscription import Callback, NativeSubscription

logger = logging.getLogger(__name__)


class QuoteClient:
    """`xtdata` is xtquant's module, `running` records each call into it, `wake` wakes the calling thread."""

    def __init__(self, xtdata: Any, capabilities: Capabilities, running: Calls, wake: Callable[[], None]) -> None:
        self.xtdata = running.through(xtdata)
        self._tells_status = not capabilities.lack("connection events")
        self._running = running
        self._wake = wake
        self._client: Any = None
        self._native: Any = None
        # Counts the attempts to connect. A status that an earlier client still reports is ignored.
        self._session = 0
        self._lost_session = 0

    def connect(self, host: str, port: int) -> bool:
        """Connect; return whether there is a connection."""
        self._session += 1
        if self._tells_status:
            # Before connecting: only a client that connects after this call reports its status to the callback.
            self.xtdata.watch_xtquant_status(partial(self._watch, self._session))
        try:
            # Always make a new client, even if xtquant has reconnected by itself. It is not documented whether such a
            # client still has its subscriptions; shutting it down ends all of them for certain.
            self._native = self.xtdata.reconnect(host, port)
            self._client = self._running.through(self._native)
        except Exception as exc:
            logger.debug("cannot connect to the terminal: %s", exc)
            return False
        return True

    def _watch(self, session: int, info: object) -> None:
        # xtquant calls this on its own thread.
        status = info.get("status") if isinstance(info, Mapping) else None
        if status == "disconnected" and session == self._session:
            self._lost_session = session
            self._wake()

    def is_alive(self) -> bool:
        """Return whether our client is connected. Check this before and after each call of xtdata."""
        if self._client is None or self._lost_session == self._session or not self._client.is_connected():
            return False
        try:
            # If a call found the connection lost, xtdata has replaced our client with a new one.
            return bool(self.xtdata.get_client() is self._native)
        except Exception as exc:
            logger.debug("the connection to the terminal was lost: %s", exc)
            return False

    def disconnect(self) -> None:
        """End the connection."""
        if hasattr(self.xtdata, "disconnect"):
            self.xtdata.disconnect()
        elif self._client is not None:
            # Before 240613.
            self._client.shutdown()

    def forget(self) -> None:
        """Note that the session has ended."""
        self._client = self._native = None

    def subscribe(
        self,
        subscription: NativeSubscription,
        deliver: Callable[[NativeSubscription, object], None],
        lose: Callable[[NativeSubscription, Exception], None],
    ) -> str:
        """Subscribe; return an empty text, or the reason why the terminal refused it."""
        function, arguments = subscription.request()
        if function == "subscribe_quote" and hasattr(self.xtdata, "subscribe_quote2"):
            # The one calls the other, but in 240920.1.0 it does not return the number of the subscription.
            function = "subscribe_quote2"
        try:
            if subscription.parts.detail == "brokerqueue2" and not self.xtdata.get_hk_broker_dict():
                # Without the names, xtdata's wrapper asks for them again in each callback (xtdata.py 1165, 3400).
                raise LookupError("no broker names")
            callback = Callback(subscription, deliver, lose)
            subscription.handle = getattr(self.xtdata, function)(**arguments, callback=callback)
        except Exception as exc:
            answer = f"raised {type(exc).__name__}: {exc}"
        else:
            # Success is the request id of a formula, or a number above 0 (doc/xtdata.md 239).
            handle = subscription.handle
            if handle if subscription.spec is not None else isinstance(handle, int) and handle > 0:
                return ""
            answer = f"returned {handle!r}"
        subscription.live = False
        return f"{subscription} {answer}"

    def unsubscribe(self, subscription: NativeSubscription) -> None:
        """Unsubscribe; callbacks of this subscription are ignored from now on."""
        subscription.live = False
        if not self.is_alive():
            return
        try:
            if subscription.spec is not None:
                # The client's own function: that of xtdata before 240613 calls another one, without its arguments.
                self._client.unsubscribeFormula(subscription.handle)
            else:
                self.xtdata.unsubscribe_quote(subscription.handle)
        except Exception:
            # The terminal may continue to push; these pushes are ignored.
            logger.warning("cannot unsubscribe %s", subscription, exc_info=True)
