"""Keys for a feeder, forwarders and their clients, and a forwarder that takes its turns on a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from qmt_bridge.config import FORWARDED, Config
from qmt_bridge.curve.certificate import ROLES
from qmt_bridge.curve.key_folder import add_client, add_forwarder
from tests.support.ports import ANY_PORT

ALL_ROLES = frozenset(ROLES)
# Ports that the system chooses, and no store.
LISTENING = dict.fromkeys(FORWARDED, ANY_PORT) | {"forward_store_addr": "", "forward_health_addr": ""}


def forwarder_keys(above: Path, name: str, roles: frozenset[str] = ALL_ROLES) -> Path:
    """Return a folder for a forwarder below the feeder, or the forwarder, whose keys are in `above`."""
    folder = add_client(above, name, roles)
    add_forwarder(folder)
    return folder


def below(config: Config, addresses: dict[str, str], keys: Path | str) -> Config:
    """Return the settings of a client of a forwarder that listens at `addresses`, or of a forwarder below it."""
    found = {f"{kind}_addr": address for kind, address in addresses.items()}
    return msgspec.structs.replace(config, trade_ask_addr="", curve_dir=str(keys), **found)


class ForwarderThread:
    """A forwarder in this process."""

    def __init__(self, config: Config) -> None:
        # Imported here, so that a test that starts processes alone needs no more.
        from qmt_bridge.forward.app import Forwarder

        self.forwarder = Forwarder(config)
        self._stopping = threading.Event()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failure: Exception | None = None

    def start(self) -> None:
        self._thread.start()
        self._opened.wait()
        if self.failure is not None:
            self._thread.join()
            raise self.failure

    def _run(self) -> None:
        try:
            self.forwarder.open()
        except Exception as exc:
            self.failure = exc
            return
        finally:
            self._opened.set()
        try:
            while not self._stopping.is_set():
                self.forwarder.turn()
        except Exception as exc:
            self.failure = exc
        finally:
            self.forwarder.close()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure


@contextmanager
def running_forwarder(config: Config) -> Iterator[ForwarderThread]:
    thread = ForwarderThread(config)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()
