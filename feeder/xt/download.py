"""History downloads, apart from the quote session: each in a process of its own, which can be killed.

xtdata's download blocks until the end, waits for ever if the terminal stops answering, and can only be stopped together
with all other downloads of its client. Each thread `xtquant-download-N` watches one process at a time; one more thread
for each process writes to it and reads from it. `python -m feeder.xt.download` is that process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from feeder.source import DownloadRequest, Sink
from feeder.xt import sdk
from qmt_bridge.config import Config
from qmt_bridge.errors import ErrorCode, Refused
from qmt_bridge.process import child
from qmt_bridge.process.exit_code import describe
from qmt_bridge.system import clock
from qmt_bridge.wire.limits import RUNNING_DOWNLOADS
from qmt_bridge.wire.topics import Topic

logger = logging.getLogger(__name__)

# How long a process may take to stop its download and end before it is killed, and how long the call for that may take.
LEAVE_SECONDS = 1.0
STOP_SECONDS = 0.5
# Part of the two seconds that `close` may take.
JOIN_SECONDS = 1.9
# download_history_data2 may return before its last event has come to our callback (xtdata.py 1985-1992).
LAST_EVENT_SECONDS = 0.5
# After this many codes that fail one after the other, the rest is not tried: the account may lack a permission, or the
# terminal the period.
GIVE_UP = 10


class _Request(msgspec.Struct):
    """The request to a process, in the first line of its standard input."""

    host: str
    port: int
    stocks: tuple[str, ...]
    period: str
    start_time: str
    end_time: str


class _Progress(msgspec.Struct, tag="progress"):
    """One event of xtquant; `message` is the reason why `stockcode` failed, else empty (doc/xtdata.md 562)."""

    finished: int
    total: int
    stockcode: str
    message: str


class _End(msgspec.Struct, tag="end"):
    """How the download ended. With a `code`, all that was not downloaded until then failed for the reason `error`."""

    code: ErrorCode | None = None
    error: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Progress | _End).decode


# -- In the feeder


class _Job:
    """One download; `reports` has the reports of its process, and None at the end."""

    def __init__(self, topic: Topic, request: DownloadRequest) -> None:
        self.topic = topic
        self.request = request
        self.reports: queue.SimpleQueue[_Progress | _End | None] = queue.SimpleQueue()


class XtDownload:
    """Downloads through the terminal at `config.xt_addr`, a few at a time, the others in a queue."""

    def __init__(self, config: Config) -> None:
        self._host, self._port = sdk.parse_address(config.xt_addr)
        self._timeout = config.xt_download_timeout
        self._limit = RUNNING_DOWNLOADS + config.xt_download_queue
        self._sink: Sink
        self._threads = [
            threading.Thread(target=self._work, name=f"xtquant-download-{number}", daemon=True)
            for number in range(1, RUNNING_DOWNLOADS + 1)
        ]
        # Guards the rest.
        self._changed = threading.Condition()
        self._waiting: dict[Topic, _Job] = {}
        self._running: dict[Topic, _Job] = {}
        self._closing = False

    def start(self, sink: Sink) -> None:
        """Start the threads."""
        self._sink = sink
        for thread in self._threads:
            thread.start()

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Queue a download and return (see `Source`); raise `Refused` if too many wait."""
        with self._changed:
            if self._closing:
                raise Refused("upstream_unavailable", "the feeder is stopping")
            if len(self._waiting) + len(self._running) >= self._limit:
                raise Refused("rate_limited", f"{len(self._waiting)} downloads are waiting already")
            self._waiting[topic] = _Job(topic, request)
            self._changed.notify()

    def cancel(self, topic: Topic) -> bool:
        """End the download of `topic` with an error; return whether there is such a download."""
        cancelled = _End("upstream_unavailable", "the download was cancelled")
        with self._changed:
            job = self._waiting.pop(topic, None)
            running = self._running.get(topic)
        if job is not None:
            self._publish(topic, _ending(job.request, cancelled, {}))
        elif running is not None:
            running.reports.put(cancelled)
        return job is not None or running is not None

    def close(self) -> None:
        """Cancel all downloads, and stop within two seconds."""
        with self._changed:
            self._closing = True
            topics = [*self._waiting, *self._running]
            self._changed.notify_all()
        for topic in topics:
            self.cancel(topic)
        until = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
                if thread.is_alive():
                    logger.warning("a download process does not end; its thread is left behind")

    # -- The threads

    def _work(self) -> None:
        while (job := self._take()) is not None:
            try:
                ending = self._run(job)
            except Exception as exc:
                logger.exception("download %s failed", job.topic)
                ending = _ending(job.request, _End("internal", f"the download failed: {exc}"), {})
            with self._changed:
                del self._running[job.topic]
            self._publish(job.topic, ending)

    def _take(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._closing:
                return None
            topic = next(iter(self._waiting))
            job = self._running[topic] = self._waiting.pop(topic)
            return job

    def _run(self, job: _Job) -> dict[str, object]:
        """Run the process and publish its progress; return the last body."""
        # The last message of each code: empty, or why it failed.
        told: dict[str, str] = {}
        logger.info("download %s: %d codes, period %s", job.topic, len(job.request.stocks), job.request.period)
        process = _Process(_Request(self._host, self._port, *job.request), job.reports)
        try:
            while isinstance(report := self._next(job), _Progress):
                told[report.stockcode] = report.message
                self._publish(job.topic, msgspec.structs.asdict(report))
        finally:
            exit_code = process.stop()
        if report is None:
            report = _End("upstream_unavailable", f"the download process ended with {describe(exit_code)}")
        return _ending(job.request, report, told)

    def _next(self, job: _Job) -> _Progress | _End | None:
        try:
            return job.reports.get(timeout=self._timeout)
        except queue.Empty:
            return _End("upstream_unavailable", f"no progress for {self._timeout:g} s")

    def _publish(self, topic: Topic, body: dict[str, object]) -> None:
        if "status" in body:
            log = logger.info if body["status"] == "done" else logger.warning
            log("download %s: %s", topic, body.get("error", "done"))
        self._sink.publish(topic, body, clock.time_ns())


class _Process:
    """The process of a download, and the thread that writes the request to it and reads its reports."""

    def __init__(self, request: _Request, reports: queue.SimpleQueue[_Progress | _End | None]) -> None:
        self._popen = subprocess.Popen(
            child.python("feeder.xt.download"),
            # The request has everything that the process needs, so it gets neither key nor token.
            env=child.environment(Config()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # On Windows no console window may open if the feeder runs as a service.
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._asked = threading.Event()
        self._thread = threading.Thread(
            target=self._talk, args=(request, reports), name="xtquant-download-pipe", daemon=True
        )
        self._thread.start()

    def stop(self) -> int:
        """Let the process stop its download and end, or kill it; return its exit code."""
        popen = self._popen
        assert popen.stdin is not None
        # Not while the request is being written: the lock of the pipe would make this wait for the reader.
        if self._asked.is_set():
            popen.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(LEAVE_SECONDS)
        popen.kill()
        code = popen.wait()
        self._thread.join()
        # Data that the process has not read can no longer be written.
        with contextlib.suppress(OSError):
            popen.stdin.close()
        return code

    def _talk(self, request: _Request, reports: queue.SimpleQueue[_Progress | _End | None]) -> None:
        popen = self._popen
        assert popen.stdin is not None
        assert popen.stdout is not None
        try:
            popen.stdin.write(_encode(request) + b"\n")
            popen.stdin.flush()
            self._asked.set()
            for line in popen.stdout:
                reports.put(_decode(line))
        except (OSError, msgspec.DecodeError) as exc:
            # The process ended while one side was writing.
            logger.warning("the reports of the download process cannot be read: %s", exc)
        finally:
            popen.stdout.close()
            reports.put(None)


def _ending(request: DownloadRequest, end: _End, told: dict[str, str]) -> dict[str, object]:
    """Return the last body of a download (see `Source.download`)."""
    code, error = end.code, end.error
    if code is not None:
        failed = {stock: told.get(stock) or error for stock in request.stocks if told.get(stock) != ""}
    else:
        failed = {stock: message for stock, message in told.items() if message}
        if not failed:
            return {"status": "done"}
        code = "upstream_refused"
        error = f"{len(failed)} of {len(request.stocks)} codes failed: {next(iter(failed.values()))}"
    return {"status": "error", "type": "error", "code": code, "error": error, "failed": failed}


# -- In the process


class _Download:
    """One request, from connecting to its end; reports its progress through `say`."""

    def __init__(self, request: _Request, say: Callable[[_Progress | _End], None]) -> None:
        self._request = request
        self._say = say
        self._xtdata: Any
        self._client: Any = None
        # The codes that xtquant has reported.
        self._told: set[str] = set()

    def run(self) -> _End:
        """Download everything; return how it ended."""
        host, port = self._request.host, self._request.port
        address = f"{host}:{port}"
        try:
            self._xtdata = sdk.load()
            self._client = self._xtdata.connect(host, port)
        except Exception as exc:
            return _End("upstream_unavailable", f"cannot connect to the terminal at {address}: {exc}")
        stocks = self._request.stocks
        reason = self._download(stocks, self._pass_on)
        if reason is None:
            return _End()
        # One failure ended the download of all codes, and callbacks do not say which one failed: download the others
        # one by one.
        lost = _End("upstream_unavailable", f"the connection to the terminal at {address} was lost")
        left = [code for code in stocks if code not in self._told]
        in_a_row = 0
        for number, code in enumerate(left, len(stocks) - len(left) + 1):
            if len(stocks) > 1:
                events: list[_Progress] = []
                reason = self._download((code,), events.append) or "".join(event.message for event in events)
            if reason and not self._connect():
                return lost
            self._say(_Progress(number, len(stocks), code, reason))
            in_a_row = in_a_row + 1 if reason else 0
            if in_a_row == GIVE_UP:
                return _End("upstream_refused", f"{in_a_row} codes failed in a row: {reason}")
        return _End()

    def stop(self) -> None:
        """Stop every download of this client in the terminal; there is only one."""
        if self._client is not None:
            self._client.stop_supply_history_data2()

    def _connect(self) -> bool:
        """Connect again if the connection was lost; return whether there is one."""
        try:
            self._client = self._xtdata.get_client()
        except Exception as exc:
            logger.debug("there is no connection to the terminal: %s", exc)
            return False
        return True

    def _download(self, stocks: tuple[str, ...], note: Callable[[_Progress], None]) -> str | None:
        """Download; return why that failed, or None."""
        complete = threading.Event()

        def on_progress(event: Mapping[str, Any]) -> None:
            # Read each field by its name: the last event also has a 'result', which is BSON.
            stock, message = str(event.get("stockcode", "")), str(event.get("message", ""))
            progress = _Progress(int(event["finished"]), int(event["total"]), stock, message)
            note(progress)
            if progress.finished >= progress.total:
                complete.set()

        request = self._request
        try:
            ranges = self._xtdata.download_history_data2(
                list(stocks), request.period, request.start_time, request.end_time, callback=on_progress
            )
        except Exception as exc:
            # If the connection was lost only after the last event, the download is complete.
            return None if complete.is_set() else str(exc) or repr(exc)
        # After a failure without a message it returns {} without an error (xtdata.py 1999-2013), and calls back no
        # event.
        if not (complete.wait(LAST_EVENT_SECONDS) or ranges):
            return "xtquant reports a failure without a reason"
        return None

    def _pass_on(self, progress: _Progress) -> None:
        self._told.add(progress.stockcode)
        self._say(progress)


def main() -> None:
    """Do the one download that standard input requests, write its reports to standard output, and exit."""
    pipe = sdk.take_stdout()
    # Ctrl-C also reaches this process; ignore it, because the feeder ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = threading.Lock()

    def say(what: _Progress | _End) -> None:
        with lock:
            pipe.write(_encode(what) + b"\n")
            pipe.flush()

    download = _Download(msgspec.json.decode(sys.stdin.buffer.readline(), type=_Request), say)
    threading.Thread(target=_leave_with_feeder, args=(download,), daemon=True).start()
    say(download.run())
    # Without waiting for native threads.
    os._exit(0)


def _leave_with_feeder(download: _Download) -> None:
    while os.read(0, 4096):
        pass
    # On a thread of its own, because a native call may hang.
    stopping = threading.Thread(target=download.stop, daemon=True)
    stopping.start()
    stopping.join(STOP_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
