"""History downloads, outside the quote session: each in a process of its own, which can be killed.

xtdata's download blocks until the end, waits for ever when the terminal falls silent, and can only be stopped together
with every other download of its client. The threads `xtquant-download-N` each watch one process at a time; another
one, per process, writes to it and reads from it. `python -m feeder.xt.download` is that process.
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
from qmt_bridge.wire.topics import Topic

logger = logging.getLogger(__name__)

# Downloads at a time: with one, a terminal that hangs on it would hold up the next for the whole timeout.
RUNNING = 2
# What a process gets to stop its download and end, before it is killed; and its native call of that.
LEAVE_SECONDS = 1.0
STOP_SECONDS = 0.5
# Of the two seconds that `close` may take.
JOIN_SECONDS = 1.9
# download_history_data2 may return before its last event has come to our callback (xtdata.py 1985-1992).
LAST_EVENT_SECONDS = 0.5
# Codes that fail in a row, one by one, before the rest is taken to fail alike: a right or a period that is missing.
GIVE_UP = 10


class _Request(msgspec.Struct):
    """What a process is told, in the first line of its standard input."""

    host: str
    port: int
    stocks: tuple[str, ...]
    period: str
    start_time: str
    end_time: str


class _Progress(msgspec.Struct, tag="progress"):
    """One event, as xtquant gives it; a `message` is why `stockcode` failed (empty in doc/xtdata.md 562)."""

    finished: int
    total: int
    stockcode: str
    message: str


class _End(msgspec.Struct, tag="end"):
    """How it ended; with a `code`, what was not downloaded until then failed for the reason `error`."""

    code: ErrorCode | None = None
    error: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Progress | _End).decode


# -- In the feeder


class _Job:
    """One download; `reports` is what its process reports, None at the end."""

    def __init__(self, topic: Topic, request: DownloadRequest) -> None:
        self.topic = topic
        self.request = request
        self.reports: queue.SimpleQueue[_Progress | _End | None] = queue.SimpleQueue()


class XtDownload:
    """Downloads through the terminal at `config.xt_addr`, a few at a time, the others in a queue."""

    def __init__(self, config: Config) -> None:
        self._host, self._port = sdk.parse_address(config.xt_addr)
        self._timeout = config.xt_download_timeout
        self._limit = RUNNING + config.xt_download_queue
        self._sink: Sink
        self._threads = [
            threading.Thread(target=self._work, name=f"xtquant-download-{number}", daemon=True)
            for number in range(1, RUNNING + 1)
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
        """End the download of `topic`, which is told as an error; return whether there is one."""
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
        """Cancel what waits and runs, and stop within two seconds."""
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
        # The last word on each code: empty, or why it failed.
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
            report = _End("upstream_unavailable", f"the download process ended with exit code {exit_code}")
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
        self._sink.publish(topic, body, time.time_ns())


class _Process:
    """A download's process, and the thread that writes the request to it and reads what it says."""

    def __init__(self, request: _Request, reports: queue.SimpleQueue[_Progress | _End | None]) -> None:
        self._popen = subprocess.Popen(
            child.python("feeder.xt.download"),
            # It is told everything in its request, and needs neither key nor token.
            env=child.environment(Config()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Beside a feeder that runs as a service no console window shall open.
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._asked = threading.Event()
        self._thread = threading.Thread(
            target=self._talk, args=(request, reports), name="xtquant-download-pipe", daemon=True
        )
        self._thread.start()

    def stop(self) -> int:
        """Have it stop its download and end, or kill it; return its exit code."""
        popen = self._popen
        assert popen.stdin is not None
        # Not while the request is being written: the pipe's lock would make this wait for its reader.
        if self._asked.is_set():
            popen.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(LEAVE_SECONDS)
        popen.kill()
        code = popen.wait()
        self._thread.join()
        # What it has not read can no longer be written.
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
            logger.warning("download process cannot be heard: %s", exc)
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
    """One request, from connecting to its end; says its progress through `say`."""

    def __init__(self, request: _Request, say: Callable[[_Progress | _End], None]) -> None:
        self._request = request
        self._say = say
        self._xtdata: Any
        self._client: Any = None
        # Codes of which xtquant told something.
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
        # One failure ended it for all, and callbacks are not told whose: ask for the others one by one.
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
        """End what runs in the terminal; every download of this client, which is one."""
        if self._client is not None:
            self._client.stop_supply_history_data2()

    def _connect(self) -> bool:
        """Return whether there is a connection, also if it has to be made again."""
        try:
            self._client = self._xtdata.get_client()
        except Exception as exc:
            logger.debug("the terminal is away: %s", exc)
            return False
        return True

    def _download(self, stocks: tuple[str, ...], note: Callable[[_Progress], None]) -> str | None:
        """Download; return why that failed, or None."""
        complete = threading.Event()

        def on_progress(event: Mapping[str, Any]) -> None:
            # By name: the last event has a 'result', which is BSON.
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
            # The connection may go after the last event.
            return None if complete.is_set() else str(exc) or repr(exc)
        # A failure without a message returns {} as if it were none (xtdata.py 1999-2013); its event does not come here.
        if not (complete.wait(LAST_EVENT_SECONDS) or ranges):
            return "xtquant reports a failure without a reason"
        return None

    def _pass_on(self, progress: _Progress) -> None:
        self._told.add(progress.stockcode)
        self._say(progress)


def main() -> None:
    """Do the one download that standard input asks for, say what comes of it on standard output, and exit."""
    pipe = sdk.take_stdout()
    # Ctrl-C is meant for the feeder, which ends this process.
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
    # On a thread of its own, since a native call may hang.
    stopping = threading.Thread(target=download.stop, daemon=True)
    stopping.start()
    stopping.join(STOP_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
