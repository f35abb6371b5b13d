"""What the alerts observe: the age of the answers of parts that do not answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qmt_bridge.alerts.gateway import Gateway
from qmt_bridge.alerts.watch import LOOK_MOST, Observed, Watch
from qmt_bridge.config import Config
from qmt_bridge.system import clock
from tests.support.ports import free_addresses, free_port, tcp


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Return a watch where nothing answers."""
    found = Watch(Config(**free_addresses(), store_addr=tcp(free_port())), Gateway(lambda path, stop: None), ())
    yield found
    found.close()


def ages(seen: Observed) -> list[float]:
    return [seen.status_age, seen.store_age, seen.gateway_age]


def test_time_in_which_the_alerts_were_held_is_no_absence(watch: Watch) -> None:
    now = clock.monotonic()
    before = ages(watch.look(now, 0.0, (), None))
    held = ages(watch.look(now + 60.0, 0.0, (), None))
    assert held == pytest.approx([age + LOOK_MOST for age in before])
    for looks in range(1, 5):
        found = ages(watch.look(now + 60.0 + 0.5 * looks, 0.0, (), None))
        assert found == pytest.approx([age + 0.5 * looks for age in held])
