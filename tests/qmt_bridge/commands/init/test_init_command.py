"""`qmt-bridge init` as a user runs it: asked, by flags, for two machines, and the example files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qmt_bridge import cli
from qmt_bridge.addresses.endpoint import market_endpoints, trade_endpoints
from qmt_bridge.commands.init import examples
from qmt_bridge.config import load_config
from qmt_bridge.curve.key_folder import client_certificates
from tests.support.paths import ROOT


def init(*arguments: str, said: str = "", lang: str = "en") -> Result:
    return CliRunner().invoke(cli.main, ["--lang", lang, "init", *arguments], input=said)


def test_six_questions_are_asked_and_the_answers_written(tmp_path: Path) -> None:
    file, data = tmp_path / "q.toml", tmp_path / "数据"
    # Simulator, one machine, this machine alone, whole markets for three days, a robot with a secret, a folder.
    robot = "https://oapi.dingtalk.com/robot/send?access_token=x"
    result = init("--out", str(file), said=f"2\n1\n1\n2\n3\n{robot}\nSEC1\n{data}\n", lang="zh")
    assert result.exit_code == 0, result.output
    assert re.findall(r"^(\d/6) \S+？$", result.output, re.MULTILINE) == [f"{number}/6" for number in range(1, 7)]
    config = load_config(file, {})
    assert (config.source, config.store, config.store_days) == ("sim", ("whole/SH/", "whole/SZ/", "whole/BJ/"), 3)
    assert (config.alerts_dingtalk, config.alerts_dingtalk_secret) == (robot, "SEC1")
    assert config.data_path == data
    assert len(config.api_key) > 40
    assert config.api_key not in result.output
    assert f"qmt-bridge up --config {file}" in result.output
    if os.name == "posix":
        assert file.stat().st_mode & 0o077 == 0


def test_enter_takes_what_the_flags_and_defaults_say(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    assert init("--out", str(file), "--source", "sim", "--stored", "none", said="\n" * 8).exit_code == 0
    config = load_config(file, {})
    assert (config.source, config.store_days, config.data_dir, config.host) == ("sim", 0, "", "127.0.0.1")


def test_a_file_or_folder_that_is_not_there_is_asked_for_again(tmp_path: Path) -> None:
    file, ticks, data = tmp_path / "q.toml", tmp_path / "ticks.csv", tmp_path / "userdata_mini"
    ticks.touch()
    data.mkdir()
    said = f"3\n{tmp_path / 'gone.csv'}\n{ticks}\n" + "\n" * 8
    result = init("--out", str(file), said=said, lang="zh")
    assert result.exit_code == 0, result.output
    assert f"没有文件 '{tmp_path / 'gone.csv'}'" in result.output.replace("\\\\", "\\")
    assert load_config(file, {}).file == str(ticks)
    said = f"1\n1000000365\n{tmp_path / 'gone'}\n{data}\n" + "\n" * 8
    result = init("--force", "--out", str(file), said=said)
    assert result.exit_code == 0, result.output
    assert "Error: there is no folder" in result.output
    assert load_config(file, {}).xt_userdata == str(data)


@pytest.mark.skipif(os.name == "nt", reason="the variable is another one there")
def test_a_path_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ticks.csv").touch()
    assert init("--yes", "--source", "replay", "--file=~/ticks.csv", "--out", str(tmp_path / "q.toml")).exit_code == 0
    assert load_config(tmp_path / "q.toml", {}).file == str(tmp_path / "ticks.csv")


def test_paths_of_this_machine_hold_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ticks.csv").touch()
    assert init("--yes", "--source", "replay", "--file", "ticks.csv", "--data-dir", "d").exit_code == 0
    config = load_config(tmp_path / "qmt-bridge.toml", {})
    assert (config.file, config.data_dir) == (str(tmp_path / "ticks.csv"), str(tmp_path / "d"))


def test_file_that_exists_is_overwritten_only_if_the_user_says_so(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text("mine")
    refused = init("--yes", "--out", str(file))
    assert (refused.exit_code, "exists already" in refused.output) == (1, True)
    assert init("--out", str(file), "--source", "sim", said="n\n").exit_code == 1
    assert file.read_text() == "mine"
    assert init("--out", str(file), "--source", "sim", said="y\n" + "\n" * 8).exit_code == 0
    first = load_config(file, {}).api_key
    assert init("--yes", "--force", "--out", str(file)).exit_code == 0
    assert load_config(file, {}).api_key != first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--source", "replay", "--file", "gone.csv"), "there is no file 'gone.csv' to play"),
        (("--source", "xtquant", "--xt-accounts", "1"), "there is no folder ''"),
        (("--reach", "tls"), "TLS needs a certificate"),
        (("--reach", "tls", "--tls-cert", "gone.pem", "--tls-key", "k"), "'gone.pem' and 'k' cannot be used"),
        (("--reach", "proxy", "--proxy", "0.0.0.0/0"), "are all addresses"),
        (("--feeder-host", "192.168.1.100:5555"), "must be a name or an address alone"),
        (("--data-dir", __file__), "is no folder"),
        (("--source", "xtquant", "--xt-userdata", ".", "--xt-accounts", "1:FOO"), "expected account:TYPE"),
    ],
)
def test_answer_with_which_nothing_would_start_is_refused(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    result = init("--yes", "--out", str(tmp_path / "q.toml"), *arguments)
    assert result.exit_code == 1
    assert said in result.output
    assert result.output.count("\n") == 1
    # Nothing is in the way of the next attempt.
    assert not any(tmp_path.iterdir())


def test_answer_that_is_refused_is_asked_for_again(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    # The gateway is elsewhere at an address that is none, and the robot has no URL either.
    first = "2\n2\n1.2.3.4:5\n1\n3\nnotaurl\n\n"
    # Enter takes the source, the reach, the store and the folder of before, and no robot.
    result = init("--out", str(file), said=first + "\n\n192.168.1.9\n\n\nnotaurl\n\n" + "\n" * 7)
    assert result.exit_code == 0, result.output
    assert result.output.count("This cannot be used: ") == 2
    gateway = load_config(tmp_path / "gateway" / "qmt-bridge.toml", {})
    assert (gateway.market_addr, load_config(file, {}).alerts_webhook) == ("tcp://192.168.1.9:5555", "")


def test_two_machines_get_settings_and_keys_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "here" / "q.toml"
    result = init("--yes", "--source", "sim", "--feeder-host", "192.168.1.100", "--out", str(file))
    assert result.exit_code == 0, result.output
    feeder = load_config(file, {})
    assert [each.curve is not None for each in trade_endpoints(feeder, "feeder", makes=False)] == [True, True]
    # A folder of its own, as on the other machine.
    gateways = tmp_path / "there"
    (tmp_path / "here" / "gateway").rename(gateways)
    monkeypatch.chdir(gateways)
    gateway = load_config(gateways / "qmt-bridge.toml", {})
    market, asks = market_endpoints(gateway, "gateway")
    assert (market.address, asks.address) == ("tcp://192.168.1.100:5555", "tcp://192.168.1.100:5557")
    trade, _ = trade_endpoints(gateway, "gateway", makes=False)
    assert market.curve is not None
    assert trade.curve is not None
    admitted = {each.public for each in client_certificates(tmp_path / "here" / "keys")}  # type: ignore[union-attr]
    assert market.curve.public in admitted
    own = trade_endpoints(feeder, "feeder", makes=False)[0].curve
    assert own is not None
    assert market.curve.server == own.public
    assert not (gateways / "keys" / "feeder.key_secret").exists()
    assert (feeder.api_key, bool(gateway.api_key)) == ("", True)


@pytest.mark.parametrize("group", examples.GROUPS)
def test_example_files_are_those_of_the_folder_deploy(group: str, tmp_path: Path) -> None:
    result = init(f"--{group}", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert written
    for path in written:
        content = (ROOT / "deploy" / path).read_bytes()
        # The full terminal keeps its strategies in GBK, this repository in UTF-8.
        expected = content.decode().encode("gbk") if group == "bigqmt" else content
        assert (tmp_path / path).read_bytes() == expected
    again = init(f"--{group}", "--out", str(tmp_path), "--yes")
    assert (again.exit_code, again.output.count("unchanged: ")) == (0, len(written))


def test_changed_example_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "qmt-bridge.toml").write_text("mine")
    assert init("--toml", "--out", str(tmp_path), "--yes").exit_code == 1
    assert init("--toml", "--out", str(tmp_path), said="n\n").exit_code == 0
    assert (tmp_path / "qmt-bridge.toml").read_text() == "mine"


def test_examples_of_a_wheel_are_data_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples.resources, "files", lambda _: tmp_path / "site" / "qmt_bridge")
    result = init("--toml", "--out", str(tmp_path / "out"))
    assert (result.exit_code, "has no example files" in result.output) == (1, True)
    (tmp_path / "site/qmt_bridge/deploy").mkdir(parents=True)
    (tmp_path / "site/qmt_bridge/deploy/qmt-bridge.toml").write_text("of the wheel")
    assert init("--toml", "--out", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out" / "qmt-bridge.toml").read_text() == "of the wheel"
