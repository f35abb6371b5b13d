"""Why a connection does not come about: the judgement of events, and real sockets that cannot talk to each other."""

from __future__ import annotations

import os
import socket as net
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import zmq

from qmt_bridge import handshakes, sockets
from qmt_bridge.curve.authenticator import Authenticator
from qmt_bridge.curve.key_folder import Curve, load_curve, make_keys
from qmt_bridge.handshakes import PATIENCE_SECONDS, REPEAT_SECONDS, Inward, Links, Outward, Trouble
from tests.support.ports import ANY_PORT, free_port, tcp
from tests.support.waiting import SLOWNESS

SECONDS = 30.0 * SLOWNESS
AUTH, PROTOCOL, NO_DETAIL = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
)
MISMATCH, CRYPTOGRAPHIC = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
CONNECTED, SUCCEEDED = zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED
CLOSED, RETRIED, DISCONNECTED = zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED, zmq.EVENT_DISCONNECTED
ACCEPTED = zmq.EVENT_ACCEPTED


# -- The judgement


@pytest.mark.parametrize(
    ("events", "curve", "trouble"),
    [
        pytest.param([], False, Trouble.ABSENT, id="silence"),
        pytest.param([(CLOSED, 1), (RETRIED, 50)], False, Trouble.ABSENT, id="refused"),
        pytest.param([(CONNECTED, 5)], False, Trouble.NO_FEEDER, id="mute"),
        pytest.param([(CONNECTED, 5), (DISCONNECTED, 5)], True, Trouble.NO_FEEDER, id="stranger-for-curve"),
        pytest.param([(CONNECTED, 5), (NO_DETAIL, 32), (DISCONNECTED, 5)], False, Trouble.NO_FEEDER, id="stranger"),
        pytest.param([(CONNECTED, 5), (NO_DETAIL, 32), (DISCONNECTED, 5)], True, Trouble.FEEDER_KEY, id="feeder-key"),
        pytest.param([(CONNECTED, 5), (AUTH, 400), (DISCONNECTED, 5)], True, Trouble.KEY_REFUSED, id="key-refused"),
        pytest.param([(CONNECTED, 5), (PROTOCOL, MISMATCH)], False, Trouble.CURVE_MISSING, id="curve-missing"),
        pytest.param([(CONNECTED, 5), (PROTOCOL, MISMATCH)], True, Trouble.CURVE_UNEXPECTED, id="curve-unexpected"),
        pytest.param([(PROTOCOL, MISMATCH), (NO_DETAIL, 104)], True, Trouble.CURVE_UNEXPECTED, id="either-leaves"),
        pytest.param([(AUTH, 400), (DISCONNECTED, 5), (CLOSED, 5)], True, Trouble.ABSENT, id="refused-then-gone"),
        pytest.param([(CONNECTED, 5), (SUCCEEDED, 0), (DISCONNECTED, 5)], True, Trouble.ABSENT, id="lost"),
        pytest.param([(AUTH, 400), (CONNECTED, 5), (SUCCEEDED, 0)], True, None, id="let-in"),
    ],
)
def test_events_of_a_connecting_end_name_the_trouble(
    events: list[tuple[int, int]], curve: bool, trouble: Trouble | None
) -> None:
    state = Outward(curve, 0.0)
    for event, value in events:
        state.note(event, value, 1.0)
    assert state.trouble(1.0 + PATIENCE_SECONDS) == trouble


@pytest.mark.parametrize(("event", "value", "at_once"), [(AUTH, 400, True), (NO_DETAIL, 32, False)])
def test_only_what_the_feeder_said_is_told_at_once(event: int, value: int, at_once: bool) -> None:
    state = Outward(True, 0.0)
    state.note(event, value, 0.1)
    assert (state.trouble(0.1) is not None) == at_once


def test_a_connection_that_was_up_gets_the_time_of_a_restart() -> None:
    state = Outward(False, 0.0)
    state.note(SUCCEEDED, 0, 100.0)
    state.note(DISCONNECTED, 5, 200.0)
    assert state.trouble(200.0 + PATIENCE_SECONDS - 0.1) is None
    assert state.trouble(200.0 + PATIENCE_SECONDS) == Trouble.ABSENT


def test_libzmq_has_given_up_if_no_event_follows_a_failure() -> None:
    state = Outward(True, 0.0)
    state.note(AUTH, 400, 1.0)
    state.note(DISCONNECTED, 5, 1.0)
    assert [state.given_up(at) for at in (1.5, 2.0, 2.0)] == [False, True, False]
    state.note(NO_DETAIL, 32, 3.0)
    state.note(RETRIED, 50, 3.0)
    assert not state.given_up(9.0)


@pytest.mark.parametrize(
    ("events", "curve", "troubles"),
    [
        pytest.param([(ACCEPTED, 7), (SUCCEEDED, 0), (DISCONNECTED, 7)], True, [], id="a-client"),
        pytest.param([(ACCEPTED, 7), (AUTH, 400), (DISCONNECTED, 7)], True, [], id="named-by-the-authenticator"),
        pytest.param([(ACCEPTED, 7), (PROTOCOL, CRYPTOGRAPHIC)], True, [Trouble.FEEDER_KEY], id="feeder-key"),
        pytest.param([(ACCEPTED, 7), (PROTOCOL, MISMATCH)], True, [Trouble.CURVE_MISSING], id="plain-client"),
        pytest.param([(ACCEPTED, 7), (PROTOCOL, MISMATCH)], False, [Trouble.CURVE_UNEXPECTED], id="curve-client"),
        pytest.param([(ACCEPTED, 7), (NO_DETAIL, 104)], True, [Trouble.NO_FEEDER], id="left"),
        pytest.param([(ACCEPTED, 7), (DISCONNECTED, 7)], True, [Trouble.NO_FEEDER], id="stranger"),
        pytest.param([(ACCEPTED, 7), (ACCEPTED, 8), (SUCCEEDED, 0), (DISCONNECTED, 7)], True, [], id="one-of-two"),
    ],
)
def test_events_of_a_listening_end_name_the_fault_of_the_client(
    events: list[tuple[int, int]], curve: bool, troubles: list[Trouble]
) -> None:
    state = Inward(curve)
    assert [trouble for event, value in events if (trouble := state.note(event, value)) is not None] == troubles


# -- Real sockets


class Client:
    """The connecting end: sockets, and the links that watch them."""

    def __init__(self) -> None:
        self.links = Links()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def subscribe(self, address: str, curve: Curve | None) -> zmq.Socket[bytes]:
        return self._keep(sockets.connect_subscriber(self.context, address, curve, self.links))

    def ask(self, address: str) -> zmq.Socket[bytes]:
        return self._keep(sockets.connect_dealer(self.context, address, None, self.links))

    def look_until(self, condition: Callable[[list[handshakes.Notice]], object]) -> list[handshakes.Notice]:
        news: list[handshakes.Notice] = []
        deadline = time.monotonic() + SECONDS
        while not condition(news):
            assert time.monotonic() < deadline, f"not in time; told was {news}"
            news += self.links.look(time.monotonic())
            time.sleep(0.01)
        return news

    def troubles(self) -> dict[str, Trouble | None]:
        return self.links.troubles(time.monotonic())

    def _keep(self, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        self._sockets.append(socket)
        return socket

    def close(self) -> None:
        self.links.close()
        for socket in self._sockets:
            socket.close(linger=0)
        self.context.term()


@pytest.fixture
def client() -> Iterator[Client]:
    with closing(Client()) as client:
        yield client


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("feeder", "other"):
        make_keys(folder / name)
    return folder


def curve_of(keys: Path, who: str) -> Curve | None:
    """Return the keys of a client: "allowed", "stranger", "wrong feeder", or "none"."""
    ours, other = (load_curve(str(keys / name), "gateway") for name in ("feeder", "other"))
    assert ours is not None
    assert other is not None
    return {
        "allowed": ours,
        "stranger": other._replace(server=ours.server),
        "wrong feeder": ours._replace(server=other.server),
        "none": None,
    }[who]


class Feeder:
    """The listening end: a publisher whose links are looked at, and its handshakes answered, in a thread."""

    def __init__(self, keys: Path | None, address: str = ANY_PORT) -> None:
        self.said: list[str] = []
        self.address = ""
        self._keys = keys
        self._wanted = address
        self._ready, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(SECONDS)

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        links = Links()
        authenticator = Authenticator(context, str(self._keys)) if self._keys else None
        curve = load_curve(str(self._keys), "feeder") if self._keys else None
        publisher = sockets.bind_publisher(context, "market_addr", self._wanted, curve, links=links)
        self.address = publisher.getsockopt_string(zmq.LAST_ENDPOINT)
        self._ready.set()
        while not self._done.wait(0.01):
            if authenticator is not None and authenticator.socket.poll(0):
                authenticator.answer()
            self.said += [news.text for news in links.look(time.monotonic())]
            publisher.send_multipart([b"quote/x/", b"body"])
        links.close()
        context.destroy(linger=0)

    def close(self) -> None:
        self._done.set()
        self._thread.join()


@contextmanager
def stranger(reply: bytes, *, leaves: bool) -> Iterator[str]:
    """Listen as something that is no ZeroMQ."""
    with net.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        kept: list[net.socket] = []

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listening.accept()
                except OSError:
                    return
                kept.append(accepted)
                accepted.sendall(reply)
                if leaves:
                    accepted.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            # On Windows a socket that listens cannot be shut down, and its end wakes the thread.
            with suppress(OSError):
                listening.shutdown(net.SHUT_RDWR)
            listening.close()
            thread.join()
            for each in kept:
                each.close()


@pytest.mark.parametrize(
    ("encrypts", "who", "trouble", "mistakable", "said", "at_feeder"),
    [
        pytest.param(True, "stranger", Trouble.KEY_REFUSED, None, "copy gateway.key into", "", id="key-refused"),
        pytest.param(
            True,
            "wrong feeder",
            Trouble.FEEDER_KEY,
            None,
            "than the feeder.key in curve_dir here",
            "the public key of another",
            id="feeder-key",
        ),
        pytest.param(
            True,
            "none",
            Trouble.CURVE_MISSING,
            Trouble.NO_FEEDER,
            "expects CURVE keys",
            "market_addr",
            id="curve-missing",
        ),
        pytest.param(
            False, "allowed", Trouble.CURVE_UNEXPECTED, Trouble.FEEDER_KEY, "curve_dir", "market_addr", id="no-curve"
        ),
    ],
)
def test_both_ends_say_that_their_keys_do_not_fit(
    client: Client,
    keys: Path,
    encrypts: bool,
    who: str,
    trouble: Trouble,
    mistakable: Trouble | None,
    said: str,
    at_feeder: str,
) -> None:
    with closing(Feeder(keys / "feeder" if encrypts else None)) as feeder:
        client.subscribe(feeder.address, curve_of(keys, who))
        news = client.look_until(bool)
        # Both ends notice that their mechanisms differ; where the feeder is the first to leave, that is all we see.
        [found] = client.troubles().values()
        assert found in (trouble, mistakable)
        assert said in news[0].text
        assert feeder.address in news[0].text
        if at_feeder:
            client.look_until(lambda _: any(at_feeder in line for line in feeder.said))


@pytest.mark.parametrize("who", ["allowed", "none"])
@pytest.mark.parametrize("leaves", [True, False])
def test_something_that_is_no_feeder_is_told(client: Client, keys: Path, who: str, leaves: bool) -> None:
    with stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64), leaves=leaves) as address:
        client.subscribe(address, curve_of(keys, who))
        client.look_until(bool)
        # With keys an end that leaves at once may also be a feeder that cannot decrypt.
        assert client.troubles()["market_addr"] in (Trouble.NO_FEEDER, Trouble.FEEDER_KEY)


@pytest.mark.parametrize("encrypts", [True, False])
def test_a_feeder_says_that_something_else_connects(client: Client, keys: Path, encrypts: bool) -> None:
    with closing(Feeder(keys / "feeder" if encrypts else None)) as feeder:
        port = int(feeder.address.rpartition(":")[2])
        with net.create_connection(("127.0.0.1", port)) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            # Without keys ZeroMQ takes it for a peer of long ago that has not finished.
            if not encrypts:
                browser.shutdown(net.SHUT_WR)
            client.look_until(lambda _: any("is no ZeroMQ socket" in line for line in feeder.said))


def test_a_socket_of_another_type_is_told(client: Client) -> None:
    with closing(Feeder(None)) as feeder:
        client.ask(feeder.address)
        [news] = client.look_until(bool)
        assert "is not the feeder's socket" in news.text
        assert "ask_addr" in news.text


def test_a_refused_client_gets_data_once_its_key_is_allowed(client: Client, keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "curve"
    make_keys(folder)
    ours = load_curve(str(folder), "gateway")
    assert ours is not None
    curve = curve_of(keys, "allowed")
    assert curve is not None
    with closing(Feeder(folder)) as feeder:
        subscriber = client.subscribe(feeder.address, curve._replace(server=ours.server))
        subscriber.subscribe(b"quote/")
        client.look_until(bool)
        assert not subscriber.poll(0)
        # Copy the key, as the advice says.
        (folder / "clients" / "late.key").write_bytes((keys / "feeder" / "gateway.key").read_bytes())
        news = client.look_until(bool)
        assert [each.good for each in news] == [True]
        assert subscriber.poll(int(SECONDS * 1000))
        assert subscriber.recv_multipart() == [b"quote/x/", b"body"]


def test_an_address_without_answer_is_reported_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "PATIENCE_SECONDS", 0.2)
    address = tcp(free_port())
    client.subscribe(address, None)
    [news] = client.look_until(bool)
    assert news.text.startswith(f"nothing answers at {address}")
    # A handshake may take longer than that on a busy machine.
    monkeypatch.setattr(handshakes, "PATIENCE_SECONDS", 30.0)
    with closing(Feeder(None, address)):
        assert client.look_until(bool) == [handshakes.Notice("the feeder answers: market_addr", "answers")]
        assert client.links.look(time.monotonic() + 2 * REPEAT_SECONDS) == []


def test_the_same_trouble_is_told_once_a_minute(keys: Path) -> None:
    links = Links()
    may = [links._may_tell("market_addr", Trouble.FEEDER_KEY, at) for at in (0.0, 1.0, REPEAT_SECONDS, 61.0)]
    assert may == [True, False, True, False]


@pytest.mark.skipif(os.name == "nt", reason="handles are not descriptors")
def test_links_leave_no_descriptor_behind(keys: Path) -> None:
    process = psutil.Process()

    def once() -> None:
        with closing(Feeder(keys / "feeder")) as feeder, closing(Client()) as client:
            client.subscribe(feeder.address, curve_of(keys, "stranger"))
            client.look_until(bool)

    once()
    before = process.num_fds()
    for _ in range(3):
        once()
    assert process.num_fds() <= before
