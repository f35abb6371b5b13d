"""The recorded ticks beside the project, read without our own file reader."""

from __future__ import annotations

import csv
import gzip
import json
from typing import Any

import pytest

from tests.support.paths import RECORDED

TICKS = RECORDED / "ticks_30stocks_sse_20211201.csv.gz"
recorded = pytest.mark.skipif(not TICKS.exists(), reason=f"the recorded data is not here: {TICKS}")


def rows_by_code() -> dict[str, list[dict[str, Any]]]:
    """Return the recorded rows as a consumer should receive them."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(TICKS, "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            code = row.pop("code")
            rows.setdefault(code, []).append({name: json.loads(text) for name, text in row.items()})
    return rows
