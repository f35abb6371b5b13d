"""Every text for people has a Chinese one: help, errors, findings, questions, results, and click's own."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qmt_bridge import cli
from qmt_bridge.config import NAMES, description
from qmt_bridge.language.catalog import Catalog, read_texts, tables
from tests.support.paths import ROOT
from tests.support.texts import spoken, written

TEXTS = read_texts("zh")
CATALOG = Catalog(TEXTS)
# Of these every sentence is for people.
WRITTEN = [
    *sorted((ROOT / "qmt_bridge/commands/doctor/findings").glob("*.py")),
    ROOT / "qmt_bridge/commands/doctor/facts/store.py",
    ROOT / "qmt_bridge/commands/init/questions.py",
    ROOT / "qmt_bridge/commands/load/report.py",
    ROOT / "qmt_bridge/tapes/survey.py",
    ROOT / "gateway/admin/verdict.py",
]
SPOKEN = [path for package in ("qmt_bridge", "feeder", "gateway") for path in sorted((ROOT / package).rglob("*.py"))]
# Commands, units, numbers, times and names of checks, which are the same in both languages.
SAME = re.compile(
    r"sdk: \{0\}|trade events|data service|netsh .*|pip install .*|\{0\} (GiB|MiB)|(\{\d\}|[^A-Za-z])*"
    r"| ms, \{0\}|\{0\} of \{1\}(: \{2\}: \{3\})?|%Y-.*"
)
CHINESE = re.compile("[\u4e00-\u9fff]")


def untranslated(texts: Iterator[str]) -> list[str]:
    return [text for text in texts if not SAME.fullmatch(text) and CATALOG.translated(text) == text]


def helped(command: click.Command) -> Iterator[str]:
    """Yield the texts of the help of a command and of those below it, as click prints them."""
    for paragraph in (command.help or "").split("\n\n"):
        text = " ".join(paragraph.split())
        # Examples stay.
        if not text.startswith(("\b", "qmt-bridge ")):
            yield text
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help and not parameter.hidden:
            yield " ".join(parameter.help.split())
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from helped(inner)


def test_every_help_text_has_a_chinese_one() -> None:
    assert untranslated(helped(cli.main)) == []
    # Without one of the parts of a text: the default, and who can read a credential.
    left = {text: CATALOG.translated(text) for text in helped(cli.main)}
    assert [text for text, meant in left.items() if "default:" in meant or "For the simulator" in meant] == []


def test_every_setting_is_explained_in_chinese() -> None:
    assert [name for name in NAMES if description(name) not in TEXTS] == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_sentence_of_such_a_file_has_a_chinese_one(path: Path) -> None:
    assert untranslated(written(path)) == []


def test_every_error_and_result_has_a_chinese_one() -> None:
    assert {str(path.relative_to(ROOT)): left for path in SPOKEN if (left := untranslated(spoken(path)))} == {}


def test_texts_of_click_have_a_chinese_one() -> None:
    """Those that a user of this program can see; the rest is for programmers, or for what no command uses."""
    folder = Path(click.__file__).parent
    texts = set()
    for name in ("core", "decorators", "exceptions", "formatting", "parser"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("_", "ngettext"):
                texts |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    of_programmers = re.compile(r"Deprecation|.*declar|.*cannot use the same|.*defined twice|Value must|Invalid start")
    assert {text for text in texts if not of_programmers.match(str(text))} - {*TEXTS} == set()


def test_translations_have_the_fields_of_their_texts_and_are_chinese() -> None:
    for text, meant in TEXTS.items():
        assert set(re.findall(r"\{\w+(?:!r)?\}", meant)) <= set(re.findall(r"\{\w+(?:!r)?\}", text)), text
        assert CHINESE.search(meant) or not re.search("[A-Za-z]{2} [a-z]{2}", meant) or meant == text, text


def test_no_text_stands_in_two_tables() -> None:
    counted = Counter(text for _, texts in tables("zh") for text in texts)
    assert [text for text, count in counted.items() if count > 1] == []


def test_missing_text_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text('raise ConfigError(name, f"{x} of nowhere" if x else "gone" + " astray")\nsay("odd")\n', "utf-8")
    assert untranslated(spoken(path)) == ["{0} of nowhere", "gone", " astray", "odd"]
    path.write_text(
        '"""Doc string."""\ndef f():\n    return Finding("a check", "ok", f"it is {x}", "do it")\n', "utf-8"
    )
    assert sorted(written(path)) == ["do it", "it is {0}"]
