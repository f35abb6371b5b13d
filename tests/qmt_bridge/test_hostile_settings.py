"""Settings, keys and positions that were made to cost memory or time are refused by name, without a traceback."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from qmt_bridge import config, private
from qmt_bridge.clients.bookmark import BookmarkFile
from qmt_bridge.config import load_config
from qmt_bridge.curve.certificate import MOST_BYTES
from qmt_bridge.curve.key_folder import load_curve
from qmt_bridge.errors import ConfigError
from tests.support.limited import MIB, run_limited

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limits of a process are those of Linux")
FIFO = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe with a name")


@LINUX
@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"api_key = '" + b"x" * (300 * MIB) + b"'\n", "has more than 1,048,576 bytes", id="size"),
        pytest.param(b"port = " + b"[" * 100_000, "nested too deep", id="lists"),
        pytest.param(b"port = " + b"{a=" * 100_000, "nested too deep", id="tables"),
        pytest.param(b"a." * 100_000 + b"a = 1\n", "a name with more than 50 dots", id="dots"),
        pytest.param(b'"a" . ' * 100_000 + b"a = 1\n", "a name with more than 50 dots", id="quoted-dots"),
        pytest.param(b"[" + b"a." * 100_000 + b"a]\n", "a name with more than 50 dots", id="section"),
        pytest.param(b"port = " + b"1" * 5000 + b"\n", "not valid TOML", id="digits"),
        pytest.param(b"port = 0x" + b"f" * 50_000 + b"\n", "port in", id="hexadecimal"),
        pytest.param(b"".join(b"k%d.a = 1\n" % n for n in range(70_000)), "unknown setting", id="names"),
        pytest.param(b"x" * (MIB - 1), "not valid TOML", id="word"),
        pytest.param(b'"' * (MIB - 1), "not valid TOML", id="quotes"),
    ],
)
def test_hostile_settings_are_refused_by_name_within_limits(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "qmt.toml"
    path.write_bytes(content)
    imports = "from qmt_bridge.cli import main\nimport qmt_bridge.journal_file"
    ended = run_limited(imports, "main(['feeder', '--config', sys.argv[1]])", path)
    path.unlink()
    assert "Traceback" not in ended.output, ended.output[-800:]
    assert (ended.code, said in ended.output, "qmt.toml" in ended.output) == (1, True, True), ended.output[-500:]
    assert len(ended.output) < 2000


def test_settings_with_many_addresses_are_no_dotted_name(tmp_path: Path) -> None:
    path = tmp_path / "qmt.toml"
    servers = ", ".join(f'"10.0.0.{n}:7000"' for n in range(60))
    path.write_text(f"xt_servers = [{servers}]\n", encoding="utf-8")
    assert len(load_config(path, {}).xt_servers) == 60


def test_an_error_shows_the_beginning_of_a_long_value(tmp_path: Path) -> None:
    path = tmp_path / "qmt.toml"
    path.write_text(f"port = '{'9' * 100_000}'\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert len(str(caught.value)) < 1000


def test_a_variable_that_is_no_text_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="QMT_BRIDGE_PORT: is not text in UTF-8"):
        load_config(None, {"QMT_BRIDGE_PORT": "\udcff"})


def curve(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "feeder.key_secret").write_bytes(content)
    return folder


KEY = b"a" * 40


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no file of a CURVE key"),
        (b"public-key\n", "is no file of a CURVE key"),
        (b'public-key = "abc"\n', "is no file of a CURVE key"),
        (b'public-key = "' + b"\xff" * 40 + b'"', "is no file of a CURVE key"),
        (b'public-key = "' + KEY + b'"\nsecret-key = "' + b"b" * 41 + b'"', "is no file of a CURVE key"),
        (b'public-key = "' + KEY + b'"', "holds no secret key"),
        (b"#" * (MOST_BYTES + 1), "has more than 16,384 bytes"),
    ],
)
def test_a_file_without_a_pair_of_curve_keys_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"feeder\.key_secret.*{said}"):
        load_curve(str(curve(tmp_path / "keys", content)), "feeder")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"server": "a", "seq": ' + b"[" * 50_000,
        b'{"server": "a", "seq": 1' + b"0" * 5000 + b"}",
        b'{"server": "a", "seq": -1}',
        b'{"server": "a", "seq": 1, "more": 1}',
        b"\xff\xfe",
        b"",
        b"x" * (300 * 1024),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_file_that_holds_no_position_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cursor.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"state: .*cursor\.json"):
        BookmarkFile(path, "a").load()


@FIFO
def test_a_pipe_in_the_place_of_a_small_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cursor.json")
    with pytest.raises(ConfigError, match=r"cursor\.json.*is not a regular file"):
        BookmarkFile(tmp_path / "cursor.json", "a").load()
    with pytest.raises(OSError, match="is not a regular file"):
        private.read_small(tmp_path / "cursor.json", 10)


def test_a_small_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert private.read_small(tmp_path / "a", 10) == b"0123456789"
    with pytest.raises(OSError, match=re.escape("has more than 9 bytes")):
        private.read_small(tmp_path / "a", 9)


def test_the_example_of_all_settings_is_far_below_the_bound() -> None:
    example = Path(config.__file__).parents[1] / "deploy" / "qmt-bridge.toml"
    assert example.stat().st_size * 50 < config.MOST_BYTES
