"""Requests a second, and origins."""

from __future__ import annotations

import pytest

from gateway.limits import TokenBucket, origin_allowed


def test_burst_passes_then_the_rate() -> None:
    bucket = TokenBucket(10, 0.0)
    assert sum(bucket.take(0.0) for _ in range(100)) == 40
    assert sum(bucket.take(1.0) for _ in range(100)) == 10
    assert sum(bucket.take(100.0) for _ in range(100)) == 40


@pytest.mark.parametrize(
    ("origin", "allowed", "passes"),
    [
        (None, (), True),
        ("https://desk.example", ("*",), True),
        ("https://desk.example", ("https://DESK.example/",), True),
        ("https://evil.example", ("https://desk.example",), False),
        ("https://desk.example.evil", ("https://desk.example",), False),
        ("null", ("https://desk.example",), False),
    ],
)
def test_origin(origin: str | None, allowed: tuple[str, ...], passes: bool) -> None:
    assert origin_allowed(origin, allowed) is passes
