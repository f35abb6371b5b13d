"""`qmt-bridge init`: write settings that work from six answers, or the example files of this project."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from qmt_bridge import private
from qmt_bridge.clients.arguments import netloc
from qmt_bridge.commands.gateway_address import own_address
from qmt_bridge.commands.init.answers import Answers, Reach, SourceAnswer, Stored, account
from qmt_bridge.commands.init.examples import GROUPS, example_files, example_folder
from qmt_bridge.commands.options import fail
from qmt_bridge.config import CONFIG_ENV, ENV_PREFIX, LANG_ENV, Config, load_config
from qmt_bridge.errors import ConfigError
from qmt_bridge.language.catalog import say

if TYPE_CHECKING:
    from qmt_bridge.commands.init.plan import Written

SETTINGS_FILE = "qmt-bridge.toml"


def _examples(command: Any) -> Any:
    for group, (text, _) in reversed(tuple(GROUPS.items())):
        command = click.option(f"--{group}", group, is_flag=True, help=text)(command)
    return command


@click.command()
@click.option("--yes", is_flag=True, help="Ask nothing: take the defaults, and what the flags say.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help=f"File of settings to write; of example files, the folder.  [default: {SETTINGS_FILE}]",
)
@click.option("--force", is_flag=True, help="Overwrite files that exist without asking.")
@click.option("--source", type=click.Choice(("xtquant", "sim", "replay")), help="1: where the data comes from.")
@click.option("--xt-userdata", default="", help="1: the terminal's folder userdata_mini.")
@click.option("--xt-accounts", multiple=True, help="1: account of trade events, such as 1000000365:STOCK.")
@click.option("--file", default="", help="1: the file to play.")
@click.option("--feeder-host", default="", help="2: the address of this machine, if the gateway runs on another one.")
@click.option(
    "--reach", default="here", type=click.Choice(("here", "tls", "proxy")), help="3: who reaches the gateway."
)
@click.option("--tls-cert", default="", help="3: PEM file of the certificate and its chain.")
@click.option("--tls-key", default="", help="3: PEM file of its private key.")
@click.option("--proxy", default="127.0.0.1", help="3: address of the proxy.")
@click.option("--hosts", multiple=True, help="3: name by which the gateway is reached.")
@click.option(
    "--stored", default="asked", type=click.Choice(("asked", "markets", "none")), help="4: what the store keeps."
)
@click.option("--store-days", default=5, type=click.IntRange(1, 3660), help="4: days that it keeps.")
@click.option("--data-dir", default="", help="6: folder of the journal, the store and the keys.")
@_examples
def init(
    yes: bool,
    out: Path | None,
    force: bool,
    source: SourceAnswer | None,
    xt_userdata: str,
    xt_accounts: tuple[str, ...],
    file: str,
    feeder_host: str,
    reach: Reach,
    tls_cert: str,
    tls_key: str,
    proxy: str,
    hosts: tuple[str, ...],
    stored: Stored,
    store_days: int,
    data_dir: str,
    **examples: bool,
) -> None:
    """Ask six questions and write settings that work; or write example files.

    \b
    qmt-bridge init
    qmt-bridge init --yes --source sim --stored markets
    qmt-bridge init --systemd --nginx --out /tmp/examples

    With a gateway on another machine the keys and the settings of both are written.
    """
    groups = [group for group, wanted in examples.items() if wanted]
    ask = Overwriting(yes, force)
    try:
        if groups:
            write_examples(groups, out or Path(), ask)
            return
        given = Answers(
            source or _default_source(),
            xt_userdata,
            tuple(map(account, xt_accounts)),
            file,
            feeder_host,
            reach,
            tls_cert,
            tls_key,
            proxy,
            hosts,
            stored,
            store_days,
            data_dir=data_dir,
        )
        write_settings(given, out or Path(SETTINGS_FILE), ask, interactive=not yes)
    except ConfigError as exc:
        fail(exc)


class Overwriting:
    """Whether a file that exists is overwritten: a flag says it, or the user is asked."""

    def __init__(self, yes: bool, force: bool) -> None:
        self._yes = yes
        self._force = force

    def allows(self, path: Path) -> bool:
        """Return whether `path` may be written; raise `ConfigError` if it exists and there is no terminal to ask."""
        if not path.exists() or self._force:
            return True
        if self._yes:
            raise ConfigError("init", f"{path} exists already: choose another --out, or --force overwrites it")
        return click.confirm(say(f"{path} exists already; overwrite it?"))


def write_settings(given: Answers, file: Path, ask: Overwriting, *, interactive: bool) -> None:
    """Ask what is not given, write the files, check them, and say what comes next; raise `ConfigError`."""
    from qmt_bridge.commands.init import plan
    from qmt_bridge.keys.key import make_key

    if file.is_dir():
        file /= SETTINGS_FILE
    # Before the questions, because after a no their answers would be lost.
    if not ask.allows(file):
        raise click.Abort
    answers = given
    api_key = make_key()
    if interactive:
        click.echo(say("Six questions; Enter takes what stands in brackets, Ctrl-C ends without writing anything."))
        answers = _answered(given, file, api_key)
    files = _checked(answers, file, api_key)
    for each in files[1:]:
        if not ask.allows(each.path):
            raise click.Abort
    folders = list(plan.write_keys(file)) if answers.feeder_host else []
    plan.write(files)
    click.echo("")
    for path in [*(each.path for each in files), *folders]:
        click.echo(say(f"written: {path}"))
    if any(each.commands[0].startswith(("up", "gateway")) for each in files):
        click.echo(say("The API key of the gateway is in the file of settings, which only you can read (api_key)."))
    _tell_next(files, answers)


def _answered(given: Answers, file: Path, api_key: str) -> Answers:
    """Ask the questions, and again while what is answered is refused: then Enter takes the answers of before."""
    from qmt_bridge.commands.init.questions import ask as ask_questions

    while True:
        given = ask_questions(given, own_address(), Config().data_path)
        try:
            _checked(given, file, api_key)
        except ConfigError as exc:
            click.echo("\n" + say(f"This cannot be used: {exc}"), err=True)
            # Enter must be able to take none.
            given = given._replace(alerts_url="", alerts_secret="")
        else:
            return given


def _checked(answers: Answers, file: Path, api_key: str) -> Sequence[Written]:
    """Return the files for the answers; raise `ConfigError` if the parts would not start with them."""
    from qmt_bridge.commands.init import plan

    _check_answers(answers)
    files = plan.planned(_absolute(answers), file, api_key)
    for each in files:
        _check_settings(each.path, each.content)
    return files


def _check_answers(answers: Answers) -> None:
    """Raise `ConfigError` for answers with which the parts would not start."""
    if answers.source == "replay" and not Path(answers.file).expanduser().is_file():
        raise ConfigError("--file", f"there is no file {answers.file!r} to play")
    if answers.xt_accounts and not (answers.xt_userdata and Path(answers.xt_userdata).expanduser().is_dir()):
        raise ConfigError(
            "--xt-userdata", f"there is no folder {answers.xt_userdata!r}: it is the terminal's userdata_mini"
        )
    if answers.feeder_host:
        try:
            netloc(answers.feeder_host)
        except ConfigError as exc:
            raise ConfigError("--feeder-host", exc.reason) from exc
    if answers.data_dir and Path(answers.data_dir).exists() and not Path(answers.data_dir).is_dir():
        raise ConfigError("--data-dir", f"{answers.data_dir} is no folder")
    if answers.reach == "tls" and not (answers.tls_cert and answers.tls_key):
        raise ConfigError("--tls-cert", "TLS needs a certificate: --tls-cert and --tls-key name its files")
    if answers.reach == "tls" and not answers.feeder_host:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                Path(answers.tls_cert).expanduser(), Path(answers.tls_key).expanduser()
            )
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise ConfigError(
                "--tls-cert", f"{answers.tls_cert!r} and {answers.tls_key!r} cannot be used: {reason}"
            ) from exc


def _absolute(answers: Answers) -> Answers:
    """Return the answers with paths of this machine that hold in every folder; those of a gateway elsewhere stay."""

    def whole(path: str) -> str:
        return str(Path(path).expanduser().absolute()) if path else ""

    answers = answers._replace(
        file=whole(answers.file), xt_userdata=whole(answers.xt_userdata), data_dir=whole(answers.data_dir)
    )
    if answers.feeder_host:
        return answers
    return answers._replace(tls_cert=whole(answers.tls_cert), tls_key=whole(answers.tls_key))


def _check_settings(path: Path, content: str) -> None:
    """Raise `ConfigError` if the parts would not start with what is to be written to `path`."""
    from feeder.xt.trading.accounts import parse_account
    from qmt_bridge.commands.alerts import targets_of
    from qmt_bridge.commands.run import stored_topics
    from qmt_bridge.keys.exposure import check_exposure

    # Elsewhere first: what is wrong must neither take the place of settings that work, nor be in the way of the next
    # attempt.
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / SETTINGS_FILE
        private.replace(trial, content.encode())
        try:
            config = load_config(trial, {})
        except ConfigError as exc:
            raise ConfigError(exc.setting.replace(str(trial), str(path)), exc.reason) from exc
    check_exposure(config)
    stored_topics(config.store)
    targets_of(config)
    for each in config.xt_accounts:
        parse_account(each)


def _tell_next(files: Sequence[Any], answers: Answers) -> None:
    variables = sorted(
        name for name in os.environ if name.startswith(ENV_PREFIX) and name not in (CONFIG_ENV, LANG_ENV)
    )
    if variables:
        click.echo(say(f"The environment has {', '.join(variables)}, which beats the file."), err=True)
    click.echo("\n" + say("Next:"))
    for each in files:
        if each.folder is not None:
            click.echo(
                say(f"  copy the folder {each.folder} to the machine of the gateway, and there, in that folder:")
            )
        for command in each.commands:
            click.echo(f"  qmt-bridge {command}")
    if answers.reach == "proxy":
        click.echo(say("  for the proxy: qmt-bridge init --nginx or --caddy"))
    elif not answers.feeder_host:
        host = next(iter(answers.hosts), own_address()) if answers.reach == "tls" else "127.0.0.1"
        click.echo(say(f"  its page: {'https' if answers.reach == 'tls' else 'http'}://{host}:8000/"))
    click.echo(say(f"  what is right and wrong here: qmt-bridge doctor --config {files[0].path}"))


def write_examples(groups: Sequence[str], folder: Path, ask: Overwriting) -> None:
    """Write the example files of some groups below a folder; raise `ConfigError`."""
    source = example_folder()
    for group in groups:
        for name, content in example_files(source, group):
            path = folder / name
            try:
                if path.is_file() and path.read_bytes() == content:
                    click.echo(say(f"unchanged: {path}"))
                    continue
                if not ask.allows(path):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError as exc:
                raise ConfigError("init", f"cannot write {path}: {exc.strerror or exc}") from exc
            click.echo(say(f"written: {path}"))
    if "bigqmt" in groups:
        click.echo(say("paste it into the strategy editor of the full terminal; its settings are at its top."))
    if "windows" in groups:
        click.echo(say("install-feeder.ps1 installs the checkout in whose folder deploy/windows it lies."))


def _default_source() -> Literal["xtquant", "sim"]:
    from feeder import app

    return "xtquant" if app.source_name(Config()) == "xtquant" else "sim"
