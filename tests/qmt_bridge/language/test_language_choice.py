"""The language of the program: by option, variable and locale; and Chinese lines, which have no blanks."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from qmt_bridge import cli
from qmt_bridge.language.choice import chosen_language
from qmt_bridge.language.wrapping import width, wrapped


@pytest.mark.parametrize(
    ("env", "chosen"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "QMT_BRIDGE_LANG": "zh"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "QMT_BRIDGE_LANG": "en"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "QMT_BRIDGE_LANG": "klingon"}, "zh"),
    ],
)
def test_language_is_that_of_variable_or_locale(env: dict[str, str], chosen: str) -> None:
    assert chosen_language(env) == chosen


@pytest.mark.skipif(sys.platform == "win32", reason="there the system says it")
def test_language_without_a_locale_is_english() -> None:
    assert chosen_language({}) == "en"


@pytest.mark.parametrize("arguments", [["--lang", "zh", "tape", "info"], ["tape", "info", "--lang=zh"]])
def test_option_counts_before_and_behind_the_command(arguments: list[str]) -> None:
    assert "缺少参数" in CliRunner().invoke(cli.main, arguments).output


def test_unknown_language_is_named() -> None:
    result = CliRunner().invoke(cli.main, ["--lang", "de", "tape", "info"])
    assert (result.exit_code, "expected one of en, zh, got 'de'" in result.output) == (2, True)


def test_commands_of_one_process_may_speak_different_languages() -> None:
    said = [CliRunner().invoke(cli.main, ["--lang", each, "key", "--help"]).output for each in ("zh", "en", "zh")]
    assert ["创建密钥" in each for each in said] == [True, False, True]
    assert "Make a key and print it" in said[1]


def test_help_keeps_within_its_columns_in_chinese() -> None:
    # Not what a thread of the test before may log meanwhile, which `output` has too.
    lines = CliRunner().invoke(cli.main, ["--lang", "zh", "up", "--help"]).stdout.splitlines()
    assert len(lines) > 100
    assert max(map(width, lines)) <= 80


def test_error_of_a_setting_is_said_in_chinese() -> None:
    result = CliRunner().invoke(cli.main, ["--lang", "zh", "up", "--config", "gone.toml"])
    assert result.output.startswith("错误：gone.toml：无法读取设置：没有这个文件或文件夹")


def test_line_breaks_between_characters_and_not_before_a_comma() -> None:
    assert wrapped("网关端口，任选", 8) == "网关端\n口，任选"
    assert wrapped("网关端，口", 6) == "网关\n端，口"
    assert wrapped("端口 --port-of-gateway 的值", 12, following="  ") == "端口\n  --port-of-gateway\n  的值"
    assert [width(text) for text in ("ab", "网关", "，")] == [2, 4, 2]
