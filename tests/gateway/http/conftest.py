"""A feeder whose source the test controls, one gateway, and a client of its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from qmt_bridge.config import Config
from qmt_bridge.keys.key import Key, Scope, make_key, sha256
from qmt_bridge.keys.key_file import change_keys
from tests.support.pages import Pages
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import KEY, Rig, Server, running_rig
from tests.support.shelf import Shelf


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(tmp_path), grace=0.0, lag_target=30.0)


@pytest.fixture
def rig(config: Config) -> Iterator[Rig]:
    """Return a feeder with a source that the test controls, and one gateway."""
    with running_rig(config) as rig:
        rig.serve()
        yield rig


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    """Return a store that has what the test puts into it."""
    shelf = Shelf()
    yield shelf
    shelf.close()


def add_key(config: Config, name: str, *scopes: Scope) -> str:
    """Add a key and return it; a gateway that started before may need a second to know it."""
    secret = make_key()
    change_keys(config.data_path, lambda keys: [*keys, Key(name=name, sha256=sha256(secret), scopes=scopes)])
    return secret


def client_of(server: Server) -> httpx2.AsyncClient:
    """Return a client that refuses answers which are not documented."""
    return Pages(f"http://127.0.0.1:{server.port}")


@pytest.fixture
async def pages(rig: Rig) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client of the gateway's pages."""
    async with client_of(rig.servers[0]) as client:
        yield client
