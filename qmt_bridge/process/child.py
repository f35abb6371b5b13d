"""A Python process that this one starts: its command line, its environment and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from qmt_bridge.config import ENV_PREFIX, LANG_ENV, Config, env_name, export_env

# Which run of `qmt-bridge up` a part belongs to. It is neither a setting nor a secret.
INSTANCE_ENV = "_QMT_BRIDGE_INSTANCE"
# Exit code of a part that ends because what it needs is not there yet, or because a call hangs (EX_TEMPFAIL of
# sysexits.h): a supervisor starts it again.
TRY_AGAIN = 75
# How many seconds a part may take from the request to its end; what lasts longer is killed. A feeder closes its source
# and its sockets, and waits for a slow disk to take the trade events of the last moment (`feeder.app`); a gateway tells
# its clients (`gateway.server`); a store writes what it holds (`qmt_bridge.store.app`), and alerts send
# what waits (`qmt_bridge.alerts.app`).
STOP_SECONDS = {"feeder": 16.0, "gateway": 4.0, "store": 10.0, "alerts": 6.0}


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module`. Its path lacks the current folder: a file there may hide a module."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(config: Config, settings: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment of a process that reads `settings` from it as `config` has them, and gets no others.

    A key or a token is for the process that needs it. What has not to do with us is inherited.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX) or name == LANG_ENV}
    values = export_env(config)
    env.update({env_name(name): values[env_name(name)] for name in settings})
    return env


def instance() -> str:
    """Return what the `qmt-bridge up` that has started this process calls its run; empty without one."""
    return os.environ.get(INSTANCE_ENV, "")
