"""What a store tells about itself, and why it tells nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from feeder.app import Feeder
from qmt_bridge.commands.doctor.facts import store as store_facts
from qmt_bridge.commands.doctor.facts.store import Asked, ask_store
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import make_keys
from tests.support.doctor import listener
from tests.support.ports import ANY_ADDRESSES, free_port, tcp
from tests.support.store_asker import running_store


def config_of(folder: Path, **settings: str) -> Config:
    # No feeder runs at the address of market data.
    market = {"market_addr": tcp(free_port()), "store_addr": "tcp://127.0.0.1:*"}
    return Config(data_dir=str(folder / "data"), **{**market, **settings})  # type: ignore[arg-type]


def assert_no_store(asked: Asked) -> None:
    assert asked.status is None
    assert "is no store, or it hangs: " in asked.refused


def test_a_store_tells_how_it_is(tmp_path: Path) -> None:
    with running_store(config_of(tmp_path)) as (_, config):
        asked = ask_store(config)
    assert asked.status is not None
    assert asked.status.failure is None
    assert 0 < asked.status.free <= shutil.disk_usage(tmp_path).total


@pytest.mark.parametrize("kept", ["gateway.key_secret", "feeder.key_secret"])
def test_the_keys_of_either_end_ask_a_store(tmp_path: Path, kept: str) -> None:
    make_keys(tmp_path / "keys")
    own = tmp_path / "own"
    shutil.copytree(tmp_path / "keys", own)
    for secret in own.glob("*.key_secret"):
        if secret.name != kept:
            secret.unlink()
    with running_store(config_of(tmp_path, curve_dir=str(tmp_path / "keys"))) as (_, config):
        asked = ask_store(Config(store_addr=config.store_addr, curve_dir=str(own)))
    assert asked.status is not None, asked


def test_a_store_without_this_key_refuses_it(tmp_path: Path) -> None:
    for name in ("keys", "stranger"):
        make_keys(tmp_path / name)
    shutil.copy(tmp_path / "keys" / "feeder.key", tmp_path / "stranger" / "feeder.key")
    with running_store(config_of(tmp_path, curve_dir=str(tmp_path / "keys"))) as (_, config):
        asked = ask_store(Config(store_addr=config.store_addr, curve_dir=str(tmp_path / "stranger")))
    assert asked.status is None
    assert "refuses this key: copy gateway.key" in asked.refused


def test_an_address_where_nothing_listens_has_no_store() -> None:
    assert ask_store(Config(store_addr=tcp(free_port()))) == Asked()


def test_a_program_that_says_nothing_is_no_store() -> None:
    with listener() as port:
        assert_no_store(ask_store(Config(store_addr=tcp(port))))


def test_a_feeder_is_no_store(tmp_path: Path) -> None:
    feeder = Feeder(Config(source="sim", data_dir=str(tmp_path / "data"), **ANY_ADDRESSES))
    feeder.start()
    try:
        asked = ask_store(Config(store_addr=feeder.publisher.ask_addr))
    finally:
        feeder.stop()
    assert_no_store(asked)


def test_missing_keys_are_told(tmp_path: Path) -> None:
    asked = ask_store(Config(store_addr=tcp(free_port()), curve_dir=str(tmp_path)))
    assert "cannot read the keys of the gateway" in asked.unasked


def test_a_store_that_does_not_answer_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_facts, "SILENT_SECONDS", 0.5)
    with running_store(config_of(tmp_path)) as (thread, config):
        monkeypatch.setattr(thread.service._service, "take", lambda: None)
        assert_no_store(ask_store(config))
