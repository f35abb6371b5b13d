"""Which settings let a gateway start that other machines reach."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.exposure import check_exposure, is_loopback

TLS = {"tls_cert": "/c.pem", "tls_key": "/k.pem"}
EVERYWHERE = {"host": "0.0.0.0"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "127.0.0.9", "open_market_data": True},
        TLS,
        {**EVERYWHERE, **TLS, "require_key": True},
        {**EVERYWHERE, **TLS, "open_market_data": True},
        {**EVERYWHERE, "behind_proxy": ("10.0.0.2",), "require_key": True},
        {"behind_proxy": ("127.0.0.1",), "open_market_data": True},
    ],
)
def test_gateway_with_keys_and_tls_or_on_loopback_starts(settings: dict[str, Any]) -> None:
    check_exposure(Config(**settings))


@pytest.mark.parametrize(
    ("settings", "name", "lines"),
    [
        (EVERYWHERE, "host", {"require_key", "tls_cert", "tls_key"}),
        ({"host": "::"}, "host", {"require_key", "tls_cert", "tls_key"}),
        ({"host": "192.168.1.5", "require_key": True}, "host", {"tls_cert", "tls_key"}),
        ({"host": "127.0.0.1.example", **TLS}, "host", {"require_key"}),
        ({**EVERYWHERE, "behind_proxy": ("10.0.0.2",)}, "host", {"require_key"}),
        ({"behind_proxy": ("127.0.0.1",)}, "behind_proxy", {"require_key"}),
        ({"host": ""}, "host", {"require_key", "tls_cert", "tls_key"}),
    ],
)
def test_refusal_has_the_lines_that_make_it_start(settings: dict[str, Any], name: str, lines: set[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        check_exposure(Config(**settings))
    assert str(refused.value).startswith(f"{name}: ")
    added = tomllib.loads("\n".join(re.findall(r"^    (.*)$", str(refused.value), re.MULTILINE)))
    assert set(added) == lines
    check_exposure(Config(**{**settings, **added}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"require_key": True, "open_market_data": True}, "open_market_data: contradicts require_key"),
        ({"tls_cert": "/c.pem"}, "tls_cert: needs tls_key too"),
        ({"tls_key": "/k.pem"}, "tls_key: needs tls_cert too"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_exposure(Config(**settings))


def test_a_name_is_not_taken_for_loopback() -> None:
    assert [is_loopback(host) for host in ("localhost", "[::1]", "127.1.2.3", "0.0.0.0", "desk", "127.0.0.1.x")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
