"""The codes of a request that are read and those that are not served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from gateway.costs.budget import NAMED_REJECTIONS
from qmt_bridge.errors import BadCode, ErrorCode
from qmt_bridge.wire.codes import MARKETS, check_code, is_code
from qmt_bridge.wire.topics import (
    Topic,
)

# Codes that are read in one turn of the loop: this takes 0.5 to 1 ms.
CODES_A_TURN = 150


# A request may name thousands of codes. Each of the first refused codes gets an error frame; one more has the rest.
ERRORS_A_REQUEST = 20


class Rejection(NamedTuple):
    """A code that a request named and that is not served."""

    code: str
    error: ErrorCode
    reason: str

    def shown(self) -> dict[str, str]:
        """Return the entry of an ack."""
        return self._asdict()


async def topics_of(codes: list[object], topic_of: Callable[[str], Topic]) -> tuple[dict[Topic, str], list[Rejection]]:
    """Return the topics of `codes` with their names, and the wrong codes; others have turns of the loop meanwhile."""
    topics: dict[Topic, str] = {}
    rejected: list[Rejection] = []
    for at in range(0, len(codes), CODES_A_TURN):
        if at:
            await asyncio.sleep(0)
        _check_part(codes[at : at + CODES_A_TURN], topic_of, topics, rejected)
    return topics, rejected


def _check_part(
    codes: list[object], topic_of: Callable[[str], Topic], topics: dict[Topic, str], rejected: list[Rejection]
) -> None:
    for code in codes:
        if len(rejected) >= NAMED_REJECTIONS and not (isinstance(code, str) and (code in MARKETS or is_code(code))):
            # No answer shows the reason, and a suggestion takes 20 us.
            rejected.append(Rejection(str(code)[:40] if isinstance(code, (str, int)) else "", "unknown_symbol", ""))
            continue
        try:
            # Codes and markets are strings; `check_code` refuses everything else, a number with a hint.
            name = code if isinstance(code, str) else check_code(code)
            topics[topic_of(name)] = name
        except BadCode as exc:
            rejected.append(Rejection(exc.symbol[:40], exc.code, exc.reason))


def shown_rejections(rejected: Iterable[Rejection], count: int) -> dict[str, Any]:
    """Return what an ack says of `count` codes that are not served: the first of them, and how many more there are."""
    shown = [rejection.shown() for rejection in islice(rejected, NAMED_REJECTIONS)]
    more = count - len(shown)
    return {"rejected": shown} | ({"rejected_more": more} if more else {})
