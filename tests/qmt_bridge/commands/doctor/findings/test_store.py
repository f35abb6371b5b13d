"""The check of the store of the day."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmt_bridge.commands.doctor.findings import store
from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.wire.history import StoreStatus
from tests.support.doctor import assert_finding

WHERE = "tcp://127.0.0.1:5559"
GIB = 1 << 30
KEEPS = StoreStatus(1, "1.0", topics=7, size=3 * GIB, days=("2026-11-27", "2026-11-28"), free=50 * GIB)


def judge(
    status: StoreStatus | None = None,
    *,
    unasked: str = "",
    refused: str = "",
    days: int = 5,
    max_mb: int = 16384,
    feeder_runs: bool = True,
) -> Finding:
    return store.store(status, unasked, refused, WHERE, "1.0", days, max_mb, feeder_runs)


def kept(max_mb: int = 16384, **changed: object) -> Finding:
    return judge(replace(KEEPS, **changed), max_mb=max_mb)


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        pytest.param(kept(), "ok", "keeps 7 topics, 3.0 GiB, 2 days since 2026-11-27, 50.0 GiB free", id="keeps"),
        pytest.param(kept(days=("2026-11-28",), size=5 << 20), "ok", "5 MiB, 1 day since 2026-11-28", id="one-day"),
        pytest.param(kept(days=(), size=0, topics=0), "ok", "keeps nothing yet", id="empty"),
        pytest.param(kept(left_out=3), "ok", "3 messages left out since its start", id="left-out"),
        pytest.param(kept(failure="the disk has only 9 MiB left"), "fail", "stored: the disk has", id="failure"),
        pytest.param(kept(free=GIB - 1), "warn", "may be full within a day", id="little-disk"),
        # It grows by 1.5 GiB a day, unless its limit is nearer.
        pytest.param(kept(free=GIB + GIB // 2 - 1), "warn", "may be full within a day", id="a-day-does-not-fit"),
        pytest.param(kept(free=GIB + GIB // 2), "ok", "1.5 GiB free", id="a-day-fits"),
        pytest.param(kept(max_mb=3 * 1024, free=GIB), "ok", "1.0 GiB free", id="grows-no-more"),
        pytest.param(kept(max_mb=0, free=GIB), "warn", "may be full within a day", id="no-limit"),
        pytest.param(kept(version="0.9"), "warn", "it is 0.9, but installed is 1.0", id="old"),
        pytest.param(kept(version=""), "ok", "keeps 7", id="no-version"),
        pytest.param(judge(), "warn", f"none answers at {WHERE}: a program", id="none-beside-a-feeder"),
        pytest.param(judge(feeder_runs=False), "ok", f"none answers at {WHERE}", id="none"),
        pytest.param(judge(days=0), "ok", "none is wanted", id="none-is-wanted"),
        pytest.param(judge(unasked="no key"), "warn", "not checked: no key", id="not-asked"),
        pytest.param(judge(refused="no: do"), "warn", "no", id="refused"),
    ],
)
def test_a_check_has_the_level_and_text_of_its_facts(finding: Finding, level: str, said: str) -> None:
    assert_finding(finding, level, said)
