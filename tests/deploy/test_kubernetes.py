"""The manifests for Kubernetes: against the cluster's own schemas, against our settings, and run as processes."""

from __future__ import annotations

import functools
import re
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qmt_bridge import __version__, cli
from qmt_bridge.config import Config, load_config
from qmt_bridge.keys.exposure import check_exposure
from qmt_bridge.process.child import STOP_SECONDS
from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.programs import DEADLINE, Running, accept, check, needs
from tests.support.waiting import wait_for

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = FOLDER / "kustomization.yaml"
PROGRAM = str(Path(sys.executable).with_name("qmt-bridge"))
PARTS = ("gateway", "forwarder")
# Those of the feeder and the store; and what the parts ask each other.
UPSTREAM = ("market_addr", "trade_addr", "ask_addr", "store_addr")


@functools.cache
def documents() -> list[dict[str, Any]]:
    named = yaml.safe_load(KUSTOMIZATION.read_text(encoding="utf-8"))["resources"]
    return [each for name in named for each in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in documents() if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def pod(part: str) -> dict[str, Any]:
    found: dict[str, Any] = one("Deployment", part)["spec"]["template"]["spec"]
    return found


def container(part: str) -> dict[str, Any]:
    (found,) = pod(part)["containers"]
    return found  # type: ignore[no-any-return]


def settings(part: str) -> Config:
    """Return the settings of a part: those of the image, and its ConfigMap."""
    return load_config(FOLDER / f"{part}.toml", {"QMT_BRIDGE_HOST": "0.0.0.0"})


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def shell_commands(program: str) -> Iterator[list[str]]:
    """Yield the arguments of each command of this name in the comment at the head of the kustomization."""
    head = KUSTOMIZATION.read_text(encoding="utf-8").partition("apiVersion")[0]
    for command in re.findall(rf"^#   {program} ((?:.*\\\n)*.*)$", head, re.MULTILINE):
        yield shlex.split(command.replace("\\\n#", " "))


def test_every_file_of_the_folder_is_used() -> None:
    made = yaml.safe_load(KUSTOMIZATION.read_text(encoding="utf-8"))
    used = {KUSTOMIZATION.name, *made["resources"]}
    used |= {file for generated in made["configMapGenerator"] for file in generated["files"]}
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == used
    # A tag that moves would start other programs than the ones that were tried.
    assert made["images"] == [{"name": "qmt-bridge", "newTag": __version__}]


@pytest.mark.parametrize("place", [KUSTOMIZATION, FOLDER / "prometheus" / "kustomization.yaml"], ids=["all", "scraped"])
def test_kustomize_renders_what_the_schemas_accept(place: Path, tmp_path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubectl = needs("kubectl")
    # As a user's own kustomization takes them; paths in it are relative.
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["all"], "components": ["all/prometheus"] if place != KUSTOMIZATION else []}),
        encoding="utf-8",
    )
    check(["cp", "-r", str(FOLDER), str(tmp_path / "all")])
    rendered = list(yaml.safe_load_all(check([kubectl, "kustomize", str(tmp_path)])))
    kinds = [each["kind"] for each in rendered]
    assert {"Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"} <= set(kinds)
    for each in rendered:
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(each, "1.30", strict=True)
        assert each["metadata"].get("namespace", "qmt-bridge") == "qmt-bridge"
    metrics = next(each for each in rendered if each["kind"] == "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Resource", "Pods"][: 1 if place == KUSTOMIZATION else 2]
    assert kinds.count("PodMonitor") == (0 if place == KUSTOMIZATION else 2)


@pytest.mark.parametrize("part", PARTS)
def test_pod_starts_its_part_with_settings_that_load(part: str) -> None:
    command, *arguments = container(part)["args"]
    assert command == {"gateway": "gateway", "forwarder": "forward"}[part]
    mounted = {mount["name"]: mount["mountPath"] for mount in container(part)["volumeMounts"]}
    assert accept([command, *arguments])["config_file"] == Path(mounted["settings"], f"{part}.toml")
    config = settings(part)
    assert (config.curve_dir, config.data_dir) == (mounted["keys"], mounted["data"])
    if part == "gateway":
        check_exposure(config)
    # The name of the image's settings, and where each volume comes from.
    volumes = {volume["name"]: volume for volume in pod(part)["volumes"]}
    assert volumes.keys() == mounted.keys()
    assert volumes["settings"]["configMap"] == {"name": part}


@pytest.mark.parametrize("part", PARTS)
def test_ports_of_settings_pods_and_services_agree(part: str) -> None:
    config = settings(part)
    ports = {each["name"]: each["containerPort"] for each in container(part)["ports"]}
    serves = {each["name"]: each["port"] for each in one("Service", part)["spec"]["ports"]}
    if part == "gateway":
        assert ports == serves == {"http": config.port}
    else:
        asked = settings("gateway")
        assert serves == {
            name: port(getattr(config, f"forward_{name}_addr")) for name in ("market", "trade", "ask", "store")
        }
        # The name of the Service is that of the host which the gateways ask.
        assert serves == {
            name.removesuffix("_addr"): port(getattr(asked, name))
            for name in UPSTREAM
            if getattr(asked, name).startswith("tcp://forwarder:")
        }
        assert ports == serves | {"health": port(config.forward_health_addr)}
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container(part)[probe]["httpGet"]["port"] in ports
    for each in one("Service", part)["spec"]["ports"]:
        assert each["targetPort"] == each["name"]


@pytest.mark.parametrize("part", PARTS)
def test_selectors_find_the_pods_of_their_part(part: str) -> None:
    labels = one("Deployment", part)["spec"]["template"]["metadata"]["labels"]
    selected = [one("Deployment", part)["spec"]["selector"]["matchLabels"], one("Service", part)["spec"]["selector"]]
    selected.append(one("NetworkPolicy", part)["spec"]["podSelector"]["matchLabels"])
    if part == "gateway":
        selected.append(one("PodDisruptionBudget", part)["spec"]["selector"]["matchLabels"])
        assert one("HorizontalPodAutoscaler", part)["spec"]["scaleTargetRef"]["name"] == part
    others = [one("Deployment", other)["spec"]["template"]["metadata"]["labels"] for other in PARTS if other != part]
    for selector in selected:
        assert selector.items() <= labels.items()
        assert not any(selector.items() <= other.items() for other in others)


def open_ports(rules: list[dict[str, Any]]) -> set[int]:
    return {each["port"] for rule in rules for each in rule["ports"]}


def test_network_lets_in_what_is_served_and_nothing_else() -> None:
    gateway, forwarder = settings("gateway"), settings("forwarder")
    asked = {port(getattr(gateway, name)) for name in UPSTREAM}
    dns = {53}
    policies = {each["metadata"]["name"]: each["spec"] for each in documents() if each["kind"] == "NetworkPolicy"}
    assert policies.pop("nothing-else") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert open_ports(policies["gateway"]["ingress"]) == {gateway.port}
    assert open_ports(policies["gateway"]["egress"]) == asked | dns
    assert open_ports(policies["forwarder"]["ingress"]) == asked | {port(forwarder.forward_health_addr)}
    assert open_ports(policies["forwarder"]["egress"]) == {port(getattr(forwarder, name)) for name in UPSTREAM} | dns
    (block,) = (rule["to"][0]["ipBlock"] for rule in policies["forwarder"]["egress"] if "ipBlock" in rule["to"][0])
    for name in UPSTREAM:
        assert f"tcp://{block['cidr'].removesuffix('/32')}:" in getattr(forwarder, name)


@pytest.mark.parametrize("part", PARTS)
def test_pods_are_restricted(part: str) -> None:
    image = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert one("Namespace", "qmt-bridge")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert container(part)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    context = pod(part)["securityContext"]
    assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert f"USER {context['runAsUser']}\n" in image
    (keys,) = (volume["secret"] for volume in pod(part)["volumes"] if "secret" in volume)
    assert (context["fsGroup"], keys["defaultMode"]) == (context["runAsUser"], 0o440)
    assert pod(part)["automountServiceAccountToken"] is False
    assert "limits" in container(part)["resources"]


def test_rolled_pod_has_time_to_send_its_clients_away() -> None:
    spec = one("Deployment", "gateway")["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    (_, seconds) = container("gateway")["lifecycle"]["preStop"]["exec"]["command"]
    assert int(seconds) + STOP_SECONDS["gateway"] < spec["template"]["spec"]["terminationGracePeriodSeconds"]
    # A number here would undo what the autoscaler decided at each `apply`.
    assert "replicas" not in spec


def answered(url: str) -> int:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=DEADLINE) as response:
            return int(response.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


def secrets() -> dict[str, dict[str, str]]:
    """Return which files the commands put into each Secret."""
    found: dict[str, dict[str, str]] = {}
    for command in shell_commands("kubectl -n qmt-bridge create secret generic"):
        files = [word.removeprefix("--from-file=") for word in command if word.startswith("--from-file=")]
        found[command[0]] = {
            name or Path(path).name: path for name, _, path in (file.rpartition("=") for file in files)
        }
    return found


def test_commands_and_manifests_make_a_gateway_that_is_ready(
    tmp_path: Path, run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = dict(zip(UPSTREAM, free_ports(4), strict=True))
    forwarded = dict(zip(UPSTREAM, free_ports(4), strict=True))
    served = dict(zip(PARTS, free_ports(2), strict=True))
    monkeypatch.chdir(tmp_path)
    for command in (["keygen", "keys"], *shell_commands("qmt-bridge")):
        made = CliRunner().invoke(cli.main, command)
        assert made.exit_code == 0, made.output

    def mounted(part: str) -> Path:
        """Write the files of a part's Secret where its pod has them."""
        (volume,) = (each["secret"] for each in pod(part)["volumes"] if "secret" in each)
        files = secrets()[volume["secretName"]]
        places = {item["key"]: item["path"] for item in volume.get("items", [])} or {name: name for name in files}
        assert places.keys() == files.keys()
        for name, file in files.items():
            place = tmp_path / f"keys-{part}" / places[name]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((tmp_path / file).read_bytes())
            place.chmod(0o600)
        return tmp_path / f"keys-{part}"

    def start(part: str, addresses: dict[str, str], **more: str) -> Running:
        shipped = container(part)["args"]
        options = {**addresses, "curve_dir": str(mounted(part)), "data_dir": str(tmp_path / part), **more}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        secret = {each["name"]: "the-key-of-a-secret" for each in container(part).get("env", [])}
        return run([PROGRAM, shipped[0], "--config", str(FOLDER / f"{part}.toml"), *flags], env=secret)

    def probed(part: str, probe: str) -> int:
        return answered(f"http://127.0.0.1:{served[part]}{container(part)[probe]['httpGet']['path']}")

    local = "tcp://127.0.0.1:{}".format
    feeder = {name: local(upstream[name]) for name in UPSTREAM if name != "store_addr"}
    flags = [f"--{name.replace('_', '-')}={address}" for name, address in feeder.items()]
    run([PROGRAM, "feeder", "--source=sim", f"--curve-dir={tmp_path / 'keys'}", f"--data-dir={tmp_path / 'f'}", *flags])
    started = {}
    started["forwarder"] = start(
        "forwarder",
        {name: local(number) for name, number in upstream.items()}
        | {f"forward_{name}": local(number) for name, number in forwarded.items()},
        forward_health_addr=f"127.0.0.1:{served['forwarder']}",
    )
    started["gateway"] = start(
        "gateway", {name: local(number) for name, number in forwarded.items()}, port=str(served["gateway"])
    )
    for part in PARTS:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            wait_for(
                lambda part=part, probe=probe: probed(part, probe) == HTTPStatus.OK,
                lambda part=part, probe=probe: f"{probe} of {part}: {started[part].lines}",
            )
    started["gateway"].wait_for("feeder is connected: source sim")
