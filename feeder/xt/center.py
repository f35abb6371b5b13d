"""xtquant's own data service in this process, logged in with a token: market data without a terminal.

`open_center` runs on the thread that makes xtdata's calls, once per process. xtquant cannot begin it a second time, so
the caller has to end the process if it fails.
"""

from __future__ import annotations

import importlib
import logging
import re
import socket
from collections.abc import Sequence
from typing import Any

from feeder.xt import sdk
from qmt_bridge import private
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Unavailable

logger = logging.getLogger(__name__)

# xtquant has no authentication, and by default listens on every address of the machine.
HOST = "127.0.0.1"
# These ports are tried one after the other, because several feeders may run on one machine.
PORTS = (58609, 58619)
# How long, and how many servers, to try in order to distinguish a missing network from a refused token.
REACH_SECONDS = 2.0
REACH_SERVERS = 5


def check(config: Config) -> None:
    """Raise `ConfigError` if a server of `xt_servers` is not an address."""
    for server in config.xt_servers:
        sdk.parse_address(server, "xt_servers")


def open_center(config: Config) -> tuple[str, int]:
    """Log in, load the markets and return the address to which xtdata connects.

    This never returns if the servers do not answer. Raise `ConfigError` with xtquant's reason, or `Unavailable` if the
    servers that it names cannot be reached at all.
    """
    center: Any = importlib.import_module("xtquant.xtdatacenter")
    home = config.xt_home_path
    try:
        private.make_folder(home)
        center.set_token(config.xt_token)
        center.set_data_home_dir(str(home))
        if config.xt_servers:
            center.set_allow_optmize_address(list(config.xt_servers))
        # False: do not start the default service, which takes one fixed port.
        center.init(False)
        host, port = center.listen(HOST, PORTS)
    except Exception as exc:
        reason = f"{type(exc).__name__}: {exc}".replace(config.xt_token, "***")
        # xtquant reports a refused token and a failed connection in the same way, with the servers
        # (xtdatacenter.py 236-290).
        servers = re.findall(r"(\d+(?:\.\d+){3}):(\d+)", reason)
        if servers and not _reaches_any(servers[:REACH_SERVERS]):
            raise Unavailable("xt_token", f"none of its servers can be reached: {reason}") from None
        raise ConfigError("xt_token", reason) from None
    logger.info("data service at %s:%d, its data in %s", host, port, home)
    return host, port


def _reaches_any(servers: Sequence[tuple[str, str]]) -> bool:
    for host, port in servers:
        try:
            socket.create_connection((host, int(port)), REACH_SECONDS).close()
        except (OSError, OverflowError):
            continue
        return True
    return False


def close_center() -> None:
    """Stop the service and close its ports, where xtquant can: the native module of 250807.1.2 lacks the function."""
    center: Any = importlib.import_module("xtquant.xtdatacenter")
    try:
        center.shutdown()
    except AttributeError as exc:
        # The end of this process, which is near, closes them.
        logger.debug("the data service cannot be stopped: %s", exc)
