"""`qmt-bridge up` and `feeder --supervised`: parts as child processes, restarted when they end or freeze.

Feeder and gateway are needed: a run ends if one of them cannot start. A store and alerts that cannot are started again
and again, and the others serve without them. Alerts answer no questions: their signs of life come through a pipe.

Runs in the main thread. A child stops when its standard input ends, so it also stops when this process is killed,
and on Windows, which has no SIGTERM, as gracefully as elsewhere (untested there). Children are in a session of their
own: Ctrl-C in a terminal reaches only this process, which then stops them.

Each run has a name, `instance`, which its children repeat in their answers, because the process that answers at an
address may be the feeder or gateway of another run. The feeder is asked on its socket for questions, which its
publishing thread answers once the source has started. Heartbeats would not do: a consumer can hold them up in a replay
that waits for consumers.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import zmq

from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.addresses.endpoint import Endpoint
from qmt_bridge.commands.gateway_address import ASK_TIMEOUT, ask_gateway
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.process import child, dumps
from qmt_bridge.process.beats import BeatReader
from qmt_bridge.process.child import STOP_SECONDS
from qmt_bridge.process.exit_code import describe, is_native_crash, may_pass
from qmt_bridge.process.pulse import Pulse
from qmt_bridge.process.stop import Stop
from qmt_bridge.wire.history import decode_history, decode_status
from qmt_bridge.wire.messages import read_status
from qmt_bridge.wire.requests import CatchUp, TopicState, decode_reply, encode_ask
from qmt_bridge.wire.topics import STATUS_TOPIC, STORE_TOPIC, Topic

logger = logging.getLogger(__name__)

# Shortest and longest pause, in seconds, between two starts of a child that ends again and again.
BACKOFF = (0.2, 10.0)
# After this many seconds an end has a new reason, so the pause begins at the shortest again.
STEADY = 30.0
POLL = 0.1
# Seconds between two questions to each child, once both have been ready.
ASK_EVERY = 1.0
# Seconds between two log lines about a child that has not answered since its start.
STILL_STARTING = 30.0
Ready = Callable[[dict[str, Any], dict[str, int | None]], None]
"""Takes the answer of /readyz (empty without a gateway), and the process id of each part."""


class _Child:
    """One part and its process."""

    def __init__(self, part: str, env: dict[str, str], freeze_timeout: float = 0.0, *, beats: bool = False) -> None:
        """Run `part`; with `beats` it gives signs of life by itself, and is not asked for them."""
        self.part = part
        self._command = child.python("qmt_bridge.cli", part, "--until-eof", *(["--beats"] if beats else []))
        self._beats = beats
        self._reader: BeatReader | None = None
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
        # On Windows a process group of its own keeps Ctrl-C away from the child, as a session does elsewhere.
        flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if self._beats else None,
            env=self._env,
            start_new_session=True,
            creationflags=flags,
        )
        if self.process.stdout is not None:
            self._reader = BeatReader(self.process.stdout)

    def watch(self, now: float) -> int | None:
        """Start the part again when its pause is over; return the exit code if the part has just ended."""
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

    def note_answer(self, now: float) -> None:
        """Note that the part has answered, or has given a sign of life by itself."""
        if not self.pulse.began:
            logger.info("%s answers, %.1f s after its start", self.part, now - self._started_at)
        self.pulse.beat(now)

    def note_beats(self, now: float) -> None:
        """Take the signs of life that have come by themselves."""
        if self._reader is not None and self._reader.heard():
            self.note_answer(now)

    def replace_if_frozen(self, now: float) -> None:
        """Kill a process that no longer answers, and the processes that it has started; `watch` starts it again."""
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
        """Wait for the end of the process until `deadline`, then kill it."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("%s did not stop in time; killed", self.part)
            self.kill()
            self.process.wait()

    def kill(self) -> None:
        """Kill the process and its children: a frozen worker would not notice the end of its parent."""
        assert self.process is not None
        started: list[psutil.Process] = []
        # What psutil does not expect of the system comes as an OSError, as the list of all processes under Wine.
        with contextlib.suppress(psutil.Error, OSError):
            started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def kill_at_once(self) -> None:
        """Kill the process from within a signal handler: take no lock and raise nothing."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(OSError):
                self.process.kill()

    def _close_input(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()


def _of_feeder(answer: bytes) -> str | None:
    """Return the run to which the feeder of an answer belongs; raise `WireError` for another answer."""
    reply = decode_reply(answer)
    body = reply.body if isinstance(reply, TopicState) else None
    return None if body is None else read_status(body).instance


def _of_store(answer: bytes) -> str | None:
    """Return the run to which the store of an answer belongs; raise `WireError` for another answer."""
    frames = decode_history(answer).frames
    return decode_status(bytes(frames[0].body)).instance if frames else None


class _Questions:
    """Asks a part for its status; answers of another run's part are ignored."""

    def __init__(self, where: Endpoint, topic: Topic, instance_of: Callable[[bytes], str | None], run: str) -> None:
        """Connect; raise `ConfigError` for an address that cannot be used."""
        self._topic = topic
        self._instance_of = instance_of
        self._run = run
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._socket = sockets.connect_dealer(self._context, where.address, where.curve)
        except BaseException:
            self._context.term()
            raise

    def ask(self) -> None:
        """Ask, if there is a connection."""
        with contextlib.suppress(zmq.Again):
            self._socket.send(encode_ask(CatchUp(0, [self._topic])), zmq.NOBLOCK)

    def answered(self) -> bool:
        """Return whether our part has answered since the last call."""
        ours = False
        while True:
            try:
                answer = self._socket.recv_multipart(zmq.NOBLOCK)[-1]
            except zmq.Again:
                return ours
            # Another program may listen there; its answers are ignored.
            with contextlib.suppress(WireError):
                ours = self._instance_of(answer) == self._run or ours

    def close(self) -> None:
        """Disconnect."""
        self._socket.close(linger=0)
        self._context.term()


class _Run:
    """The parts of one run, and whether they have been ready: a feeder, for `up` a gateway and a store, and alerts."""

    def __init__(self, config: Config, settings: Mapping[str, Sequence[str]], ready: Ready) -> None:
        """Connect to the sockets for questions; raise `ConfigError` for keys that cannot be used."""
        self._config = config
        self._ready = ready
        self._instance = secrets.token_hex(8)
        # The time of day, as files have it.
        self._since = time.time()
        parts = {
            part: _Child(
                part,
                {**child.environment(config, names), child.INSTANCE_ENV: self._instance},
                config.freeze_timeout,
                beats=part == "alerts",
            )
            for part, names in settings.items()
        }
        self._feeder = parts["feeder"]
        self._gateway = parts.get("gateway")
        self._store = parts.get("store")
        self._children = tuple(parts.values())
        self._needed = tuple(each for each in self._children if each not in (self._store, parts.get("alerts")))
        asked = endpoint.supervised_endpoint(config)
        self._questions = _Questions(asked, STATUS_TOPIC, _of_feeder, self._instance)
        self._store_questions: _Questions | None = None
        if self._store is not None:
            asked = endpoint.supervised_store(config)
            self._store_questions = _Questions(asked, STORE_TOPIC, _of_store, self._instance)
        # A short limit needs more questions, and the wait for a frozen gateway must not delay the answers of the
        # feeder.
        quarter = config.freeze_timeout / 4 or ASK_EVERY
        self._ask_every, self._ask_timeout = min(ASK_EVERY, quarter), min(ASK_TIMEOUT, quarter)
        self._was_ready = False
        self._next_ask = 0.0

    def start(self, stop: Stop) -> None:
        """Start the parts, unless `stop` is set meanwhile."""
        for each in self._children:
            if not stop.is_set():
                each.start()

    def turn(self, stop: Stop) -> bool:
        """Start ended parts, ask each part, and replace a frozen one; return False if a part cannot run."""
        now = time.monotonic()
        if not all(self._may_go_on(each, now) for each in self._children):
            return False
        self._note_feeder_answer(now)
        if now >= self._next_ask:
            began = all(each.pulse.began for each in self._needed)
            self._next_ask = now + (self._ask_every if self._was_ready and began else POLL)
            self._questions.ask()
            if self._store_questions is not None:
                self._store_questions.ask()
            if self._gateway is not None:
                now = self._ask_gateway(self._gateway, stop)
        for each in self._children:
            each.note_beats(now)
            each.replace_if_frozen(now)
        return True

    def end(self) -> None:
        """Ask all parts at the same moment to end; kill a part that has not ended within its limit."""
        asked = time.monotonic()
        for each in self._children:
            each.stop()
        for each in sorted(self._children, key=lambda each: STOP_SECONDS[each.part]):
            each.wait(asked + STOP_SECONDS[each.part])
        self._questions.close()
        if self._store_questions is not None:
            self._store_questions.close()

    def kill_at_once(self) -> None:
        """Kill the parts from within a signal handler."""
        for each in self._children:
            each.kill_at_once()

    def _may_go_on(self, part: _Child, now: float) -> bool:
        """Start a part again that has ended; return False if it would fail again."""
        code = part.watch(now)
        if code is None:
            return True
        if part in self._needed and not self._was_ready and not may_pass(code) and not part.replaced:
            logger.error("%s ended with %s before it was ready", part.part, describe(code))
            return False
        logger.error("%s ended with %s; starting it again", part.part, describe(code))
        if is_native_crash(code):
            # The parts have the current folder of this process.
            dumps.keep_newest(Path.cwd(), self._since)
        return True

    def _note_feeder_answer(self, now: float) -> None:
        if self._store is not None and self._store_questions is not None and self._store_questions.answered():
            self._store.note_answer(now)
        if self._questions.answered():
            self._feeder.note_answer(now)
            if self._gateway is None and not self._was_ready:
                self._note_ready({})

    def _ask_gateway(self, gateway: _Child, stop: Stop) -> float:
        """Ask the gateway, which may take `_ask_timeout` seconds; return the time after that."""
        status = ask_gateway(self._config, "/readyz", stop, self._ask_timeout)
        now = time.monotonic()
        self._note_feeder_answer(now)
        # With several workers the first process answers no requests itself, but replaces frozen workers.
        if status is None or status.get("instance") != self._instance or gateway.is_stopped():
            return now
        gateway.note_answer(now)
        is_ours = status.get("feeder_instance") == self._instance
        if not self._was_ready and is_ours and status.get("serving") is True:
            # The gateway receives the feeder's heartbeats, so the feeder runs, even if this process has no connection
            # yet.
            self._feeder.note_answer(now)
            self._note_ready(status)
        return now

    def _note_ready(self, status: dict[str, Any]) -> None:
        self._was_ready = True
        self._ready(status, {each.part: each.pid for each in self._children})


def run(config: Config, settings: Mapping[str, Sequence[str]], stop: Stop, ready: Ready) -> int:
    """Run the parts that `settings` names until `stop`; call `ready` once feeder and gateway are ready.

    `settings` has the names of the settings that each part needs: `feeder`, and `gateway`, `store` and `alerts` if
    there is to be one. A part that ends is started again. Before feeder and gateway have been ready once this is done
    with them only if it may help: the exit code says so, or the part did not end by itself. Else return 1: the part has
    logged the error, and a new start would fail in the same way. Raise `ConfigError` for addresses at which the parts
    cannot be asked.
    """
    check_addresses(config)
    parts = _Run(config, settings, ready)
    stop.last_act = parts.kill_at_once
    try:
        parts.start(stop)
        while not stop.wait(POLL):
            if not parts.turn(stop):
                return 1
    finally:
        parts.end()
    return 0


def check_addresses(config: Config) -> None:
    """Raise `ConfigError` for an address of the feeder or of the store that a gateway cannot connect to."""
    for name, address in {**endpoint.addresses(config), "store_addr": config.store_addr}.items():
        if address.startswith("tcp:") and address.rpartition(":")[2] in ("0", "*"):
            raise ConfigError(name, f"{address} is another port at each start; other processes need a fixed one")
        if address.startswith("inproc:"):
            raise ConfigError(name, f"{address} cannot be reached by another process")
