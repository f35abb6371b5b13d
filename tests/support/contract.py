"""Every frame that a client of the tests is sent is one that the documents of its URL have."""

from __future__ import annotations

from typing import TypeVar

from gateway.contract.frames import FRAMES, name_of

Frame = TypeVar("Frame")


def documented(target: str, frame: Frame, *, invented: bool = False) -> Frame:
    """Return the frame; fail if it came from a URL of the gateway (`target` with its query) that does not send it.

    With `invented` the source is one of the test: a body with neither a type nor an action is passed on as it came.
    """
    path = target.partition("?")[0].removesuffix("/")
    is_body = isinstance(frame, dict) and not {"type", "action"} & frame.keys()
    if path in FRAMES and not (invented and is_body):
        name_of(path, frame)
    return frame
