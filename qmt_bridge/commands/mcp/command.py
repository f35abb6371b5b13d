"""`qmt-bridge mcp`: serve AI applications over standard input and output (docs/mcp.md)."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from qmt_bridge.commands.gateway_address import reachable
from qmt_bridge.commands.options import fail, load_settings, no_effect, settings
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, QMTBridgeError
from qmt_bridge.process.stop import leave

_PORTS = {"http": 80, "https": 443}
# The exit code of a command that a signal has ended.
_INTERRUPTED = 130


@click.command()
@click.option("--url", help="The gateway, such as https://quotes.example.  [default: by host and port]")
@click.option(
    "--ca",
    type=click.Path(dir_okay=False),
    help="https: PEM file of the certificate authority to trust, instead of those of the system.",
)
@settings("host", "port")
def mcp(config_file: Path | None, url: str | None, ca: str | None, **flags: Any) -> None:
    """Serve AI applications, which start this command: an MCP server, read-only, over standard input and output.

    It has tools for last values, bars of the day, the order book, events of the account, state and capabilities.

    The key of the gateway is in QMT_BRIDGE_API_KEY or in the settings, never a flag.

    qmt-bridge mcp --url http://192.168.1.10:8000
    """
    config = load_settings(config_file, {**flags, "api_key": None}, only=True)
    try:
        from qmt_bridge.mcp.server import serve
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("mcp", "mcp_types"):
            raise
        fail(ConfigError("mcp", "needs the package mcp: pip install 'qmt-bridge-gateway[mcp]'"))
    try:
        asyncio.run(serve(_gateway(config, url, ca)))
    except QMTBridgeError as exc:
        fail(exc)
    except KeyboardInterrupt:
        # The package's thread that reads standard input ends only with the input, and Python would wait for it.
        leave(_INTERRUPTED)


def _gateway(config: Config, url: str | None, ca: str | None) -> Any:
    from qmt_bridge.mcp.gateway import Gateway

    given = url or f"http://{reachable(config.host)}:{config.port}"
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    surplus = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in _PORTS or not parts.hostname or port == 0 or surplus:
        # Without what was given, in which a password may stand.
        raise ConfigError("--url", "expected one such as http://127.0.0.1:8000, without a path, a user or a key")
    secure = parts.scheme == "https"
    if ca is not None and not secure:
        no_effect("ca", "only a URL that begins with https:// has a certificate")
    try:
        tls = ssl.create_default_context(cafile=ca) if secure else False
    except OSError as exc:
        raise ConfigError(
            "--ca", f"{ca} holds no certificate authority: {getattr(exc, 'reason', None) or exc}"
        ) from exc
    return Gateway(given, parts.hostname, port or _PORTS[parts.scheme], config.api_key, tls)
