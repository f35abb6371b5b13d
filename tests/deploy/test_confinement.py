"""The parts under the restrictions of their units that libzmq answers with an abort, without a running systemd."""

from __future__ import annotations

import errno
import json
import socket
import sys
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path

import pytest

from tests.support.ports import WIRE, address_options, free_port, free_ports, tcp
from tests.support.programs import Running, needs
from tests.support.units import allowed_calls, allowed_families, system_calls

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or find_library("seccomp") is None, reason="there is no libseccomp: apt-get install systemd"
)

# Refuses what its second argument lists, as systemd does: families of sockets, and system calls; then starts a program.
CONFINE = """import ctypes, ctypes.util, errno, json, os, sys
refused = json.loads(sys.argv[1])
lib = ctypes.CDLL(ctypes.util.find_library("seccomp"))
lib.seccomp_init.restype = ctypes.c_void_p
class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]
ALLOW, ERRNO, EQUAL = 0x7FFF0000, 0x00050000, 4
context = ctypes.c_void_p(lib.seccomp_init(ALLOW))
def number(name):
    return lib.seccomp_syscall_resolve_name(name.encode())
for family in refused["families"]:
    first = Compare(0, EQUAL, family, 0)
    act = ERRNO | errno.EAFNOSUPPORT
    assert lib.seccomp_rule_add_array(context, act, number("socket"), 1, ctypes.byref(first)) == 0
for name in refused["calls"]:
    if number(name) >= 0:
        assert lib.seccomp_rule_add_array(context, ERRNO | errno.EPERM, number(name), 0, None) == 0
assert lib.seccomp_load(context) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""
# Linux has fewer.
MOST_FAMILIES = 64


def confined(part: str) -> list[str]:
    """Return the command that starts what follows as the unit of a part does."""
    allowed = {int(getattr(socket, name)) for name in allowed_families(part)}
    known = system_calls("@known") - allowed_calls(part)
    # systemd has started the program before it refuses to start others.
    refused = {"families": sorted(set(range(MOST_FAMILIES)) - allowed), "calls": sorted(known - {"execve"})}
    return [sys.executable, "-c", CONFINE, json.dumps(refused)]


def test_parts_run_with_the_calls_and_sockets_of_their_units(tmp_path: Path, run: Callable[..., Running]) -> None:
    needs("systemd-analyze")
    program = str(Path(sys.executable).with_name("qmt-bridge"))
    addresses = dict(zip(WIRE, map(tcp, free_ports(len(WIRE))), strict=True)) | {"store_addr": tcp(free_port())}
    options = [f"--data-dir={tmp_path}", *address_options(addresses)]
    passed_on = [f"--forward-{name}-addr={tcp(free_port())}" for name in ("market", "ask", "store")]
    passed_on += ["--forward-trade-addr=", f"--forward-health-addr=127.0.0.1:{free_port()}"]
    commands = {
        "feeder": [option for option in options if not option.startswith("--store-addr")],
        "store": options,
        "forward": [*passed_on, *options],
        "gateway": [f"--port={free_port()}", "--workers=2", *options],
    }
    started = {name: run([*confined(name), program, name, *command]) for name, command in commands.items()}
    started["feeder"].wait_for("feeder started: source sim")
    started["store"].wait_for("store started")
    started["forward"].wait_for("forwarder started")
    started["gateway"].wait_for("feeder is connected: source sim")


def test_confined_program_is_refused_what_its_unit_refuses(run: Callable[..., Running]) -> None:
    needs("systemd-analyze")
    packets = "import errno, os, socket\ntry: socket.socket(socket.AF_PACKET)\nexcept OSError as exc: print(exc.errno)"
    run([*confined("gateway"), sys.executable, "-c", packets]).wait_for(rf"^{errno.EAFNOSUPPORT}$")
