"""XtDownload: real processes, each with xtquant's real Python layer over the stand-ins for its native modules."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import native
import pytest
import zmq

from feeder.app import Feeder
from feeder.source import DownloadRequest
from feeder.xt import download as download_module
from feeder.xt.download import XtDownload
from feeder.xt.source import XtSource
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Refused
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import DownloadStarted, StartDownload, decode_reply, encode_ask
from qmt_bridge.wire.topics import Topic, download_topic
from tests.support.paths import FAKES, ROOT
from tests.support.ports import ANY_ADDRESSES
from tests.support.sink import Recording, encoded
from tests.support.waiting import SLOWNESS

# A process has to start, and this machine may be busy.
SECONDS = 30.0 * SLOWNESS

JOB = download_topic("job")
CODES = ("600519.SH", "000001.SZ", "300750.SZ")
# Processes are counted by /proc and stopped by signals, which only Linux has.
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and signals")
NO_REASON = "xtquant reports a failure without a reason"


class Recorder(Recording):
    """A Sink that keeps what is published."""

    seconds = SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.bodies: dict[Topic, list[dict]] = {}

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        assert 0 < received_ns <= time.time_ns()
        self.note(self.bodies.setdefault(topic, []), encoded(body))

    def ended(self, *topics: Topic) -> Callable[[], bool]:
        return lambda: all("status" in (self.bodies.get(topic) or [{}])[-1] for topic in topics)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the switches of the terminal (see sitecustomize.py)."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))

    def switch(**switches: str) -> None:
        for name, value in switches.items():
            monkeypatch.setenv(f"FAKE_XT_{name}", value)

    return switch


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture
def make(sink: Recorder) -> Iterator[Callable[..., XtDownload]]:
    made: list[XtDownload] = []

    def start(**settings: object) -> XtDownload:
        made.append(XtDownload(Config(**{"xt_download_timeout": SECONDS, **settings})))  # type: ignore[arg-type]
        made[-1].start(sink)
        return made[-1]

    try:
        yield start
    finally:
        for one in made:
            one.close()
        # Not `in`: on Windows pytest-timeout names a thread after the test.
        assert [each.name for each in threading.enumerate() if each.name.startswith("xtquant-download")] == []


def request(*codes: str, period: str = "1d", start: str = "", end: str = "") -> DownloadRequest:
    return DownloadRequest(codes, period, start, end)


def download(source: XtDownload, sink: Recorder, *codes: str) -> tuple[list[dict], dict]:
    """Download and return the progress and the end."""
    source.download(JOB, request(*codes))
    sink.until(sink.ended(JOB))
    *progress, end = sink.bodies[JOB]
    return progress, end


def step(finished: int, total: int, code: str, message: str = "") -> dict:
    return {"finished": finished, "total": total, "stockcode": code, "message": message}


def error(code: str, text: str, failed: dict[str, str]) -> dict:
    return {"status": "error", "type": "error", "code": code, "error": text, "failed": failed}


# -- What happens to a download


def test_progress_has_no_binary_result_and_ends_with_done(make: Callable[..., XtDownload], sink: Recorder) -> None:
    progress, end = download(make(), sink, *CODES)
    assert progress == [step(number, 3, code) for number, code in enumerate(CODES, 1)]
    assert [list(body) for body in progress] == [["finished", "total", "stockcode", "message"]] * 3
    assert end == {"status": "done"}


def test_the_request_arrives_unchanged(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None], tmp_path: Path
) -> None:
    terminal(ADDR="127.0.0.2:58611", LOG=str(tmp_path / "calls"))
    source = make(xt_addr="127.0.0.2:58611")
    source.download(JOB, request(*CODES, period="5m", start="20240101", end="20240201150000"))
    sink.until(sink.ended(JOB))
    assert sink.bodies[JOB][-1] == {"status": "done"}
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert "connect('127.0.0.2:58611',)" in calls
    asked = (CODES, "5m", "20240101", "20240201150000", {"incrementally": False})
    # When the process is ended, it may stop the call that has just returned.
    assert [call for call in calls if call.startswith("supply")] == [f"supply_history_data2{asked}"]


def test_a_code_that_ends_the_call_fails_and_the_others_pass(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(REFUSE="000001.SZ")
    progress, end = download(make(), sink, *CODES)
    reason = "下载数据失败：000001.SZ 无权限"
    assert progress == [step(1, 3, CODES[0]), step(2, 3, CODES[1], reason), step(3, 3, CODES[2])]
    assert end == error("upstream_refused", f"1 of 3 codes failed: {reason}", {"000001.SZ": reason})


def test_a_code_that_fails_alone_is_named(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(FAIL="600519.SH,300750.SZ")
    progress, end = download(make(), sink, *CODES)
    failed = {"600519.SH": "600519.SH 无数据", "300750.SZ": "300750.SZ 无数据"}
    assert progress == [step(number, 3, code, failed.get(code, "")) for number, code in enumerate(CODES, 1)]
    assert end == error("upstream_refused", "2 of 3 codes failed: 600519.SH 无数据", failed)


def test_a_code_that_fails_after_one_that_ended_the_call_is_named(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(REFUSE="600519.SH", FAIL="300750.SZ")
    _, end = download(make(), sink, *CODES)
    assert end["failed"] == {"600519.SH": "下载数据失败：600519.SH 无权限", "300750.SZ": "300750.SZ 无数据"}


def test_a_single_code_that_fails_is_requested_once(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None], tmp_path: Path
) -> None:
    terminal(DOWNLOAD="error", LOG=str(tmp_path / "calls"))
    progress, end = download(make(), sink, "600519.SH")
    reason = "下载数据失败：600519.SH 无权限"
    assert progress == [step(1, 1, "600519.SH", reason)]
    assert end == error("upstream_refused", f"1 of 1 codes failed: {reason}", {"600519.SH": reason})
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert sum(call.startswith("supply_history_data2") for call in calls) == 1


def test_a_failure_without_a_message_is_not_a_success(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWNLOAD="empty_error")
    progress, end = download(make(), sink, *CODES[:2])
    assert [body["message"] for body in progress] == [NO_REASON] * 2
    assert end == error("upstream_refused", f"2 of 2 codes failed: {NO_REASON}", dict.fromkeys(CODES[:2], NO_REASON))


def test_codes_that_all_fail_are_not_all_tried(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWNLOAD="error")
    codes = [f"{600000 + number}.SH" for number in range(2000)]
    progress, end = download(make(), sink, *codes)
    assert len(progress) == download_module.GIVE_UP
    assert end["code"] == "upstream_refused"
    assert end["error"] == "10 codes failed in a row: 下载数据失败：600009.SH 无权限"
    assert list(end["failed"]) == codes
    assert end["failed"]["600000.SH"] == "下载数据失败：600000.SH 无权限"
    assert end["failed"]["601999.SH"] == end["error"]


def test_a_connection_lost_midway_names_the_missing_codes(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWNLOAD="drop")
    progress, end = download(make(), sink, *CODES)
    assert progress == [step(1, 3, CODES[0])]
    reason = "the connection to the terminal at 127.0.0.1:58610 was lost"
    assert end == error("upstream_unavailable", reason, dict.fromkeys(CODES[1:], reason))


def test_a_connection_lost_after_the_last_code_is_no_failure(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWNLOAD="drop")
    assert download(make(), sink, CODES[0]) == ([step(1, 1, CODES[0])], {"status": "done"})


def test_an_unreachable_terminal_is_reported(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWN="1")
    progress, end = download(make(), sink, *CODES)
    assert progress == []
    assert end["code"] == "upstream_unavailable"
    assert end["error"].startswith("cannot connect to the terminal at 127.0.0.1:58610: 无法连接xtquant服务")
    assert list(end["failed"]) == list(CODES)


def test_a_download_without_progress_ends_with_the_missing_codes(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWNLOAD="stall")
    progress, end = download(make(xt_download_timeout=5), sink, *CODES)
    assert progress == [step(1, 3, CODES[0])]
    assert end == error("upstream_unavailable", "no progress for 5 s", dict.fromkeys(CODES[1:], "no progress for 5 s"))


def test_a_terminal_that_never_answers_blocks_nothing_else(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    source = make(xt_download_timeout=0.2)
    terminal(DOWNLOAD="hang")
    jobs = [download_topic(str(number)) for number in range(5)]
    for job in jobs:
        source.download(job, request(*CODES))
    sink.until(sink.ended(*jobs))
    assert {sink.bodies[job][-1]["error"] for job in jobs} == {"no progress for 0.2 s"}


@linux
def test_a_killed_process_is_reported(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWNLOAD="stall")
    source = make()
    killed = threading.Event()
    publish = sink.publish

    def kill_it(topic: Topic, body: object, received_ns: int) -> None:
        publish(topic, body, received_ns)
        if not killed.is_set():
            killed.set()
            [child] = children()
            os.kill(child, signal.SIGKILL)

    sink.publish = kill_it  # type: ignore[method-assign]
    progress, end = download(source, sink, *CODES)
    assert len(progress) == 1
    assert end["code"] == "upstream_unavailable"
    assert end["error"] == "the download process ended with exit code -9"
    assert list(end["failed"]) == list(CODES[1:])


def test_output_of_xtquant_does_not_mix_with_the_processs_messages(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    terminal(CHATTER="1")
    assert download(make(), sink, CODES[0]) == ([step(1, 1, CODES[0])], {"status": "done"})
    # The output is not lost: it goes to the standard error of the feeder.
    assert "from native code" in capfd.readouterr().err


@pytest.fixture
def inside() -> Iterator[native.Terminal]:
    """Return a terminal for a download in this process."""
    with native.installed() as terminal:
        yield terminal


def test_the_rest_is_requested_from_a_terminal_that_returns_at_once(inside: native.Terminal) -> None:
    inside.download = "drop"
    inside.auto_reconnect = False
    inside.on_call = lambda call: inside.open() if call.name == "connect" else None
    said: list[object] = []
    asked = download_module._Request("127.0.0.1", 58610, CODES, "1d", "", "")
    assert download_module._Download(asked, said.append).run() == download_module._End()
    assert said == [download_module._Progress(number, 3, code, "") for number, code in enumerate(CODES, 1)]


def test_the_end_is_not_sent_before_the_last_progress(inside: native.Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "LAST_EVENT_SECONDS", SECONDS)
    said: list[object] = []

    def say_slowly(what: object) -> None:
        # This is longer than xtdata takes to notice that everything is finished and to return.
        time.sleep(0.3)
        said.append(what)

    asked = download_module._Request("127.0.0.1", 58610, CODES[:1], "1d", "", "")
    assert download_module._Download(asked, say_slowly).run() == download_module._End()
    assert said == [download_module._Progress(1, 1, CODES[0], "")]


@linux
def test_a_process_that_does_not_read_its_request_is_killed(
    make: Callable[..., XtDownload], sink: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = tmp_path / "python"
    asleep.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    asleep.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(asleep))
    source = make(xt_download_timeout=0.2)
    # The request is larger than a pipe can hold.
    progress, end = download(source, sink, *(f"{number}.SH" for number in range(600_000, 620_000)))
    assert progress == []
    assert end["error"] == "no progress for 0.2 s"
    assert children() == []


def test_a_process_that_cannot_start_is_reported(
    make: Callable[..., XtDownload], sink: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = make()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    progress, end = download(source, sink, *CODES)
    assert progress == []
    assert end["code"] == "internal"
    assert "/nowhere/python" in end["error"]
    monkeypatch.undo()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        f"download {JOB} failed"
    ]


# -- The queue, cancelling and the end


def test_downloads_beyond_the_queue_are_refused_until_there_is_room(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWNLOAD="hang")
    source = make(xt_download_queue=1)
    jobs = [download_topic(str(number)) for number in range(download_module.RUNNING_DOWNLOADS + 1)]
    for job in jobs:
        source.download(job, request(*CODES))
    with pytest.raises(Refused, match="downloads are waiting already") as refused:
        source.download(JOB, request(*CODES))
    assert refused.value.code == "rate_limited"
    assert source.cancel(jobs[0])
    sink.until(sink.ended(jobs[0]))
    source.download(JOB, request(*CODES))
    assert JOB not in sink.bodies


def test_a_waiting_download_starts_when_another_one_ends(make: Callable[..., XtDownload], sink: Recorder) -> None:
    source = make()
    jobs = [download_topic(str(number)) for number in range(download_module.RUNNING_DOWNLOADS + 2)]
    for job in jobs:
        source.download(job, request(CODES[0]))
    sink.until(sink.ended(*jobs))
    assert all(sink.bodies[job] == [step(1, 1, CODES[0]), {"status": "done"}] for job in jobs)


@pytest.mark.parametrize("number", [0, download_module.RUNNING_DOWNLOADS], ids=["running", "waiting"])
def test_a_cancelled_download_ends_as_an_error(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None], number: int
) -> None:
    terminal(DOWNLOAD="stall")
    source = make()
    jobs = [download_topic(str(number)) for number in range(download_module.RUNNING_DOWNLOADS + 1)]
    for job in jobs:
        source.download(job, request(*CODES))
    running = jobs[: download_module.RUNNING_DOWNLOADS]
    sink.until(lambda: all(job in sink.bodies for job in running))
    assert source.cancel(jobs[number])
    sink.until(sink.ended(jobs[number]))
    left = CODES[1:] if number == 0 else CODES
    assert sink.bodies[jobs[number]][-1] == error(
        "upstream_unavailable", "the download was cancelled", dict.fromkeys(left, "the download was cancelled")
    )
    assert not source.cancel(jobs[number])
    assert not any(sink.ended(job)() for job in jobs if job != jobs[number])


def test_a_cancelled_download_is_stopped_in_the_terminal(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None], tmp_path: Path
) -> None:
    terminal(DOWNLOAD="stall", LOG=str(tmp_path / "calls"))
    source = make()
    source.download(JOB, request(*CODES))
    sink.until(lambda: JOB in sink.bodies)
    source.cancel(JOB)
    sink.until(sink.ended(JOB))
    assert (tmp_path / "calls").read_text(encoding="utf-8").splitlines()[-1] == "stop_supply_history_data2()"


def test_a_zeromq_consumer_that_disconnects_cancels_its_download(terminal: Callable[..., None], tmp_path: Path) -> None:
    terminal(DOWNLOAD="stall", LOG=str(tmp_path / "calls"))
    config = Config(**ANY_ADDRESSES, data_dir=str(tmp_path), grace=0.1)
    with native.installed():
        feeder = Feeder(config, XtSource(config))
        feeder.start()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            dealer = sockets.connect_dealer(context, feeder.publisher.trade_ask_addr, None)
            assert dealer.poll(int(SECONDS * 1000), zmq.POLLOUT)
            dealer.send(encode_ask(StartDownload(1, list(CODES), "1d")))
            assert dealer.poll(int(SECONDS * 1000))
            started = decode_reply(dealer.recv())
            assert isinstance(started, DownloadStarted)
            topic = Topic(started.topic or "")
            consumer = sockets.connect_subscriber(context, feeder.publisher.market_addr, None)
            watcher = sockets.connect_subscriber(context, feeder.publisher.market_addr, None)
            # A subscription to a prefix receives every message, but starts no download.
            watcher.subscribe("download/")
            consumer.subscribe(topic)
            bodies = []
            for one in (consumer, watcher):
                assert one.poll(int(SECONDS * 1000)), "no progress"
                bodies.append(Frame.from_parts(one.recv_multipart()).data)
            assert bodies == [step(1, 3, CODES[0])] * 2
            consumer.close(linger=0)
            assert watcher.poll(int(SECONDS * 1000)), "it was not cancelled"
            end = Frame.from_parts(watcher.recv_multipart()).data
        finally:
            context.destroy(linger=0)
            feeder.stop()
    assert end == error("upstream_unavailable", "the download was cancelled", dict.fromkeys(CODES[1:], end["error"]))
    assert (tmp_path / "calls").read_text(encoding="utf-8").splitlines()[-1] == "stop_supply_history_data2()"


@linux
def test_close_ends_every_download_and_process(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None]
) -> None:
    terminal(DOWNLOAD="stall")
    source = make()
    jobs = [download_topic(str(number)) for number in range(download_module.RUNNING_DOWNLOADS + 2)]
    for job in jobs:
        source.download(job, request(*CODES))
    sink.until(lambda: all(job in sink.bodies for job in jobs[: download_module.RUNNING_DOWNLOADS]))
    source.close()
    assert sink.ended(*jobs)()
    assert children() == []
    with pytest.raises(Refused, match="the feeder is stopping"):
        source.download(JOB, request(*CODES))
    source.close()


@linux
def test_a_process_that_does_not_end_by_itself_is_killed(
    make: Callable[..., XtDownload], sink: Recorder, terminal: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "LEAVE_SECONDS", 0.01)
    terminal(DOWNLOAD="stall", CALL_MS="1")
    source = make()
    source.download(JOB, request(*CODES))
    sink.until(lambda: JOB in sink.bodies)
    # A stopped process does not react to the request to end.
    [child] = children()
    os.kill(child, signal.SIGSTOP)
    source.cancel(JOB)
    sink.until(sink.ended(JOB))
    assert children() == []


def test_close_before_start_does_nothing() -> None:
    XtDownload(Config()).close()


def test_an_invalid_address_is_named() -> None:
    with pytest.raises(ConfigError, match="xt_addr: expected 'host:port', got '58610'"):
        XtDownload(Config(xt_addr="58610"))


def test_a_process_ends_when_its_feeder_is_killed(terminal: Callable[..., None]) -> None:
    terminal(DOWNLOAD="stall")
    code = """
        import threading
        from feeder.source import DownloadRequest
        from feeder.xt.download import XtDownload
        from qmt_bridge.config import Config

        class Sink:
            def publish(self, topic, body, received_ns):
                print("progress", flush=True)

        source = XtDownload(Config())
        source.start(Sink())
        source.download("download/1/", DownloadRequest(("600519.SH", "000001.SZ"), "1d", "", ""))
        threading.Event().wait()
    """
    # The download process has the same standard error: the pipe ends when both processes have ended.
    feeder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert feeder.stdout is not None
        assert feeder.stdout.readline() == b"progress\n"
    finally:
        feeder.kill()
        _, printed = feeder.communicate(timeout=SECONDS)
    assert b"Traceback" not in printed


def children() -> list[int]:
    """Return the ids of the download processes that this process has started and not waited for.

    Other tests leave a helper process that multiprocessing starts once and keeps; it is not counted.
    """
    started: list[int] = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        # A thread may have ended meanwhile.
        with suppress(FileNotFoundError):
            started += map(int, (task / "children").read_text().split())
    return [pid for pid in started if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
