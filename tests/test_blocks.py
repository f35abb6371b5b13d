"""Every block of the documents is checked: by a function of this file, or by tests elsewhere that run it.

`CHECKED` says how, for each language of each document; a block that it does not have fails a test.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import click
import msgspec
import pytest
import zmq
import zmq.auth

from feeder.push.message import decode as decode_pushed
from feeder.push.spoken import read_topic
from gateway.contract.frames import FRAMES, UndocumentedFrame, name_of
from gateway.http import openapi
from gateway.http.problems import Problem
from qmt_bridge.alerts.notice import Notice
from qmt_bridge.config import NAMES, SOURCE_GROUP, Config, env_name, load_config
from qmt_bridge.curve.key_folder import make_keys
from qmt_bridge.errors import BadRequest
from qmt_bridge.keys.exposure import check_exposure
from qmt_bridge.wire.history import TopicHistory, decode_history
from qmt_bridge.wire.messages import FeedStatus
from qmt_bridge.wire.parts.report import Report
from qmt_bridge.wire.requests import (
    AskHistory,
    CatchUp,
    DownloadStart,
    DownloadStarted,
    FormulaRequest,
    FormulaUnsubscribe,
    L2Request,
    QuoteRequest,
    StartDownload,
    TopicState,
    TradeResume,
    TradeStart,
    WholeRequest,
    decode_ask,
    decode_reply,
    ignored_fields,
    parse_request,
    read_request,
)
from qmt_bridge.wire.source_history import SourceHistory, decode_source_history
from qmt_bridge.wire.survey import Attend, Finding, Found, Question, Roll, Survey
from tests.support import pages
from tests.support.documents import GUIDE, Block, blocks, blocks_of, documents
from tests.support.paths import ROOT
from tests.support.programs import accept, check, needs

Check = Callable[[Block, Path], None]
REQUESTS: Mapping[str, tuple[type[msgspec.Struct], ...]] = {
    "/ws/realtime": (QuoteRequest,),
    "/ws/whole_quote": (WholeRequest,),
    "/ws/l2_thousand": (L2Request,),
    "/ws/download_progress": (DownloadStart,),
    "/ws/formula": (FormulaRequest, FormulaUnsubscribe),
    "/ws/trade": (TradeResume, TradeStart),
}
ASKED = (CatchUp, StartDownload, AskHistory, Attend, Survey, Finding, Report)
REPLIES: Mapping[Any, Callable[[bytes], Any]] = {
    **dict.fromkeys((TopicState, DownloadStarted, Question, Roll, Found), decode_reply),
    TopicHistory: decode_history,
    SourceHistory: decode_source_history,
}
WIRE = {("ask", shape.__struct_config__.tag): (shape, decode_ask) for shape in ASKED} | {
    ("reply", shape.__struct_config__.tag): (shape, decode) for shape, decode in REPLIES.items()
}
# The gateway's own port, on any machine.
URL = re.compile(r"\b(?:http|ws)s?://[\w.]+:8000(/[^\s\"'`]*)")


def objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a text with comments; fail at anything else in it."""
    plain = re.sub(r"(?m)(^|\s)// .*$", "", text)
    decoder = json.JSONDecoder()
    place = 0
    while rest := plain[place:].lstrip():
        value, read = decoder.raw_decode(rest)
        assert isinstance(value, dict), value
        place = len(plain) - len(rest) + read
        yield value


# Commands.


def commands(block: Block, folder: Path) -> None:
    """Check that each line is a command that exists, with arguments that it takes."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and (setting := re.fullmatch(r"(QMT_BRIDGE_\w+)=.*", words[0])):
            assert setting[1] in map(env_name, NAMES), line
            words.pop(0)
        if words:
            _command(words)


def _command(words: list[str]) -> None:
    match words[0].removeprefix(".venv/bin/"), words[1:]:
        case "qmt-bridge", arguments:
            accept(arguments)
        case "python" | "python3", ["-m", module, *arguments]:
            _module(module, arguments)
        case "pip", ["install", *_, what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
            assert set(re.findall(r"\w+", what.removeprefix("qmt-bridge-gateway"))) <= set(extras), what
        case "make", targets:
            made = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
            assert set(targets) <= set(made), targets
        case "curl", arguments:
            assert [each for each in arguments if URL.match(each)], arguments
        case "cd", [_]:
            pass
        case _:
            pytest.fail(f"nothing checks the command {shlex.join(words)}")


def _module(name: str, arguments: list[str]) -> None:
    assert find_spec(name) is not None, name
    if name.startswith("tests."):
        main = import_module(f"{name}.__main__").main
        assert isinstance(main, click.Command)
        main.make_context(name, list(arguments))


def url(path: str) -> None:
    """Check that a URL of a gateway is served, and over HTTP with parameters that it takes."""
    parts = urlsplit(path)
    served: dict[str, Any] = openapi.document()["paths"]
    found = [each for each in served if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each), parts.path)]
    assert found or parts.path == "/", path
    if found and not parts.path.startswith("/ws/"):
        known = {each["name"] for each in served[found[0]]["get"].get("parameters", [])} | {"api_key"}
        given = {name for name, _ in parse_qsl(parts.query)}
        assert given <= known, (path, known)


# Programs.


def python(block: Block) -> None:
    """Check that a program can be compiled, and that what it imports exists."""
    tree = ast.parse(block.text)
    compile(block.text, block.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(find_spec(each.name) for each in node.names), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            module = import_module(node.module)
            assert all(hasattr(module, each.name) for each in node.names), ast.unparse(node)


def javascript(block: Block, folder: Path) -> None:
    file = folder / "program.js"
    file.write_text(block.text, encoding="utf-8")
    check([needs("node"), "--check", str(file)])


def powershell(block: Block, folder: Path) -> None:
    """Check that the grammar takes it, and that the command in it exists."""
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_powershell")
    tree = tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(block.text.encode())
    assert not tree.root_node.has_error
    ours = re.findall(r"-m qmt_bridge\.cli (.*?)'", block.text)
    assert ours
    for arguments in ours:
        accept(shlex.split(arguments.replace("\\", "/")))


def curve(block: Block, folder: Path) -> None:
    """Run the lines that give a socket its keys, which belong into programs of another block."""
    make_keys(folder)
    with zmq.Context() as context, context.socket(zmq.SUB) as news:
        exec(block.text, {"zmq": zmq, "news": news, "KEYS": folder})
        assert news.mechanism == zmq.CURVE


# Settings, requests, frames and answers.


def settings(block: Block, folder: Path) -> None:
    file = folder / "settings.toml"
    file.write_text(block.text, encoding="utf-8")
    config = load_config(file, {})
    assert config != Config()
    check_exposure(config)


def package_or_settings(block: Block, folder: Path) -> None:
    """Check the settings of a file, or that the project of a package offers a source."""
    if "[project]" not in block.text:
        settings(block, folder)
        return
    project = tomllib.loads(block.text)["project"]
    assert list(project["entry-points"]) == [SOURCE_GROUP]
    name = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["name"]
    assert project["dependencies"] == [name]


def websocket(block: Block, folder: Path) -> None:
    """Check that each object is a request that the gateway takes, or a frame that it sends, at the URL of the text."""
    section = next((path for path in REQUESTS if path in block.section), None)
    for each in objects(block.text):
        assert _asks(each, section) or _is_sent(each, section), each


def _asks(request: dict[str, Any], section: str | None) -> bool:
    for path in REQUESTS if section is None else [section]:
        for shape in REQUESTS[path]:
            with suppress(BadRequest):
                read_request(parse_request(json.dumps(request)), shape)
                if not ignored_fields(request, shape):
                    return True
    return False


def _is_sent(frame: dict[str, Any], section: str | None) -> bool:
    for path in FRAMES if section is None else [section]:
        with suppress(UndocumentedFrame):
            name_of(path, frame)
            return True
    return False


def wire(block: Block, folder: Path) -> None:
    """Check that each object is a question, an answer or a heartbeat of ZeroMQ, with no field that has no meaning."""
    for each in objects(block.text):
        body = json.dumps(each).encode()
        kind = next((name for name in ("ask", "reply") if name in each), None)
        if kind is None:
            shape: type[msgspec.Struct] = FeedStatus
            msgspec.json.decode(body, type=FeedStatus)
        else:
            shape, decode = WIRE[kind, each[kind]]
            decode(body)
        assert each.keys() - {kind} <= set(shape.__struct_fields__), each


def answer(block: Block, folder: Path) -> None:
    """Check an answer against the schema of the URL in its first line, without one against that of an error."""
    first, _, body = block.text.partition("\n")
    if not first.startswith("// "):
        (error,) = objects(block.text)
        assert msgspec.to_builtins(msgspec.convert(error, Problem)) == error
        return
    method, target = first.removeprefix("// ").split(" ")
    url(target)
    path = urlsplit(target).path
    kind = "application/x-ndjson" if path.startswith("/api/ticks/") else "application/json"
    pages.check(method, path, 200, kind, body.strip().encode())


def notice(block: Block, folder: Path) -> None:
    (told,) = objects(block.text)
    assert set(told) == set(Notice.__struct_fields__)
    msgspec.convert(told, Notice)


def events(block: Block, folder: Path) -> None:
    """Check server-sent events: their fields, and that the data of each is a frame of the WebSocket."""
    lines = [line for line in block.text.splitlines() if line and not line.startswith(":")]
    assert {line.partition(": ")[0] for line in lines} <= {"event", "data", "id", "retry"}
    sent = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert sent
    for frame in sent:
        name_of("/ws/realtime", frame)


def application(block: Block, folder: Path) -> None:
    """Check that an application would start a command that exists, with settings that it reads."""
    (server,) = json.loads(block.text)["mcpServers"].values()
    assert Path(server["command"]).name == "qmt-bridge"
    accept(server["args"])
    assert {*server["env"]} <= {*map(env_name, NAMES)}


def drawing(block: Block, folder: Path) -> None:
    """Check that it is a drawing of the parts, and no program or answer in the wrong language."""
    assert re.search("[┌├│└]", block.text)
    assert "feeder" in block.text


DOCUMENTED = "tests/feeder/conformance/test_sources.py::documented"
TICKS = "tests/test_deploy.py::test_programs_of_the_readme_print_ticks"
# The fields of what the feeder tells a pusher, by the type of the line.
TOLD = {
    "error": {"line", "code", "error"},
    "welcome": {"protocol", "epoch", "silence"},
    "refused": {"code", "error"},
    "subscribe": {"topic"},
    "unsubscribe": {"topic"},
    "download": {"topic", "stocks", "period", "start_time", "end_time"},
    "history": {"id", "topic", "from"},
}


def push(block: Block, folder: Path) -> None:
    """Check that each line is one of the protocol of pushers, with no field that has no meaning."""
    for line in block.text.splitlines():
        said = json.loads(line)
        if "topic" in said:
            read_topic(json.dumps(said["topic"]).encode())
        if set(said) - {"type"} == TOLD.get(said.get("type")):
            continue
        fields = set(decode_pushed(line.encode()).__struct_fields__)
        assert set(said) <= fields | {"type"}, said


CHECKED: Mapping[str, Mapping[str, Check | tuple[str, ...]]] = {
    "CONTRIBUTING.md": {"bash": commands},
    "README.md": {"bash": commands, "json": websocket, "python": (TICKS,), "text": drawing},
    "README.zh-CN.md": {
        "bash": commands,
        "json": websocket,
        "python": ("tests/test_deploy.py::test_both_readmes_have_the_same_programs",),
        "text": drawing,
    },
    "docs/administration.md": {"bash": commands, "jsonc": answer},
    "docs/alerts.md": {"bash": commands, "json": notice, "toml": settings},
    "docs/architecture.md": {
        "mermaid": ("tests/test_layout.py::test_architecture_draws_the_present_imports",),
        "text": drawing,
    },
    "docs/bigqmt.md": {"bash": commands},
    "docs/deploy.md": {"bash": commands, "text": drawing, "toml": settings},
    "docs/http.md": {
        "javascript": javascript,
        "jsonc": answer,
        "python": ("tests/test_recipes.py::test_pandas_reads_the_store_as_its_page_says",),
        "sh": commands,
        "text": events,
    },
    "docs/mcp.md": {"bash": commands, "json": application},
    "docs/performance.md": {"bash": commands},
    "docs/push.md": {"json": push},
    "docs/python.md": {
        "python": (
            "tests/test_python_page.py::test_a_block_of_the_page_runs",
            "tests/test_python_page.py::test_the_notebook_of_the_page_runs_in_a_kernel",
        )
    },
    "docs/recipes.md": {
        "bash": commands,
        "python": ("tests/test_recipes.py::test_each_program_has_at_most_25_lines_and_a_test",),
        "sql": ("tests/test_recipes.py::test_a_database_is_sent_each_tick_once",),
        "toml": settings,
    },
    "docs/sources.md": {"bash": commands, "python": (DOCUMENTED,), "toml": package_or_settings},
    "docs/tapes.md": {"bash": commands},
    "docs/trade-events.md": {
        "bash": commands,
        "python": ("tests/qmt_bridge/test_resume.py::test_the_documented_program_keeps_its_position",),
    },
    "docs/websocket.md": {"javascript": javascript, "jsonc": websocket},
    "docs/windows.md": {"powershell": powershell},
    "docs/wire.md": {"json": wire},
    "docs/zeromq.md": {
        "javascript": javascript,
        "python": (TICKS, "tests/qmt_bridge/test_consumer.py::test_the_documented_program_misses_no_event"),
        "text": curve,
    },
    GUIDE: {
        "javascript": javascript,
        "jsonc": websocket,
        "python": ("tests/test_guide.py::test_programs_of_the_guide_run_verbatim",),
    },
}
BLOCKS = [each for document in documents() for each in blocks(document)]


def test_the_table_has_every_kind_of_block_and_no_other():
    there = {(each.document, each.language) for each in BLOCKS}
    assert there == {(document, language) for document, kinds in CHECKED.items() for language in kinds}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_block_is_right(block, tmp_path):
    how = CHECKED[block.document][block.language]
    if callable(how):
        how(block, tmp_path)
    if block.language == "python":
        python(block)
    for path in URL.findall(block.text):
        url(path)


def test_tests_that_run_blocks_exist_and_read_their_document():
    for document, kinds in CHECKED.items():
        named: Iterable[str] = (test for how in kinds.values() if not callable(how) for test in how)
        for file, name in (test.split("::") for test in named):
            source = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {name}(" in source
            # By its whole path, or by its name in its folder.
            assert any(f'"{each}"' in source for each in (document, Path(document).name)), (file, document)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        pytest.param(commands, "qmt-bridge up --no-such-option", id="option"),
        pytest.param(commands, "qmt-bridge key add desk --no-such-option", id="option of a subcommand"),
        pytest.param(commands, "QMT_BRIDGE_NO_SUCH=1 qmt-bridge up", id="variable"),
        pytest.param(commands, "make no-such-target", id="target"),
        pytest.param(commands, "python -m tests.bench --no-such-option", id="option of a module"),
        pytest.param(commands, "python -m no_such_module", id="module"),
        pytest.param(commands, "rm -r folder", id="another command"),
        pytest.param(settings, "no_such_setting = 1", id="setting"),
        pytest.param(settings, 'host = "0.0.0.0"', id="exposure"),
        pytest.param(websocket, '{"stocks": ["600519.SH"], "perod": "tick"}', id="request"),
        pytest.param(websocket, '{"type": "heartbeat", "at": 1}', id="frame"),
        pytest.param(websocket, '{"type": "heartbeat", "time": 1', id="JSON"),
        pytest.param(wire, '{"ask": "catch_up", "id": 1, "topics": [], "until": 1}', id="question"),
        pytest.param(wire, '{"source": "sim"}', id="heartbeat"),
        pytest.param(answer, '// GET /api/last?codes=600519.SH\n{"records": {}}', id="answer"),
        pytest.param(answer, '// GET /api/no\n{"records": {}}', id="path"),
        pytest.param(answer, '// GET /api/last?code=600519.SH\n{"records": {}}', id="parameter"),
        pytest.param(answer, '{"code": "bad_request", "error": "...", "again": false}', id="error"),
        pytest.param(notice, '{"event": "alert"}', id="notice"),
        pytest.param(events, 'data: {"type": "no such"}', id="event"),
        pytest.param(javascript, "const = 1;", id="javascript"),
        pytest.param(powershell, "$start = '-m qmt_bridge.cli store --no-such-option'", id="option in powershell"),
        pytest.param(curve, "news.curve_serverkey = zmq.auth.no_such_function()", id="key"),
        pytest.param(drawing, "an answer", id="drawing"),
    ],
)
def test_a_fault_in_a_block_is_found(how, text, tmp_path):
    block = Block("a.md", "A section", 1, "", text + "\n")
    wrong = (Exception, pytest.fail.Exception)
    with pytest.raises(wrong) as found:
        how(block, tmp_path)
    assert not isinstance(found.value, pytest.skip.Exception)


@pytest.mark.parametrize("text", ["import no_such_module", "from qmt_bridge import no_such_name", "for each in"])
def test_a_fault_in_a_program_is_found(text):
    with pytest.raises((AssertionError, ImportError, SyntaxError)):
        python(Block("a.md", "A section", 1, "python", text))


def test_a_url_that_is_not_served_is_found():
    assert URL.findall("curl 'http://127.0.0.1:8000/api/lst?codes=a'") == ["/api/lst?codes=a"]
    with pytest.raises(AssertionError):
        url("/api/lst?codes=a")


def test_blocks_have_their_place_and_end():
    text = "## A\n\n```bash\na\n# b\n```\n## C\n```json\n{}\n```\n"
    assert blocks_of(text) == [Block("", "A", 3, "bash", "a\n# b\n"), Block("", "C", 8, "json", "{}\n")]
    with pytest.raises(AssertionError):
        blocks_of("```bash\na\n")
    with pytest.raises(AssertionError):
        blocks_of("```bash\na\n```json\n{}\n```\n")
