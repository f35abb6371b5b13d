"""Facts about addresses and ports: what is free, and what answers."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import zmq

from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint, ipc_folder
from qmt_bridge.commands.doctor.facts.error_text import error_text
from qmt_bridge.commands.gateway_address import ask_gateway
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.process.stop import Stop
from qmt_bridge.system import ports

CONNECT_SECONDS = 2.0


def is_elsewhere(address: str) -> bool:
    """Return whether an address belongs to another machine, so that no program here can listen on it."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == address or sockets.is_local(address) or not host:
        return False
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError as exc:
        return exc.errno in (errno.EADDRNOTAVAIL, getattr(errno, "WSAEADDRNOTAVAIL", errno.EADDRNOTAVAIL))
    return False


def connect_error(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as exc:
        return error_text(exc)
    return None


def bind_error(host: str, port: int) -> str | None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            ports.claim(probe)
            probe.bind((host, port))
    except OSError as exc:
        return ports.why_not(exc, port)
    except OverflowError as exc:
        return error_text(exc)
    return None


def wire_errors(config: Config) -> Iterator[tuple[str, str | None]]:
    """Yield the name of each address setting, and why a feeder cannot listen there."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        where = endpoint.addresses(config)
        for name, address in where.items():
            if name == "trade_ask_addr" and address == where["ask_addr"]:
                continue
            error = None
            try:
                found = endpoint.listening_endpoint(config, name)
                # To bind an ipc: address would replace the file that another program listens on.
                if not ipc_folder.is_ipc(address):
                    sockets.bind_publisher(context, name, address, found.curve).close(linger=0)
            except ConfigError as exc:
                error = exc.reason
            yield name, error
    finally:
        context.destroy(linger=0)


def push_error(config: Config) -> str | None:
    """Return why a feeder cannot listen where pushers connect; None where it can."""
    # To bind an ipc: address would replace the file that another program listens on.
    if ipc_folder.is_ipc(config.push_addr):
        return ipc_folder.why_not_trusted(config.push_addr, ()) or ipc_folder.why_not_closed(config.push_addr) or None
    host, _, port = config.push_addr.removeprefix("tcp://").rpartition(":")
    return bind_error("" if host == "*" else host.strip("[]"), 0 if port == "*" else int(port))


def is_gateway(config: Config) -> bool:
    found = ask_gateway(config, "/healthz", Stop(), CONNECT_SECONDS)
    return found is not None and found.get("status") == "ok"
