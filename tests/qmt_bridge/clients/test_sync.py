"""The synchronous client: loops and callbacks in threads, their ends, and what a slow one gets."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from itertools import count

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from qmt_bridge import BadRequest, CallbackError, Disconnected, ServerError, StreamState, quote_topic, sync
from qmt_bridge.reading import backlog
from qmt_bridge.sync import QMTClient
from tests.support.rig import DEADLINE, KEY
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(30)
A, B, BAD = "600000.SH", "600001.SH", "999999.SZ"
TOPIC = quote_topic(A, "tick")


def tick(code, price):
    return {code: [{"time": 1, "lastPrice": price}]}


def client(rig, **options) -> QMTClient:
    return QMTClient("127.0.0.1", rig.servers[-1].port, **options)


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("qmt-bridge")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert ours() == []
    yield
    gc.collect()
    wait_for(lambda: ours() == [], "the threads to end")


class Publishing:
    """Publishes ticks with rising prices until it is stopped."""

    def __init__(self, rig) -> None:
        self._rig = rig
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        price = 0
        while not self._stop.wait(0.005):
            price += 1
            if TOPIC in self._rig.source.wanted:
                self._rig.source.publish(TOPIC, tick(A, price))


def test_a_loop_reads_frames_and_ends_with_the_client(rig):
    with client(rig) as c, Publishing(rig):
        prices = []
        for frame in c.realtime([A]):
            prices.append(frame[A][0]["lastPrice"])
            if len(prices) == 5:
                c.close()
    assert prices == sorted(set(prices))
    assert len(prices) == 5


def test_a_loop_that_is_left_closes_its_stream(rig):
    c = client(rig)
    with Publishing(rig):
        for frame in c.realtime([A]):
            assert list(frame) == [A]
            break
        wait_for(lambda: TOPIC not in rig.source.wanted, "the end of the subscription")
    c.close()


def test_codes_come_and_go_from_any_thread(rig):
    with client(rig) as c, Publishing(rig), c.realtime([A]) as stream:
        next(stream)
        ack = stream.add([B, BAD], DEADLINE)
        assert (ack.codes, [each.code for each in ack.rejected]) == ((B,), [BAD])
        removing = threading.Thread(target=stream.remove, args=([A],))
        removing.start()
        wait_for(lambda: TOPIC not in rig.source.wanted, "the removal")
        rig.source.publish(quote_topic(B, "tick"), tick(B, 9))
        while list(frame := next(stream)) == [A]:
            pass
        assert frame == tick(B, 9)
        removing.join()


def test_a_callback_runs_in_the_background_until_it_is_closed(rig):
    got = []
    with client(rig) as c, Publishing(rig):
        with c.subscribe_realtime([A], got.append) as running:
            wait_for(lambda: len(got) >= 3)
            assert running.is_running
            with pytest.raises(TimeoutError):
                running.wait(0.01)
        count = len(got)
        assert not running.is_running
        running.wait(0)
        wait_for(lambda: TOPIC not in rig.source.wanted, "the end of the subscription")
        assert len(got) == count


def test_a_callback_may_close_and_change_its_own_stream(rig):
    acks = []
    with client(rig) as c, Publishing(rig):

        def callback(frame):
            acks.append(running.add([B], DEADLINE))
            running.close()

        begun = threading.Event()
        running = c.subscribe_realtime([A], lambda frame: begun.wait(DEADLINE) and callback(frame))
        begun.set()
        running.wait(DEADLINE)
    assert [ack.codes for ack in acks] == [(B,)]


@pytest.mark.parametrize("fail", [lambda frame: 1 / 0, lambda frame: sys.exit(1)], ids=["raises", "exits"])
def test_a_callback_that_fails_is_logged_and_raised_by_wait(rig, caplog, fail):
    with client(rig) as c, Publishing(rig):
        running = c.subscribe_realtime([A], fail)
        with pytest.raises(CallbackError, match="callback failed on frame"):
            running.wait(DEADLINE)
        with pytest.raises(CallbackError), running:
            pass
    assert "has ended: callback failed" in caplog.text


def test_a_loop_in_another_thread_ends_when_it_is_closed(rig):
    with client(rig) as c:
        stream = c.realtime([A])
        ended = []
        thread = threading.Thread(target=lambda: ended.append(list(stream)))
        thread.start()
        wait_for(lambda: TOPIC in rig.source.wanted)
        stream.close()
        thread.join(DEADLINE)
        assert len(ended) == 1


def test_a_stream_closed_while_it_begins_never_connects(rig, monkeypatch):
    with client(rig) as c:
        stream = c.realtime([A])
        enter, closing = c._thread.enter, threading.Thread(target=stream.close)

        def close_first(end):
            enter(end)
            closing.start()
            wait_for(lambda: stream._exchange.is_closed)

        monkeypatch.setattr(c._thread, "enter", close_first)
        assert list(stream) == []
        closing.join(DEADLINE)
        assert not closing.is_alive()
        assert c._thread._members == set()


def test_a_second_thread_that_reads_a_stream_is_refused(rig):
    with client(rig) as c:
        stream = c.realtime([A])
        reading = threading.Thread(target=lambda: list(stream))
        reading.start()
        wait_for(lambda: TOPIC in rig.source.wanted)
        with pytest.raises(RuntimeError, match="it has one reader"):
            next(stream)
        stream.close()
        reading.join(DEADLINE)
        assert not reading.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_has_died_is_started_again(rig):
    with client(rig) as c:
        c._thread.start()
        loop = c._thread._loop
        c._thread.call(sys.exit)
        wait_for(loop.is_closed)
        with Publishing(rig):
            assert list(next(c.realtime([A]))) == [A]


def test_errors_are_those_of_the_asynchronous_client(rig, unused_port):
    with client(rig) as c:
        with pytest.raises(BadRequest):
            c.realtime("600000.SH")
        with pytest.raises(TypeError):
            c.realtime([A], feilds=["time"])
        with pytest.raises(ServerError, match="unknown_symbol"):
            next(c.realtime([BAD]))
        with pytest.raises(Disconnected, match="unauthorized"):
            next(client(rig, api_key="wrong").trade_events())
        with pytest.raises(TypeError, match="coroutine"):
            c.subscribe_realtime([A], coroutine)
    with (
        QMTClient("127.0.0.1", unused_port, connect_timeout=0.1) as c,
        pytest.raises(Disconnected, match="cannot connect"),
    ):
        next(c.realtime([A]))
    with pytest.raises(TypeError, match="on_state"):
        QMTClient("host", on_state=coroutine)


async def coroutine(told):
    raise AssertionError


def test_a_slow_loop_gets_the_newest_and_is_told(rig, monkeypatch):
    monkeypatch.setattr(backlog, "PATIENCE", 0.0)
    told: list[StreamState] = []
    threads = set()

    def tell(state):
        told.append(state)
        threads.add(threading.current_thread())

    with client(rig, on_state=tell) as c, c.realtime([A]) as stream:
        states = lambda: [state.state for state in told]  # noqa: E731
        thread = threading.Thread(target=next, args=(stream,))
        thread.start()
        wait_for(lambda: TOPIC in rig.source.wanted)
        rig.source.publish(TOPIC, tick(A, 0))
        thread.join()
        held = stream._exchange.frames._control._reader._backlog
        for price in range(1, 501):
            rig.source.publish(TOPIC, tick(A, price))
        newest = b'"lastPrice":500'
        wait_for(lambda: any(newest in entry.value for entry in [*held._newest.values()]), "the frames to be read")
        prices = []
        while not prices or prices[-1] != 500:
            prices.append(next(stream)[A][0]["lastPrice"])
        # A loop that takes a frame as soon as it comes is told when it has caught up, or after a second.
        further = count(501)
        while not {"lagging", "skipped", "caught_up"} <= set(states()):
            rig.source.publish(TOPIC, tick(A, price := next(further)))
            while next(stream) != tick(A, price):
                pass
    assert len(prices) < 100
    assert threads == {thread, threading.current_thread()}, "the threads that read"


def test_a_state_callback_that_fails_ends_the_loop(rig):
    with client(rig, on_state=lambda state: 1 / 0) as c, pytest.raises(CallbackError) as caught:
        next(c.realtime([A]))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_position_is_that_of_the_loop(rig, tmp_path):
    state = tmp_path / "position.json"
    stop = threading.Event()

    def trade():
        while not stop.wait(0.01):
            rig.source.trade("order", n=1)

    trading = threading.Thread(target=trade)
    trading.start()
    try:
        with client(rig, api_key=KEY) as c:
            with c.trade_events(state=state) as events:
                next(events)
                seen = next(events)["seq"]
            # The loop did not ask for the frame after this one, so it has not finished with it.
            assert next(c.trade_events(state=state))["seq"] == seen
    finally:
        stop.set()
        trading.join()


def test_the_thread_ends_with_the_last_reference(rig):
    c = client(rig)
    stream = c.realtime([A])
    with Publishing(rig):
        next(stream)
    gone = weakref.ref(c)
    del c, stream
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("end", ["client", "break"])
def test_a_client_that_is_closed_closes_its_connections(end):
    codes = []

    def play(connection):
        code = json.loads(connection.recv())["stocks"][0]
        connection.send(json.dumps(tick(code, 1)))
        with contextlib.suppress(ConnectionClosed):
            connection.recv()
        codes.append(connection.close_code)

    with serve(play, "127.0.0.1", 0) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with QMTClient("127.0.0.1", server.socket.getsockname()[1]) as c:
                if end == "client":
                    kept = [c.realtime([A]) for _ in range(5)]
                    for stream in kept:
                        next(stream)
                else:
                    for _ in range(5):
                        for _ in c.realtime([A]):
                            break
            wait_for(lambda: len(codes) == 5, "the ends of the connections")
        finally:
            server.shutdown()
            serving.join()
    assert codes == [1000] * 5


def test_a_client_can_be_used_again_after_its_close(rig):
    c = client(rig)
    with Publishing(rig):
        for _ in range(2):
            assert list(next(c.realtime([A]))) == [A]
            c.close()
            assert ours() == []


def test_typed_frames_are_records(rig):
    with client(rig) as c, Publishing(rig):
        record = next(c.realtime([A], typed=True))[A][0]
    assert record.last_price >= 1


PROGRAM = """
import sys
from qmt_bridge.sync import QMTClient
client = QMTClient("127.0.0.1", int(sys.argv[1]))
{body}
"""


def program(rig, body: str) -> subprocess.Popen[str]:
    port = str(rig.servers[-1].port)
    text = PROGRAM.format(body=body)
    return subprocess.Popen(
        [sys.executable, "-c", text, port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(os.name == "nt", reason="there a process of the same console cannot be sent Ctrl-C alone")
def test_ctrl_c_ends_a_loop_that_waits(rig):
    body = 'print("reading", flush=True)\nfor frame in client.realtime(["600000.SH"]): pass'
    with program(rig, body) as running:
        assert running.stdout.readline() == "reading\n"
        wait_for(lambda: TOPIC in rig.source.wanted)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=DEADLINE)
    assert errors.endswith("KeyboardInterrupt\n")
    assert "Exception ignored" not in errors
    assert running.returncode == -signal.SIGINT


def test_a_program_that_ends_closes_its_streams(rig):
    body = 'running = client.subscribe_realtime(["600000.SH"], lambda frame: print("got", flush=True))\ninput()'
    port = str(rig.servers[-1].port)
    with (
        Publishing(rig),
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(body=body), port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running,
    ):
        assert running.stdout.readline() == "got\n"
        _, errors = running.communicate("\n", timeout=DEADLINE)
    assert (running.returncode, errors) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_reads_with_a_thread_of_its_own(rig):
    body = """
import os, warnings
warnings.simplefilter("ignore")
stream = client.realtime(["600000.SH"])
next(stream)
if os.fork() == 0:
    try:
        next(stream)
    except RuntimeError as exc:
        print(exc, flush=True)
    print(list(next(client.realtime(["600000.SH"]))), flush=True)
    stream._exchange.frames.close = lambda: print("the loop of the parent was touched", flush=True)
    del stream
    client.close()
    os._exit(0)
os.wait()
print(list(next(stream)), flush=True)
"""
    with Publishing(rig), program(rig, body) as running:
        printed, errors = running.communicate(timeout=DEADLINE)
    assert errors == ""
    told, child, parent = printed.splitlines()
    assert told.startswith("this stream was begun before a fork")
    assert child == parent == "['600000.SH']"


def test_both_clients_have_the_same_methods_and_parameters():
    import inspect

    from qmt_bridge import QMTClient as Other

    def parameters(of, name):
        return [str(each).partition(":")[0] for each in inspect.signature(getattr(of, name)).parameters.values()]

    names = {name for name in vars(Other) if not name.startswith("_")} - {"pages"}
    assert names <= set(vars(sync.QMTClient))
    for name in [*names, "__init__"]:
        assert parameters(sync.QMTClient, name) == parameters(Other, name), name
