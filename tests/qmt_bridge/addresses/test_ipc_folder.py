"""Which folders of local sockets are trusted: those in which no other user can listen in the place of the feeder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qmt_bridge.addresses import endpoint, ipc_folder
from qmt_bridge.addresses.ipc_folder import why_not_trusted
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import End
from qmt_bridge.errors import ConfigError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has CURVE keys instead")
OTHER = 65534


def address(folder: Path) -> str:
    return f"ipc://{folder}/trade.sock"


def made(folder: Path, mode: int, owner: int | None = None) -> Path:
    folder.mkdir()
    folder.chmod(mode)
    if owner is not None:
        if os.getuid() != 0:
            pytest.skip("only root can give a folder to another user")
        os.chown(folder, owner, owner)
    return folder


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_a_folder_of_the_own_user_is_trusted(tmp_path: Path, mode: int) -> None:
    assert why_not_trusted(address(made(tmp_path / "run", mode))) == ""


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_folder_that_others_may_write_is_not_trusted(tmp_path: Path, mode: int) -> None:
    assert f"every user may write in {tmp_path / 'run'}" in why_not_trusted(address(made(tmp_path / "run", mode)))


def test_a_folder_that_others_can_replace_is_not_trusted(tmp_path: Path) -> None:
    run = made(made(tmp_path / "above", 0o777) / "run", 0o700)
    assert f"every user may write in {tmp_path / 'above'}" in why_not_trusted(address(run))
    # With the sticky bit others can replace nothing.
    (tmp_path / "above").chmod(0o1777)
    assert why_not_trusted(address(run)) == ""


def test_a_folder_that_others_could_make_first_is_not_trusted(tmp_path: Path) -> None:
    above = made(tmp_path / "above", 0o1777)
    assert "every user may write in" in why_not_trusted(address(above / "not-there-yet"))
    assert why_not_trusted(address(tmp_path / "not-there-yet")) == ""


def test_a_folder_of_another_user_in_a_shared_one_is_not_trusted(tmp_path: Path) -> None:
    above = made(tmp_path / "above", 0o1777)
    assert "every user may write in" in why_not_trusted(address(made(above / "run", 0o700, OTHER)))


def test_a_folder_of_the_user_of_a_service_is_trusted(tmp_path: Path) -> None:
    assert why_not_trusted(address(made(tmp_path / "run", 0o750, OTHER))) == ""


def test_a_feeder_listens_in_no_folder_of_another_user(tmp_path: Path) -> None:
    config = Config(trade_addr=address(made(tmp_path / "run", 0o700, OTHER)), data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=rf"trade_addr: .* {tmp_path}/run belongs to the user"):
        endpoint.trade_endpoints(config, "feeder", makes=False)
    # A gateway may be another user than the feeder.
    assert endpoint.trade_endpoints(config, "gateway", makes=False)[0].address == config.trade_addr


@pytest.mark.parametrize("end", ["feeder", "gateway"])
def test_a_short_folder_that_another_user_made_is_refused(
    tmp_path: Path, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = made(tmp_path / "tmp", 0o1777)
    monkeypatch.setattr(ipc_folder, "_SHORT", str(above))
    config = Config(data_dir=str(tmp_path / ("x" * 80)))
    own = ipc_folder.own_folder(config.data_path)
    assert own.parent == above
    endpoint.trade_endpoints(config, "feeder", makes=True)
    assert endpoint.trade_endpoints(config, end, makes=True)[0].address == address(own)
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(own, OTHER, OTHER)
    # With an access list, he could let this user write in his folder.
    above.chmod(0o755)
    with pytest.raises(ConfigError, match=r"belongs to the user .* Use a data_dir with a shorter path"):
        endpoint.trade_endpoints(config, end, makes=True)


def test_a_folder_below_that_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    run = made(made(tmp_path / "theirs", 0o755, OTHER) / "run", 0o700)
    assert f"{tmp_path / 'theirs'} belongs to the user" in why_not_trusted(address(run))


def test_a_link_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    above = made(tmp_path / "above", 0o1777)
    made(tmp_path / "run", 0o700)
    link = above / "link"
    link.symlink_to(tmp_path / "run")
    assert why_not_trusted(address(link)) == ""
    if os.getuid() != 0:
        pytest.skip("only root can give a link to another user")
    os.lchown(link, OTHER, OTHER)
    assert f"{link} is a link of the user" in why_not_trusted(address(link))


@pytest.mark.parametrize("where", ["ipc://@abstract", "ipc://*"])
def test_an_address_without_a_folder_is_not_trusted(where: str) -> None:
    assert "in no folder" in why_not_trusted(where)


def test_a_feeder_does_not_listen_where_others_may_enter(tmp_path: Path) -> None:
    config = Config(trade_addr=address(made(tmp_path / "run", 0o755)), data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"trade_addr: .* would be open: every user may enter"):
        endpoint.trade_endpoints(config, "feeder", makes=False)
    # Who listens there is certain, so that one may connect.
    assert endpoint.trade_endpoints(config, "gateway", makes=False)[0].address == config.trade_addr


def test_the_own_folder_is_closed_again(tmp_path: Path) -> None:
    made(tmp_path / "run", 0o755)
    trade, ask = endpoint.trade_endpoints(Config(data_dir=str(tmp_path)), "feeder", makes=True)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert (trade.address, ask.address) == (address(tmp_path / "run"), f"ipc://{tmp_path}/run/ask.sock")


def test_the_own_folder_is_short_enough_for_a_socket(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 80) / "data"
    folder = ipc_folder.own_folder(long)
    assert len(os.fsencode(folder / "trade.sock")) <= ipc_folder.SOCKET_BYTES
    assert folder == ipc_folder.own_folder(long)
    assert folder != ipc_folder.own_folder(long / "other")
    assert ipc_folder.own_folder(Path("/srv/data")) == Path("/srv/data/run")


@pytest.mark.parametrize(
    ("settings", "trade", "ask"),
    [
        pytest.param({"open_trade_addr": True}, "tcp://127.0.0.1:5556", "tcp://127.0.0.1:5557", id="open"),
        pytest.param(
            {"curve_dir": "/keys", "trade_addr": "tcp://0.0.0.0:5556"},
            "tcp://0.0.0.0:5556",
            "tcp://127.0.0.1:5557",
            id="keys",
        ),
        pytest.param({}, "ipc:///srv/data/run/trade.sock", "ipc:///srv/data/run/ask.sock", id="own"),
    ],
)
def test_the_addresses_follow_from_the_settings(settings: dict[str, object], trade: str, ask: str) -> None:
    found = endpoint.addresses(Config(data_dir="/srv/data", **settings))  # type: ignore[arg-type]
    assert (found["trade_addr"], found["trade_ask_addr"]) == (trade, ask)


def test_windows_has_keys_instead_of_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    monkeypatch.setattr(sys, "platform", "win32")
    found = endpoint.addresses(config)
    assert (found["trade_addr"], found["trade_ask_addr"]) == ("tcp://127.0.0.1:5556", "tcp://127.0.0.1:5558")
    assert endpoint.key_folder(config) == tmp_path / "curve"


def test_without_keys_the_open_socket_is_not_for_trades(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path), trade_ask_addr="tcp://127.0.0.1:5557")
    with pytest.raises(ConfigError, match="trade_ask_addr: is ask_addr, where every user"):
        endpoint.trade_endpoints(config, "feeder", makes=False)
