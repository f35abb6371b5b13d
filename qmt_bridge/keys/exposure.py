"""Whether a gateway may be reached from other machines as it is set. Pure.

Somebody who installs this beside a brokerage account may never read a page about security. So a gateway that other
machines reach starts only if its settings say who may read market data, and who encrypts.
"""

from __future__ import annotations

from ipaddress import ip_address

from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on `host`."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(config: Config) -> None:
    """Raise `ConfigError`, with the lines that are missing, if a gateway must not start with these settings."""
    if config.require_key and config.open_market_data:
        raise ConfigError("open_market_data", "contradicts require_key: set one of them")
    if bool(config.tls_cert) != bool(config.tls_key):
        given, other = ("tls_cert", "tls_key") if config.tls_cert else ("tls_key", "tls_cert")
        raise ConfigError(given, f"needs {other} too")
    if is_loopback(config.host) and not config.behind_proxy:
        return
    lines, instead = [], []
    if not (config.require_key or config.open_market_data):
        lines.append("require_key = true")
        instead.append("open_market_data = true, for market data without a key")
    if not (config.tls_cert or config.behind_proxy):
        lines += ['tls_cert = "/path/of/fullchain.pem"', 'tls_key = "/path/of/privkey.pem"']
        instead.append('behind_proxy = ["10.0.0.2"], with the address of a proxy that encrypts')
    if lines:
        name, who = "host", f"other machines reach {config.host}"
        if is_loopback(config.host):
            name, who = "behind_proxy", "a proxy has clients on other machines"
        added = "".join(f"\n    {line}" for line in lines)
        raise ConfigError(name, f"{who}; add to the settings:{added}\n  or instead: {'; or: '.join(instead)}")
