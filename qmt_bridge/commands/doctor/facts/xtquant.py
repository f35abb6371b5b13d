"""Facts about xtquant and other sources, which are asked in a process of their own and never imported here."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from qmt_bridge.commands.doctor.answers import Answer, Made
from qmt_bridge.commands.doctor.facts.error_text import error_text
from qmt_bridge.config import WITH_PUSH, Config
from qmt_bridge.process import child
from qmt_bridge.process.exit_code import describe

PROBE_SECONDS = 15.0
Some = TypeVar("Some", bound=Answer)


def ask(
    answer: type[Some], *arguments: str, module: str = "feeder.xt.probe", env: Mapping[str, str] | None = None
) -> Some:
    """Ask xtquant in a process of its own: only files of feeder/xt may import it, and a call may hang.

    `module` answers, with the environment `env`, which has no settings by default.
    """
    try:
        asked = subprocess.run(
            child.python(module, *arguments),
            env=child.environment(Config()) if env is None else env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        return msgspec.json.decode(asked.stdout, type=answer)
    except subprocess.TimeoutExpired:
        return answer(error=f"no answer in {PROBE_SECONDS:g} s")
    except OSError as exc:
        return answer(error=f"the process that asks cannot be started: {error_text(exc)}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return answer(error=f"the process that asks ended with {describe(asked.returncode)}")


def ask_package(config: Config) -> Made:
    """Ask whether the source of another package that the settings name can be made, in a process of its own."""
    env = child.environment(config, ("source", "sources", "data_dir"))
    name = config.source.removesuffix(WITH_PUSH)
    return ask(Made, name, module="feeder.sources.installed", env=env)
