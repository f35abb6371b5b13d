"""Check an installed source by its name: `python -m feeder.conformance NAME`, with the settings of a feeder.

What only a test can bring about, such as a broken connection or a download that fails, is skipped; a package that
inherits `SourceConformance` in its tests has it checked too. After a start that takes too long no other check starts
the source: each would wait a minute.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from unittest import SkipTest

import msgspec

from feeder import app
from feeder.conformance.checks import SourceConformance
from feeder.source import DownloadRequest, Source
from qmt_bridge.config import Config, load_config
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.wire.topics import FormulaSpec, Kind, formula_topic, parse_topic

# A topic of each kind, where the command line names none.
_TOPICS = {
    Kind.QUOTE: "quote/600519.SH/tick/",
    Kind.WHOLE: "whole/SH/",
    Kind.L2: "l2/600519.SH/0/",
    Kind.FORMULA: formula_topic(FormulaSpec("MA", "600519.SH")),
}


def conformance(config: Config, topics: Sequence[str], seconds: float, *, recording: bool) -> SourceConformance:
    """Return the checks of the source that `config` names; raise `ConfigError` if it cannot be made."""
    kinds = app.make_source(config).kinds
    named = {parse_topic(topic).kind for topic in topics}
    chosen = (*topics, *(topic for kind, topic in _TOPICS.items() if kind in kinds and kind not in named))

    class Installed(SourceConformance):
        good_download = DownloadRequest(("600519.SH",), "1d", "", "") if Kind.DOWNLOAD in kinds else None
        is_recording = recording

        def make_source(self) -> Source:
            return app.make_source(config)

    Installed.topics, Installed.seconds = chosen, seconds
    return Installed()


def run(checks: SourceConformance) -> int:
    """Run each check and print its result; return how many have failed."""
    failed = 0
    for name in [name for name in vars(SourceConformance) if name.startswith("test_")]:
        try:
            getattr(checks, name)()
            result = "ok"
        except SkipTest as exc:
            result = f"skipped: {exc}"
        except Exception as exc:
            failed += 1
            result = f"FAILED: {exc}" if isinstance(exc, AssertionError) else f"FAILED: {type(exc).__name__}: {exc}"
        sys.stdout.write(f"{name.removeprefix('test_').replace('_', ' ')}: {result}\n")
        sys.stdout.flush()
    return failed


def main() -> None:
    """Check the source that the command line names; exit with 1 if a check has failed."""
    parser = argparse.ArgumentParser(prog="python -m feeder.conformance", description="Check a source by its name.")
    parser.add_argument("name", help="of the source, as in --source")
    parser.add_argument("--config", help="TOML file of settings")
    parser.add_argument("--topic", action="append", default=[], help="that it serves; else one of each kind")
    parser.add_argument("--seconds", type=float, default=10.0, help="until what has to come has come (10)")
    parser.add_argument("--recording", action="store_true", help="it plays a recording, with its fills at each start")
    given = parser.parse_args()
    try:
        config = msgspec.structs.replace(load_config(given.config), source=given.name)
        checks = conformance(config, given.topic, given.seconds, recording=given.recording)
    except (ConfigError, WireError) as exc:
        parser.exit(1, f"{exc}\n")
    failed = run(checks)
    # Without waiting for threads that a source has left.
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
