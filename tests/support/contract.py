"""Every frame that a client of the tests is sent is one that the documents of its URL have."""

from __future__ import annotations

from typing import TypeVar

from gateway.contract.frames import FRAMES, name_of

Frame = TypeVar("Frame")


# A body of each URL, in place of one that a test has invented.
_BODIES: dict[str, object] = {
    "/ws/realtime": {"600519.SH": [{}]},
    "/ws/whole_quote": {"600519.SH": {}},
    "/ws/l2_thousand": {"600519.SH": [{}]},
    "/ws/formula": {"type": "formula_update", "seq_id": 1, "formula_name": "MA", "stock_code": "600519.SH", "data": {}},
}


def documented(target: str, frame: Frame, *, invented: bool = False) -> Frame:
    """Return the frame; fail if it came from a URL of the gateway (`target` with its query) that does not send it.

    With `invented` the source is one of the test: what the gateway puts around its bodies is checked, not these.
    """
    # An event has the frame of the WebSocket as its data.
    path = target.partition("?")[0].removesuffix("/").replace("/sse/", "/ws/", 1)
    if path in FRAMES and (shown := _without_body(path, frame) if invented else frame) is not None:
        name_of(path, shown)
    return frame


def _without_body(path: str, frame: object) -> object:
    """Return a frame with a body that is documented; None if it is nothing but a body."""
    if not isinstance(frame, dict) or not {"type", "action"} & frame.keys():
        return None
    match frame.get("type"):
        case "data":
            return {**frame, "data": _BODIES[path]}
        case "formula_update":
            # The body of a formula has no part of its own.
            return {**frame, **_BODIES[path], "seq_id": frame["seq_id"]}  # type: ignore[dict-item]
    return frame
