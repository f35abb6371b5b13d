"""The documents: links, anchors and named paths exist, and tables agree with the code."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from qmt_bridge.closes import CLOSES
from qmt_bridge.errors import ERROR_CODES, RETRYABLE
from qmt_bridge.wire.messages import FeedStatus
from qmt_bridge.wire.requests import CatchUp, Options, TopicState
from qmt_bridge.wire.topics import FormulaSpec, formula_topic
from tests.support.paths import ROOT

# The guide is the user's own text; what it names belongs to it.
DOCUMENTS = sorted(path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
# A path in backquotes that begins with a folder of this project.
NAMED = re.compile(r"`((?:qmt_bridge|feeder|gateway|tests|deploy|docs|\.ci)/[\w./-]+)(?:::(\w+))?`")
# Files that CONTRIBUTING.md names as examples of new files.
INVENTED = {"feeder/yours.py", "tests/feeder/test_yours.py", "qmt_bridge/commands/yours.py"}


def anchor(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    return {anchor(heading) for heading in HEADING.findall(FENCE.sub("", text(path)))}


def broken_links(path: Path) -> list[str]:
    """Return the relative links of a document whose file or anchor does not exist."""
    broken = []
    for link in LINK.findall(FENCE.sub("", text(path))):
        if "://" in link:
            continue
        file, _, name = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (name and name not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_and_anchor_exists(path):
    assert broken_links(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_named_path_exists(path):
    named = NAMED.findall(text(path))
    assert [file for file, _ in named if file not in INVENTED and not (ROOT / file).exists()] == []


def test_broken_links_and_anchors_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](#three) [c](none.md) [d](page.md#one-two) [e](https://x)\n", "utf-8")
    assert broken_links(page) == ["#three", "none.md"]


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readme_links_to_the_documents(readme):
    assert len([link for link in LINK.findall(text(ROOT / readme)) if "://" not in link]) >= 6


def test_readme_in_chinese_leads_to_the_same_documents():
    there, here = ({*LINK.findall(text(ROOT / name))} for name in ("README.md", "README.zh-CN.md"))
    english = {link.partition("#")[0] for link in there if not link.startswith(("http", "docs/images/"))}
    assert english - {link.partition("#")[0] for link in here} == {"README.zh-CN.md"}
    assert "qmt-bridge forward" in text(ROOT / "README.zh-CN.md")


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_speed_in_the_readme_is_from_the_full_table(readme):
    shown = [line for line in text(ROOT / readme).splitlines() if line.startswith("| this gateway |")]
    assert len(shown) == 1
    assert shown[0] in text(ROOT / "docs" / "performance.md").splitlines()


def table(text: str, head: str) -> dict[str, list[str]]:
    """Return the rows of the table that begins with `head`, by their first cell without backquotes."""
    lines = text.partition(f"\n{head}\n")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_error_code_is_documented_with_its_retry():
    documented = table(text(ROOT / "docs" / "websocket.md"), "| code | retry | meaning |")
    assert {code: row[0] == "yes" for code, row in documented.items()} == {
        code: code in RETRYABLE for code in ERROR_CODES
    }


def test_every_close_code_is_documented_with_its_reconnect():
    documented = table(text(ROOT / "docs" / "websocket.md"), "| close code | when | reconnect |")
    assert {int(code): row[1].startswith("yes") for code, row in documented.items()} == {
        code: close.reconnect for code, close in CLOSES.items()
    }


def test_every_option_of_a_subscription_is_documented():
    documented = table(text(ROOT / "docs" / "websocket.md"), "| option | type | default | meaning |")
    assert set(documented) == set(Options.__struct_fields__)


def test_every_field_of_the_heartbeat_is_documented():
    text_of = text(ROOT / "docs" / "wire.md")
    section = text_of.partition("\n## The heartbeat\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|")))
    assert set(named) == set(FeedStatus.__struct_fields__)


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        pytest.param("| field of the question | type | default | meaning |", CatchUp, id="catch_up"),
        pytest.param("| field of the answer | type | meaning |", TopicState, id="answer"),
    ],
)
def test_every_field_of_a_question_and_answer_is_documented(head, shape):
    # A tag is no field of its class; the table of the answer leaves out id and topic, which the question has too.
    tags = {"ask", "reply", "id", "topic"}
    documented = {name.strip("`") for row in table(text(ROOT / "docs" / "wire.md"), head) for name in row.split(", ")}
    assert documented | tags == {*tags, *shape.__struct_fields__}


# Texts of the first column that are in no source file: placeholders, states, and texts of other programs.
NOT_PRINTED = re.compile(r"^(close |\\u|`?QMT_BRIDGE_|state |no error|python -m|exit code)")


def printed(symptom: str) -> list[str]:
    """Return the texts in backquotes of a symptom, split at their placeholders."""
    found = []
    for quoted in re.findall(r"`([^`]+)`", symptom):
        for part in re.split(r"\.\.\.|: ", quoted):
            if len(part.split()) >= 3 and not NOT_PRINTED.match(part.strip()):
                found.append(part.strip())
    return found


def runs(text: str) -> list[str]:
    """Return each three consecutive words of a text; other words may have a value between them in the source."""
    words = text.split()
    return [" ".join(words[start : start + 3]) for start in range(len(words) - 2)]


def test_texts_of_the_troubleshooting_are_in_the_source():
    page = text(ROOT / "docs" / "troubleshooting.md")
    symptoms = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    texts = [each for symptom in symptoms for each in printed(symptom)]
    assert len(texts) >= 20
    # Long strings are written in several parts.
    folders = ("feeder", "gateway", "qmt_bridge")
    source = "\n".join(text(path) for folder in folders for path in (ROOT / folder).rglob("*.py"))
    joined = re.sub(r'"\s+f?"', "", source)
    assert [each for each in texts if not any(run in joined for run in runs(each))] == []


def test_documented_formula_request_gives_the_documented_topic():
    (request,) = re.findall(r'`(\{"formula_name":.*\})`', text(ROOT / "docs" / "wire.md"))
    spec = msgspec.json.decode(request, type=FormulaSpec)
    assert formula_topic(spec) == f"formula/{quote(request, safe='')}/"


def test_each_threat_names_a_test_that_exists() -> None:
    rows = [line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows[1:]:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert [name for name in named if f"def {name}(" not in tests] == []
