"""The feeder's life: build source and publisher, run until stopped, close in reverse."""

from __future__ import annotations

import logging
import threading
from importlib import metadata

from feeder.publisher import Publisher
from feeder.source import Source
from qmt_bridge.config import Config

logger = logging.getLogger(__name__)


def make_source(config: Config) -> Source:
    """Return the source that the settings name.

    ``auto`` is xtquant where its native modules can be imported, else the simulator. What can be imported decides,
    never whether the terminal answers: a terminal that is down must not turn real data into invented data.
    """
    # Imported here, so that the simulator runs where xtquant is not installed.
    name = config.source
    if name == "auto":
        from feeder import xtsdk

        name = "xtquant" if xtsdk.importable() else "sim"
    match name:
        case "xtquant":
            from feeder.xtsource import XtSource

            return XtSource(config)
        case "replay":
            from feeder.replay import Replay

            return Replay(config)
        case _:
            from feeder.simulator import Simulator

            return Simulator(config)


class Feeder:
    """One source and its publisher; `start`, then `stop`, or `run` for both."""

    def __init__(self, config: Config, source: Source | None = None) -> None:
        self.source = make_source(config) if source is None else source
        self.publisher = Publisher(config, self.source, _version())

    def start(self) -> None:
        """Listen and start the source; raise `ConfigError` for an address, key or folder that cannot be used."""
        self.publisher.start()
        logger.info(
            "feeder started: source %s%s, market %s, trade %s, ask %s",
            self.source.name,
            " (simulated)" if self.source.simulated else "",
            self.publisher.market_addr,
            self.publisher.trade_addr,
            self.publisher.ask_addr,
        )

    def wait(self, timeout: float) -> bool:
        """Return whether the publisher has ended within `timeout` seconds: after `start` only by a failure."""
        return self.publisher.ended.wait(timeout)

    def stop(self) -> None:
        """Close the source, send what is queued, and close the rest."""
        try:
            self.source.close()
        finally:
            self.publisher.stop()
        logger.info("feeder stopped after %d messages", self.publisher.published)

    def run(self, stop: threading.Event) -> int:
        """Run until `stop` is set and return 0; return 1 if the publisher failed, so that a supervisor restarts it."""
        self.start()
        try:
            # In steps: on Windows a wait without an end cannot be interrupted by Ctrl-C.
            while not stop.wait(0.2):
                if self.wait(0):
                    return 1
        finally:
            self.stop()
        return 0 if self.publisher.failure is None else 1


def run(config: Config, stop: threading.Event) -> int:
    """Run a feeder until `stop` is set; return the exit code of the process."""
    return Feeder(config).run(stop)


def _version() -> str:
    try:
        return metadata.version("qmt-bridge-gateway")
    except metadata.PackageNotFoundError:
        # Run from a source tree that was not installed.
        return ""
