"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.programs import Running, programs


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    with programs() as start:
        yield start
