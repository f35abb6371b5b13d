"""Facts about xtquant, which is asked in a process of its own and never imported here."""

from __future__ import annotations

import subprocess
from typing import TypeVar

import msgspec

from qmt_bridge.commands.doctor.answers import Answer
from qmt_bridge.commands.doctor.facts.error_text import error_text
from qmt_bridge.config import Config
from qmt_bridge.process import child
from qmt_bridge.process.exit_code import describe

PROBE_SECONDS = 15.0
Some = TypeVar("Some", bound=Answer)


def ask(answer: type[Some], *arguments: str) -> Some:
    """Ask xtquant in a process of its own: only files of feeder/xt may import it, and a call may hang."""
    try:
        asked = subprocess.run(
            child.python("feeder.xt.probe", *arguments),
            env=child.environment(Config()),
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
