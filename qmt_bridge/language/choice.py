"""Which language the program speaks: the option ``--lang``, ``QMT_BRIDGE_LANG``, or the locale of the user."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Literal, get_args

from qmt_bridge.config import LANG_ENV

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
# The first that is set decides, as in gettext.
_LOCALES = ("LC_ALL", "LC_MESSAGES", "LANG")
# Of the language identifiers of Windows the lower ten bits are the language.
_CHINESE_OF_WINDOWS = 0x04


def language_of(text: str) -> Language | None:
    """Return the language that a text such as ``zh``, ``zh_CN.UTF-8`` or ``English`` names; None for another one."""
    known: dict[str, Language] = {"zh": "zh", "ch": "zh", "en": "en"}
    return known.get(text.strip().lower()[:2])


def chosen_language(env: Mapping[str, str]) -> Language:
    """Return the language of this user."""
    if own := language_of(env.get(LANG_ENV, "")):
        return own
    for name in _LOCALES:
        if env.get(name):
            return language_of(env[name]) or "en"
    return _of_windows()


def _of_windows() -> Language:
    if sys.platform != "win32":
        return "en"
    import ctypes

    found = int(ctypes.windll.kernel32.GetUserDefaultUILanguage())
    return "zh" if found & 0x3FF == _CHINESE_OF_WINDOWS else "en"
