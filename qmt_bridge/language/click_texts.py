"""Let click speak the language of the user: its own texts, and the help of our commands.

click asks gettext for its texts, which reads compiled files alone, and wraps lines by words, which Chinese does not
have. Its modules know both by names that are replaced here, once; while English is spoken, all is as click does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from gettext import gettext, ngettext

import click
from click import core, decorators, exceptions, formatting, parser, termui, types

from qmt_bridge.language.catalog import say, speaks_english
from qmt_bridge.language.wrapping import wrapped

_wrap_text: Callable[..., str] = formatting.wrap_text
_short_help: Callable[..., str] = click.Command.get_short_help_str


def adapt() -> None:
    """Let click ask the table of this program."""
    for module in (core, decorators, exceptions, formatting, parser, termui, types):
        for name, replaced in (("_", _text), ("ngettext", _plural)):
            if hasattr(module, name):
                setattr(module, name, replaced)
    formatting.wrap_text = _wrapped
    click.Command.get_short_help_str = _shortened  # type: ignore[assignment,method-assign]


def _text(message: str) -> str:
    return gettext(message) if speaks_english() else say(message)


def _plural(singular: str, plural: str, number: int) -> str:
    return ngettext(singular, plural, number) if speaks_english() else say(singular if number == 1 else plural)


def _wrapped(
    text: str,
    width: int = 78,
    initial_indent: str = "",
    subsequent_indent: str = "",
    preserve_paragraphs: bool = False,
) -> str:
    if speaks_english():
        return _wrap_text(text, width, initial_indent, subsequent_indent, preserve_paragraphs)
    if not preserve_paragraphs:
        return wrapped(say(text), width, initial_indent, subsequent_indent)
    return "\n\n".join(_paragraph(each, width, initial_indent, subsequent_indent) for each in text.split("\n\n"))


def _paragraph(text: str, width: int, first: str, following: str) -> str:
    mark, _, kept = text.partition("\n")
    if mark.strip() == "\b":
        # A block of examples, whose lines stay.
        return "\n".join(first + line for line in kept.splitlines())
    return wrapped(say(" ".join(text.split())), width, first, following)


def _shortened(command: click.Command, limit: int = 45) -> str:
    """Return the first sentence of a command's help."""
    if speaks_english():
        return _short_help(command, limit)
    first = (command.help or "").partition("\n\n")[0]
    return re.split("[。；]", say(" ".join(first.split())), maxsplit=1)[0]


def translate_error(error: click.ClickException) -> None:
    """Say the message of an error in the language of the user."""
    # click calls it final, but its text is only now known to be printed.
    vars(error)["message"] = say(error.message)
