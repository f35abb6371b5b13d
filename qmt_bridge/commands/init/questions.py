"""The six questions of `qmt-bridge init`, on a terminal, in the language of the user."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import click

from qmt_bridge.commands.init.answers import Answers, Reach, SourceAnswer, Stored, account, robot
from qmt_bridge.language.catalog import say

QUESTIONS = 6
# On Windows the terminal is installed in a folder at the top of a drive, whose name is the broker's.
DRIVES = tuple(Path(f"{letter}:/") for letter in "CDEF") if sys.platform == "win32" else ()


class Choice(NamedTuple):
    """One answer to choose: its value, and what it says."""

    value: str
    text: str


SOURCES = (
    Choice("xtquant", "the miniQMT terminal of this machine (xtquant; Windows)"),
    Choice("sim", "the simulator: prices are invented"),
    Choice("replay", "a recording: a tape, or a CSV of ticks"),
)
PARTS = (
    Choice("one", "everything on this machine"),
    Choice("apart", "the feeder here, the gateway on another machine"),
)
REACHES = (
    Choice("here", "programs of its own machine only"),
    Choice("tls", "other machines too; I have a certificate (TLS)"),
    Choice("proxy", "other machines too, through a proxy that encrypts (nginx, Caddy)"),
)
STORES = (
    Choice("asked", "what programs subscribe"),
    Choice("markets", "the whole market (Shanghai, Shenzhen, Beijing): some 1.5 GB a day"),
    Choice("none", "nothing: no store"),
)


def ask(given: Answers, own_address: str, data_dir: Path) -> Answers:
    """Ask the questions; what is `given` is the default of each answer."""
    answers = given._replace(
        source=cast(SourceAnswer, _choose(1, "Where does the data come from?", SOURCES, given.source))
    )
    if answers.source == "xtquant":
        found = given.xt_userdata or next(map(str, terminal_folders(DRIVES)), "")
        accounts = _text(
            "account numbers for trade events, separated by commas (empty: market data only)",
            ",".join(given.xt_accounts),
        )
        answers = answers._replace(xt_accounts=tuple(map(account, filter(str.strip, accounts.split(",")))))
        if answers.xt_accounts:
            answers = answers._replace(xt_userdata=_folder("the terminal's folder userdata_mini", found))
    if answers.source == "replay":
        answers = answers._replace(file=_file("the file to play", given.file))
    parts = _choose(2, "Where do the parts run?", PARTS, "apart" if given.feeder_host else "one")
    host = given.feeder_host or own_address
    if parts == "apart":
        host = _text("the address of this machine, for the gateway", host, needed=True)
    answers = _ask_reach(answers._replace(feeder_host=host if parts == "apart" else ""))
    stored = cast(Stored, _choose(4, "What does the store of the day keep?", STORES, given.stored))
    answers = answers._replace(stored=stored)
    if stored != "none":
        days: int = click.prompt(f"  {say('days to keep, with today')}", given.store_days, type=click.IntRange(1, 3660))
        answers = answers._replace(store_days=days)
    _head(5, "Who is told when something is wrong?")
    url = _text("URL of a robot of WeCom, DingTalk or Feishu, or of a webhook (empty: nobody)", given.alerts_url)
    secret = given.alerts_secret
    if url and robot(url) in ("alerts_dingtalk", "alerts_feishu"):
        secret = _text("secret with which the robot's messages are signed (empty: none)", secret)
    _head(6, "Where are the journal, the store and the keys kept?")
    folder = _text("folder", given.data_dir or str(data_dir), needed=True)
    kept = "" if folder == str(data_dir) else folder
    return answers._replace(alerts_url=url, alerts_secret=secret, data_dir=kept)


def _ask_reach(answers: Answers) -> Answers:
    reach = cast(Reach, _choose(3, "Who may reach the gateway?", REACHES, answers.reach))
    answers = answers._replace(reach=reach)
    if reach == "here":
        return answers
    if reach == "tls":
        # Those of a gateway on another machine are there.
        pem = partial(_text, needed=True) if answers.feeder_host else _file
        answers = answers._replace(
            tls_cert=pem("PEM file of the certificate and its chain", answers.tls_cert),
            tls_key=pem("PEM file of its private key", answers.tls_key),
        )
    else:
        answers = answers._replace(proxy=_text("address of the proxy", answers.proxy, needed=True))
    names = _text(
        "names by which it is reached, such as quotes.example (empty: by its address)", ",".join(answers.hosts)
    )
    return answers._replace(hosts=tuple(each.strip() for each in names.split(",") if each.strip()))


def _head(number: int, question: str) -> None:
    click.echo(f"\n{number}/{QUESTIONS} {say(question)}")


def _choose(number: int, question: str, choices: Sequence[Choice], default: str) -> str:
    _head(number, question)
    for at, choice in enumerate(choices, 1):
        click.echo(f"  {at}  {say(choice.text)}")
    first = [choice.value for choice in choices].index(default) + 1
    chosen: int = click.prompt(f"  {say('number')}", first, type=click.IntRange(1, len(choices)))
    return choices[chosen - 1].value


def _text(
    question: str, default: str = "", *, needed: bool = False, check: Callable[[str], object] = lambda text: None
) -> str:
    """Ask for a text; again, as long as `check` raises click.UsageError."""

    def read(answer: str) -> str:
        # The file manager of Windows copies a path in quotes.
        text = answer.strip().strip('"')
        check(text)
        return text

    options: dict[str, Any] = {"default": default or (None if needed else ""), "show_default": bool(default)}
    found: str = click.prompt(f"  {say(question)}", value_proc=read, **options)
    return found


def _file(question: str, default: str) -> str:
    def check(path: str) -> None:
        if not Path(path).expanduser().is_file():
            raise click.UsageError(say(f"there is no file {path!r}"))

    return _text(question, default, needed=True, check=check)


def _folder(question: str, default: str) -> str:
    def check(path: str) -> None:
        if not Path(path).expanduser().is_dir():
            raise click.UsageError(say(f"there is no folder {path!r}"))

    return _text(question, default, needed=True, check=check)


def terminal_folders(drives: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders userdata_mini of the terminals on some drives."""
    for drive in drives:
        for pattern in ("*/userdata_mini", "Program Files*/*/userdata_mini"):
            yield from sorted(drive.glob(pattern))
