"""The address of the gateway: by which host this machine reaches it, and what answers there."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from typing import Any

from qmt_bridge.config import Config
from qmt_bridge.keys.exposure import is_loopback
from qmt_bridge.process.stop import Stop

# Seconds for the whole answer of the gateway: another program may listen there, and may send byte by byte.
ASK_TIMEOUT = 1.0
ANSWER_BYTES = 64 * 1024
# Seconds that one read waits at most, so that a stop does not wait for a frozen gateway.
STEP = 0.1
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]", re.ASCII)


def reachable(host: str) -> str:
    """Return a host by which this machine reaches a server that listens on `host`."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def own_address() -> str:
    """Return the address by which other machines of the network reach this one; that of loopback without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # A datagram socket sends nothing here: the system only chooses the way, and with it the own address.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def page_url(config: Config) -> tuple[str, bool]:
    """Return the address of the page, without any key, and whether other machines reach it."""
    if config.behind_proxy:
        # The proxy has the port and the certificate.
        return f"https://{config.hosts[0] if config.hosts else own_address()}/", bool(config.hosts)
    if is_loopback(config.host):
        host, others = reachable(config.host), False
    else:
        everywhere = config.host in ("0.0.0.0", "::", "")
        host, others = own_address() if everywhere else reachable(config.host), True
        host = config.hosts[0] if config.hosts else host
    return f"http{'s' if config.tls_cert else ''}://{host}:{config.port}/", others


def ask_gateway(config: Config, path: str, stop: Stop, timeout: float = ASK_TIMEOUT) -> dict[str, Any] | None:
    """Return the JSON object that the program at the gateway's address answers; None without one in time."""
    answer = fetch_page(config, path, stop, timeout)
    if answer is None:
        return None
    try:
        # JSON that was cut off raises ValueError.
        found = json.loads(answer[1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def fetch_page(
    config: Config, path: str, stop: Stop, timeout: float = ASK_TIMEOUT, most: int = ANSWER_BYTES, key: str = ""
) -> tuple[int, bytes] | None:
    """Return status and body of the answer at the gateway's address; None without one of at most `most` bytes in time.

    `key` is shown to another machine alone: on this one any program may listen while the gateway is away. Nor is it
    shown where there is a certificate, which is not checked.

    urllib is not used: its timeout begins anew with every byte, and any program may listen at that address.
    """
    host = reachable(config.host)
    bare = host.strip("[]")
    until = time.monotonic() + timeout
    answer = b""
    try:
        with _encrypted(socket.create_connection((bare, config.port), timeout), config, bare) as connection:
            connection.settimeout(STEP)
            is_shown = key and key.isascii() and not config.tls_cert and not is_loopback(host)
            shown = f"X-API-Key: {key}\r\n" if is_shown else ""
            head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{shown}Connection: close\r\n\r\n"
            connection.sendall(head.encode("ascii"))
            while len(answer) <= most and time.monotonic() < until and not stop.is_set():
                try:
                    part = connection.recv(ANSWER_BYTES)
                except TimeoutError:
                    continue
                except ssl.SSLEOFError:
                    # The connection ended without a farewell of TLS; what came is complete, or no JSON.
                    part = b""
                answer += part
                if not part:
                    # The connection has ended.
                    line, _, body = answer.partition(b"\r\n\r\n")
                    status = _STATUS.match(line)
                    return None if status is None else (int(status[1]), body)
    except (OSError, ValueError):
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
