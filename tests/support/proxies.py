"""nginx and Caddy before a gateway, over TLS, as deploy/ sets them up."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from tests.support.authority import Authority
from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.programs import Running, check, listens, needs
from tests.support.raw import opened
from tests.support.rig import Client
from tests.support.waiting import wait_for


class Proxy:
    """A proxy over TLS before a gateway, with the configuration of deploy/ at other addresses."""

    def __init__(self, folder: Path, gateway: int, authority: Authority) -> None:
        self.folder, self.gateway, self.authority = folder, gateway, authority
        self.port, self.other = free_ports(2)
        self.context = ssl.create_default_context(cafile=authority.ca)
        self.write()

    def write(self) -> None:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def reload(self) -> None:
        raise NotImplementedError

    @property
    def keeps_sockets(self) -> bool:
        """Whether open WebSockets survive a reload."""
        raise NotImplementedError

    def logs(self, running: Running) -> str:
        """Return all that it has written; it has to have ended."""
        return "".join(running.lines) + "".join(path.read_text("utf-8") for path in sorted(self.folder.glob("*.log")))

    @asynccontextmanager
    async def connected(self, path: str, **options: Any) -> AsyncIterator[Client]:
        url = f"wss://localhost:{self.port}{path}"
        async with connect(url, host="127.0.0.1", ssl=self.context, proxy=None, **options) as socket:
            yield Client(socket)

    async def certificate(self) -> bytes:
        """Return the certificate that a new connection gets."""
        async with opened(self.port, ssl=self.context) as (_, writer):
            found: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
            return found


class Nginx(Proxy):
    keeps_sockets = True
    shipped = ROOT / "deploy/nginx/qmt-bridge.conf"

    def write(self) -> None:
        site = self.shipped.read_text(encoding="utf-8")
        # TLS is a comment there.
        site = re.sub(r"^    # (listen 443 ssl|ssl_\w+ )", r"    \1", site.replace("    listen 80;\n", ""), flags=re.M)
        for shipped, here in {
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "/etc/ssl/certs/qmt-bridge.pem": str(self.authority.cert),
            "/etc/ssl/private/qmt-bridge.key": str(self.authority.key),
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{self.gateway};",
            "/var/log/nginx/": f"{self.folder}/",
        }.items():
            assert shipped in site
            site = site.replace(shipped, here)
        (self.folder / "site.conf").write_text(site, encoding="utf-8")
        (self.folder / "nginx.conf").write_text(
            f"daemon off; pid {self.folder}/nginx.pid; error_log {self.folder}/start.log; events {{}}\n"
            f"http {{ client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy;\n"
            f"include {self.folder}/site.conf; }}\n",
            encoding="utf-8",
        )

    def command(self) -> list[str]:
        return [needs("nginx"), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def reload(self) -> None:
        check([*self.command(), "-s", "reload"])


class Caddy(Proxy):
    @property
    def version(self) -> tuple[int, ...]:
        numbers = re.search(r"(\d+)\.(\d+)", check([needs("caddy"), "version"]))
        assert numbers is not None
        return tuple(map(int, numbers.groups()))

    @property
    def keeps_sockets(self) -> bool:
        return self.version >= (2, 7)

    def write(self) -> None:
        site = (ROOT / "deploy/caddy/Caddyfile").read_text(encoding="utf-8")
        if self.keeps_sockets:
            # A comment there, because Debian's Caddy is older.
            site = site.replace("# stream_close_delay", "stream_close_delay")
            assert "\t\tstream_close_delay 24h\n" in site
        for shipped, here in {
            # Neither are ports used that need rights, nor is the administration of another Caddy.
            "\n{\n": f"\n{{\n\tadmin localhost:{self.other}\n\tauto_https disable_redirects\n",
            "\nquotes.example {\n": f"\nhttps://localhost:{self.port} {{\n\tbind 127.0.0.1\n\tlog\n",
            "# A certificate of your own: tls": "tls",
            "/etc/ssl/certs/qmt-bridge.pem": str(self.authority.cert),
            "/etc/ssl/private/qmt-bridge.key": str(self.authority.key),
            "reverse_proxy 127.0.0.1:8000 {": f"reverse_proxy 127.0.0.1:{self.gateway} {{",
        }.items():
            assert site.count(shipped) == 1, shipped
            site = site.replace(shipped, here)
        (self.folder / "Caddyfile").write_text(site, encoding="utf-8")

    def command(self) -> list[str]:
        return [needs("caddy"), "run", "--config", str(self.folder / "Caddyfile"), "--adapter", "caddyfile"]

    def reload(self) -> None:
        check([needs("caddy"), "reload", *self.command()[2:], "--force", "--address", f"localhost:{self.other}"])


def started(kind: type[Proxy], folder: Path, gateway: int, run: Callable[..., Running]) -> tuple[Proxy, Running]:
    """Start a proxy before the gateway at this port, with files in `folder`; skip the test where it is not installed.

    `run` starts its process, and ends it.
    """
    needs(kind.__name__.lower())
    authority = Authority(folder)
    authority.issue()
    proxy = kind(folder, gateway, authority)
    running = run(proxy.command(), env=dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(folder)))
    wait_for(lambda: listens(proxy.port) or running.process.poll() is not None, "the proxy")
    assert running.process.poll() is None, running.lines
    return proxy, running
