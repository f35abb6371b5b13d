"""`qmt-bridge alerts`: tell people by chat, webhook and mail what is wrong, and try whether a message arrives."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from qmt_bridge.commands.gateway_address import ASK_TIMEOUT, fetch_page
from qmt_bridge.commands.options import (
    asked_to_stop,
    configure_log,
    fail,
    json_option,
    load_settings,
    run_part,
    settings,
)
from qmt_bridge.config import ALERTS, CREDENTIALS, LOG, WIRE, Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.language.catalog import say
from qmt_bridge.process.beats import Beats
from qmt_bridge.process.stop import Stop

# What a command line may have; keys and tokens stand in a file or in the environment.
FLAGS = tuple(name for name in ALERTS if name not in CREDENTIALS)
# The settings that this part reads: it looks at the other parts, and keeps what is open in the data folder.
OF_ALERTS = (*ALERTS, "host", "port", "tls_cert", "api_key", "store_days", "data_dir", *WIRE, *LOG)
_SHOWN = tuple(name for name in OF_ALERTS if name not in CREDENTIALS)
# Bytes of the gateway's page of metrics.
_MOST_PAGE = 4 * 1024 * 1024


@click.group(invoke_without_command=True)
@settings(*_SHOWN)
@click.option("--until-eof", is_flag=True, hidden=True)
@click.option("--beats", is_flag=True, hidden=True)
@click.pass_context
def alerts(context: click.Context, /, config_file: Path | None, until_eof: bool, beats: bool, **flags: Any) -> None:
    """Watch the service and tell people what is wrong; `up` and `feeder --supervised` start it if a target is given."""
    if context.invoked_subcommand is not None:
        return
    stop = asked_to_stop(until_eof)
    config = load_settings(config_file, flags)
    from qmt_bridge.alerts import app

    beat = [Beats(sys.stdout.fileno()).beat] if beats else []
    run_part(config, lambda: app.run(config, partial(_fetch, config), stop, *beat))


def _fetch(config: Config, path: str, stop: Stop) -> tuple[int, bytes] | None:
    return fetch_page(config, path, stop, 2 * ASK_TIMEOUT, _MOST_PAGE, config.api_key)


def targets_of(config: Config) -> Sequence[str]:
    """Return the names of the targets; raise `ConfigError` for settings with which alerts would not start."""
    from qmt_bridge.alerts import app

    return app.check(config)


@alerts.command()
@json_option
@settings(*FLAGS, *LOG)
def test(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Send a test message to each target, and print what it answers; the exit code is 1 if one does not take it."""
    config = load_settings(config_file, flags)
    from qmt_bridge.alerts import app, book

    configure_log(config)
    try:
        deliveries = app.deliveries(config)
    except ConfigError as exc:
        fail(exc)
    if not deliveries:
        fail(ConfigError("[alerts]", "no target is given: wecom, dingtalk, feishu, webhook or mail_to"))
    notice = book.test_notice(config.alerts_language, time.time(), app.installation(config))
    answers = {}
    for name, (deliver, _, _) in deliveries.items():
        outcome, said = deliver([notice])
        answers[name] = {"outcome": outcome, "answer": said}
        if not as_json:
            click.echo(f"{name:<9} {say('sent' if outcome == 'sent' else 'NOT SENT')}: {said}")
    if as_json:
        click.echo(json.dumps(answers))
    sys.exit(0 if all(each["outcome"] == "sent" for each in answers.values()) else 1)
