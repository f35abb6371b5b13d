"""The address of the gateway: by which host this machine reaches it, and what answers there."""

from __future__ import annotations

import json
import socket
import ssl
import time
from typing import Any

from qmt_bridge.config import Config
from qmt_bridge.process.stop import Stop

# Seconds for the whole answer of the gateway: another program may listen there, and may send byte by byte.
ASK_TIMEOUT = 1.0
ANSWER_BYTES = 64 * 1024
# Seconds that one read waits at most, so that a stop does not wait for a frozen gateway.
STEP = 0.1


def reachable(host: str) -> str:
    """Return a host by which this machine reaches a server that listens on `host`."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def ask_gateway(config: Config, path: str, stop: Stop, timeout: float = ASK_TIMEOUT) -> dict[str, Any] | None:
    """Return the JSON object that the program at the gateway's address answers; None without one in `timeout` seconds.

    urllib is not used: its timeout begins anew with every byte, and any program may listen at that address.
    """
    host = reachable(config.host)
    bare = host.strip("[]")
    until = time.monotonic() + timeout
    answer = b""
    try:
        with _encrypted(socket.create_connection((bare, config.port), timeout), config, bare) as connection:
            connection.settimeout(STEP)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
            while len(answer) <= ANSWER_BYTES and time.monotonic() < until and not stop.is_set():
                try:
                    part = connection.recv(ANSWER_BYTES)
                except TimeoutError:
                    continue
                except ssl.SSLEOFError:
                    # The connection ended without a farewell of TLS; what came is complete, or no JSON.
                    part = b""
                answer += part
                if not part:
                    # The connection has ended; JSON that was cut off raises ValueError.
                    found = json.loads(answer.partition(b"\r\n\r\n")[2])
                    return found if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError):
        return None
    return None


def _encrypted(connection: socket.socket, config: Config, host: str) -> socket.socket:
    """Return the connection, with TLS if the gateway has a certificate.

    The certificate is not checked: it has the gateway's public name and not this address, no key is sent, and the
    answer says to which run of `qmt-bridge up` the gateway belongs.
    """
    if not config.tls_cert:
        return connection
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise
