"""Keys for a feeder, forwarders and their clients, and a forwarder in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from qmt_bridge.config import FORWARDED, Config
from qmt_bridge.curve.certificate import ROLES
from qmt_bridge.curve.key_folder import add_client, add_forwarder
from tests.support.ports import ANY_PORT
from tests.support.turns import TurnThread, turning

if TYPE_CHECKING:
    from qmt_bridge.forward.app import Forwarder

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


@contextmanager
def running_forwarder(config: Config) -> Iterator[TurnThread[Forwarder]]:
    # Imported here, so that a test that starts processes alone needs no more.
    from qmt_bridge.forward.app import Forwarder

    with turning(Forwarder(config)) as thread:
        yield thread
