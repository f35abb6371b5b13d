"""Facts about a forwarder of this machine: its keys, where it listens, and what its address of health answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zmq

from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint, ipc_folder
from qmt_bridge.commands.doctor.facts.network import CONNECT_SECONDS, bind_error
from qmt_bridge.commands.gateway_address import ask_gateway
from qmt_bridge.config import FORWARDED, Config
from qmt_bridge.curve.certificate import Certificate
from qmt_bridge.curve.key_folder import Curve, client_certificates
from qmt_bridge.errors import ConfigError
from qmt_bridge.process.stop import Stop


class Health(NamedTuple):
    """What answers at the address of health: the content of /readyz, and without one why nothing can listen there."""

    shown: dict[str, Any] | None = None
    error: str | None = None


def keys(config: Config) -> tuple[str, int]:
    """Return why a forwarder does not start with the keys of these settings, and how many clients they admit."""
    try:
        endpoint.forwarded_endpoints(config)
    except ConfigError as exc:
        return str(exc), 0
    if not config.curve_dir:
        return "", 0
    try:
        found = list(client_certificates(Path(config.curve_dir)))
    except OSError:
        # No client was added yet.
        return "", 0
    return "", sum(isinstance(each, Certificate) for each in found)


def listen_errors(config: Config) -> Iterator[tuple[str, str, str | None]]:
    """Yield the name and the value of each address in use, and why a forwarder cannot listen there."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    # A pair made for this look, so that no client can connect; whether the own keys are right is told by `keys`.
    curve = Curve(*zmq.curve_keypair(), None)
    try:
        for name in FORWARDED:
            address = getattr(config, name)
            error = None
            # To bind an ipc: address would replace the file that another program listens on.
            if address and not ipc_folder.is_ipc(address):
                try:
                    sockets.bind_publisher(context, name, address, curve).close(linger=0)
                except ConfigError as exc:
                    error = exc.reason
            if address:
                yield name, address, error
    finally:
        context.destroy(linger=0)


def health(config: Config) -> Health:
    """Ask the forwarder whose address of health the settings have, if they have one."""
    if not config.forward_health_addr:
        return Health()
    host, _, port = config.forward_health_addr.rpartition(":")
    host = host.strip("[]")
    asked = msgspec.structs.replace(config, host=host, port=int(port), tls_cert="", tls_key="")
    shown = ask_gateway(asked, "/readyz", Stop(), CONNECT_SECONDS)
    # A gateway, for instance, has a page of the same name.
    if shown is not None and isinstance(shown.get("links"), dict) and "heartbeat_age" in shown:
        return Health(shown)
    return Health(None, bind_error(host, int(port)))
