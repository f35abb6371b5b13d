"""Sources of other packages: found, chosen and refused by real distributions in a folder, and run by real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from feeder import app
from feeder.sources import installed
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.sockets import connect_subscriber
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import STATUS_TOPIC, Topic
from tests.support.demo_feed import install, on_path, program
from tests.support.paths import ROOT
from tests.support.ports import ANY_ADDRESSES, address_env
from tests.support.programs import Running
from tests.support.waiting import SLOWNESS

SECONDS = 30.0 * SLOWNESS

Install = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return what installs a package into a folder of this process's path; its modules are forgotten afterwards."""
    before = set(sys.modules)
    number = iter(range(100))

    def add(*arguments: object, **options: object) -> Path:
        folder = install(tmp_path / f"site{next(number)}", *arguments, **options)  # type: ignore[arg-type]
        on_path(folder, monkeypatch)
        return folder

    yield add
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refused(name: str = "demo", **settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        app.make_source(Config(source=name, **settings))  # type: ignore[arg-type]
    assert caught.value.setting == "source" or caught.value.setting.startswith("[sources.")
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_a_source_is_made_by_its_entry_point(site: Install) -> None:
    site()
    source = app.make_source(Config(source="demo", sources={"demo": {"interval": "0.5"}}))
    assert (source.name, source.simulated) == ("demo", True)
    assert [str(offer) for offer in installed.offers()] == ["demo (demo-feed 1.0)"]


def test_a_name_that_is_not_found_lists_those_that_are(site: Install) -> None:
    site()
    assert (
        refused("ctp") == "source: there is no source ctp; there are xtquant, sim, replay, push, demo (demo-feed 1.0)"
    )
    with pytest.raises(ConfigError, match="there is no source ctp"):
        app.check_source(Config(source="ctp"))
    for name in ("auto", "sim", "demo"):
        app.check_source(Config(source=name))


def test_two_packages_with_the_same_source_are_refused(site: Install) -> None:
    site()
    site(package="other-feed", entry="demo = other_feed:Demo")
    assert "several packages have a source demo: demo-feed 1.0, other-feed 1.0; uninstall" in refused()


def test_a_copy_of_a_package_further_on_the_path_is_none(site: Install) -> None:
    site()
    site()
    assert app.make_source(Config(source="demo")).name == "demo"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import nothing_such",
            "demo (demo-feed 1.0) cannot be imported: ModuleNotFoundError: No module named 'nothing",
        ),
        ("raise SystemExit('bye')", "demo (demo-feed 1.0) cannot be imported: SystemExit: bye"),
        ("raise KeyboardInterrupt", "demo (demo-feed 1.0) cannot be imported: KeyboardInterrupt"),
        ("raise OSError('a\\nb')", "demo (demo-feed 1.0) cannot be imported: OSError: a"),
        ("this is no Python", "cannot be imported: SyntaxError"),
        ("Other = 1", "cannot be imported: AttributeError: module 'demo_feed' has no attribute 'Demo'"),
        ("Demo = 1", "demo (demo-feed 1.0) is no source: demo_feed:Demo cannot be called"),
        ("def Demo(config): return 5", "is no source: its attribute protocol is None, and this feeder takes 1"),
        ("def Demo(): return 5", "demo (demo-feed 1.0) cannot be made: TypeError"),
        ("class Demo:\n    protocol = property(lambda _: 1 / 0)\n    def __init__(self, _): pass", "ZeroDivisionError"),
        ("def Demo(config): raise SystemExit", "demo (demo-feed 1.0) cannot be made: SystemExit"),
        ("def Demo(config): raise KeyboardInterrupt", "demo (demo-feed 1.0) cannot be made: KeyboardInterrupt"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(site: Install, text: str, said: str) -> None:
    site(text)
    assert said in refused()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kinds = 1,", "kinds = 2,", "its attribute protocol is 2, and this feeder takes 1"),
        ('"demo", True', '"other", True', "its attribute name is 'other', and the entry point's is 'demo'"),
        ("True, False", "None, False", "its attribute simulated is neither True nor False"),
        ("True, False", "True, 0", "its attribute lossless is neither True nor False"),
        ("frozenset({Kind.QUOTE})", "frozenset({'news'})", "its attribute kinds is no set of kinds of topics"),
        ("frozenset({Kind.QUOTE})", "frozenset({Kind.STATUS})", "its attribute kinds is no set of kinds of topics"),
        ("frozenset({Kind.QUOTE})", "'quote'", "its attribute kinds is no set of kinds of topics"),
        ("def history", "def story", "it has no method history"),
        ("def hung", "hung = 5\n    def other", "it has no method hung"),
    ],
)
def test_an_object_that_is_no_source_is_told_what_it_lacks(site: Install, old: str, new: str, said: str) -> None:
    text = program()
    assert old in text
    site(text.replace(old, new))
    assert refused() == f"source: demo (demo-feed 1.0) is no source: {said}"


def test_settings_of_a_source_are_refused_by_name(site: Install) -> None:
    site()
    assert refused(sources={"demo": {"intervall": 1}}) == (
        "[sources.demo] intervall: unknown setting; did you mean interval?"
    )
    assert refused(sources={"demo": {"interval": "s3cret"}}) == "[sources.demo] interval: expected `float`, got `str`"
    # Those of another source are none of its own.
    app.make_source(Config(source="demo", sources={"other": {"x": 1}}))


def test_a_broken_package_takes_down_no_other_source(site: Install, tmp_path: Path) -> None:
    site("raise RuntimeError", package="broken-feed", entry="broken = broken_feed:Broken\nsim = broken_feed:Sim")
    damaged = site("x = 1", package="odd-feed", entry="odd = : :")
    (damaged / "odd_feed-1.0.dist-info/METADATA").unlink()
    site()
    assert app.make_source(Config(source="demo")).name == "demo"
    # A built-in source is not looked for among the packages.
    assert type(app.make_source(Config(source="sim"))).__module__ == "feeder.sim.simulator"
    assert "broken (broken-feed 1.0) cannot be imported: RuntimeError" in refused("broken")
    assert "odd" in refused("odd")


# Real processes


def environment(folder: Path, **env: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))),
        "QMT_BRIDGE_DATA_DIR": str(folder / "data"),
        **address_env(ANY_ADDRESSES),
        **env,
    }


def test_a_feeder_process_serves_a_source_of_another_package(tmp_path: Path) -> None:
    install(tmp_path)
    file = tmp_path / "settings.toml"
    file.write_text('source = "demo"\n[sources.demo]\ninterval = 60\n', encoding="utf-8")
    running = Running(
        [sys.executable, "-P", "-m", "qmt_bridge.cli", "feeder", "--config", str(file)],
        environment(tmp_path, QMT_BRIDGE_SOURCES_DEMO_INTERVAL="0.05"),
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        line = running.wait_for(r"feeder started: source demo \(simulated\)")
        address = "tcp://" + line.partition("market tcp://")[2].partition(",")[0]
        socket = connect_subscriber(context, address, None)
        for topic in ("quote/600519.SH/tick/", STATUS_TOPIC):
            socket.subscribe(topic)
        found: dict[Topic, object] = {}
        while len(found) < 2:
            assert socket.poll(int(SECONDS * 1000)), found
            frame = Frame.from_parts(socket.recv_multipart())
            found[frame.topic] = frame.data
        status = found[STATUS_TOPIC]
        assert isinstance(status, dict)
        assert (status["source"], status["simulated"]) == ("demo", True)
    finally:
        context.destroy(linger=0)
        running.close()


def test_a_source_that_cannot_be_used_ends_the_feeder_in_one_line(tmp_path: Path) -> None:
    install(tmp_path, "import nothing_such")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "qmt_bridge.cli", "feeder", "--source", "demo"],
        env=environment(tmp_path),
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "Error: source: demo (demo-feed 1.0) cannot be imported: ModuleNotFoundError: No module named 'nothing_such'"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [(None, ""), ("print('x')\nimport nothing_such", "demo (demo-feed 1.0) cannot be imported: ModuleNotFoundError")],
)
def test_a_process_says_whether_a_source_can_be_made(tmp_path: Path, text: str | None, error: str) -> None:
    install(tmp_path, text)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "feeder.sources.installed", "demo"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        timeout=SECONDS,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["package"] == "demo-feed 1.0"
    assert answer["error"].startswith(error)
    assert bool(answer["error"]) == bool(error)
