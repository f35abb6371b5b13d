"""The settings as options of a command, and what all commands do with them: load, refuse flags, stop, end."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from qmt_bridge import log
from qmt_bridge.commands.terminal.completion import complete_file, complete_source
from qmt_bridge.config import (
    CREDENTIALS,
    PATHS,
    Config,
    choices,
    default,
    description,
    env_name,
    foreign_variables,
    hidden,
    load_config,
)
from qmt_bridge.errors import ConfigError, Unavailable
from qmt_bridge.language.catalog import say
from qmt_bridge.process import child
from qmt_bridge.process.stop import Stop, leave

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger(__name__)


Command = TypeVar("Command", bound=Callable[..., Any])


def settings(*names: str) -> Callable[[Command], Command]:
    """Give a command ``--config`` and a flag for each setting; what the user leaves out comes as None."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            # A table has no flag.
            if not isinstance(default(name), dict):
                command = _flag(name)(command)
        file = click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file of settings.")
        return file(command)

    return decorate


def _flag(name: str) -> Callable[[Command], Command]:
    value = default(name)
    option = f"--{name.replace('_', '-')}"
    shown = ",".join(value) if isinstance(value, tuple) else value
    text = description(name) + (f"  [default: {shown}]" if shown != "" else "")
    if name in CREDENTIALS:
        text += f" For the simulator: every user of the machine can read a flag; else {env_name(name)} or a file."
    if isinstance(value, bool):
        return click.option(f"{option}/--no-{option[2:]}", name, default=None, help=text)
    if isinstance(value, tuple):
        return click.option(option, name, multiple=True, default=None, callback=_given, help=text)
    if choices(name):
        return click.option(option, name, default=None, type=click.Choice(choices(name)), help=text)
    files = complete_source if name == "source" else complete_file if name in PATHS else None
    shown = "NAME" if name == "source" else type(value).__name__
    return click.option(option, name, default=None, type=type(value), metavar=shown, help=text, shell_complete=files)


def _given(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    return list(value) or None


def load_settings(config_file: Path | None, flags: dict[str, Any], *, only: bool = False) -> Config:
    """Return the settings; with `only`, mistakes in those that are no flags of the command do not matter."""
    try:
        return load_config(config_file, None, flags, tuple(flags) if only else None)
    except ConfigError as exc:
        fail(exc)


def configure_log(config: Config) -> None:
    log.hide(hidden(config))
    log.configure(config.log_level, config.log_format)
    for said in foreign_variables():
        logger.warning("%s", said)


def no_effect(name: str, why: str) -> NoReturn:
    shown = "URL" if name == "url" else f"--{name.replace('_', '-')}"
    raise click.UsageError(f"{shown} has no effect: {why}.")


def refuse(why: str, *names: str) -> None:
    """Refuse those of the flags `names` that the command line has: they would have no effect."""
    for name in names:
        if is_flag(name):
            no_effect(name, why)


def refuse_visible(name: str) -> None:
    """Refuse a credential that the command line has."""
    if is_flag(name):
        shown = f"--{name.replace('_', '-')}"
        raise click.UsageError(
            f"{shown} would be visible to every user of this machine: set {env_name(name)}, or {name} in a file that "
            "only you can read."
        )


def warn_visible(name: str) -> None:
    """Say that others can read a credential which the command line has."""
    if is_flag(name):
        shown = f"--{name.replace('_', '-')}"
        click.echo(say(f"{shown} is visible to every user of this machine; {env_name(name)} is not"), err=True)


def is_flag(name: str) -> bool:
    """Return whether the command line has the flag of the setting `name`."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE


class _TryAgain(click.ClickException):
    exit_code = child.TRY_AGAIN


def fail(exc: Exception) -> NoReturn:
    raise (_TryAgain if isinstance(exc, Unavailable) else click.ClickException)(str(exc))


def asked_to_stop(until_eof: bool) -> Stop:
    """Return what Ctrl-C, SIGTERM (Windows: Ctrl-Break) or the end of standard input sets from now on."""
    stop = Stop()
    stop.on_signals()
    if until_eof:
        stop.on_end_of_input()
    return stop


def end(code: int) -> NoReturn:
    """End the process, also if a thread is left in a native call that does not return."""
    if any(not thread.daemon and thread is not threading.current_thread() for thread in threading.enumerate()):
        leave(code)
    sys.exit(code)


def run_part(config: Config, run: Callable[[], int]) -> NoReturn:
    """Run a part of the bridge, and end the process with its code, or with what is wrong with the settings."""
    configure_log(config)
    try:
        code = run()
    except ConfigError as exc:
        fail(exc)
    end(code)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")


codes_file_option = click.option(
    "--codes-file",
    metavar="FILE",
    shell_complete=complete_file,
    help="Codes to add: one a line, or the first column of a CSV file; # begins a comment, - is standard input.",
)


ca_option = click.option(
    "--ca",
    type=click.Path(dir_okay=False),
    help="wss: PEM file of the certificate authority to trust, instead of those of the system.",
)


def trusted(url: str | None, ca: str | None) -> ssl.SSLContext | None:
    """Return the context for `url`, which trusts the authorities in the file `ca` alone; None without TLS."""
    import ssl

    if not (url or "").startswith("wss://"):
        if ca is not None:
            no_effect("ca", "only a URL that begins with wss:// has a certificate")
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as exc:
        fail(ConfigError("--ca", f"{ca} holds no certificate authority: {getattr(exc, 'reason', None) or exc}"))


def quotes_of(codes_file: str | None, period: str) -> tuple[str, ...]:
    """Return the topics of the codes in a file."""
    from qmt_bridge.commands.codes_file import read_codes
    from qmt_bridge.wire.topics import check_period, quote_topic

    if codes_file is None:
        return ()
    check_period(period)
    codes = read_codes(codes_file, lambda code: quote_topic(code, period))
    return tuple(quote_topic(code, period) for code in codes)
