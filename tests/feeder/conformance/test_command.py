"""`python -m feeder.conformance`: an installed source is checked by its name, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.demo_feed import install, program
from tests.support.paths import ROOT
from tests.support.waiting import SLOWNESS

SECONDS = 50.0 * SLOWNESS


def check(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "feeder.conformance", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))),
            "QMT_BRIDGE_SOURCES_DEMO_INTERVAL": "0.05",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_each_check_of_an_installed_source_is_told(tmp_path: Path) -> None:
    install(tmp_path, program().replace("self._codes.pop(topic, None)", "pass"))
    code, lines = check(tmp_path, "demo", "--seconds", "3")
    told = dict(line.split(": ", 1) for line in lines)
    assert code == 1
    assert told["it is a source"] == told["a topic is served and published"] == "ok"
    said = "messages still come 3 s after unsubscribe"
    assert told["nothing is published after unsubscribe"] == f"FAILED: {said}"
    assert told["what it cannot serve is refused"] == "skipped: no topic is named that this source refuses"


def test_a_start_that_raises_is_told_and_leaves_no_wait(tmp_path: Path) -> None:
    # The interpreter would wait for this thread, which is no daemon.
    made = "def __init__(self, config):\n        threading.Thread(target=threading.Event().wait).start()\n"
    text = program().replace("def __init__(self, config):\n", made)
    install(tmp_path, text.replace("        self._thread.start()\n", "        raise SystemExit(3)\n"))
    code, lines = check(tmp_path, "demo", "--seconds", "1")
    told = dict(line.split(": ", 1) for line in lines)
    assert code == 1
    assert told["its session is up after the start"] == "FAILED: start raises SystemExit: 3"
    assert told["it is a source"].startswith("FAILED: the constructor starts threads")
    assert told["it may be closed before its start"] == "ok"


def test_a_source_or_topic_that_does_not_exist_is_told(tmp_path: Path) -> None:
    install(tmp_path)
    assert check(tmp_path, "ctp") == (
        1,
        ["source: there is no source ctp; there are xtquant, sim, replay, push, demo (demo-feed 1.0)"],
    )
    assert check(tmp_path, "demo", "--topic", "quote/") == (1, ["not a whole topic: 'quote/'"])
