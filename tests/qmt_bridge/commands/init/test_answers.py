"""The settings that follow from answers, and the file that holds them: read again by the real settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmt_bridge.commands.init.answers import Answers, account, of_feeder, of_gateway, of_one_machine, robot
from qmt_bridge.commands.init.questions import terminal_folders
from qmt_bridge.commands.init.settings_file import to_toml
from qmt_bridge.config import load_config
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.exposure import check_exposure
from qmt_bridge.wire.topics import parse_demand

KEY = "qmtb_0123456789abcdef"
TERMINAL = r"C:\国金证券QMT交易端\userdata_mini"


def written(values: dict[str, object], folder: Path) -> Path:
    path = folder / "written.toml"
    path.write_text(to_toml(values, ("made in a test",), str), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "answers",
    [
        Answers(),
        Answers("xtquant", TERMINAL, ("1000000365:STOCK",), data_dir="D:\\行情 数据"),
        Answers("replay", file='it\'s \\ a "file".csv'),
        Answers(reach="tls", tls_cert="/c.pem", tls_key="/k.pem", hosts=("quotes.example", "q.example")),
        Answers(reach="proxy", proxy="10.0.0.2"),
        Answers(stored="markets", store_days=9),
        Answers(stored="none"),
        Answers(alerts_url="https://open.feishu.cn/open-apis/bot/v2/hook/x", alerts_secret="s"),
    ],
    ids=["default", "terminal", "replay", "tls", "proxy", "markets", "no-store", "alerts"],
)
def test_file_says_what_was_answered_and_a_gateway_starts_with_it(answers: Answers, tmp_path: Path) -> None:
    values = of_one_machine(answers, KEY)
    config = load_config(written(values, tmp_path), {})
    assert {name: getattr(config, name) for name in values} == values
    check_exposure(config)


def test_two_machines_have_the_same_ports_and_only_one_has_the_key() -> None:
    answers = Answers(feeder_host="fe80::1", stored="markets", alerts_url="https://desk.example/hook")
    feeder, gateway = of_feeder(answers, "/keys"), of_gateway(answers, "keys", KEY)
    ports = {name: value.rpartition(":")[2] for name, value in feeder.items() if name.endswith("_addr")}
    assert ports == {name: value.rpartition(":")[2] for name, value in gateway.items() if name.endswith("_addr")}
    assert len(ports) == 4
    assert gateway["market_addr"] == "tcp://[fe80::1]:5555"
    assert "api_key" not in feeder
    assert "alerts_webhook" not in gateway
    # The alerts run beside the feeder, where no gateway answers.
    assert feeder["alerts_ignore"] == ("gateway",)


def test_gateway_that_others_reach_asks_for_keys(tmp_path: Path) -> None:
    for reach, proxy, host in (
        ("tls", "", "0.0.0.0"),
        ("proxy", "127.0.0.1", "127.0.0.1"),
        ("proxy", "::2", "0.0.0.0"),
    ):
        values = of_one_machine(Answers(reach=reach, proxy=proxy, tls_cert="c", tls_key="k"), KEY)  # type: ignore[arg-type]
        assert (values["require_key"], values["host"]) == (True, host)
    with pytest.raises(ConfigError, match="other machines reach"):
        check_exposure(load_config(written({"host": "0.0.0.0"}, tmp_path), {}))


def test_stored_markets_are_topics() -> None:
    assert all(parse_demand(topic) for topic in of_one_machine(Answers(stored="markets"), KEY)["store"])


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=x", "alerts_wecom"),
        ("https://oapi.dingtalk.com/robot/send?access_token=x", "alerts_dingtalk"),
        ("https://open.feishu.cn/open-apis/bot/v2/hook/x", "alerts_feishu"),
        ("https://desk.example/qyapi.weixin.qq.com", "alerts_webhook"),
    ],
)
def test_robot_is_known_by_the_host_of_its_url(url: str, name: str) -> None:
    assert robot(url) == name


def test_account_without_a_type_is_of_stocks() -> None:
    assert [account(text) for text in ("1000000365", " 1000000365 : credit ")] == [
        "1000000365:STOCK",
        "1000000365:CREDIT",
    ]


def test_terminals_are_found_at_the_top_of_a_drive(tmp_path: Path) -> None:
    folders = [tmp_path / "broker QMT/userdata_mini", tmp_path / "Program Files (x86)/QMT/userdata_mini"]
    for folder in (*folders, tmp_path / "a/b/userdata_mini"):
        folder.mkdir(parents=True)
    assert list(terminal_folders([tmp_path, tmp_path / "none"])) == folders
