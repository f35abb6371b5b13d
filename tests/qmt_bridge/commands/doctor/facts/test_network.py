"""What answers at the port of the gateway."""

from __future__ import annotations

import socket
import threading

import pytest

from qmt_bridge.commands.doctor.facts import network as network_facts
from qmt_bridge.config import Config


@pytest.mark.parametrize(
    ("answer", "ours"),
    [
        (b'HTTP/1.1 200 OK\r\n\r\n{"status":"ok"}', True),
        (b'HTTP/1.1 200 OK\r\n\r\n{"status":["ok"]}', False),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60_000, False),
        (b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
    ],
)
def test_any_answer_at_the_gateways_port_is_judged(answer: bytes, ours: bool) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert network_facts.is_gateway(Config(port=listener.getsockname()[1])) is ours
        finally:
            thread.join()
