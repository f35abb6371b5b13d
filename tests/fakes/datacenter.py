"""Stand-in for xtquant.datacenter: every function and client method that the quote side of the Python layer calls.

The signatures are those of the cp311 binary; like pybind11, they accept bytes for str and raise TypeError otherwise.
"""

from __future__ import annotations

import _thread
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import native
from native import Feed

# What natives return for a file that cannot be read, and for an address at which nothing listens.
_NO_FILE = -240
_NO_CONNECTION = -265

_array_maker: Callable[..., object] | None = None
_port = 0
_settings: dict[str, object] = {}


def _text(value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    raise TypeError(f"incompatible function arguments: expected str, got {type(value).__name__}")


def _texts(values: list[str]) -> list[str]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"incompatible function arguments: expected list[str], got {type(values).__name__}")
    return [_text(value) for value in values]


def _int(value: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"incompatible function arguments: expected int, got {type(value).__name__}")
    return value


def _document(value: bytes) -> dict[str, Any]:
    if not isinstance(value, bytes):
        raise TypeError(f"incompatible function arguments: expected str, got {type(value).__name__}")
    return native.decode(value)


def _options(rest: tuple[Any, ...]) -> tuple[dict[str, Any], Callable[[object], object] | None]:
    if not 1 <= len(rest) <= 2:
        raise TypeError("incompatible function arguments")
    callback = rest[-1]
    return ({"needCallback": callback is not None} if len(rest) == 1 else _document(rest[0])), callback


class IPythonApiClient:
    """One connection to the terminal."""

    def __init__(self) -> None:
        self.terminal = native.terminal()
        self.connected = False
        # Whether there ever was a connection. Before the first one most calls end the process.
        self.was_connected = False
        # True after the connection was up and was lost, until this client is shut down.
        self.lost = False
        self.shut_down = False
        self.address = ""
        self.controls: dict[str, Callable[[object], object]] = {}
        # Numbered per client from 1: a number of a closed client may be another subscription of the next client.
        self.feeds: dict[int | str, Feed] = {}
        self._sequence = 0
        self._stop_download = False

    # connection

    def init(self) -> int:
        self.terminal.enter("init")
        return 0

    def load_config(self, file: str, section: str) -> int:
        self.terminal.enter("load_config", _text(file), _text(section))
        return 0 if Path(_text(file)).exists() else _NO_FILE

    def set_config_addr(self, address: str) -> None:
        self.terminal.enter("set_config_addr", _text(address))
        self.address = _text(address)

    def get_config_addr(self) -> str:
        return self.address

    def registerCommonControlCallback(self, name: str, callback: Callable[[object], object]) -> bool:
        self.terminal.enter("registerCommonControlCallback", _text(name))
        self.controls[_text(name)] = callback
        return True

    def subscribeCommonControl(self, name: str, param: bytes, callback: Callable[[object], object]) -> bool:
        # Before 240613.
        _document(param)
        return self.registerCommonControlCallback(name, callback)

    def connect(self) -> tuple[int, str]:
        self.terminal.enter("connect", self.address)
        with self.terminal.lock:
            if not self.terminal.is_open or self.address != self.terminal.address:
                error = '{ error id: 10061, error: "Connection refused", isNetError: true }'
                return _NO_CONNECTION, f"rpc connect failed, error:{error}, peer:{self.address}"
            self.connected = self.was_connected = True
            self.terminal.clients.append(self)
            self.terminal.tell_status(self, "connected")
        return 0, ""

    def is_connected(self) -> bool:
        return self.connected or (self.shut_down and self.terminal.hides_shutdown)

    def shutdown(self) -> int:
        self.terminal.enter("shutdown")
        with self.terminal.lock:
            was_connected, self.connected, self.lost, self.shut_down = self.connected, False, False, True
            self.feeds.clear()
            if was_connected:
                self.terminal.tell_status(self, "disconnected")
        return 0

    def get_data_dir(self) -> str:
        return "datadir" if self.was_connected else ""

    def get_app_dir(self) -> str:
        return "bin" if self.was_connected else ""

    def get_server_tag(self) -> bytes:
        self._require_session("get_server_tag")
        return native.encode({"tag": "sp3", "version": "1.0"})

    def get_peer_addr(self) -> str:
        return self.address if self.was_connected else ""

    # questions

    def commonControl(self, name: str, param: bytes) -> bytes:
        name, document = _text(name), _document(param)
        self.terminal.enter("commonControl", name, document)
        self._require_connection()
        if name == "createrequestid":
            return native.encode({"result": self.terminal.create_request_id()})
        if name == "getcurrentsubinfo":
            return native.encode({"result": [self._describe(key) for key in self.feeds]})
        answer = self.terminal.controls.get(name)
        return native.encode(answer(document) if answer else {})

    def get_full_tick(self, codes: list[str]) -> str:
        codes = _texts(codes)
        self.terminal.enter("get_full_tick", tuple(codes))
        self._require_connection()
        market = {**self.terminal.market, **self.terminal.unpushed}
        known = [code for code in market if code in codes or code.rpartition(".")[2] in codes]
        return json.dumps({code: native.full_tick(market[code]) for code in known} if self.terminal.knows_ticks else {})

    def get_trading_dates_by_market(self, market: str, start: str, end: str, count: int) -> list[int]:
        self.terminal.enter("get_trading_dates_by_market", _text(market), _text(start), _text(end), _int(count))
        self._require_connection()
        return list(self.terminal.trading_days)

    def get_holidays(self) -> list[int]:
        self.terminal.enter("get_holidays")
        self._require_connection()
        return list(self.terminal.holidays)

    def read_local_data(self, file: str, start: str, end: str, count: int) -> list[bytes]:
        self.terminal.enter("read_local_data", _text(file), _text(start), _text(end), _int(count))
        return [native.encode(document) for document in self.terminal.files.get(_text(file), [])]

    def get_market_data3(self, fields: list[str], codes: list[str], period: str, *rest: Any) -> dict[str, Any]:
        start, end, count, adjusted, fill, version, *_ = rest
        codes = _texts(codes)
        self.terminal.enter("get_market_data3", tuple(codes), _text(period), _text(start), _text(end), fill, version)
        self._require_connection()
        assert (_int(count), _text(adjusted), _texts(fields)) == (-1, "none", [])
        first, last = map(native.milliseconds, (start, end))
        found = {
            code: [record for record in self.terminal.history.get(code, []) if first <= record["time"] <= last]
            for code in codes
        }
        return {code: native.as_array(rows) for code, rows in found.items()} if self.terminal.gives_arrays else found

    # subscriptions

    # Before 250516 the two functions have no parameter with options.

    def subscribe_quote(self, meta: bytes, region: bytes, *rest: Any) -> int:
        options, callback = _options(rest)
        subject, extent = _document(meta), _document(region)
        code, period = subject["stockCode"], subject["period"]
        self.terminal.enter("subscribe_quote", code, period, extent, options)
        feed = Feed("quote", code, period, extent, callback if options["needCallback"] else None)
        # A push that came between the two would come once more as the answer.
        with self.terminal.lock:
            sequence = self._subscribe(feed, code)
            newest = self.terminal.market.get(code) if self.terminal.single_snapshot and period == "tick" else None
            if sequence > 0 and newest is not None and feed.callback:
                self.terminal.dispatch(feed.callback, {code: [newest]})
        return sequence

    def subscribe_whole_quote(self, codes: list[str], *rest: Any) -> int:
        options, callback = _options(rest)
        codes = _texts(codes)
        self.terminal.enter("subscribe_whole_quote", tuple(codes), options)
        feed = Feed("whole", ",".join(codes), "", {}, callback if options["needCallback"] else None)
        with self.terminal.lock:
            sequence = self._subscribe(feed, *codes)
            if sequence > 0:
                # The first push is the whole current snapshot (doc/xtdata.md 324).
                market, pieces = list(self.terminal.market.items()), self.terminal.snapshot_pieces
                for piece in range(pieces):
                    self.terminal.push_market(feed, dict(market[piece::pieces]))
        return sequence

    def unsubscribe_quote(self, sequence: int) -> None:
        self.terminal.enter("unsubscribe_quote", _int(sequence))
        self._require_session("unsubscribe_quote")
        with self.terminal.lock:
            self.feeds.pop(sequence, None)

    def get_all_subscribe_quote(self) -> list[int]:
        self._require_session("get_all_subscribe_quote")
        return [key for key in self.feeds if isinstance(key, int)]

    def subscribeFormula(self, request: str, param: bytes, callback: Callable[[object], object] | None) -> None:
        request, document = _text(request), _document(param)
        self.terminal.enter("subscribeFormula", request, document)
        self._require_session("subscribeFormula")
        name, code = document["formulaname"], document["stockcode"]
        self._check(name, code)
        with self.terminal.lock:
            if self.connected:
                self.feeds[request] = Feed("formula", name, code, document, callback)

    def unsubscribeFormula(self, request: str) -> None:
        self.terminal.enter("unsubscribeFormula", _text(request))
        self._require_session("unsubscribeFormula")
        with self.terminal.lock:
            self.feeds.pop(_text(request), None)

    def _subscribe(self, feed: Feed, *names: str) -> int:
        self._require_session("a subscription")
        if self._check(*names):
            return -1
        with self.terminal.lock:
            if not self.connected:
                return -1
            self._sequence += 1
            self.feeds[self._sequence] = feed
            return self._sequence

    def _check(self, *names: str) -> bool:
        if self.terminal.failing.intersection(names):
            raise RuntimeError(f"rpc request failed: {names}")
        return bool(self.terminal.refused.intersection(names))

    def _describe(self, key: int | str) -> dict[str, object]:
        feed = self.feeds[key]
        return {"subId": key, "stockCode": feed.name, "period": feed.detail, "metaId": -1, "isSub": True}

    def _require_session(self, call: str) -> None:
        if not self.was_connected:
            # Assertion failed: px != 0, file ...\\boost\\smart_ptr\\shared_ptr.hpp
            self.terminal.abort(call)

    def _require_connection(self) -> None:
        self._require_session("a question")
        if not self.connected:
            raise RuntimeError("rpc connection is closed")

    # downloads

    def supply_history_data(self, code: str, period: str, start: str, end: str) -> bool:
        self.terminal.enter("supply_history_data", _text(code), _text(period), _text(start), _text(end))
        self._require_session("supply_history_data")
        return True

    def supply_history_data2(
        self,
        codes: list[str],
        period: str,
        start: str,
        end: str,
        param: bytes,
        callback: Callable[[dict[str, object]], object],
    ) -> bool:
        codes = _texts(codes)
        self.terminal.enter(
            "supply_history_data2", tuple(codes), _text(period), _text(start), _text(end), _document(param)
        )
        self._require_connection()
        self._stop_download = False
        _thread.start_new_thread(self._download, (codes, callback))
        return False

    def stop_supply_history_data2(self) -> None:
        self.terminal.enter("stop_supply_history_data2")
        self._require_session("stop_supply_history_data2")
        self._stop_download = True

    def _download(self, codes: list[str], callback: Callable[[dict[str, object]], object]) -> None:
        total = len(codes)
        for finished, code in enumerate(codes, 1):
            if self._stop_download or self.terminal.download == "hang":
                return
            if self.terminal.download == "stall" and finished > 1:
                return
            event: dict[str, object] = {"finished": finished, "total": total, "stockcode": code, "message": ""}
            if self.terminal.download == "error" or code in self.terminal.refused:
                event.update(total=-1, message=f"{code} 无权限")
            elif code in self.terminal.failing:
                event.update(message=f"{code} 无数据")
            elif self.terminal.download == "empty_error":
                event.update(total=-1)
            elif finished == total:
                now = int(time.time() * 1000)
                event["result"] = native.encode({name: {"start_time": 0, "end_time": now} for name in codes})
            done = callback(event)
            if self.terminal.download == "drop":
                self.terminal.drop()
            if done or not self.connected:
                return


# data service without a terminal (xtdatacenter.py)


def rpc_init(config_dir: str) -> int:
    native.terminal().enter("rpc_init", _text(config_dir))
    return 0


def register_create_nparray(maker: Callable[..., object]) -> bool:
    global _array_maker
    _array_maker = maker
    return True


def get_local_server_port() -> int:
    return _port


def listen(ip: str, first: int, last: int) -> tuple[str, int]:
    global _port
    _port = _int(first)
    return _text(ip), _port


def log_init() -> None: ...


def start_init_quote() -> None:
    native.terminal().enter("start_init_quote", dict(_settings))


def get_status() -> dict[str, int]:
    return {"init_done": 1}


def fetch_auth_markets() -> dict[str, object]:
    return {"done": 1, "markets": ["SH", "SZ"]} if _settings.get("token") else {"done": 0}


def fetch_init_result(keys: list[str]) -> dict[str, bytes]:
    ready = {"done": 1, "errorcode": 0, "resultcode": 0, "resultdesc": "", "reason": ""}
    return {key: native.encode(ready) for key in _texts(keys)}


def fetch_server_list_status() -> bytes:
    login = {"loginparam": {"ip": "127.0.0.1", "port": 55300}, "errorcode": 1, "boerror": "token错误"}
    return native.encode({"0": login})


def set_token(value: str) -> None:
    _settings["token"] = _text(value)


def set_config_dir(value: str) -> None:
    _settings["config_dir"] = _text(value)


def set_data_home_dir(value: str) -> None:
    _settings["data_home_dir"] = _text(value)


def set_kline_mirror_enabled(value: list[str]) -> None:
    _settings["kline_mirror"] = _texts(value)


def set_index_mirror_enabled(value: list[str]) -> None:
    _settings["index_mirror"] = _texts(value)


def set_allow_optmize_address(value: list[str]) -> None:
    _settings["addresses"] = _texts(value)


def set_wholequote_market_list(value: list[str]) -> None:
    _settings["whole_markets"] = _texts(value)


def set_watch_market_list(value: list[str]) -> None:
    _settings["markets"] = _texts(value)


def set_future_realtime_mode(value: bool) -> None:
    _settings["future_realtime"] = bool(value)


def set_kline_cutting_mode(value: str) -> None:
    _settings["kline_cutting"] = _text(value)


def set_quote_time_version(value: bool) -> None:
    _settings["quote_time_version"] = bool(value)


def set_thousand_source_mode(value: str) -> None:
    _settings["thousand_source"] = _text(value)
