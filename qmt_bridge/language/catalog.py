"""Say an English text of the program in the language of the user: a table of sentences whose keys are the English ones.

A key is a sentence as the source has it, and what an f-string fills in is ``{0}``, ``{1}``, ...: the source and the log
stay English, and the text is translated where it is printed. So a text that is made deep in the program, such as that
of an error, needs nothing there. What no table has stays English; tests/qmt_bridge/language/test_texts.py finds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

from qmt_bridge.language.choice import Language

_FIELD = re.compile(r"\{(\d)\}")
# What joins texts, what of it belongs to the first one, and what stands between them in Chinese; in this order.
_JOINTS = (
    (" [", "", " ["),
    (" -> ", "", " -> "),
    (". ", ".", ""),
    ("; ", "", "；"),
    (": ", "", "："),
    (", ", "", "，"),
)
# A text with more of them is a list of data; each takes a call within a call.
_MOST_JOINTS = 400


class _Template(NamedTuple):
    """A sentence with places for values: its fixed pieces, the whole as a pattern, and its translation."""

    pieces: tuple[str, ...]
    pattern: str
    meant: str


class Catalog:
    """The sentences of one language."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = {key: meant for key, meant in texts.items() if not _FIELD.search(key)}
        templates = [_template(key, meant) for key, meant in texts.items() if _FIELD.search(key)]
        # The most specific one first: "{0}: {1}" would match before all others.
        self._templates = sorted(templates, key=lambda each: -sum(map(len, each.pieces)))

    def translated(self, text: str) -> str:
        """Return `text` in this language, or the parts of it that are known."""
        plain = text.strip()
        if not plain or sum(plain.count(joint) for joint, _, _ in _JOINTS) > _MOST_JOINTS:
            return text
        found = self._sentence(plain, set())
        return text if found is None else text.replace(plain, found)

    def _sentence(self, text: str, unknown: set[str]) -> str | None:
        """Return the translation of a text without blanks around it; None if no part of it is known.

        `unknown` has what is in no table: without it the time doubles with each joint of such a text.
        """
        if text in unknown:
            return None
        if text in self._texts:
            return self._texts[text]
        for template in self._templates:
            # A pattern is made for the few whose fixed pieces are all there: thousands would take a tenth of a second.
            if all(piece in text for piece in template.pieces):
                match = re.fullmatch(template.pattern, text, re.DOTALL)
                if match is not None:
                    return self._filled(template.meant, match.groups(), unknown)
        for joint, end, meant in _JOINTS:
            first, found, rest = text.partition(joint)
            if not found:
                continue
            first += end
            parts = self._sentence(first, unknown), self._sentence(rest, unknown)
            if parts != (None, None):
                return f"{parts[0] or first}{meant}{parts[1] or rest}"
        unknown.add(text)
        return None

    def _filled(self, meant: str, values: tuple[str, ...], unknown: set[str]) -> str:
        # A value of one word is a name, and may be that of a text by chance.
        shown = [(self._sentence(each, unknown) or each) if " " in each else each for each in values]
        return _FIELD.sub(lambda found: shown[int(found[1])], meant)


def _template(key: str, meant: str) -> _Template:
    pieces = _FIELD.split(key)[::2]
    # The last value takes what is left, the others as little as they can.
    pattern = "(.*?)".join(map(re.escape, pieces[:-1])) + "(.*)" + re.escape(pieces[-1])
    return _Template(tuple(filter(None, pieces)), pattern, meant)


def read_texts(language: Language) -> dict[str, str]:
    """Return the table of a language: the English texts, and what they are in it."""
    return {key: meant for _, texts in tables(language) for key, meant in texts.items()}


def tables(language: Language) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name and the content of each file of a language."""
    folder = resources.files("qmt_bridge.language") / language
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".json"):
            yield file.name, json.loads(file.read_text(encoding="utf-8"))


_spoken: Catalog | None = None


def speak(language: Language) -> None:
    """Let `say` speak a language from now on, in the whole process."""
    global _spoken
    _spoken = None if language == "en" else Catalog(read_texts(language))


def speaks_english() -> bool:
    """Return whether texts stay as they are."""
    return _spoken is None


def say(text: str) -> str:
    """Return a text of the program in the language that is spoken."""
    return text if _spoken is None else _spoken.translated(text)
