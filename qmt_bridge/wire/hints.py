"""What a misspelled or misplaced name may have been meant to be. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

# How much of a name that comes from outside is repeated; a longer one is no misspelling either.
NAME_CHARACTERS = 40
# Close enough for a letter more, less or changed; and for `price` where `lastPrice` is meant.
_CLOSE = 0.6
# A letter more, less or changed: beside such a name, others that are merely close only distract.
_NEAR = 0.85


class Ignored(NamedTuple):
    """A field that exists nowhere, or not here, and what may have been meant."""

    field: str
    hint: str


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three of `known` that look like `name`, the closest first, whatever the letter case."""
    if len(name) > NAME_CHARACTERS:
        return []
    by_lower = {each.lower().replace("_", ""): each for each in known}
    given = name.lower().replace("_", "")
    if near := get_close_matches(given, by_lower, 3, _NEAR):
        return [by_lower[each] for each in near]
    found = get_close_matches(given, by_lower, 3, _CLOSE)
    if len(given) >= 3:
        # `name` where `formula_name` is meant.
        found += [each for each in by_lower if given in each and each not in found]
    return [by_lower[each] for each in found[:3]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean fields`` for the names that look like `name`, or nothing."""
    found = similar(name, known)
    return f"did you mean {' or '.join(found)}" if found else ""
