"""Sentences in the language of the user: whole ones, with values, joined, and unknown ones."""

from __future__ import annotations

import pytest

from qmt_bridge.language.catalog import Catalog, read_texts

CATALOG = Catalog(
    {
        "No such file": "没有文件",
        "cannot read {0}: {1}": "无法读取 {0}：{1}",
        "{0} is taken in {1}": "{1} 中已有 {0}",
        "unknown setting{0}": "未知的设置{0}",
        "did you mean {0}?": "是否要用 {0}？",
        "sent": "已发送",
        "Key.": "密钥。",
        "default: {0}]": "默认：{0}]",
    }
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("No such file", "没有文件"),
        ("  No such file\n", "  没有文件\n"),
        ("desk is taken in keys", "keys 中已有 desk"),
        ("cannot read a: b.toml: No such file", "无法读取 a：b.toml：没有文件"),
        ("x.toml: cannot read x: No such file", "x.toml：无法读取 x：没有文件"),
        ("prot in x.toml: unknown setting; did you mean port?", "prot in x.toml：未知的设置；是否要用 port？"),
        ("Key. [default: 8000]", "密钥。 [默认：8000]"),
        # A value of one word is a name, also where it is the same as a text.
        ("sent is taken in sent", "sent 中已有 sent"),
        ("nothing of it: is known", "nothing of it: is known"),
        ("", ""),
    ],
)
def test_sentence_is_translated_with_its_values(text: str, meant: str) -> None:
    assert CATALOG.translated(text) == meant


def test_unknown_part_of_a_joined_sentence_stays() -> None:
    assert CATALOG.translated("strange; No such file") == "strange；没有文件"


def test_a_long_text_takes_no_time_that_grows_with_its_square() -> None:
    catalog = Catalog(read_texts("zh"))
    found = catalog.translated(", ".join(["holds a NUL character"] * 300))
    assert found.count("NUL") == 300


def test_an_unknown_text_with_many_joints_is_soon_given_up() -> None:
    catalog = Catalog(read_texts("zh"))
    assert catalog.translated("zq1: zq2, " * 200) == "zq1: zq2, " * 200
    # With more than these joints it would have no end.
    assert catalog.translated("zq1: zq2, " * 5000) == "zq1: zq2, " * 5000


def test_store_of_doctor_is_told_as_one_sentence() -> None:
    catalog = Catalog(read_texts("zh"))
    said = "keeps 3 topics, 12 MiB, 1 day since 2026-11-30, 44.5 GiB free on its disk"
    assert catalog.translated(said) == "存有 3 个主题，12 MiB，从 2026-11-30 起 1 天，磁盘剩余 44.5 GiB"
