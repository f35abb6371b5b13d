"""`qmt-bridge feeder --supervised` as a real process: the feeder is replaced when it ends or freezes, none is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import zmq

from qmt_bridge.config import env_name
from qmt_bridge.curve.key_folder import make_keys
from qmt_bridge.sockets import connect_subscriber
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import quote_topic
from tests.support.hooks import hooks
from tests.support.paths import FAKES, ROOT
from tests.support.processes import DEADLINE
from tests.support.supervised import supervised

TOPIC = quote_topic("600519.SH")
# A busy machine may hold a process for some seconds, which is no freeze.
FROZEN = 4.0


@contextmanager
def consuming(address: str) -> Iterator[Callable[[], Frame]]:
    """Yield a function that returns the next tick of a code."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        consumer = connect_subscriber(context, address, None)
        consumer.rcvtimeo = int(DEADLINE * 1000)
        consumer.subscribe(TOPIC)
        yield lambda: Frame.from_parts(consumer.recv_multipart())
    finally:
        context.destroy(linger=0)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def with_stand_ins(folder: Path, code: str = "") -> dict[str, str]:
    """Return the environment with the stand-ins for xtquant; each process runs `code` first."""
    (folder / "sitecustomize.py").write_text(
        f"import runpy\nrunpy.run_path({str(FAKES / 'sitecustomize.py')!r})\n{textwrap.dedent(code)}", encoding="utf-8"
    )
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, FAKES, ROOT)))}


unix = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of Unix")


@unix
def test_a_killed_feeder_is_replaced_and_data_continues(tmp_path: Path) -> None:
    with supervised(tmp_path, "--source=sim", "--sim-interval=0.2") as running:
        running.wait_started()
        with consuming(running.addresses["market_addr"]) as take:
            epoch = take().epoch
            os.kill(running.feeder(), signal.SIGKILL)
            frame = take()
            while frame.epoch == epoch:
                frame = take()
        assert "feeder ended with exit code -9; starting it again" in running.text
        assert running.started == 2


@unix
def test_a_frozen_feeder_is_killed_and_replaced(tmp_path: Path) -> None:
    with supervised(tmp_path, "--source=sim", f"--freeze-timeout={FROZEN}") as running:
        running.wait_watched()
        frozen = running.feeder()
        os.kill(frozen, signal.SIGSTOP)
        running.wait_for(lambda: "feeder has given no sign of life for " in running.text, "the report")
        running.wait_started(2)
        assert not alive(frozen)
        assert running.text.count("no sign of life") == 1


@unix
def test_frozen_alerts_are_killed_and_replaced(tmp_path: Path) -> None:
    with hooks() as hook:
        env = {env_name("alerts_webhook"): f"{hook.url}/hook"}
        with supervised(tmp_path, "--source=sim", f"--freeze-timeout={FROZEN}", env=env) as running:
            running.wait_for(lambda: "alerts started: to webhook" in running.text, "the alerts")
            [frozen] = [child for child in running.children() if "alerts" in child.cmdline()]
            # It lives longer than a frozen one: its signs of life come.
            running.wait_for(lambda: time.time() - frozen.create_time() > 2 * FROZEN, "some seconds")
            assert "no sign of life" not in running.text
            frozen.suspend()
            running.wait_for(lambda: "alerts has given no sign of life for " in running.text, "the report")
            running.wait_for(lambda: running.text.count("alerts started: to webhook") >= 2, "the next process")
            assert not alive(frozen.pid)
            assert running.text.count("no sign of life") == 1
            assert running.started == 1


@unix
def test_a_frozen_feeder_with_keys_is_replaced_by_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_keys(keys)
    # The machine of a feeder need not have the keys of a gateway.
    for name in ("gateway.key", "gateway.key_secret", "feeder.key"):
        (keys / name).unlink()
    shutil.rmtree(keys / "clients")
    (keys / "clients").mkdir()
    with supervised(tmp_path / "data", "--source=sim", f"--freeze-timeout={FROZEN}", f"--curve-dir={keys}") as running:
        running.wait_watched()
        os.kill(running.feeder(), signal.SIGSTOP)
        running.wait_for(lambda: "feeder has given no sign of life for " in running.text, "the report")
        running.wait_started(2)
        assert "is not allowed" not in running.text


def test_a_feeder_that_asks_for_it_is_started_again(tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    hang.write_text("connect", encoding="utf-8")
    env = {**with_stand_ins(tmp_path), "FAKE_XT_HANG_FILE": str(hang)}
    with supervised(tmp_path / "data", "--source=xtquant", "--xt-hang=1", env=env) as running:
        running.wait_for(
            lambda: running.text.count("feeder ended with exit code 75; starting it again") >= 2, "two ends"
        )
        assert "terminal_hung: " in running.text
        hang.unlink()
        running.wait_for(lambda: "feed is up" in running.text, "the session")


@unix
def test_a_crash_of_native_code_is_told_with_its_call(tmp_path: Path) -> None:
    """The stand-in crashes once, in a call on the thread that makes them."""
    code = """
        import ctypes, os
        import native
        crashed = os.path.join(os.path.dirname(__file__), "crashed")

        def crash(call):
            if call.name == "set_config_addr" and not os.path.exists(crashed):
                open(crashed, "x").close()
                ctypes.string_at(0)

        native.terminal().on_call = crash
    """
    with supervised(tmp_path / "data", "--source=xtquant", env=with_stand_ins(tmp_path, code)) as running:
        running.wait_for(lambda: "feed is up" in running.text, "the session")
        assert "feeder ended with exit code -11; starting it again" in running.text
        assert "Fatal Python error: Segmentation fault" in running.text
        assert re.search(r'File ".*xtconn\.py", line \d+ in try_create_connection', running.text)


@pytest.mark.parametrize("arguments", [["--source=replay", "--file=none"], ["--market-addr=tcp://127.0.0.1:0"]])
def test_a_setting_that_cannot_be_used_ends_the_supervisor(tmp_path: Path, arguments: list[str]) -> None:
    with supervised(tmp_path, *arguments) as running:
        running.process.wait(DEADLINE)
        running._reader.join()
        assert running.process.returncode in (1, 2)
        assert len(re.findall(r"^Error: ", running.text, re.MULTILINE)) == 1
        assert "Traceback" not in running.text
        assert "starting it again" not in running.text


@unix
@pytest.mark.parametrize("how", ["interrupt", "terminate", "kill"])
def test_no_feeder_is_left_however_the_supervisor_ends(tmp_path: Path, how: str) -> None:
    with supervised(tmp_path, "--source=sim") as running:
        running.wait_started()
        feeder = running.feeder()
        # Ctrl-C in a terminal goes to a whole process group and must reach the supervisor only.
        assert os.getpgid(feeder) != os.getpgid(running.process.pid)
        number = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "kill": signal.SIGKILL}[how]
        running.process.send_signal(number)
        assert running.process.wait(DEADLINE) == (-9 if how == "kill" else 0), running.text
        running.wait_for(lambda: not alive(feeder), "the end of the feeder")
        running.wait_for(lambda: "feeder stopped after" in running.text, "its farewell")


@unix
def test_a_second_signal_ends_a_frozen_feeder_too(tmp_path: Path) -> None:
    with supervised(tmp_path, "--source=sim", "--freeze-timeout=0") as running:
        running.wait_started()
        feeder = running.feeder()
        os.kill(feeder, signal.SIGSTOP)

        def ends() -> bool:
            running.process.send_signal(signal.SIGINT)
            return running.process.poll() is not None

        running.wait_for(ends, "the end")
        assert running.process.returncode == 130
        running.wait_for(lambda: not alive(feeder), "the end of the feeder")
        assert "Traceback" not in running.text
