"""The files for deployment: each is checked by its own tool, if that is installed, and its commands are run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from gateway.server import BACKLOG, RECEIVE_BUFFER
from qmt_bridge import cli
from qmt_bridge.config import CREDENTIALS, NAMES, Config, default, description, env_name, load_config, written
from qmt_bridge.keys.exposure import check_exposure
from qmt_bridge.process.child import STOP_SECONDS
from tests.support.paths import ROOT
from tests.support.ports import UP, address_options, free_port, free_ports, tcp
from tests.support.programs import DEADLINE, Running, accept, check, listens, needs, programs
from tests.support.units import ADDRESS_FAMILIES, allowed_calls
from tests.support.waiting import wait_for

DEPLOY = ROOT / "deploy"
READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = (*READMES, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARKED = re.compile(r"^<!-- ci: (\w+) -->\n```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
KEY = "s3cret-key"
# The least number of commands that the search has to find in a document.
LEAST_COMMANDS = dict.fromkeys(READMES, 5) | {"docs/deploy.md": 4, "docs/tapes.md": 7, "docs/trade-events.md": 4}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    with programs() as start:
        yield start


# The settings


def shown(name: str) -> str:
    """Return the lines of a setting in the example file."""
    hint = get_type_hints(Config)[name]
    choices = f" One of {', '.join(get_args(hint))}." if get_origin(hint) is Literal else ""
    value = default(name)
    inner = written(name).rpartition(" ")[2]
    return (
        f"# {description(name)}{choices}\n# {inner} = {json.dumps(list(value) if isinstance(value, tuple) else value)}"
    )


def test_example_shows_every_setting_with_text_and_default():
    blocks = text("deploy/qmt-bridge.toml").strip().split("\n\n")
    assert [block for block in blocks if re.search(r"^# \w+ = ", block, re.MULTILINE)] == [
        shown(name) for name in NAMES
    ]


def test_example_has_default_values_commented_or_not(tmp_path):
    example = text("deploy/qmt-bridge.toml")
    uncommented = tmp_path / "all.toml"
    uncommented.write_text(re.sub(r"^# (\w+ = )", r"\1", example, flags=re.MULTILINE), encoding="utf-8")

    assert load_config(DEPLOY / "qmt-bridge.toml", {}) == Config()
    assert load_config(uncommented, {}) == Config()
    found = tomllib.loads(uncommented.read_text(encoding="utf-8"))
    inner = tuple(f"alerts_{name}" for name in found.pop("alerts"))
    assert (*found, *inner) == NAMES


# Linux


def exec_start(unit: Path) -> list[str]:
    (command,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(command)


def test_systemd_accepts_the_units(tmp_path):
    analyze = needs("systemd-analyze")
    units = [*UNITS, *(DEPLOY / "systemd").glob("*.socket")]
    for unit in units:
        # systemd-analyze looks for the program, which is installed elsewhere in this test.
        installed = re.sub(
            r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        (tmp_path / unit.name).write_text(installed, encoding="utf-8")
    # For unknown settings it prints a warning and exits with 0, so the output has to be empty.
    assert check([analyze, "verify", *(str(tmp_path / unit.name) for unit in units)]) == ""


def test_port_of_systemd_is_what_the_gateway_would_open():
    given = dict(re.findall(r"^(\w+)=(.*)$", text("deploy/systemd/qmt-bridge-gateway.socket"), re.MULTILINE))
    assert given["ListenStream"] == f"{default('host')}:{default('port')}"
    assert (given["Backlog"], given["ReceiveBuffer"]) == (str(BACKLOG), f"{RECEIVE_BUFFER // 1024}K")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_rates_the_units_as_well_confined(unit):
    analyze = needs("systemd-analyze")
    if int(check([analyze, "--version"]).split()[1]) < 250:
        pytest.skip("this systemd judges running services only")
    # In tenths: a service without any confinement has 10.0.
    check([analyze, "security", "--offline=true", "--threshold=15", str(unit)])


@pytest.mark.parametrize("part", ["feeder", "gateway", "store", "alerts", "forward"])
def test_unit_starts_its_part_with_the_installed_settings(part):
    unit = DEPLOY / "systemd" / f"qmt-bridge-{part}.service"
    program, *arguments = exec_start(unit)

    assert program == "/opt/qmt-bridge/.venv/bin/qmt-bridge"
    assert arguments[0] == part
    assert accept(arguments)["config_file"] == Path("/etc/qmt-bridge/qmt-bridge.toml")
    for path in (program.removesuffix("/bin/qmt-bridge"), "/etc/qmt-bridge/qmt-bridge.toml", "gateway.env"):
        assert f"{path}" in text("deploy/systemd/qmt-bridge-gateway.service").partition("[Unit]")[0]
    # The key is in a file that only root can read, and not in the unit, which all users can read.
    assert f"EnvironmentFile=-/etc/qmt-bridge/{part}.env\n" in unit.read_text(encoding="utf-8")


def unit_settings(part: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", text(f"deploy/systemd/qmt-bridge-{part}.service"), re.MULTILINE))


def test_units_share_no_user_folder_or_secret():
    feeder, gateway = unit_settings("feeder"), unit_settings("gateway")
    for name in ("User", "Group", "StateDirectory", "EnvironmentFile"):
        assert feeder[name] != gateway[name]
    for part in ("feeder", "gateway"):
        assert f"Environment=QMT_BRIDGE_CURVE_DIR=/etc/qmt-bridge/{part}\n" in text(
            f"deploy/systemd/qmt-bridge-{part}.service"
        )


def test_store_has_the_feeders_keys_and_not_its_journal():
    feeder, store = unit_settings("feeder"), unit_settings("store")
    for name in ("StateDirectory", "EnvironmentFile"):
        assert feeder[name] != store[name]
    unit = text("deploy/systemd/qmt-bridge-store.service")
    # It listens with the feeder's keys; a copy of clients/ would go on to admit a key that was taken back.
    assert store["User"] == feeder["User"]
    assert "Environment=QMT_BRIDGE_CURVE_DIR=/etc/qmt-bridge/feeder\n" in unit
    assert f"Environment=QMT_BRIDGE_DATA_DIR=%S/{store['StateDirectory']}\n" in unit
    assert store["InaccessiblePaths"] == f"-%S/{feeder['StateDirectory']}"


def hardening(part: str) -> list[str]:
    """Return the restrictions of a unit but for its address families, which depend on whether it binds addresses."""
    unit = text(f"deploy/systemd/qmt-bridge-{part}.service")
    lines = unit.partition("# Restrictions of the process.")[2].splitlines()[1:]
    return [line for line in lines if ADDRESS_FAMILIES not in line and "interfaces when it binds" not in line]


def test_alerts_have_no_secret_of_the_feeder_and_no_journal():
    feeder, alerts = unit_settings("feeder"), unit_settings("alerts")
    for name in ("User", "StateDirectory", "EnvironmentFile"):
        assert feeder[name] != alerts[name]
    unit = text("deploy/systemd/qmt-bridge-alerts.service")
    assert "Environment=QMT_BRIDGE_CURVE_DIR=/etc/qmt-bridge/gateway\n" in unit
    assert f"Environment=QMT_BRIDGE_DATA_DIR=%S/{alerts['StateDirectory']}\n" in unit
    assert alerts["InaccessiblePaths"] == f"-%S/{feeder['StateDirectory']}"


def test_forwarder_has_a_user_and_keys_of_its_own():
    forward = unit_settings("forward")
    for part in ("feeder", "gateway", "alerts"):
        for name in ("User", "StateDirectory", "EnvironmentFile"):
            assert unit_settings(part)[name] != forward[name]
    unit = text("deploy/systemd/qmt-bridge-forward.service")
    assert "Environment=QMT_BRIDGE_CURVE_DIR=/etc/qmt-bridge/forward\n" in unit


@pytest.mark.parametrize("part", ["gateway", "store", "alerts", "forward"])
def test_units_are_confined_alike(part):
    assert len(hardening("feeder")) > 20
    assert hardening(part) == hardening("feeder")


@pytest.mark.parametrize("part", ["feeder", "gateway", "store", "alerts", "forward"])
def test_unit_allows_the_call_without_which_libzmq_aborts(part):
    allowed = allowed_calls(part)
    # Each thread of libzmq sets its policy, the default one, and aborts the process if that fails (src/thread.cpp).
    assert {"sched_setscheduler", "socket", "clone"} <= allowed
    assert not {"sched_setaffinity", "mount", "setuid"} & allowed


@pytest.mark.parametrize("part", ["feeder", "gateway", "store", "alerts", "forward"])
def test_unit_bounds_memory_and_tasks(part):
    settings = unit_settings(part)
    high, most = (int(settings[name].rstrip("GM")) for name in ("MemoryHigh", "MemoryMax"))
    assert 0 < high < most
    assert 0 < int(settings["TasksMax"]) < 1000


def test_nginx_accepts_its_configuration(tmp_path):
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ include {DEPLOY}/nginx/qmt-bridge.conf; }}\n",
        encoding="utf-8",
    )
    check([needs("nginx"), "-t", "-q", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])


@pytest.fixture
def behind_nginx(tmp_path, run) -> Iterator[tuple[str, Callable[[], None], Callable[[], str]]]:
    """Yield the URL of an nginx, a function that stops the gateway behind it, and one that returns the logs.

    The gateway is a stand-in that answers with the path and the headers that it received.
    """

    def answer(connection: ServerConnection) -> None:
        assert connection.request is not None
        connection.send(json.dumps({"path": connection.request.path, **dict(connection.request.headers.raw_items())}))
        for message in connection:
            connection.send(message)

    nginx = needs("nginx")
    server = serve(answer, "127.0.0.1", 0)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()

    def stop() -> None:
        server.shutdown()
        serving.join()

    try:
        port = free_port()
        (tmp_path / "qmt-bridge.conf").write_text(
            text("deploy/nginx/qmt-bridge.conf")
            .replace("listen 80;", f"listen 127.0.0.1:{port};")
            .replace("server 127.0.0.1:8000;", f"server 127.0.0.1:{server.socket.getsockname()[1]};")
            .replace("/var/log/nginx/", f"{tmp_path}/"),
            encoding="utf-8",
        )
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/start.log; events {{}}\n"
            f"http {{ client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;\n"
            f"include {tmp_path}/qmt-bridge.conf; }}\n",
            encoding="utf-8",
        )
        running = run([nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
        wait_for(lambda: listens(port) or running.process.poll() is not None, "nginx")
        assert running.process.poll() is None, running.lines

        def logs() -> str:
            # nginx writes a line when its request ends, and the last lines when it ends itself.
            running.close()
            return "".join(running.lines) + "".join(path.read_text("utf-8") for path in sorted(tmp_path.glob("*.log")))

        yield f"ws://127.0.0.1:{port}", stop, logs
    finally:
        stop()


def test_nginx_relays_websockets_and_logs_no_key(behind_nginx):
    url, stop_gateway, logs = behind_nginx
    with connect(f"{url}/ws/trade?after=7&api_key={KEY}", proxy=None) as client:
        seen = json.loads(client.recv(DEADLINE))
        client.send("more")
        assert client.recv(DEADLINE) == "more"
    stop_gateway()
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{url}/ws/trade?api_key={KEY}", proxy=None)

    assert seen["path"] == f"/ws/trade?after=7&api_key={KEY}"
    assert seen["Host"] == url.removeprefix("ws://")
    assert seen["X-Forwarded-For"] == "127.0.0.1"
    assert refused.value.response.status_code == HTTPStatus.BAD_GATEWAY
    written = logs()
    assert re.search(r'"GET /ws/trade" 101 ', written)
    assert re.search(r'"GET /ws/trade" 502 ', written)
    assert KEY not in written


def test_nginx_limits_the_connections_of_one_address(behind_nginx):
    url, _, logs = behind_nginx
    limit = int(re.findall(r"limit_conn qmt_bridge_connections (\d+);", text("deploy/nginx/qmt-bridge.conf"))[0])
    with contextlib.ExitStack() as open_sockets:
        for _ in range(limit):
            open_sockets.enter_context(connect(f"{url}/ws/realtime", proxy=None, open_timeout=DEADLINE))
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{url}/ws/realtime", proxy=None)
    assert refused.value.response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    assert logs()


def test_nginx_limits_the_requests_of_one_address(behind_nginx):
    url, _, _ = behind_nginx
    burst = int(re.findall(r"burst=(\d+)", text("deploy/nginx/qmt-bridge.conf"))[0])
    # All at once on one connection: one by one, a busy machine makes no more of them than the rate lets in. A stand-in
    # that serves WebSockets only refuses them, if nginx lets them pass.
    host, port = url.removeprefix("ws://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * (2 * burst))
        answered = b""
        while b"HTTP/1.1 429 " not in answered:
            received = client.recv(65536)
            assert received, answered[-500:]
            answered = answered[-100:] + received


# Windows


def service() -> ElementTree.Element:
    return ElementTree.parse(DEPLOY / "windows" / "qmt-bridge-feeder.xml").getroot()


def test_windows_service_starts_the_feeder_of_its_venv():
    root = service()
    # WinSW reads the settings file with its own name; the script gives both the name of the service.
    assert root.tag == "service"
    assert root.findtext("id") == "qmt-bridge-feeder"
    assert root.findtext("executable") == r"%BASE%\.venv\Scripts\python.exe"
    safe, module, name, *arguments = shlex.split((root.findtext("arguments") or "").replace("\\", "/"))
    # -P: the working directory is not on the path, because files of the user there may have names of our modules.
    assert (safe, module, name) == ("-P", "-m", cli.__name__)
    assert accept(arguments)["config_file"] == Path("%BASE%/qmt-bridge.toml")
    assert accept(arguments)["supervised"] is True
    environment = {item.attrib["name"] for item in root.findall("env")}
    assert {name for name in environment if name.startswith("QMT_BRIDGE_")} <= {env_name(name) for name in NAMES}
    # The file contains no password.
    assert root.findtext("serviceaccount/user") == "LocalService"
    assert root.find("serviceaccount/password") is None


def test_windows_script_installs_what_the_service_names():
    script = text("deploy/windows/install-feeder.ps1")
    # Windows PowerShell reads a file without a byte order mark in the encoding of the machine.
    assert script.isascii()
    assert f"$id = '{service().findtext('id')}'" in script
    (arguments,) = re.findall(r"-P -m qmt_bridge\.cli (.*?) 2>>", script)
    parameters = accept(shlex.split(arguments.replace("`", "")))
    assert parameters["config_file"] is not None
    # The scheduler restarts only a task that it could not start.
    assert parameters["supervised"] is True
    assert "deploy\\qmt-bridge.toml" in script
    for untested in (script, text("deploy/windows/qmt-bridge-feeder.xml")):
        assert "UNTESTED" in untested


def test_windows_script_lets_no_other_user_write():
    script = text("deploy/windows/install-feeder.ps1")
    body = script[script.index("$base = Invoke-Program") :]
    # Before anything is put into the folder; files that are there get its rights when others can no longer write.
    assert body.index("Protect-Folder $Folder") < body.index("'/reset'") < body.index("'venv'")
    # O:BA, the administrators own it. P, nothing is inherited. The third right is that of the feeder's account.
    assert re.findall(r'"(O:.*)"', script) == ["O:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;$Rights;;;$Reader)"]
    rights = dict(re.findall(r"Protect-Folder \$(\w+) \$reader '(\w+)'", body))
    write, delete = 0x2 | 0x4 | 0x10 | 0x100, 0x10000 | 0x40
    assert not int(rights["Folder"], 16) & (write | delete)
    assert int(rights["written"], 16) & write == write
    # The account of the feeder can change neither the rights nor the owner.
    assert not int(rights["written"], 16) & (0x40000 | 0x80000)


@pytest.mark.skipif(sys.platform != "win32", reason="asks Windows")
def test_windows_accepts_the_access_list_of_the_script():
    import ctypes

    (template,) = re.findall(r'"(O:.*)"', text("deploy/windows/install-feeder.ps1"))
    for rights in ("0x1200a9", "0x1301bf"):
        shown = template.replace("$Rights", rights).replace("$Reader", "S-1-5-19")
        descriptor = ctypes.c_void_p()
        convert = ctypes.windll.advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW
        assert convert(ctypes.c_wchar_p(shown), 1, ctypes.byref(descriptor), None), ctypes.GetLastError()


def windows_tree() -> Any:
    """Return the syntax tree of the script, as tree-sitter's grammar of PowerShell reads it."""
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_powershell")
    source = (DEPLOY / "windows" / "install-feeder.ps1").read_bytes()
    return tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(source).root_node


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in node.children:
        yield from nodes(child)


def test_windows_script_is_powershell():
    wrong = [node for node in nodes(windows_tree()) if node.is_error or node.is_missing]
    assert [(node.start_point.row + 1, node.text.decode()[:80]) for node in wrong] == []


def windows_commands(name: str) -> list[str]:
    """Return the text of each command of this name."""
    found = (node.text.decode() for node in nodes(windows_tree()) if node.type == "command")
    return [command for command in found if command.split()[0] == name]


def test_windows_script_opens_the_firewall_for_given_addresses_alone():
    (rule,) = windows_commands("New-NetFirewallRule")
    assert "-RemoteAddress ($AllowFrom -split ',')" in rule
    assert "-Name $id " in rule
    script = text("deploy/windows/install-feeder.ps1")
    (pattern,) = re.findall(r"ValidatePattern\('(.*)'\)\]\n +\[string\[\]\] \$AllowFrom", script)
    for given in ("192.168.1.20,192.168.1.21", "10.0.0.0/24", "fd00::1", "10.0.0.1-10.0.0.9"):
        assert re.search(pattern, given)
    for word in ("Any", "*", "LocalSubnet", "Internet"):
        assert not re.search(pattern, word)
    ports = re.findall(r"\$Port = @\('(\d+)', '(\d+)', '(\d+)'\)", script)
    assert ports == [("5555", "5556", "5557")]


def test_windows_script_removes_what_an_earlier_run_made():
    body = text("deploy/windows/install-feeder.ps1").partition("if ($Uninstall) {")[2]
    # Once for -Uninstall, and once before anything is installed.
    assert body.count("Remove-Feeder\n") == 2
    assert body.rindex("Remove-Feeder\n") < body.index("Protect-Folder $Folder")
    for made, removed in {
        "Register-ScheduledTask": "Unregister-ScheduledTask",
        "New-NetFirewallRule": "Remove-NetFirewallRule",
    }.items():
        assert windows_commands(made)
        assert windows_commands(removed)
    assert [command for command in windows_commands("Invoke-Program") if "'sc.exe' @('delete', $id)" in command]
    # A user's settings and data are never removed.
    (removed,) = windows_commands("Remove-Item")
    assert removed == "Remove-Item -Recurse -Force $made"
    assert 'foreach ($made in $venv, $service, (Join-Path $Folder "$id.xml"))' in body


# Containers


def dockerfile(instruction: str) -> list[str]:
    """Return the arguments of each such instruction, with continued lines joined."""
    joined = text("deploy/docker/Dockerfile").replace("\\\n", "")
    return re.findall(rf"^\s*{instruction} +(.*)$", joined, re.MULTILINE)


def compose() -> dict[str, Any]:
    return yaml.safe_load(text("deploy/docker/compose.yaml"))


@pytest.mark.parametrize("part", ["feeder", "store", "alerts"])
def test_service_managers_wait_long_enough_for_the_disk(part):
    waits = [
        unit_settings(part)["TimeoutStopSec"],
        compose()["services"][part]["stop_grace_period"].removesuffix("s"),
    ]
    if part == "feeder":
        waits.append((service().findtext("stoptimeout") or "").removesuffix(" sec"))
    assert all(float(seconds) > STOP_SECONDS[part] for seconds in waits)


def test_hadolint_accepts_the_dockerfile():
    assert check([needs("hadolint"), "--no-color", str(DEPLOY / "docker" / "Dockerfile")]) == ""


def test_docker_compose_accepts_its_file():
    docker = needs("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, timeout=DEADLINE).returncode:
        pytest.skip("docker has no compose here")
    check([docker, "compose", "-f", str(DEPLOY / "docker" / "compose.yaml"), "config", "--quiet"])


def is_sent(path: str) -> bool:
    """Return whether Docker gets a file for the build: the last pattern of its file that matches decides."""
    sent = True
    for line in text("deploy/docker/Dockerfile.dockerignore").splitlines():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if not line.startswith("#") and re.fullmatch(f"{pattern}(/.*)?", path):
            sent = line.startswith("!")
    return sent


def test_image_gets_exactly_the_files_that_pyproject_names():
    project = tomllib.loads(text("pyproject.toml"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    named = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    named |= {*wheel["packages"], *wheel["force-include"]}
    copied = {name for line in dockerfile("COPY") if "--from" not in line for name in line.split()[:-1]}
    context = re.findall(r"^!(.+)$", text("deploy/docker/Dockerfile.dockerignore"), re.MULTILINE)

    # The locks alone first: a layer that changes with them.
    assert copied == named | {"deploy/requirements.lock", "deploy/build.lock"}
    assert set(context) == named
    # Each package from the index has the hash of its lock.
    for command in re.findall(r"pip install ([^&]*)", text("deploy/docker/Dockerfile")):
        assert "--require-hashes" in command or "--no-index --no-deps" in command
    # Nothing can be installed in what runs.
    assert "python -m venv --without-pip /opt/qmt-bridge" in text("deploy/docker/Dockerfile")
    # Not root, and a number, because a cluster can check only a number.
    assert dockerfile("USER") == ["10001"]


def test_image_gets_the_example_files_and_no_secret_beside_them():
    listed = subprocess.run(["git", "ls-files", "deploy"], cwd=ROOT, capture_output=True, text=True, check=False)
    examples = listed.stdout.split() or [path.relative_to(ROOT).as_posix() for path in DEPLOY.rglob("*.*")]
    assert "deploy/systemd/qmt-bridge-gateway.socket" in examples
    assert [path for path in examples if not is_sent(path)] == []
    secrets = (
        "docker/.env docker/keys/clients/desk.key docker/keys/gateway.key_secret nginx/privkey.pem .env.local".split()
    )
    assert [path for path in secrets if is_sent(f"deploy/{path}")] == []
    assert not is_sent("qmt-bridge.toml")
    assert not is_sent("tests/test_deploy.py")


def test_compose_file_builds_this_image_with_known_settings():
    services = compose()["services"]
    assert services.keys() == {"keys", "feeder", "gateway", "store", "alerts"}
    for part in services.values():
        build = part["build"]
        assert (DEPLOY / "docker" / build["context"] / build["dockerfile"]).samefile(DEPLOY / "docker" / "Dockerfile")
        assert part.get("environment", {}).keys() <= {env_name(setting) for setting in NAMES}
    for name in ("feeder", "gateway", "store", "alerts"):
        accept(services[name]["command"])
        assert services[name]["command"][0] == name
    # A folder of its own for each part that writes one.
    written = [volume for part in services.values() for volume in part["volumes"] if volume.endswith(":/data")]
    assert sorted(written) == ["alerts:/data", "journal:/data", "store:/data"]
    assert {volume.split(":")[0] for part in services.values() for volume in part["volumes"]} == set(
        compose()["volumes"]
    )
    # Without a target alerts would end at once.
    assert services["alerts"]["profiles"] == ["alerts"]
    named = {name for name in NAMES if name.startswith("alerts_") and (name in CREDENTIALS or name == "alerts_name")}
    assert services["alerts"]["environment"].keys() >= set(map(env_name, named))
    # Published on this machine only, which is the default of all addresses.
    assert services["gateway"]["ports"] == ["127.0.0.1:8000:8000"]


def test_container_trusts_the_end_of_its_network_alone():
    (network,) = compose()["networks"]["default"]["ipam"]["config"]
    environment = compose()["services"]["gateway"]["environment"]
    assert environment["QMT_BRIDGE_BEHIND_PROXY"] == network["gateway"]
    assert ip_address(network["gateway"]) in ip_network(network["subnet"])
    started = {"QMT_BRIDGE_HOST": "0.0.0.0", **environment}
    check_exposure(load_config(None, {name: str(value) for name, value in started.items()}))
    (run,) = re.findall(r"^# +(docker run .* qmt-bridge)$", text("deploy/docker/Dockerfile"), re.MULTILINE)
    check_exposure(load_config(None, {"QMT_BRIDGE_HOST": "0.0.0.0", **dict(re.findall(r"-e (\w+)=(\S+)", run))}))


def test_proxy_configuration_names_settings_that_start():
    comment = re.findall(r"^#   (\w+ = .*)$", text("deploy/nginx/qmt-bridge.conf"), re.MULTILINE)
    settings = tomllib.loads("\n".join(comment))
    assert set(settings) == {"behind_proxy", "require_key"}
    check_exposure(Config(**settings))
    passes_on = text("deploy/nginx/qmt-bridge.conf")
    # The address of nginx's own peer is appended, so the right-most entry is what nginx has seen.
    assert "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;" in passes_on


def test_commands_of_the_containers_work_together(tmp_path, run):
    """Run the commands and health checks of compose file and Dockerfile as processes, with other addresses."""
    services = compose()["services"]
    market, trade, ask, stored, port = free_ports(5)
    # The volumes of each part, in their places.
    folders = {"feeder-keys": tmp_path / "feeder", "gateway-keys": tmp_path / "gateway"}
    for folder in folders.values():
        folder.mkdir()
    mounted = {name: dict(reversed(volume.split(":")[:2]) for volume in services[name]["volumes"]) for name in services}
    path = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}

    def environment(name: str) -> dict[str, str]:
        keys = folders[mounted[name]["/keys"]]
        settings = {key: value.replace("/keys", str(keys)) for key, value in services[name]["environment"].items()}
        for number, free in ((5555, market), (5556, trade), (5557, ask), (5559, stored)):
            for key, value in settings.items():
                settings[key] = re.sub(rf"tcp://(0\.0\.0\.0|feeder|store):{number}", f"tcp://127.0.0.1:{free}", value)
        # What a user may give.
        settings = {name: value for name, value in settings.items() if not value.startswith("${")}
        settings |= dict(re.findall(r"(QMT_BRIDGE_HOST)=(\S+)", dockerfile("ENV")[0]))
        return {**os.environ, **path, **settings, "QMT_BRIDGE_DATA_DIR": str(tmp_path / f"data-{name}")}

    def in_place(word: str) -> str:
        return re.sub(r"(/keys[a-z-]*)", lambda found: str(folders[mounted["keys"][found[0]]]), word)

    makes_keys = [in_place(word) for word in services["keys"]["entrypoint"]]
    check(makes_keys, env={**os.environ, **path})
    secret = folders["feeder-keys"] / "feeder.key_secret"
    made = secret.read_bytes()
    assert {path.name for path in folders["gateway-keys"].iterdir()} == {"feeder.key", "gateway.key_secret"}
    # Containers are recreated often; the keys have to stay the same.
    check(makes_keys, env={**os.environ, **path})
    assert secret.read_bytes() == made

    program = shutil.which("qmt-bridge", path=path["PATH"])
    assert program is not None
    alive = services["feeder"]["healthcheck"]["test"]
    answering = services["store"]["healthcheck"]["test"]
    (healthy,) = (
        json.loads(line.partition("CMD ")[2].replace("8000", str(port))) for line in dockerfile("HEALTHCHECK")
    )
    assert subprocess.run(healthy, env=path, capture_output=True, timeout=DEADLINE).returncode == 1

    run([program, *services["feeder"]["command"]], env=environment("feeder")).wait_for("feeder started")
    assert alive[0] == answering[0] == "CMD"
    assert json.loads(check(alive[1:], env=environment("feeder")))["data"]["simulated"] is True
    away = subprocess.run(answering[1:], env=environment("store"), capture_output=True, timeout=DEADLINE)
    assert (away.returncode, away.stderr) == (1, b"")
    run([program, *services["store"]["command"]], env=environment("store")).wait_for("store started")
    check(answering[1:], env=environment("store"))
    # As the gateway asks it, with its own key.
    check(answering[1:], env=environment("gateway"))
    command = [program, *services["gateway"]["command"], f"--port={port}"]
    run(command, env=environment("gateway")).wait_for("feeder is connected: source sim")
    wait_for(lambda: ready(port), "the gateway")
    check(healthy, env=path)
    told = {"QMT_BRIDGE_ALERTS_WEBHOOK": "http://127.0.0.1:9/hook"}
    silent = services["alerts"]["healthcheck"]["test"]
    assert silent[0] == "CMD-SHELL"
    assert subprocess.run(silent[1], shell=True, env=environment("alerts"), timeout=DEADLINE).returncode == 1
    run([program, *services["alerts"]["command"]], env=environment("alerts") | told).wait_for(
        "alerts started: to webhook"
    )
    wait_for(lambda: subprocess.run(silent[1], shell=True, env=environment("alerts")).returncode == 0, "the alerts")


def ready(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE) as response:
        return bool(json.load(response)["ready"])
    return False


# README and CI


@pytest.mark.parametrize("readme", READMES)
def test_readme_has_two_setup_commands_one_run_and_one_test(readme):
    marked = {name: block.splitlines() for name, block in MARKED.findall(text(readme))}
    assert {name: len(commands) for name, commands in marked.items()} == {"setup": 2, "run": 1, "test": 1}
    first_program = next(block for block in BLOCK.findall(text(readme)) if block[0] != "text")
    assert first_program == ("bash", "\n".join(marked["setup"]) + "\n")


def test_both_readmes_have_the_same_programs():
    # The drawing, a block of text, is in the language of its page.
    english, chinese = ([block for block in BLOCK.findall(text(name)) if block[0] != "text"] for name in READMES)
    assert english == chinese


def test_ci_runs_the_commands_of_the_readmes():
    script = text(".ci/run")
    (function,) = re.findall(r"^commands\(\) \{.*?^\}$", script, re.DOTALL | re.MULTILINE)
    for readme in READMES:
        for name, block in MARKED.findall(text(readme)):
            extract = function.replace("README.md", str(ROOT / readme)) + f"\ncommands {name}"
            assert check([needs("bash"), "-c", extract]) == block
    for name in ("setup", "test"):
        assert f"=$(commands {name})\n" in script


def test_shellcheck_accepts_ci():
    assert check([needs("shellcheck"), str(ROOT / ".ci" / "run")]) == ""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_documented_command_is_known(document):
    lines = [
        line for language, block in BLOCK.findall(text(document)) if language == "bash" for line in block.splitlines()
    ]
    commands = [line.partition("qmt-bridge ")[2] for line in lines if "qmt-bridge " in line]
    commands += re.findall(r"^# \w+: qmt-bridge (.*)$", text(document), re.MULTILINE)
    named = re.findall(r"`qmt-bridge ([a-z]+ [^`]+)`", text(document))
    assert len(commands) + len(named) >= LEAST_COMMANDS.get(document, 0)
    for command in commands:
        accept(shlex.split(command))
    for command in named:
        accept(shlex.split(command), named=True)


def test_documented_settings_files_load(tmp_path):
    blocks = [block for language, block in BLOCK.findall(text("docs/deploy.md")) if language == "toml"]
    assert len(blocks) == 7
    for block in blocks:
        (tmp_path / "settings.toml").write_text(block, encoding="utf-8")
        config = load_config(tmp_path / "settings.toml", {})
        assert config != Config()
        check_exposure(config)


def test_programs_of_the_readme_print_ticks(tmp_path, run):
    market, ask, stored, port = free_ports(4)
    marked = dict(MARKED.findall(text("README.md")))
    bin_folder = f"{Path(sys.executable).parent}{os.sep}"
    # As written, but with free ports and a folder of its own.
    words = shlex.split(marked["run"].replace(".venv/bin/", bin_folder))
    words += [f"--port={port}", f"--data-dir={tmp_path}"]
    words += address_options(dict(zip(UP, map(tcp, (market, ask, stored)), strict=True)))
    run(words).wait_for("SIMULATED")

    blocks = BLOCK.findall(text("README.md"))
    (shell,) = (block for language, block in blocks if language == "bash" and "websockets" in block)
    # The second one has a start.
    requests = [block for language, block in blocks if language == "json"]
    assert ["start" in request for request in requests] == [False, True]
    pasters = []
    for request in requests:
        pasters.append(run(shlex.split(shell.replace(".venv/bin/", bin_folder).replace(":8000", f":{port}"))))
        pasters[-1].say(request.strip())
    programs = []
    blocks += BLOCK.findall(text("docs/zeromq.md"))
    ticking = [block for language, block in blocks if language == "python" and "600519.SH" in block]
    for number, program in enumerate(ticking):
        here = (
            program.replace('host="127.0.0.1"', f'host="127.0.0.1", port={port}')
            .replace("127.0.0.1:5555", f"127.0.0.1:{market}")
            .replace(
                '/tick/"):', f'/tick/", market_addr="tcp://127.0.0.1:{market}", ask_addr="tcp://127.0.0.1:{ask}"):'
            )
        )
        assert here != program
        file = tmp_path / f"program{number}.py"
        file.write_text(here, encoding="utf-8")
        programs.append(run([sys.executable, str(file)]))
    assert len(programs) == 3
    for reader in (*pasters, *programs):
        reader.wait_for(r"600519\.SH.*lastPrice")
