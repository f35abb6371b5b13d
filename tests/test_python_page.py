"""Every block of docs/python.md runs as it stands, with a real gateway; those for notebooks in a real kernel."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import blocks, placed
from tests.support.paths import ROOT
from tests.support.up import Up, running

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
NOTEBOOK = "Notebooks"
SECTIONS: dict[str, list[str]] = defaultdict(list)
for each in blocks("docs/python.md"):
    SECTIONS[each.section].append(each.text)

# Runs its arguments as the cells of a notebook, in the kernel of this interpreter, and prints what they print.
NOTEBOOK_PROGRAM = """
import sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
manager = AsyncKernelManager(kernel_name="python3")
manager.kernel_spec.argv[0] = sys.executable
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in sys.argv[1:]])
NotebookClient(book, km=manager, timeout=40).execute()
for cell in book.cells:
    for output in cell.outputs:
        print(output.get("text", ""), end="")
"""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("up"), "--source=sim") as up:
        yield up


@pytest.mark.parametrize(
    ("section", "number"),
    [
        pytest.param(section, number, id=f"{section}-{number}")
        for section, programs in SECTIONS.items()
        if section != NOTEBOOK
        for number in range(len(programs))
    ],
)
def test_a_block_of_the_page_runs(section, number, up, capsys):
    exec(compile(placed(SECTIONS[section][number], up.port), f"{section} {number}", "exec"), {})
    if section != "Scripts":
        assert capsys.readouterr().out


def test_the_notebook_of_the_page_runs_in_a_kernel(up, tmp_path):
    programs = SECTIONS[NOTEBOOK]
    assert len(programs) == 4
    cells = [placed(block, up.port) if "host=" in block else block for block in programs]
    # What a reader of the page runs again and again.
    look = "import time\nwhile len(latest) < 2: time.sleep(0.01)\nprint(sorted(latest), len(ticks))"
    cells = [*cells[:2], look, *cells[2:], "print(list(first))"]
    # In a process of its own, because its libraries leave sockets open.
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NOTEBOOK_PROGRAM, *cells],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "['000001.SZ', '600519.SH'] 2\n['600519.SH']\n"


def test_every_parameter_of_a_table_is_on_the_page():
    assert {"library", "lists", "fields", "gear_num"} <= set(re.findall(r"\w+", PAGE))
    assert Path(ROOT / "docs" / "python.md").is_file()
