"""The command `qmt-bridge` and its subcommands: init | up | feeder | gateway | store | tail | key and others.

The entry, which imports nothing before the process is prepared, and the list of the commands (`qmt_bridge/commands`).
"""

from __future__ import annotations

from qmt_bridge.process.start import prepare

if __name__ == "__main__":
    # Before anything else is imported.
    prepare()

import errno
import os
from typing import Any

import click

from qmt_bridge import __version__
from qmt_bridge.commands import administration, alerts, checks, journal, keys, run, tapes, topics
from qmt_bridge.commands.init.command import init
from qmt_bridge.commands.mcp.command import mcp
from qmt_bridge.commands.terminal.completion import completion
from qmt_bridge.config import LANG_ENV
from qmt_bridge.language import click_texts
from qmt_bridge.language.catalog import say, speak
from qmt_bridge.language.choice import LANGUAGES, chosen_language
from qmt_bridge.process.stop import interruptible
from qmt_bridge.system import console


class _Commands(click.Group):
    """The commands; a signal ends any of them without a traceback (services take it for a request: `Stop`)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Before anything is printed, such as the help; and wherever it stands, also behind the command.
        language, rest = _language(args)
        if language and language not in LANGUAGES:
            if not ctx.resilient_parsing:
                raise click.UsageError(f"--lang: expected one of {', '.join(LANGUAGES)}, got {language[:20]!r}")
            # A shell completes a line with a mistake too.
            language = ""
        if language:
            # For the processes that a command starts.
            os.environ[LANG_ENV] = language
        speak(chosen_language(os.environ))
        return super().parse_args(ctx, rest)

    def invoke(self, ctx: click.Context) -> Any:
        console.end_in_order()
        with interruptible():
            try:
                return super().invoke(ctx)
            except click.ClickException as exc:
                click_texts.translate_error(exc)
                raise
            except OSError as exc:
                # Of what is printed: the disk is full to which the output goes.
                if exc.errno != errno.ENOSPC or exc.filename is not None:
                    raise
                raise click.ClickException(say(f"cannot write: {exc.strerror}")) from exc


def _language(args: list[str]) -> tuple[str, list[str]]:
    """Return the value of the option --lang, and the other arguments."""
    for at, word in enumerate(args):
        name, equals, value = word.partition("=")
        if word == "--":
            break
        if name == "--lang" and (equals or at + 1 < len(args)):
            rest = [*args[:at], *args[at + (1 if equals else 2) :]]
            return value if equals else args[at + 1], rest
    return "", args


click_texts.adapt()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--lang",
    type=click.Choice(LANGUAGES),
    expose_value=False,
    help=f"Language of the texts; else {LANG_ENV} or the locale says it.",
)
@click.version_option(__version__, prog_name="qmt-bridge")
def main() -> None:
    """Real-time miniQMT market data and trade events for every language."""


for _command in (
    init,
    run.up,
    run.feeder,
    run.gateway,
    run.store,
    run.forward,
    alerts.alerts,
    topics.tail,
    topics.record,
    run.replay,
    tapes.tape,
    journal.journal,
    keys.key,
    administration.state,
    administration.clients,
    administration.subscriptions,
    administration.kick,
    administration.why,
    mcp,
    checks.keygen,
    checks.doctor,
    checks.bench,
    completion,
):
    main.add_command(_command)


if __name__ == "__main__":
    main()
