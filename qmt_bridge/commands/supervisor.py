"""`qmt-bridge up`: the feeder and the gateway as child processes, restarted when they end or freeze.

Runs in the main thread. A child stops when its standard input ends, so it also stops when this process is killed,
and on Windows, which has no SIGTERM, as gracefully as elsewhere (untested there). Children are in a session of their
own: Ctrl-C in a terminal reaches only this process, which then stops them.

Each run has a name, `instance`, which its children repeat in their answers, because the process that answers at an
address may be the feeder or gateway of another run. The feeder is asked on its socket for questions, which its
publishing thread answers. Heartbeats would not do: a consumer can hold them up in a replay that waits for consumers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import psutil
import zmq

from qmt_bridge import sockets
from qmt_bridge.config import ADDRESSES, Config
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.process import child
from qmt_bridge.process.child import STOP_SECONDS, TRY_AGAIN
from qmt_bridge.process.pulse import Pulse
from qmt_bridge.process.stop import Stop
from qmt_bridge.wire.frames import read
from qmt_bridge.wire.messages import FeedStatus
from qmt_bridge.wire.requests import CatchUp, ask_reply_encoder, topic_state_decoder
from qmt_bridge.wire.topics import STATUS_TOPIC

logger = logging.getLogger(__name__)

# Shortest and longest pause, in seconds, between two starts of a child that ends again and again.
BACKOFF = (0.2, 10.0)
# A child that ran for so many seconds ended for a new reason, so its pause begins at the shortest again.
STEADY = 30.0
POLL = 0.1
# Between two questions to each child, once both have been ready.
ASK_EVERY = 1.0
# Seconds for the whole answer of the gateway: another program may listen there, and may send byte by byte.
ASK_TIMEOUT = 1.0
ANSWER_BYTES = 64 * 1024
# Between two lines in the log about a child that has not answered since its start.
STILL_STARTING = 30.0
# From here on Windows' exit codes are exceptions of native code, such as 0xC0000005.
_NATIVE_CRASH = 0xC0000000
_status_decoder = msgspec.msgpack.Decoder(FeedStatus)


class _Child:
    """One part and its process."""

    def __init__(self, part: str, env: dict[str, str], freeze_timeout: float = 0.0) -> None:
        self.part = part
        self._command = child.python("qmt_bridge.cli", part, "--until-eof")
        self._env = env
        self._freeze_timeout = freeze_timeout
        self.process: subprocess.Popen[bytes] | None = None
        # Whether `replace_if_frozen` killed the process: its exit code then does not say that it cannot run.
        self.replaced = False
        self._backoff = BACKOFF[0]
        self._started_at = 0.0
        self._start_at = 0.0
        self._told_at = 0.0

    @property
    def pid(self) -> int | None:
        """Return the process id while the part runs."""
        return self.process.pid if self.process is not None else None

    def start(self) -> None:
        """Start the process."""
        self._started_at = self._told_at = time.monotonic()
        self.replaced = False
        self.pulse = Pulse(self._freeze_timeout, self._started_at)
        # A group of its own is what a session is on Windows, as far as Ctrl-C goes.
        flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, env=self._env, start_new_session=True, creationflags=flags
        )

    def watch(self, now: float) -> int | None:
        """Start the part again when its time has come; return the exit code of one that has just ended."""
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

    def replace_if_frozen(self, now: float) -> None:
        """Kill a process that gives no sign of life any more, and what it has started; `watch` starts another one."""
        if self.process is None:
            return
        frozen, silence = self.pulse.frozen(now), self.pulse.silence(now)
        if not self.pulse.began and now - self._told_at >= STILL_STARTING:
            self._told_at = now
            logger.warning("%s has not answered in the %.0f s since its start", self.part, silence)
        if frozen and not self.replaced:
            logger.error("%s has given no sign of life for %.1f s; it is killed and replaced", self.part, silence)
            self.replaced = True
            self.kill()

    def is_stopped(self) -> bool:
        """Return whether the system has stopped the process (SIGSTOP, or suspended on Windows)."""
        try:
            return self.process is not None and psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

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
            self.kill()
            self.process.wait()

    def kill(self) -> None:
        """Kill the process and what it has started: a frozen worker would not notice that its parent ended."""
        assert self.process is not None
        started: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def kill_at_once(self) -> None:
        """Kill the process from within a signal handler: it takes no lock and raises nothing."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(OSError):
                self.process.kill()

    def _close_input(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()


class _Questions:
    """The feeder's socket for questions, asked for the heartbeat; answers of another run's feeder are ignored."""

    def __init__(self, config: Config, instance: str) -> None:
        """Connect; raise `ConfigError` for keys or an address that cannot be used."""
        self._instance = instance
        curve = sockets.load_curve(config.curve_dir, "gateway")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._socket = sockets.connect_dealer(self._context, config.ask_addr, curve)
        except BaseException:
            self._context.term()
            raise

    def ask(self) -> None:
        """Ask, if there is a connection."""
        with contextlib.suppress(zmq.Again):
            self._socket.send(ask_reply_encoder.encode(CatchUp(0, [STATUS_TOPIC])), zmq.NOBLOCK)

    def answered(self) -> bool:
        """Return whether our feeder has answered since the last call."""
        ours = False
        while True:
            try:
                answer = self._socket.recv_multipart(zmq.NOBLOCK)[-1]
            except zmq.Again:
                return ours
            # Another program may listen there; its answers are ignored.
            with contextlib.suppress(WireError):
                status = read(topic_state_decoder, answer).body
                ours = ours or (status is not None and read(_status_decoder, status).instance == self._instance)

    def close(self) -> None:
        """Disconnect."""
        self._socket.close(linger=0)
        self._context.term()


def run(
    config: Config,
    settings: Mapping[str, Sequence[str]],
    stop: Stop,
    ready: Callable[[dict[str, Any], dict[str, int | None]], None],
) -> int:
    """Run feeder and gateway until `stop`; call `ready` with /readyz and the process ids once both are ready.

    `settings` are the names of those that each part needs. A part that ends is started again, and until everything has
    been ready once only if that may help: its exit code says so, or it did not end by itself. Else return 1: the part
    has logged what is wrong, and a new start would fail alike. Raise `ConfigError` for settings that allow no answer.
    """
    check_addresses(config)
    instance = secrets.token_hex(8)
    feeder, gateway = (
        _Child(
            part,
            {**child.environment(config, settings[part]), child.INSTANCE_ENV: instance},
            config.freeze_timeout,
        )
        for part in ("feeder", "gateway")
    )
    children = (feeder, gateway)
    questions = _Questions(config, instance)

    def kill_children() -> None:
        for each in children:
            each.kill_at_once()

    stop.last_act = kill_children
    # A short limit needs more questions, and the wait for a frozen gateway must not delay the answers of the feeder.
    quarter = config.freeze_timeout / 4 or ASK_EVERY
    ask_every, ask_timeout = min(ASK_EVERY, quarter), min(ASK_TIMEOUT, quarter)
    was_ready = False
    next_ask = 0.0
    try:
        for each in children:
            if not stop.is_set():
                each.start()
        while not stop.wait(POLL):
            now = time.monotonic()
            for each in children:
                code = each.watch(now)
                if code is None:
                    continue
                if not was_ready and not _may_pass(code) and not each.replaced:
                    logger.error("%s ended with exit code %d before it was ready", each.part, code)
                    return 1
                logger.error("%s ended with exit code %d; starting it again", each.part, code)
            if questions.answered():
                feeder.pulse.beat(now)
            if now >= next_ask:
                began = all(each.pulse.began for each in children)
                next_ask = now + (ask_every if was_ready and began else POLL)
                questions.ask()
                status = ask_gateway(config, "/healthz" if was_ready else "/readyz", stop, ask_timeout)
                now = time.monotonic()
                if questions.answered():
                    feeder.pulse.beat(now)
                # With several workers the first process answers no requests; it replaces the workers that do.
                if status is not None and status.get("instance") == instance and not gateway.is_stopped():
                    gateway.pulse.beat(now)
                    if not was_ready and status.get("feeder_instance") == instance and status.get("serving") is True:
                        was_ready = True
                        # The gateway receives its heartbeats, so it runs, even if our own connection is not up yet.
                        feeder.pulse.beat(now)
                        ready(status, {each.part: each.pid for each in children})
            for each in children:
                each.replace_if_frozen(now)
    finally:
        # Both are asked at the same moment; a part that has not ended within its limit is killed.
        asked = time.monotonic()
        for each in children:
            each.stop()
        for each in sorted(children, key=lambda each: STOP_SECONDS[each.part]):
            each.wait(asked + STOP_SECONDS[each.part])
        questions.close()
    return 0


def check_addresses(config: Config) -> None:
    """Raise `ConfigError` for an address of the feeder that a gateway cannot connect to."""
    for name in ADDRESSES:
        address: str = getattr(config, name)
        if address.startswith("tcp:") and address.rpartition(":")[2] in ("0", "*"):
            raise ConfigError(name, f"{address} is another port at each start; a gateway needs a fixed one")
        if address.startswith("inproc:"):
            raise ConfigError(name, f"{address} cannot be reached by another process")


def _may_pass(code: int) -> bool:
    # A code below zero is the signal that ended it, which a terminal or a user may have sent: a new start may work.
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


def ask_gateway(config: Config, path: str, stop: Stop, timeout: float = ASK_TIMEOUT) -> dict[str, Any] | None:
    """Return the JSON object that the gateway's address answers; None without one in time.

    urllib is not used: its timeout begins anew with every byte, and any program may listen at that address.
    """
    host = reachable(config.host)
    until = time.monotonic() + timeout
    answer = b""
    try:
        with socket.create_connection((host.strip("[]"), config.port), timeout) as connection:
            # Read in short steps, so that a stop does not wait for a frozen gateway.
            connection.settimeout(POLL)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
            while len(answer) <= ANSWER_BYTES and time.monotonic() < until and not stop.is_set():
                try:
                    part = connection.recv(ANSWER_BYTES)
                except TimeoutError:
                    continue
                answer += part
                if not part:
                    # The connection has ended; JSON that was cut off raises ValueError.
                    found = json.loads(answer.partition(b"\r\n\r\n")[2])
                    return found if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError):
        return None
    return None
