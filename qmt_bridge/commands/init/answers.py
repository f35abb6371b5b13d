"""What `qmt-bridge init` asks for, and the settings that follow from it. Pure."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

SourceAnswer = Literal["xtquant", "sim", "replay"]
Reach = Literal["here", "tls", "proxy"]
Stored = Literal["asked", "markets", "none"]

MARKETS = ("whole/SH/", "whole/SZ/", "whole/BJ/")
# Of the feeder and the store, where a gateway on another machine connects to.
PORTS = {"market_addr": 5555, "trade_addr": 5556, "ask_addr": 5557, "store_addr": 5559}
# Hosts of the group robots, and the setting of each.
_ROBOTS = {
    "qyapi.weixin.qq.com": "alerts_wecom",
    "oapi.dingtalk.com": "alerts_dingtalk",
    "open.feishu.cn": "alerts_feishu",
}


class Answers(NamedTuple):
    """The answers to the questions, with their defaults."""

    source: SourceAnswer = "sim"
    xt_userdata: str = ""
    xt_accounts: tuple[str, ...] = ()
    file: str = ""
    # The address of this machine for gateways on others; empty: all parts run here.
    feeder_host: str = ""
    reach: Reach = "here"
    tls_cert: str = ""
    tls_key: str = ""
    proxy: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    stored: Stored = "asked"
    store_days: int = 5
    alerts_url: str = ""
    alerts_secret: str = ""
    data_dir: str = ""


def account(text: str) -> str:
    """Return an account with its type; one without a type is of stocks."""
    number, colon, kind = text.strip().partition(":")
    return f"{number.strip()}:{kind.strip().upper() if colon else 'STOCK'}"


def robot(url: str) -> str:
    """Return the setting that a URL for alerts belongs to."""
    return _ROBOTS.get(urlsplit(url).hostname or "", "alerts_webhook")


def of_one_machine(answers: Answers, api_key: str) -> dict[str, Any]:
    """Return the settings of a machine where all parts run."""
    return {**_of_source(answers), **_of_store(answers), **_of_gateway(answers, api_key), **_of_alerts(answers)}


def of_feeder(answers: Answers, curve_dir: str) -> dict[str, Any]:
    """Return the settings of the feeder's machine; its store and alerts run there too."""
    listening = {name: f"tcp://0.0.0.0:{port}" for name, port in PORTS.items()}
    alerts = _of_alerts(answers)
    if alerts:
        # The gateway is not where the alerts would look for it.
        alerts["alerts_ignore"] = ("gateway",)
    return {**_of_source(answers), **_of_store(answers), **listening, "curve_dir": curve_dir, **alerts}


def of_gateway(answers: Answers, curve_dir: str, api_key: str) -> dict[str, Any]:
    """Return the settings of the machine of a gateway."""
    asked = {name: f"tcp://{_bracketed(answers.feeder_host)}:{port}" for name, port in PORTS.items()}
    return {**_of_gateway(answers, api_key), **asked, "curve_dir": curve_dir}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _of_source(answers: Answers) -> dict[str, Any]:
    found: dict[str, Any] = {"source": answers.source}
    if answers.source == "replay":
        found["file"] = answers.file
    if answers.source == "xtquant" and answers.xt_accounts:
        found |= {"xt_userdata": answers.xt_userdata, "xt_accounts": answers.xt_accounts}
    if answers.data_dir:
        found["data_dir"] = answers.data_dir
    return found


def _of_store(answers: Answers) -> dict[str, Any]:
    if answers.stored == "none":
        return {"store_days": 0}
    return {"store": MARKETS if answers.stored == "markets" else (), "store_days": answers.store_days}


def _of_gateway(answers: Answers, api_key: str) -> dict[str, Any]:
    found: dict[str, Any] = {"host": "127.0.0.1", "port": 8000, "api_key": api_key}
    if answers.reach == "here":
        return found
    found["require_key"] = True
    if answers.reach == "tls":
        found |= {"host": "0.0.0.0", "tls_cert": answers.tls_cert, "tls_key": answers.tls_key}
    else:
        # A proxy on another machine reaches no gateway that listens on loopback.
        is_here = answers.proxy in ("127.0.0.1", "::1")
        found |= {"host": "127.0.0.1" if is_here else "0.0.0.0", "behind_proxy": (answers.proxy,)}
    if answers.hosts:
        found["hosts"] = answers.hosts
    return found


def _of_alerts(answers: Answers) -> dict[str, Any]:
    if not answers.alerts_url:
        return {}
    name = robot(answers.alerts_url)
    found: dict[str, Any] = {name: answers.alerts_url}
    if answers.alerts_secret:
        found[f"{name}_secret"] = answers.alerts_secret
    return found
