"""The rig for the tests of the gateway: once with prepared frames, once with the plain ASGI send."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import worker
from gateway.writer import PreparedFrames
from qmt_bridge.config import Config
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import KEY, Rig, running_rig


@pytest.fixture(autouse=True)
def no_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no heartbeat come between the answers to a test on a machine so busy that 15 s pass; a test may set it."""
    monkeypatch.setattr(worker, "HEARTBEAT", math.inf)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    # A busy machine reads late; only the tests of lag are about that.
    return Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(tmp_path), grace=0.0, lag_target=30.0)


@pytest.fixture(params=[PreparedFrames, "auto"], ids=["prepared", "asgi"])
def rig(config: Config, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Return a feeder with a source that the test controls, and one gateway with each kind of sender."""
    with running_rig(config, request.param) as rig:
        rig.serve()
        yield rig
