"""What is installed and published: the locks agree with pyproject.toml, a release builds to the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT
from tests.support.up import START, running

LOCK = ROOT / "deploy" / "requirements.lock"
BUILD_LOCK = ROOT / "deploy" / "build.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Every system that the lock is for.
ENVIRONMENTS = [
    {"python_full_version": f"{version}.0", "python_version": version, "sys_platform": system}
    for version in ("3.11", "3.12", "3.13", "3.14")
    for system in ("linux", "win32")
]
WINDOWS = next(each for each in ENVIRONMENTS if each["sys_platform"] == "win32")
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


def test_windows_tests_run_with_the_locked_versions_and_hashes() -> None:
    locked, tested = pins(LOCK), pins(ROOT / "tests" / "windows" / "requirements.lock")
    overrides = (ROOT / "tests" / "windows" / "overrides.in").read_text().splitlines()
    others = {canonicalize_name(Requirement(line).name) for line in overrides if not line.startswith("#")}
    assert others == {"rocksdict"}, "each one is tested in another version than is installed"
    needed = {name for name, pin in locked.items() if applies(pin.marker, WINDOWS)} - others
    assert {name: tested[name].version for name in needed} == {name: locked[name].version for name in needed}
    assert all(pin.hashes for pin in tested.values())


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


def test_wheel_has_the_page_its_licence_and_the_examples(tmp_path):
    tree = copy(tmp_path / "tree")
    build(tree, 1_600_000_000)
    with zipfile.ZipFile(next((tree / "dist").glob("*.whl"))) as wheel:
        names = wheel.namelist()
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gateway" / "page").rglob("*.*") if path.is_file()}
    assert {name for name in page if "__pycache__" not in name} <= set(names)
    assert "gateway/page/assets/uplot/LICENSE" in names
    # What `qmt-bridge init` writes.
    examples = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*.*") if path.is_file()}
    assert {f"qmt_bridge/{name}" for name in examples} <= set(names)


# Refuses every connection and every look-up of a name beyond this machine, in each Python process that inherits it.
LOCAL_ONLY = """
import ipaddress, sys

def local(host):
    try:
        return host in (None, "", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        # Those of Unix sockets are paths.
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        host = None if host in ("0.0.0.0", "::") else host
    else:
        return
    if not local(host):
        print("OUTSIDE:", event, host, file=sys.stderr, flush=True)
        raise ConnectionRefusedError(f"{event} {host}")

sys.addaudithook(refuse)
"""
# Switches the loopback interface of a new network on, and goes on as another program.
LOOPBACK_ON = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH", b"lo", 1))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def local_only(tmp_path, monkeypatch) -> Path:
    """Confine all Python processes that the test starts; return a folder for their data."""
    (tmp_path / "sitecustomize.py").write_text(LOCAL_ONLY, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_start_makes_no_call_outside_this_machine(local_only):
    with running(local_only / "data", "--source=sim", "--workers=2") as up:
        pass
    assert "OUTSIDE" not in up.text


def test_a_call_outside_this_machine_is_noticed(local_only):
    for call in ("create_connection(('192.0.2.1', 80))", "getaddrinfo('example.com', 80)"):
        program = [sys.executable, "-P", "-c", f"import socket; socket.{call}"]
        done = subprocess.run(program, capture_output=True, text=True, timeout=DEADLINE)
        assert "OUTSIDE" in done.stderr


def isolated() -> list[str]:
    """Return the start of a command that runs it with the loopback interface alone; skip the test where it cannot."""
    unshare = shutil.which("unshare")
    for user in ([], ["--map-root-user"]):
        command = [unshare or "", *user, "--net", sys.executable, "-c", LOOPBACK_ON]
        if unshare and not subprocess.run([*command, "/bin/true"], capture_output=True, timeout=DEADLINE).returncode:
            return command
    pytest.skip("this system makes no network of its own for a test")


def unroutable(pid: int | str) -> int:
    """Return how many packets and connections the network of a process refused, for lack of a way to the address."""
    names, values = (line.split() for line in Path(f"/proc/{pid}/net/snmp").read_text("ascii").splitlines()[:2])
    return int(values[names.index("OutNoRoutes")])


def test_start_needs_no_network_and_tries_none(tmp_path):
    """The kernel counts what native libraries try, too."""
    with running(tmp_path, "--source=sim", start=(*isolated(), *START)) as up:
        assert unroutable(up.pid("feeder")) == unroutable(up.pid("gateway")) == 0


def test_an_attempt_of_a_native_library_is_counted():
    program = "import socket; socket.socket().connect_ex(('192.0.2.1', 80));print(open('/proc/self/net/snmp').read())"
    done = subprocess.run(
        [*isolated(), sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE
    )
    names, values = (line.split() for line in done.stdout.splitlines()[:2])
    assert int(values[names.index("OutNoRoutes")]) == 1
