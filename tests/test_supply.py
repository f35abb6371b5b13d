"""What is installed and published: the locks agree with pyproject.toml, a release builds to the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

LOCK = ROOT / "deploy" / "requirements.lock"
BUILD_LOCK = ROOT / "deploy" / "build.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Every system that the lock is for.
ENVIRONMENTS = [
    {"python_full_version": f"{version}.0", "python_version": version, "sys_platform": system}
    for version in ("3.11", "3.12", "3.13", "3.14")
    for system in ("linux", "win32")
]
DEADLINE = 50.0


class Pin:
    """One package of a lock."""

    def __init__(self, text: str) -> None:
        requirement = Requirement(text.partition("\\")[0])
        self.name = canonicalize_name(requirement.name)
        ((operator, self.version),) = ((each.operator, each.version) for each in requirement.specifier)
        assert operator == "=="
        self.marker = requirement.marker
        self.hashes = re.findall(r"--hash=(sha256:[0-9a-f]{64})\b", text)
        # The packages that need it; uv names the project with its file.
        self.needed_by = re.findall(r"(\S+)(?: \(pyproject\.toml\S*\))?$", text.partition("# via")[2], re.MULTILINE)
        self.is_direct = "(pyproject.toml" in text


def pins(lock: Path) -> dict[str, Pin]:
    blocks = re.split(r"^(?=[a-z])", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    read = [Pin(block) for block in blocks]
    assert len({pin.name for pin in read}) == len(read)
    return {pin.name: pin for pin in read}


def applies(marker: Marker | None, environment: dict[str, str]) -> bool:
    return marker is None or marker.evaluate({"implementation_name": "cpython", "extra": "", **environment})


def disagreements(dependencies: list[str], locked: dict[str, Pin]) -> Iterator[str]:
    """Yield what is not as `make lock` would write it; it needs no network."""
    wanted = [Requirement(text) for text in dependencies]
    for requirement in wanted:
        pin = locked.get(canonicalize_name(requirement.name))
        if pin is None:
            yield f"{requirement.name} is not in the lock"
        elif not requirement.specifier.contains(pin.version):
            yield f"{requirement} does not allow {pin.version} of the lock"
        else:
            for environment in ENVIRONMENTS:
                if applies(requirement.marker, environment) != applies(pin.marker, environment):
                    yield f"{requirement} and the lock differ in {environment}"
    direct = {name for name, pin in locked.items() if pin.is_direct}
    for name in direct - {canonicalize_name(requirement.name) for requirement in wanted}:
        yield f"{name} is not a dependency any more"


@pytest.mark.parametrize(
    ("lock", "dependencies"),
    [(LOCK, PROJECT["project"]["dependencies"]), (BUILD_LOCK, PROJECT["build-system"]["requires"])],
    ids=["requirements", "build"],
)
def test_lock_agrees_with_pyproject(lock, dependencies):
    assert list(disagreements(dependencies, pins(lock))) == [], "`make lock` writes it again"


def test_group_that_is_locked_is_what_builds():
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]


def test_lock_that_disagrees_is_noticed():
    locked = pins(LOCK)
    dependencies = [text for text in PROJECT["project"]["dependencies"] if not text.startswith("orjson")]
    changed = [re.sub(r"^pyzmq.*", "pyzmq>=99", text).replace("< '3.14'", "< '3.13'") for text in dependencies]
    found = "\n".join(disagreements([*changed, "left-pad"], locked))

    for part in ("pyzmq>=99 does not allow", "backports.zstd", "left-pad is not in", "orjson is not a dependency"):
        assert part in found


@pytest.mark.parametrize("lock", [LOCK, BUILD_LOCK], ids=["requirements", "build"])
def test_every_locked_package_has_hashes_and_is_needed(lock):
    locked = pins(lock)
    for pin in locked.values():
        assert pin.hashes, pin.name
        assert pin.needed_by, pin.name
        assert pin.is_direct or all(canonicalize_name(name) in locked for name in pin.needed_by), pin.name


def test_locks_may_be_installed_together():
    runtime, build = pins(LOCK), pins(BUILD_LOCK)
    assert [name for name in runtime.keys() & build.keys() if runtime[name].version != build[name].version] == []


def test_licence_of_every_locked_package_is_listed():
    listed = (ROOT / "deploy" / "licences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) +\| (\d\S*) +\| (\S.*?) +\|$", listed, re.MULTILINE)
    assert {canonicalize_name(name): version for name, version, _ in rows} == {
        name: pin.version for name, pin in pins(LOCK).items()
    }
    assert [name for name, _, licence in rows if licence == "UNKNOWN"] == []


def build(tree: Path, when: int) -> dict[str, str]:
    """Return the hash of each file that a release of `tree` has, with files that were last changed at `when`."""
    for path in tree.rglob("*"):
        os.utime(path, (when, when))
    command = [sys.executable, "-m", "hatchling", "build", "-d", "dist"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1790000000"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tree / "dist").iterdir()}


def copy(target: Path) -> Path:
    """Copy what git has of this tree, which may be a copy without git itself."""
    left_out = shutil.ignore_patterns(".git", ".venv*", "build", "dist", ".*_cache", "__pycache__", ".hypothesis")
    return Path(shutil.copytree(ROOT, target, ignore=left_out))


def test_two_builds_of_a_release_have_the_same_bytes(tmp_path):
    first, second = copy(tmp_path / "one"), copy(tmp_path / "another" / "folder")
    # What lies in the folder by chance is not published, and the rights of a file do not count.
    (second / "feeder.key_secret").write_text("secret", encoding="utf-8")
    (second / "feeder" / "app.py").chmod(0o600)
    builds = build(first, 1_600_000_000), build(second, 1_700_000_001)

    assert builds[0] == builds[1]
    name = f"qmt_bridge_gateway-{PROJECT['project']['version']}"
    assert builds[0].keys() == {f"{name}-py3-none-any.whl", f"{name}.tar.gz"}
