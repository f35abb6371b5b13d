"""The ticks of a day so far, from the terminal: downloaded and read in a process that can be killed.

The session of quotes is not used: a call that hangs there would hold every subscription. The thread `xtquant-history`
has one process at a time, for some codes together, because to start it takes longer than to read one code.
`python -m feeder.xt.history` is that process.

It reads with `xtdata.get_market_data_ex_ori`, from which `get_market_data_ex` makes its frames: that one needs pandas,
which makes floats of integers where a record lacks a field. No version was run with a live terminal: which types the
records have is not known, so both are read that xtdata itself accepts (xtdata.py 576-596).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from feeder.source import Sink
from feeder.xt import normalize, sdk
from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.process import child
from qmt_bridge.process.exit_code import describe
from qmt_bridge.system import clock
from qmt_bridge.wire import frames
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.shanghai import SHANGHAI

logger = logging.getLogger(__name__)

# Codes of one process, and the seconds after which it is killed.
CODES = 20
SECONDS = 45.0
# Part of the two seconds that `close` may take.
JOIN_SECONDS = 1.0
# Records of one line that the process writes.
_ROWS = 200


class Wanted(NamedTuple):
    """A question for the history of one code; `day_ms` is when the day began in Shanghai."""

    number: int
    code: str
    day_ms: int


class _Request(msgspec.Struct):
    """The first line of the standard input of a process."""

    host: str
    port: int
    codes: list[str]
    start_time: str
    end_time: str


class _Rows(msgspec.Struct, tag="rows"):
    """Some records of a code, in their order."""

    code: str
    rows: list[msgspec.Raw]


class _Done(msgspec.Struct, tag="done"):
    """The end of a code; with `error`, why it has no records."""

    code: str
    error: str = ""


_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], _Rows | _Done] = msgspec.json.Decoder(_Rows | _Done).decode


# -- In the feeder


class XtHistory:
    """Histories from the terminal at `config.xt_addr`."""

    def __init__(self, config: Config) -> None:
        self._host, self._port = sdk.parse_address(config.xt_addr)
        self._sink: Sink
        self._thread = threading.Thread(target=self._work, name="xtquant-history", daemon=True)
        # Guards the rest.
        self._changed = threading.Condition()
        self._waiting: deque[Wanted] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False

    def start(self, sink: Sink) -> None:
        """Start the thread."""
        self._sink = sink
        self._thread.start()

    def history(self, number: int, code: str, day_ms: int) -> None:
        """Queue a question (see `Source.history`); raise `Refused` at the end of the feeder."""
        with self._changed:
            if self._closing:
                raise Refused("upstream_unavailable", "the feeder is stopping")
            day = midnight(day_ms or clock.time_ns() // 1_000_000)
            self._waiting.append(Wanted(number, code, day))
            self._changed.notify()

    def close(self) -> None:
        """Kill the process and stop."""
        with self._changed:
            self._closing = True
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.kill()
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def _work(self) -> None:
        while wanted := self._take():
            left = {each.code: each for each in wanted}
            try:
                error = self._look(left)
            except Exception as exc:
                logger.exception("histories of %d codes failed", len(wanted))
                error = str(exc) or repr(exc)
            for each in left.values():
                self._sink.refuse_history(each.number, "upstream_unavailable", error)

    def _take(self) -> list[Wanted]:
        """Return questions about different codes of one day; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._closing:
                return []
            taken: dict[str, Wanted] = {}
            for each in list(self._waiting):
                if len(taken) < CODES and each.code not in taken and each.day_ms == self._waiting[0].day_ms:
                    taken[each.code] = each
            self._waiting = deque(each for each in self._waiting if taken.get(each.code) is not each)
            return list(taken.values())

    def _look(self, left: dict[str, Wanted]) -> str:
        """Run a process, and answer what it tells; return why the rest of `left` has no answer."""
        day_ms = next(iter(left.values())).day_ms
        day = datetime.fromtimestamp(day_ms / 1000, SHANGHAI).strftime("%Y%m%d")
        request = _Request(self._host, self._port, list(left), day + "000000", day + "235959")
        logger.info("history of %d codes, day %s", len(left), day)
        process = subprocess.Popen(
            child.python("feeder.xt.history"),
            # The request has everything that the process needs, so it gets neither key nor token.
            env=child.environment(Config()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        timer = threading.Timer(SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        with self._changed:
            self._process = process
            if self._closing:
                process.kill()
        try:
            self._talk(process, request, left)
        except (OSError, msgspec.DecodeError) as exc:
            logger.warning("what the process for histories says cannot be read: %s", exc)
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
            process.kill()
            exit_code = process.wait()
            with self._changed:
                self._process = None
        if is_late:
            return f"the terminal has not given it in {SECONDS:g} s"
        return f"the process that asks the terminal ended with {describe(exit_code)}"

    def _talk(self, process: subprocess.Popen[bytes], request: _Request, left: dict[str, Wanted]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        found: dict[str, list[msgspec.Raw]] = {}
        with process.stdout, contextlib.suppress(BrokenPipeError), process.stdin as asked:
            asked.write(_encode(request) + b"\n")
            asked.flush()
            for line in process.stdout:
                told = _decode(line)
                if isinstance(told, _Rows):
                    found.setdefault(told.code, []).extend(row.copy() for row in told.rows)
                    continue
                wanted = left.pop(told.code)
                if told.error:
                    self._sink.refuse_history(wanted.number, "upstream_refused", told.error)
                else:
                    rows = found.pop(told.code, [])
                    self._sink.give_history(wanted.number, ({wanted.code: [row]} for row in rows), wanted.day_ms)
                if not left:
                    return


# -- In the process


class _Reading:
    """One request, from connecting to its end; tells what it finds through `say`."""

    def __init__(self, request: _Request, say: Callable[[_Rows | _Done], None]) -> None:
        self._request = request
        self._say = say
        self._xtdata: Any

    def run(self) -> None:
        """Download and read the codes."""
        host, port = self._request.host, self._request.port
        codes = self._request.codes
        try:
            self._xtdata = sdk.load()
            self._xtdata.connect(host, port)
        except Exception as exc:
            reason = f"cannot connect to the terminal at {host}:{port}: {exc}"
            for code in codes:
                self._say(_Done(code, reason))
            return
        # One code that fails ends the download of all, and xtquant does not say which it was.
        together = self._download(codes)
        for code in codes:
            error = together and (self._download([code]) if len(codes) > 1 else together)
            self._say(_Done(code, error or self._read(code)))

    def _download(self, codes: list[str]) -> str:
        request = self._request
        try:
            self._xtdata.download_history_data2(codes, "tick", request.start_time, request.end_time)
        except Exception as exc:
            return str(exc) or repr(exc)
        return ""

    def _read(self, code: str) -> str:
        """Tell the records of a code; return why there are none."""
        request = self._request
        try:
            found = self._xtdata.get_market_data_ex_ori(
                field_list=[],
                stock_list=[code],
                period="tick",
                start_time=request.start_time,
                end_time=request.end_time,
                fill_data=False,
            )
            unfit: list[Exception] = []
            rows = normalize.quote({code: _records(found.get(code, ()))}, unfit.append).get(code, [])
        except Exception as exc:
            return f"the terminal does not give it: {str(exc) or repr(exc)}"
        if unfit:
            # Without them something would be missing, and nobody would be told.
            return f"{len(unfit)} records cannot be read: {unfit[0]}"
        for at in range(0, len(rows), _ROWS):
            self._say(_Rows(code, [msgspec.Raw(frames.encode(row)) for row in rows[at : at + _ROWS]]))
        return ""


def _records(rows: Any) -> list[Any]:
    """Return records as maps: natively they are maps, or rows of a numpy array with named columns."""
    names = getattr(getattr(rows, "dtype", None), "names", None)
    if names is None:
        return list(rows)
    return [dict(zip(names, row.tolist(), strict=True)) for row in rows]


def main() -> None:
    """Read what standard input asks for, write it to standard output, and exit."""
    pipe = sdk.take_stdout()
    # Ctrl-C also reaches this process; ignore it, because the feeder ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def say(what: _Rows | _Done) -> None:
        pipe.write(_encode(what) + b"\n")
        pipe.flush()

    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Request)
    threading.Thread(target=_leave_with_feeder, daemon=True).start()
    _Reading(request, say).run()
    # Without waiting for native threads.
    os._exit(0)


def _leave_with_feeder() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
