"""What the headers of a request say about the answer: compression, and answers that the client has. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def takes_gzip(headers: Mapping[str, str]) -> bool:
    """Return whether the client reads gzip."""
    for each in headers.get("accept-encoding", "").lower().split(","):
        coding, _, quality = each.partition(";")
        if coding.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def known_tags(headers: Mapping[str, str]) -> list[str]:
    """Return the entity tags of the answers that the client has."""
    return [each.strip() for each in headers.get("if-none-match", "").split(",")]
