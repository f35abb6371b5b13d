"""The example files of the folder deploy, which a wheel has as data of the package, and a checkout beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from qmt_bridge.errors import ConfigError

# The groups of files, each a flag of `init`: what the flag does, and the name in the folder.
GROUPS: Mapping[str, tuple[str, str]] = {
    "toml": ("Write the file with every setting and its default.", "qmt-bridge.toml"),
    "systemd": ("Write the units of systemd.", "systemd"),
    "nginx": ("Write the configuration of nginx, a proxy that encrypts.", "nginx"),
    "caddy": ("Write the configuration of Caddy, a proxy that encrypts.", "caddy"),
    "kubernetes": ("Write the manifests of Kubernetes.", "kubernetes"),
    "grafana": ("Write the dashboard of Grafana.", "grafana"),
    "prometheus": ("Write the settings and the rules of Prometheus.", "prometheus"),
    "docker": ("Write the Dockerfile and the compose file.", "docker"),
    "windows": ("Write the script and the service file of Windows.", "windows"),
    "bigqmt": ("Write the strategy that pushes from the full QMT terminal.", "bigqmt"),
    "examples": ("Write the programs in other languages.", "examples"),
    "push": ("Write the programs that push records to a feeder.", "push"),
}
# The first line of a strategy of the full terminal, which keeps its strategies in GBK; here it is UTF-8.
_GBK = b"# coding:gbk\n"


def example_folder() -> Traversable:
    """Return the folder of the example files; raise `ConfigError` if this installation has none."""
    package = resources.files("qmt_bridge")
    # A wheel; then an editable install, and a checkout that is on the path.
    for folder in (package / "deploy", Path(str(package)).parent / "deploy"):
        if (folder / "qmt-bridge.toml").is_file():
            return folder
    raise ConfigError("init", f"{package} has no example files: install the wheel of qmt-bridge-gateway")


def example_files(folder: Traversable, group: str) -> Iterator[tuple[str, bytes]]:
    """Yield the path below the folder and the content of each file of a group."""
    name = GROUPS[group][1]
    yield from _below(folder / name, name)


def _below(item: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    if item.is_file():
        content = item.read_bytes()
        yield path, content.decode().encode("gbk") if content.startswith(_GBK) else content
        return
    if item.is_dir():
        for inner in sorted(item.iterdir(), key=lambda each: each.name):
            yield from _below(inner, f"{path}/{inner.name}")
