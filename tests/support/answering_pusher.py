"""A pusher that answers what the feeder wants, and connects again, on a thread of its own."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from tests.support.pusher import ACCOUNT, TRADE, Pusher
from tests.support.waiting import wait_for

_PAUSE = 0.05
_UNKNOWN = "999999.SZ"


class AnsweringPusher:
    """Serves all kinds at `port`, with a new record of each topic when it is subscribed, and whenever the test says."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connected: Pusher | None = None
        self._may_connect = threading.Event()
        self._may_connect.set()
        self._closing = False
        self._lock = threading.Lock()
        self._number = 0
        # Of the histories: the records of each topic.
        self._published: dict[str, list[dict[str, Any]]] = {}
        self._thread = threading.Thread(target=self._run, name="answering-pusher", daemon=True)
        self._thread.start()

    def push(self, topic: dict[str, Any]) -> None:
        """Send a record of a topic, whether it is wanted or not."""
        # Records are in the order of their times, whichever thread sends them.
        with self._lock:
            self._say({"topic": topic, "data": self._data(topic)})

    def trade(self) -> None:
        """Send an order and its fill, the same ones each time."""
        wait_for(lambda: self._connected is not None, "a connection of the pusher")
        terms = {"account_id": ACCOUNT, "account_type": 2, "stock_code": "600519.SH", "order_id": 1}
        self._say({"topic": TRADE, "id": "order/1/56", "event": "order", "data": {**terms, "order_status": 56}})
        fill = {**terms, "traded_id": "T1", "traded_price": 1700.0, "traded_volume": 100}
        self._say({"topic": TRADE, "id": "fill/T1", "event": "trade", "data": fill})

    def drop(self) -> None:
        """End the connection, and make no other one until `mend`."""
        self._may_connect.clear()
        self._end()

    def mend(self) -> None:
        """Connect again."""
        self._may_connect.set()

    def close(self) -> None:
        """End the connection and the thread."""
        self._closing = True
        self._may_connect.set()
        self._end()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._may_connect.wait()
            with suppress(OSError, AssertionError):
                self._serve()
            self._connected = None
            time.sleep(_PAUSE)

    def _serve(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as connected:
            pusher = Pusher(connected)
            kinds = ["quote", "whole", "l2", "formula", "download", "trade"]
            if pusher.hello(kinds=kinds, simulated=True, history=True)["type"] != "welcome":
                return
            pusher.say({"type": "accounts", "accounts": [{"account": ACCOUNT, "type": "STOCK", "state": "up"}]})
            self._connected = pusher
            while (message := pusher.line()) is not None:
                self._answer(message)

    def _answer(self, message: dict[str, Any]) -> None:
        topic = message.get("topic", {})
        match message["type"]:
            case "subscribe" if topic["code" if "code" in topic else "stock_code"] == _UNKNOWN:
                self._say(
                    {"type": "refuse", "topic": topic, "code": "unknown_symbol", "error": "there is no such code"}
                )
            case "subscribe":
                self._say({"type": "accept", "topic": topic})
                self.push(topic)
            case "download":
                failed = _UNKNOWN in message["stocks"]
                self._say({"topic": topic, "data": {"finished": 1, "total": 1, "stockcode": "", "message": ""}})
                end = {"status": "error", "error": "there is no such code"} if failed else {"status": "done"}
                self._say({"topic": topic, "data": end})
            case "history":
                records = self._published[json.dumps(topic)]
                found = [each for each in records if each.get("time", each.get("timeTag")) >= message["from"]]
                self._say({"type": "history", "id": message["id"], "data": found})

    def _data(self, topic: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        now = time.time_ns() // 1_000_000
        price = 10 + self._number / 100
        match topic["kind"]:
            case "whole":
                return {topic["code"] if "." in topic["code"] else f"600519.{topic['code']}": _tick(now, price)}
            case "l2":
                data = {"time": now, "askPrice": [price], "bidPrice": [price], "askVolume": [1], "bidVolume": [1]}
            case "formula":
                return {"dbt": 0, "timelist": [now], "outputs": {"MA1": [price]}}
            case _:
                data = _tick(now, price)
                if topic["period"] != "tick":
                    data |= {"close": price}
        self._published.setdefault(json.dumps(topic), []).append(data)
        return data

    def _say(self, message: dict[str, Any]) -> None:
        connected = self._connected
        if connected is not None:
            with suppress(OSError):
                connected.say(message)

    def _end(self) -> None:
        connected = self._connected
        if connected is not None:
            with suppress(OSError):
                connected.socket.shutdown(socket.SHUT_RDWR)


def _tick(now: int, price: float) -> dict[str, Any]:
    return {"time": now, "lastPrice": price, "open": price, "high": price, "low": price, "volume": 1}
