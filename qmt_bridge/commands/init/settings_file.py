"""The settings of `qmt-bridge init` as TOML, each below the sentence that explains it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qmt_bridge.config import SECTIONS, description, written


def to_toml(values: Mapping[str, Any], heads: tuple[str, ...], say: Callable[[str], str]) -> str:
    """Return a file of settings; `heads` are lines of its beginning, and `say` translates what explains a setting."""
    plain = [name for name in values if written(name) == name]
    blocks = ["\n".join(f"# {line}" for line in heads), *_blocks(plain, values, say)]
    for section in SECTIONS:
        inner = [name for name in values if name.startswith(f"{section}_") and name not in plain]
        if inner:
            first, *rest = _blocks(inner, values, say)
            blocks += [f"[{section}]\n{first}", *rest]
    return "\n\n".join(blocks) + "\n"


def _blocks(names: list[str], values: Mapping[str, Any], say: Callable[[str], str]) -> Iterator[str]:
    for name in names:
        key = written(name).rpartition(" ")[2]
        yield f"# {say(description(name))}\n{key} = {_value(values[name])}"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str) and "\\" in value and not re.search("['\x00-\x1f\x7f]", value):
        # A path of Windows, whose backslashes would begin an escape in double quotes.
        return f"'{value}'"
    # JSON's texts, numbers and truth values are TOML's as well, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
