"""One run of the feeder: build source and publisher, watch them until stopped, close in reverse."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import NamedTuple

from msgspec.structs import replace

from feeder.metrics.exporter import Exporter, Metrics
from feeder.publisher import STOP_SECONDS, Publisher
from feeder.source import Source
from feeder.sources import installed
from feeder.sources.guarded import CLOSE_SECONDS, Running
from feeder.sources.thread_errors import ThreadErrors
from qmt_bridge import __version__
from qmt_bridge.config import SOURCES, WITH_PUSH, Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.process import child
from qmt_bridge.process.child import TRY_AGAIN
from qmt_bridge.process.stop import STEP, Stop, leave

logger = logging.getLogger(__name__)

# Seconds after which a thread that computes lets another one run. The publisher's thread gives up its turn with each
# call of ZeroMQ, and gets it back after this time while a source computes: with CPython's 5 ms, a message took 20 ms.
SWITCH_SECONDS = 0.0005
# The pause between two checks of the publisher and of the source's calls.
WATCH_SECONDS = 0.2
# The longest time that the end takes when a call hangs. `child.STOP_SECONDS` allows for it.
LEAVE_SECONDS = CLOSE_SECONDS + STOP_SECONDS + 1.0
# Seconds after which a call that must return at once hangs: the publisher's thread, which waits for it, serves nothing.
CALL_SECONDS = 10.0
# The time that a source has to complete its start after the feeder was asked to stop; a login may take two minutes.
START_GRACE = 1.0


def make_source(config: Config) -> Source:
    """Return the source that the settings name; raise `ConfigError` for one of another package that cannot be used.

    ``auto`` is xtquant if its native modules can be imported, else the simulator. Whether the terminal answers does not
    matter: a terminal that is down must not replace real data by invented data.
    """
    name = source_name(config)
    if name.endswith(WITH_PUSH):
        from feeder.push.mixed import with_push

        return with_push(config, make_source(replace(config, source=name.removesuffix(WITH_PUSH))))
    # Imported here, so that the simulator runs where xtquant is not installed.
    match name:
        case "xtquant":
            from feeder.xt.source import XtSource

            return XtSource(config)
        case "replay":
            from feeder.replay.player import Replay

            return Replay(config)
        case "push":
            from feeder.push.source import PushSource

            return PushSource(config)
        case "sim":
            from feeder.sim.simulator import Simulator

            return Simulator(config)
        case _:
            return installed.make(name, config)


def check_source(config: Config) -> None:
    """Raise `ConfigError` if there is no source as the settings name it; imports no package."""
    name = config.source.removesuffix(WITH_PUSH)
    if name not in ("auto", *SOURCES):
        installed.find(name)


def source_name(config: Config) -> str:
    """Return the name of the source that the settings choose; imports nothing of xtquant."""
    name, plus, pushed = config.source.partition("+")
    if name == "auto":
        from feeder.xt import sdk

        name = "xtquant" if sdk.importable() else "sim"
    return name + plus + pushed


class Failure(NamedTuple):
    """Why a feeder has to end: the reason of its last state, and what its log says."""

    reason: str
    what: str


class Feeder:
    """One source and its publisher; `start`, then `stop`, or `run` for both."""

    def __init__(self, config: Config, source: Source | None = None) -> None:
        self.source = make_source(config) if source is None else source
        self.publisher = Publisher(config, self.source, __version__, child.instance())
        # The call that ran at the last look, and how many looks have seen it.
        self._running: Running | None = None
        self._looks = 0

    def start(self, stop: Stop | None = None) -> bool:
        """Listen and start the source; raise `ConfigError` for an address, key or folder that cannot be used.

        Return False if `stop` was set and the source did not complete its start in time: its thread is left behind.
        """
        self.publisher.begin()
        until: float | None = None
        try:
            while not self.publisher.opened(STEP):
                if stop is not None and stop.is_set():
                    until = time.monotonic() + START_GRACE if until is None else until
                    if time.monotonic() >= until:
                        return False
        except ImportError as exc:
            # The wheel can be installed everywhere, but its native modules are for Windows.
            reason = (
                f"{self.source.name} cannot be imported by this Python on this system: {exc}; see qmt-bridge doctor"
            )
            raise ConfigError("source", reason) from exc
        logger.info(
            "feeder started: source %s%s, market %s, trade %s, ask %s, ask about trade %s",
            self.source.name,
            " (simulated)" if self.source.simulated else "",
            self.publisher.market_addr,
            self.publisher.trade_addr,
            self.publisher.ask_addr,
            self.publisher.trade_ask_addr,
        )
        return True

    def wait(self, timeout: float) -> bool:
        """Return whether the publisher ends within `timeout` seconds; after `start` only a failure ends it."""
        return self.publisher.ended.wait(timeout)

    def stop(self, reason: str = "feeder_stopped") -> None:
        """Close the source, send what is queued, publish that the feed is down for `reason`, and close the rest."""
        try:
            self.publisher.source.close()
        finally:
            self.publisher.stop(reason)
        logger.info("feeder stopped after %d messages", self.publisher.published)

    def run(self, stop: Stop) -> int:
        """Run until `stop` is set and return 0; return 1 if the publisher failed, so that a supervisor restarts it.

        Return `TRY_AGAIN` if a call of the source hangs, or an error has ended a thread of it. Then the process has to
        end without waiting for it. A replay that played only a part of its file still serves that part, and this
        returns 1 when it is stopped.
        """
        with ThreadErrors(self.source) as errors:
            if not self.start(stop):
                logger.info("feeder stopped while its source was still starting")
                return 0
            failure: Failure | None = None
            in_part = False
            try:
                while failure is None and not stop.wait(WATCH_SECONDS):
                    if self.wait(0):
                        return 1
                    failure = self._look(errors)
                in_part = self.publisher.ended_in_part
            finally:
                if failure is None:
                    self.stop()
            if failure is not None:
                self._give_up(failure)
                return TRY_AGAIN
        return 1 if in_part or self.publisher.failure is not None else 0

    def _look(self, errors: ThreadErrors) -> Failure | None:
        """Return why this process has to end; None while it has not."""
        running = self.publisher.source.running
        # By the number of looks and not by a clock: one that goes on while all processes are stopped would count that.
        self._looks = self._looks + 1 if running is not None and running is self._running else 0
        self._running = running
        if running is not None and self._looks * WATCH_SECONDS >= CALL_SECONDS:
            what = f"{running.call} of source {self.source.name} has not returned for {CALL_SECONDS:g} s"
            return Failure("source_hung", what)
        if errors.told is not None:
            return Failure("source_failed", errors.told)
        hung = self.publisher.source.hung()
        return None if hung is None else Failure("terminal_hung", hung)

    def _give_up(self, failure: Failure) -> None:
        logger.critical("%s: %s; this process ends, to be started again", failure.reason, failure.what)
        # Published at once, and again at the end, so that clients do not wait until the source is closed.
        self.publisher.inbox.set_state("down", failure.reason, data_lost=failure.reason == "source_failed")
        stopping = threading.Thread(target=self.stop, args=(failure.reason,), name="feeder-stop", daemon=True)
        stopping.start()
        stopping.join(LEAVE_SECONDS)
        if stopping.is_alive():
            logger.error("the feeder does not close within %g s; the process ends anyway", LEAVE_SECONDS)


def run(config: Config, stop: Stop) -> int:
    """Run a feeder until `stop` is set; return the exit code of the process, which ends here if a call hangs."""
    sys.setswitchinterval(SWITCH_SECONDS)
    feeder = Feeder(config)
    metrics = _serve_metrics(config.metrics_addr, feeder.publisher)
    try:
        code = feeder.run(stop)
        if code == TRY_AGAIN:
            leave(code)
        return code
    finally:
        if metrics is not None:
            metrics.close()


def _serve_metrics(address: str, publisher: Publisher) -> Metrics | None:
    """Serve the metrics; without them everything else works, so an address that is taken is only told."""
    if not address:
        return None
    try:
        metrics = Metrics(address, Exporter(publisher.numbers, __version__))
    except ConfigError as exc:
        logger.warning("%s; this feeder has no metrics of its own", exc)
        return None
    logger.info("metrics of the feeder are at http://%s/metrics", address)
    return metrics
