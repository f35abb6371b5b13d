"""The command `qmt-bridge` and its subcommands: up | feeder | gateway | store | alerts | tail | key and others.

The entry, which imports nothing before the process is prepared, and the list of the commands (`qmt_bridge/commands`).
"""

from __future__ import annotations

from qmt_bridge.process.start import prepare

if __name__ == "__main__":
    # Before anything else is imported.
    prepare()

from typing import Any

import click

from qmt_bridge import __version__
from qmt_bridge.commands import administration, alerts, checks, journal, keys, run, tapes, topics
from qmt_bridge.process.stop import interruptible
from qmt_bridge.system import console


class _Commands(click.Group):
    """The commands; a signal ends any of them without a traceback (services take it for a request: `Stop`)."""

    def invoke(self, ctx: click.Context) -> Any:
        console.end_in_order()
        with interruptible():
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="qmt-bridge")
def main() -> None:
    """Real-time miniQMT market data and trade events for every language."""


for _command in (
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
    checks.keygen,
    checks.doctor,
    checks.bench,
):
    main.add_command(_command)


if __name__ == "__main__":
    main()
