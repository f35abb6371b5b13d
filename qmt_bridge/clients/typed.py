"""Frames as the typed records of `qmt_bridge.wire` (option `typed`). Pure.

A field that a view does not have is passed over; one that is absent has the view's default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from qmt_bridge.clients.trades import typed_event
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.messages import DownloadEnd, FormulaValue, L2Thousand, Progress, Tick, view_of
from qmt_bridge.wire.topics import Kind

Shape = Callable[[dict[str, Any]], Any]
"""Makes of a frame what the caller is given."""


def plain(frame: dict[str, Any]) -> dict[str, Any]:
    """Return a frame as it came."""
    return frame


def quotes(period: str, is_typed: bool) -> Shape:
    """Return the shape of quotes: lists of the view of `period` by code."""
    view = view_of(Kind.QUOTE, period)
    if not is_typed:
        return plain
    if view is None:
        raise BadRequest("unsupported_period", f"nothing is known of the fields of {period}: there is no typed record")
    return _reading(dict[str, list[view]])  # type: ignore[valid-type]


def market(is_typed: bool) -> Shape:
    """Return the shape of whole markets: ticks by code."""
    return _reading(dict[str, Tick]) if is_typed else plain


def depth(is_typed: bool) -> Shape:
    """Return the shape of depth: lists of `L2Thousand` by code."""
    return _reading(dict[str, list[L2Thousand]]) if is_typed else plain


def formula(is_typed: bool) -> Shape:
    """Return the shape of a formula's values."""
    return _reading(FormulaValue) if is_typed else plain


def events(is_typed: bool) -> Shape:
    """Return the shape of trade events."""
    return typed_event if is_typed else plain


def download(is_typed: bool) -> Shape:
    """Return the shape of a download's progress and end."""
    return _progress if is_typed else plain


def _progress(frame: dict[str, Any]) -> Any:
    return msgspec.convert(frame, DownloadEnd if "status" in frame else Progress)


def _reading(view: Any) -> Shape:
    def read(frame: dict[str, Any]) -> Any:
        return msgspec.convert(frame, view)

    return read
