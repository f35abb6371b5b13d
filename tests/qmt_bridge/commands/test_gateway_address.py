"""What answers at the address of the gateway: a gateway, or any other program."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from qmt_bridge.commands import gateway_address
from qmt_bridge.config import Config
from qmt_bridge.process.stop import Stop


@contextlib.contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """Accept connections, and send each one `answer`, a byte at a time; None sends nothing."""
    ended = threading.Event()

    def serve() -> None:
        with contextlib.ExitStack() as stack:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    continue
                stack.enter_context(connection)
                with contextlib.suppress(OSError):
                    for byte in answer or b"":
                        connection.sendall(bytes((byte,)))
                    if answer is not None:
                        connection.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        pytest.param(b'HTTP/1.1 200 OK\r\nA: b\r\n\r\n{"ready":true}', {"ready": True}, id="answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n[1]", None, id="no-object"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", None, id="another-protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60_000, None, id="nested"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(None, None, id="black-hole"),
    ],
)
def test_an_answer_of_any_program_is_read_or_refused(answer: bytes | None, found: object) -> None:
    with answering(answer) as port:
        assert gateway_address.ask_gateway(Config(port=port), "/readyz", Stop()) == found


def test_no_answer_is_waited_for_after_a_stop() -> None:
    stop = Stop()
    stop.set()
    with answering(b"HTTP/1.1 200 OK\r\n\r\n{}") as port:
        assert gateway_address.ask_gateway(Config(port=port), "/readyz", stop) is None


@pytest.mark.parametrize(
    ("near", "settings", "key", "shown"),
    [
        (False, {}, "qmtb_1", True),
        # Any program of this machine may listen there while the gateway is away.
        (True, {}, "qmtb_1", False),
        (False, {"tls_cert": "cert.pem"}, "qmtb_1", False),
        (False, {}, "", False),
        (False, {}, "密钥", False),
    ],
)
def test_key_is_shown_to_another_machine_alone(
    near: bool, settings: dict[str, str], key: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_address, "is_loopback", lambda host: near)
    monkeypatch.setattr(gateway_address, "_encrypted", lambda connection, config, host: connection)
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nbody")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        config = Config(host="127.0.0.1", port=listener.getsockname()[1], **settings)
        assert gateway_address.fetch_page(config, "/metrics", Stop(), 20.0, key=key) == (200, b"body")
        thread.join()
    assert (b"X-API-Key: " in asked[0]) is shown
