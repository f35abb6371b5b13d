"""The project `qmt-bridge`, whose import name is ours: installed beside, mixed with, or over ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.doctor import Machine
from tests.support.paths import ROOT
from tests.support.waiting import SLOWNESS


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder of packages with ours, and the other project as pip leaves it: metadata and its `client`."""
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "qmt_bridge", folder / "qmt_bridge", ignore=shutil.ignore_patterns("__pycache__"))
    other = folder / "qmt_bridge" / "client"
    other.mkdir()
    (other / "__init__.py").write_text("class QMTClient: pass\n")
    return folder


def python(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30 * SLOWNESS, check=False)


def test_import_warns_of_files_of_the_other_project(site: Path) -> None:
    done = python(site, "import qmt_bridge; print(qmt_bridge.__file__)")
    assert done.stdout.startswith(str(site))
    assert "RuntimeWarning: the package qmt_bridge is mixed with that of another project, qmt-bridge" in done.stderr
    assert "pip install qmt-bridge-gateway" in done.stderr


def test_client_of_the_other_project_is_not_taken_for_ours(site: Path) -> None:
    done = python(site, "from qmt_bridge import QMTClient")
    assert done.returncode == 1
    assert "ImportError: the package qmt_bridge is mixed" in done.stderr


def test_command_says_that_its_package_was_replaced(site: Path) -> None:
    (site / "qmt_bridge" / "__init__.py").write_text("__version__ = '2.1.3'\n")
    done = python(site, "from qmt_bridge.__main__ import main; main()")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the package qmt_bridge is mixed")
    assert "Traceback" not in done.stderr


def test_import_alone_warns_of_nothing() -> None:
    assert python(ROOT, "import qmt_bridge").stderr == ""


def test_doctor_finds_the_other_project(tmp_path: Path) -> None:
    metadata = tmp_path / "site" / "qmt_bridge-2.1.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: qmt-bridge\nVersion: 2.1.3\n")
    machine = Machine(tmp_path, QMT_BRIDGE_SOURCE="sim")
    machine.env["PYTHONPATH"] = os.pathsep.join((str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")))
    code, findings = machine.run()
    assert code == 1
    assert findings["package"].level == "fail"
    assert "qmt-bridge 2.1.3, is installed too" in findings["package"].said
    assert "pip uninstall qmt-bridge" in findings["package"].advice
