"""What `qmt-bridge init` writes for some answers, and what is to be done next."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from qmt_bridge import private
from qmt_bridge.commands.init.answers import Answers, of_feeder, of_gateway, of_one_machine
from qmt_bridge.commands.init.settings_file import to_toml
from qmt_bridge.curve.certificate import ROLES
from qmt_bridge.curve.key_folder import add_client, make_keys
from qmt_bridge.errors import ConfigError
from qmt_bridge.language.catalog import say

# The folder for the machine of the gateway, and the name of its CURVE key.
GATEWAY = "gateway"
GATEWAY_CLIENT = "gateway-host"


class Written(NamedTuple):
    """A file of settings, what it is for, and the commands that it is for."""

    path: Path
    content: str
    commands: tuple[str, ...]
    # The folder in which the commands are run; None for any.
    folder: Path | None = None


def planned(answers: Answers, file: Path, api_key: str) -> list[Written]:
    """Return the files of settings for the answers; `file` is that of this machine."""
    heads = (
        f"qmt-bridge init, {date.today().isoformat()}",
        say("Every setting with its default: qmt-bridge init --toml"),
    )
    if not answers.feeder_host:
        return [Written(file, to_toml(of_one_machine(answers, api_key), heads, say), (f"up --config {file}",))]
    keys, other = key_folders(file)
    here = of_feeder(answers, str(keys.absolute()))
    there = of_gateway(answers, other.name, api_key)
    store = () if answers.stored == "none" else (f"store --config {file}",)
    gateway = other.parent / "qmt-bridge.toml"
    return [
        Written(file, to_toml(here, heads, say), (f"feeder --supervised --config {file}", *store)),
        Written(gateway, to_toml(there, heads, say), (f"gateway --config {gateway.name}",), gateway.parent),
    ]


def key_folders(file: Path) -> tuple[Path, Path]:
    """Return where the CURVE keys of the feeder are, beside its settings, and those for the machine of the gateway."""
    return file.parent / "keys", file.parent / GATEWAY / "keys"


def write(files: Sequence[Written]) -> None:
    """Write the settings; only their owner may read them, because they hold a key; raise `ConfigError`."""
    for each in files:
        try:
            if not each.path.parent.is_dir():
                private.make_folder(each.path.parent)
            private.replace(each.path, each.content.encode())
        except OSError as exc:
            raise ConfigError("init", f"cannot write {each.path}: {exc.strerror or exc}") from exc


def write_keys(file: Path) -> Iterator[Path]:
    """Make the CURVE keys of two machines where there are none, and yield the folders; raise `ConfigError`."""
    keys, other = key_folders(file)
    if not (keys / "feeder.key_secret").exists():
        make_keys(keys)
    yield keys
    if not (other / "gateway.key_secret").exists():
        made = add_client(keys, GATEWAY_CLIENT, frozenset(ROLES))
        try:
            private.make_folder(other.parent)
            shutil.move(made, other)
        except OSError as exc:
            raise ConfigError("init", f"cannot write {other}: {exc.strerror or exc}") from exc
    yield other
