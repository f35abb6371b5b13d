"""The check of origins."""

from __future__ import annotations

import pytest

from gateway.origins import is_own_origin, origin_allowed


@pytest.mark.parametrize(
    ("origin", "allowed", "passes"),
    [
        (None, (), True),
        ("https://desk.example", ("*",), True),
        ("https://desk.example", ("https://DESK.example/",), True),
        ("https://evil.example", ("https://desk.example",), False),
        ("https://desk.example.evil", ("https://desk.example",), False),
        ("https://desk.example", ("https://desk.example:443",), True),
        ("http://desk.example", (" http://desk.example:80/ ",), True),
        ("http://desk.example", ("http://desk.example:443",), False),
        ("https://desk.example:8443", ("https://desk.example",), False),
        ("null", ("https://desk.example",), False),
    ],
)
def test_origin_is_compared_with_the_setting(origin: str | None, allowed: tuple[str, ...], passes: bool) -> None:
    assert origin_allowed(origin, allowed) is passes


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("ws://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000"),
        ("http://192.168.1.5", "192.168.1.5:80"),
        ("http://192.168.1.5:80", "192.168.1.5"),
        ("https://192.168.1.5:443", "192.168.1.5"),
        ("wss://192.168.1.5", "192.168.1.5:443"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[0:0:0:0:0:0:0:1]:8000", "[::1]:8000"),
        ("http://[FE80::1]:8000", "[fe80::1]:8000"),
        ("HTTP://LocalHost:8000", "localhost:8000"),
        ("http://localhost:8000", "LOCALHOST:8000"),
    ],
)
@pytest.mark.parametrize("user_agent", [None, "Mozilla/5.0 (X11)", "python-websockets/16"])
def test_origin_equal_to_the_host_header_is_allowed(origin: str, host: str, user_agent: str | None) -> None:
    assert is_own_origin(origin, host, user_agent, secure=False)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", None),
        ("null", "127.0.0.1:8000"),
        ("", ""),
        ("http://", ""),
        ("http://127.0.0.1:8000", "127.0.0.1:8001"),
        ("http://127.0.0.1", "127.0.0.1:8000"),
        ("http://127.0.0.1:443", "127.0.0.1"),
        ("https://127.0.0.1:80", "127.0.0.1"),
        ("http://127.0.0.1:8000.evil.example", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000@evil.example", "127.0.0.1:8000"),
        ("http://evil.example/127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://evil.example#127.0.0.1", "evil.example#127.0.0.1"),
        ("http://127.0.0.1:x", "127.0.0.1:x"),
        ("http://127.0.0.1:99999", "127.0.0.1:99999"),
        ("http://[::1:8000", "[::1:8000"),
        ("http://localhost:8000", "127.0.0.1:8000"),
        ("file://127.0.0.1:8000", "127.0.0.1:8000"),
        ("127.0.0.1:8000", "127.0.0.1:8000"),
        ("chrome-extension://127.0.0.1:8000", "127.0.0.1:8000"),
    ],
)
def test_origin_unlike_the_host_header_is_foreign(origin: str | None, host: str | None) -> None:
    assert not is_own_origin(origin, host, None, secure=False)


@pytest.mark.parametrize(
    ("user_agent", "own"),
    [
        (None, True),
        ("", True),
        ("Go-http-client/1.1", True),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64)", False),
        ("mozilla/4.0", False),
    ],
)
@pytest.mark.parametrize("name", ["gateway.lan", "evil.example", "localhost.evil.example", "trader-pc"])
def test_host_name_as_origin_is_allowed_for_programs_only(name: str, user_agent: str | None, own: bool) -> None:
    # A page of evil.example, whose name was changed to lead to this address, sends exactly this.
    assert is_own_origin(f"http://{name}:8000", f"{name}:8000", user_agent, secure=False) is own


@pytest.mark.parametrize(("scheme", "own"), [("https", True), ("wss", True), ("http", False), ("ws", False)])
def test_page_without_tls_is_foreign_to_a_gateway_with_tls(scheme: str, own: bool) -> None:
    assert is_own_origin(f"{scheme}://127.0.0.1:8443", "127.0.0.1:8443", None, secure=True) is own
