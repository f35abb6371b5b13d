"""What `qmt-bridge state` prints of the parts that report; the rest is tested over real gateways."""

from __future__ import annotations

from typing import Any

import pytest

from qmt_bridge.commands.administration import LABEL, _part_lines
from qmt_bridge.commands.terminal.table import labelled

STORE = {"up": True, "age": 0.4, "failure": None, "topics": 3, "stored": 4711, "lag": 0.0042}
TARGET = {"target": "mail", "failing": False}
ALERTS = {"up": True, "age": 0.2, "open": [], "targets": [TARGET]}
FEED = {"rule": "feed", "subject": "", "since": 1}
CUT = {"rule": "cut", "subject": "desk", "since": 1}


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ({}, []),
        ({"store": None, "alerts": None}, []),
        ({"store": STORE}, ["store     3 topics, 4711 messages, lag 0.004 s"]),
        ({"store": STORE | {"failure": "the disk is full"}}, ["store     the disk is full"]),
        ({"store": STORE | {"up": False, "age": 7.2}}, ["store     SILENT: has not reported for 7 s"]),
        ({"alerts": ALERTS}, ["alerts    open: none"]),
        ({"alerts": ALERTS | {"open": [FEED, CUT]}}, ["alerts    open: feed, cut desk"]),
        (
            {"alerts": ALERTS | {"targets": [TARGET | {"failing": True}]}},
            ["alerts    open: none; not taken by mail"],
        ),
        ({"alerts": ALERTS | {"up": False, "age": 61.0}}, ["alerts    SILENT: has not reported for 61 s"]),
    ],
)
def test_parts_are_shown_with_what_is_wrong(found: dict[str, Any], lines: list[str]) -> None:
    assert labelled(_part_lines(found), LABEL).splitlines() == lines
