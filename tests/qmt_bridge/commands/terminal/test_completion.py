"""Completion in a real bash: commands, options, values, files and codes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from qmt_bridge import cli
from qmt_bridge.commands.terminal.completion import COMPLETE_ENV, SHELLS
from tests.support.demo_feed import install, on_path
from tests.support.waiting import SLOWNESS

# It completes each line of its input as if Tab were pressed at the end, and prints the words on one line.
SCRIPT = """
eval "$(qmt-bridge completion bash)"
compopt() { :; }
while IFS= read -r line; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *' ' ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    _qmt_bridge_completion qmt-bridge
    echo "${COMPREPLY[*]}"
done
"""
LINES = {
    "qmt-bridge tape ex": "export",
    "qmt-bridge up --source re": "replay",
    "qmt-bridge tail 600519": "600519.SH",
    "qmt-bridge --lang xx ini": "init",
}


@pytest.mark.skipif(os.name != "posix" or shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_values_and_codes(tmp_path: Path) -> None:
    # The command of this Python, whatever is installed on the machine.
    program = tmp_path / "qmt-bridge"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{_AS_COMMAND}" "$@"\n')
    program.chmod(0o700)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "--norc", "-c", SCRIPT]
    done = subprocess.run(
        command, input="\n".join(LINES) + "\n", env=env, capture_output=True, text=True, timeout=40 * SLOWNESS
    )
    assert done.stderr == ""
    assert dict(zip(LINES, done.stdout.splitlines(), strict=True)) == LINES


_AS_COMMAND = "import sys; sys.argv[0] = 'qmt-bridge'; from qmt_bridge.__main__ import main; main()"


@pytest.mark.parametrize(
    ("before", "begun", "completed"),
    [
        ([], "jour", ["journal"]),
        (["up"], "--supe", []),
        (["feeder"], "--superv", ["--supervised"]),
        (["why"], "000001", ["000001.SH", "000001.SZ"]),
        (["tail"], "920", []),
        (["record"], "whole/S", ["whole/SH/", "whole/SZ/"]),
        (["tail"], "ws://127.0.0.1:8000/ws/t", ["ws://127.0.0.1:8000/ws/trade"]),
        # The shell completes names of files itself.
        (["up", "--curve-dir"], "ke", [("ke", "file")]),
        (["tail", "--codes-file"], "co", [("co", "file")]),
        (["tape", "verify"], "day", [("day", "file")]),
        (["init", "--out"], "x", [("x", "file")]),
    ],
)
def test_words_complete_what_is_begun(before: list[str], begun: str, completed: list[str | tuple[str, str]]) -> None:
    found = ShellComplete(cli.main, {}, "qmt-bridge", COMPLETE_ENV).get_completions(before, begun)
    assert [(each.value, each.type) for each in found] == [
        each if isinstance(each, tuple) else (each, "plain") for each in completed
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_script_of_every_shell_asks_by_the_variable_of_the_command(shell: str) -> None:
    result = CliRunner().invoke(cli.main, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert COMPLETE_ENV in result.output


def test_script_of_powershell_is_powershell() -> None:
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_powershell")
    script = CliRunner().invoke(cli.main, ["completion", "powershell"]).output
    assert not tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(script.encode()).root_node.has_error


@pytest.mark.parametrize(("line", "words"), [("qmt-bridge tape ex", 2), ("qmt-bridge tape ", 2), ("qmt-bridge ta", 1)])
def test_line_of_powershell_is_completed_as_one_of_bash(line: str, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its script sets these variables, the number by splitting the line at blanks."""
    assert len(re.split(r"\s+", line)) - 1 == words
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(words))
    found = CliRunner().invoke(cli.main, [], prog_name="qmt-bridge", env={COMPLETE_ENV: "bash_complete"}).output
    assert f"plain,{'tape' if words == 1 else 'export'}" in found.splitlines()


def test_names_of_sources_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(install(tmp_path), monkeypatch)
    complete = ShellComplete(cli.main, {}, "qmt-bridge", COMPLETE_ENV)
    for command, begun, names in (
        (["feeder", "--source"], "", ["auto", "xtquant", "sim", "replay", "push", "demo"]),
        (["journal", "list", "--source"], "d", ["demo"]),
    ):
        assert [item.value for item in complete.get_completions(command, begun)] == names
