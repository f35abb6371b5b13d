"""Every frame that a client of the tests is sent is one that the documents of its URL have."""

from __future__ import annotations

from typing import TypeVar

from gateway.contract.frames import FRAMES, name_of

Frame = TypeVar("Frame")


def documented(target: str, frame: Frame) -> Frame:
    """Return the frame; fail if it came from a URL of the gateway (`target` with its query) that does not send it."""
    path = target.partition("?")[0].removesuffix("/")
    if path in FRAMES:
        name_of(path, frame)
    return frame
