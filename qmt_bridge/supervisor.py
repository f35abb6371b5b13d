"""`qmt-bridge up`: the feeder and the gateway as child processes; a dead one is reported and started again.

Runs in the main thread. A child stops when its standard input ends, so it also stops when this process is killed,
and on Windows, which has no SIGTERM, as gracefully as elsewhere (untested there).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from qmt_bridge.config import ENV_PREFIX, Config, export_env

logger = logging.getLogger(__name__)

# The children are told at the same moment; one that has not ended by then is killed.
STOP_TIMEOUT = 4.0
# Between two starts of a child that keeps dying.
BACKOFF = (0.2, 10.0)
# A child that lived that long died of something new.
STEADY = 30.0
POLL = 0.1
# Exit code of a part that ends because what it needs is not there yet (EX_TEMPFAIL of sysexits.h).
TRY_AGAIN = 75
# From here on Windows' exit codes are exceptions of native code, such as 0xC0000005.
_NATIVE_CRASH = 0xC0000000


class _Child:
    """One part and its process."""

    def __init__(self, part: str, env: dict[str, str]) -> None:
        self.part = part
        self._command = [sys.executable, "-m", "qmt_bridge.cli", part, "--until-eof"]
        self._env = env
        self.process: subprocess.Popen[bytes] | None = None
        self._backoff = BACKOFF[0]
        self._started_at = 0.0
        self._start_at = 0.0

    @property
    def pid(self) -> int | None:
        """Return the process id while the part runs."""
        return self.process.pid if self.process is not None else None

    def start(self) -> None:
        """Start the process."""
        self._started_at = time.monotonic()
        self.process = subprocess.Popen(self._command, stdin=subprocess.PIPE, env=self._env)

    def watch(self, now: float) -> int | None:
        """Start the part again when its time has come; return the exit code of one that has just died."""
        if self.process is None:
            if now >= self._start_at:
                self.start()
            return None
        code = self.process.poll()
        if code is None:
            return None
        self._close_input()
        self.process = None
        if now - self._started_at > STEADY:
            self._backoff = BACKOFF[0]
        self._start_at = now + self._backoff
        self._backoff = min(self._backoff * 2, BACKOFF[1])
        return code

    def stop(self) -> None:
        """Tell the process to end."""
        if self.process is not None:
            self._close_input()

    def wait(self, deadline: float) -> None:
        """Wait for the end until `deadline`, then kill."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("%s did not stop in time; killed", self.part)
            self.process.kill()
            self.process.wait()

    def _close_input(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()


def run(config: Config, stop: threading.Event, ready: Callable[[dict[str, Any], dict[str, int | None]], None]) -> int:
    """Run feeder and gateway until `stop`; call `ready` with /readyz and the process ids once all is there.

    A part that ends is started again, and until everything has been ready once only if that may help: it said so, or
    it did not end by itself. Else return 1: it has said what is wrong, and would say it again.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    env.update(export_env(config))
    children = [_Child("feeder", env), _Child("gateway", env)]
    was_ready = False
    try:
        for child in children:
            child.start()
        while not stop.wait(POLL):
            now = time.monotonic()
            for child in children:
                code = child.watch(now)
                if code is None:
                    continue
                if not was_ready and not _may_pass(code):
                    logger.error("%s ended with exit code %d before it was ready", child.part, code)
                    return 1
                logger.error("%s died with exit code %d; starting it again", child.part, code)
            if not was_ready and (status := _readiness(config)) is not None:
                was_ready = True
                ready(status, {child.part: child.pid for child in children})
    finally:
        deadline = time.monotonic() + STOP_TIMEOUT
        for child in children:
            child.stop()
        for child in children:
            child.wait(deadline)
    return 0


def _may_pass(code: int) -> bool:
    # Below zero it is the signal that killed it.
    return code == TRY_AGAIN or code < 0 or code >= _NATIVE_CRASH


def reachable(host: str) -> str:
    """Return a host by which this machine reaches what listens on `host`."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches what listens on `host`."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _readiness(config: Config) -> dict[str, Any] | None:
    url = f"http://{reachable(config.host)}:{config.port}/readyz"
    # A proxy of the system has no business between a machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1.0) as response:
            status: dict[str, Any] = json.load(response)
            return status
    except urllib.error.HTTPError as exc:
        # Settings of the trade accounts alone may be wrong, and market data is served.
        with exc, contextlib.suppress(ValueError):
            refused: dict[str, Any] = json.load(exc)
            return refused if refused.get("serving") is True else None
        return None
    except (urllib.error.URLError, OSError, ValueError):
        return None
