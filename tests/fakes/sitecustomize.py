"""Put this folder on PYTHONPATH and the interpreter starts with the stand-ins in place: a real process over a terminal.

FAKE_XT_TICK_MS     push invented data to every subscription at this interval
FAKE_XT_TRADE_MS    invent an order and its fill for every subscribed account at this interval
FAKE_XT_CODES       codes of the market, comma separated
FAKE_XT_ADDR        address of the terminal, 127.0.0.1:58610
FAKE_XT_DOWN        1: the terminal is closed
FAKE_XT_DOWN_FILE   the terminal is closed while this file exists
FAKE_XT_REFUSE      codes whose subscription is refused and whose download ends it, comma separated
FAKE_XT_FAIL        codes whose subscription raises and whose download fails alone, comma separated
FAKE_XT_HANG_FILE   calls named in this file do not return while it exists
FAKE_XT_CALL_MS     how long a native call takes
FAKE_XT_THREADS     threads that call back at once
FAKE_XT_RECONNECT   0: a client does not connect again by itself
FAKE_XT_KEEP        0: a client that connected again by itself has lost its subscriptions
FAKE_XT_STATUS      0: connection events are not told
FAKE_XT_WIDE        1: every integer is an int64
FAKE_XT_DOWNLOAD    ok, error, empty_error, hang, stall (after the first code) or drop
FAKE_XT_HISTORY     JSON file of the ticks that a download brings, lists by code; FAKE_XT_ARRAYS: 1 as numpy arrays
FAKE_XT_HOLIDAYS    holidays YYYYMMDD, comma separated; with one the 2nd of January 2026 was a trading day
FAKE_XT_LOG         file to which every native call and its arguments are written, a line each
FAKE_XT_CHATTER     1: native code prints at every call
FAKE_XT_PLATFORM    what sys.platform is while the package xtquant is imported
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import cast

import native


def _start() -> None:
    def setting(name: str, default: str = "") -> str:
        return os.environ.get(f"FAKE_XT_{name}", default)

    terminal = native.Terminal(setting("ADDR", "127.0.0.1:58610"))
    down_file = setting("DOWN_FILE")
    terminal.is_open = setting("DOWN") != "1" and not (down_file and Path(down_file).exists())
    terminal.refused = set(filter(None, setting("REFUSE").split(",")))
    terminal.failing = set(filter(None, setting("FAIL").split(",")))
    terminal.call_delay = int(setting("CALL_MS", "0")) / 1000
    terminal.dispatchers = int(setting("THREADS", "1"))
    terminal.auto_reconnect = setting("RECONNECT", "1") == "1"
    terminal.keeps_subscriptions = setting("KEEP", "1") == "1"
    terminal.status_events = setting("STATUS", "1") == "1"
    terminal.wide_ints = setting("WIDE") == "1"
    terminal.download = cast(native.Download, setting("DOWNLOAD", "ok"))
    terminal.holidays = [int(day) for day in setting("HOLIDAYS").split(",") if day]
    terminal.trading_days = [int(time.mktime((2026, 1, 2, 0, 0, 0, 0, 0, -1)) * 1000)] if terminal.holidays else []
    if history := setting("HISTORY"):
        terminal.history = json.loads(Path(history).read_text(encoding="utf-8"))
    terminal.gives_arrays = setting("ARRAYS") == "1"
    log, chatter = setting("LOG"), setting("CHATTER") == "1"

    def on_call(call: native.Call) -> None:
        if log:
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{call.name}{call.args}\n")
        if chatter:
            sys.stdout.write("from Python")
            sys.stdout.flush()
            os.write(1, b"from native code")

    terminal.on_call = on_call
    terminal.aborts = True
    native.install(terminal)
    if platform := setting("PLATFORM"):
        native.import_package(platform)
    if interval := setting("TICK_MS"):
        codes = setting("CODES", "600000.SH,600519.SH,000001.SZ,300750.SZ").split(",")
        terminal.play(int(interval) / 1000, codes)
    if interval := setting("TRADE_MS"):
        # Not before the stand-ins are in place.
        import xtpythonclient

        xtpythonclient.trade_side().play(int(interval) / 1000)
    if down_file:
        terminal.watch_file(Path(down_file))
    if hang_file := setting("HANG_FILE"):
        terminal.watch_hanging(Path(hang_file))


_start()
