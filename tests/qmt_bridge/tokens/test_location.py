"""The settings of tokens, and the file or URL of the keys: what stops a start, and what it says."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.tokens import location
from qmt_bridge.tokens.location import MOST_BYTES, check_tokens, read_keys
from tests.support.doctor import Machine
from tests.support.waiting import SLOWNESS

KEY = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [KEY]}), encoding="utf-8")
    return path


def config(jwks: object = "https://login.example/keys", issuer: str = "i", audience: str = "a") -> Config:
    return Config(jwt_jwks=str(jwks), jwt_issuer=issuer, jwt_audience=audience)


def test_tokens_are_off_as_installed() -> None:
    assert Config().jwt_jwks == ""
    check_tokens(Config())


def test_a_file_and_a_url_are_accepted(keys: Path) -> None:
    for where in (keys, "https://login.example/keys", "http://127.0.0.1:8080/keys", "http://localhost/keys"):
        check_tokens(config(where))


@pytest.mark.parametrize(
    ("given", "setting", "said"),
    [
        pytest.param(config(issuer=""), "jwt_issuer", "is needed with jwt_jwks", id="no-issuer"),
        pytest.param(config(audience=""), "jwt_audience", "is needed with jwt_jwks", id="no-audience"),
        pytest.param(config("", audience=""), "jwt_issuer", "needs jwt_jwks too", id="issuer-alone"),
        pytest.param(config("", issuer=""), "jwt_audience", "needs jwt_jwks too", id="audience-alone"),
        pytest.param(config("http://login.example/keys"), "jwt_jwks", "expected https", id="http"),
        pytest.param(config("http://127.0.0.1.evil.example/"), "jwt_jwks", "expected https", id="like-loopback"),
        pytest.param(config("file:///etc/keys"), "jwt_jwks", "such as https://", id="scheme-without-host"),
        pytest.param(config("ftp://login.example/keys"), "jwt_jwks", "expected https", id="scheme"),
        pytest.param(config("https://"), "jwt_jwks", "such as https://", id="no-host"),
        pytest.param(config("https://a b/"), "jwt_jwks", "such as https://", id="blank"),
        pytest.param(config("https://a:port/"), "jwt_jwks", "is no URL", id="port"),
        pytest.param(config("https://user:pw@a/"), "jwt_jwks", "holds a user or a password", id="password"),
        pytest.param(config("/no/such/file"), "jwt_jwks", "cannot read /no/such/file", id="no-file"),
    ],
)
def test_settings_that_cannot_be_used_are_named(given: Config, setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_tokens(given)
    assert refused.value.setting == setting
    assert said in refused.value.reason


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[]", b"7", b"\xff", b'{"keys": 7}', b'{"keys": {}}', b'{"keys": [7, null, "a"]}'),
        b'{"keys": [' + b"[" * 100_000,
        b'{"keys": [{"kty": "oct", "k": "AAAA"}]}',
        b'{"keys": [{"kty": "RSA", "n": "!", "e": 7}]}',
        b'{"keys": [{"kty": ["RSA"], "n": "AQ"}]}',
        b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}',
        b" " * (MOST_BYTES + 1),
    ],
    ids=lambda content: str(content[:24]),
)
def test_a_file_without_usable_keys_is_refused(keys: Path, content: bytes) -> None:
    keys.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^jwt_jwks: "):
        check_tokens(config(keys))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_a_pipe_in_the_place_of_the_keys_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_keys(str(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("scheme", "begins"),
    [
        pytest.param("http", b"", id="status"),
        pytest.param("http", b"HTTP/1.1 200 OK\r\n", id="headers"),
        pytest.param("http", b"HTTP/1.1 200 OK\r\n\r\n", id="body"),
        # The record of a handshake, of 16 KB.
        pytest.param("https", b"\x16\x03\x03\x40\x00", id="tls"),
    ],
)
def test_a_fetch_of_an_answer_without_end_is_cut_off(
    scheme: str, begins: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "WHOLE", 0.3)
    stop = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(begins)
            while not stop.wait(0.01):
                connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = threading.Thread(target=drip, args=(server,))
        dripping.start()
        try:
            with pytest.raises(ConfigError, match="the answer takes too long"):
                read_keys(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/")
        finally:
            stop.set()
            dripping.join()


def test_without_the_library_the_extra_is_named(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jwt", "jwt.algorithms"):
        monkeypatch.setitem(sys.modules, name, None)
    for where in (keys, "https://login.example/keys"):
        with pytest.raises(ConfigError, match=r"pip install 'qmt-bridge-gateway\[jwt\]'$"):
            check_tokens(config(where))


def test_without_its_cryptography_the_library_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jwt.algorithms.has_crypto", False)
    with pytest.raises(ConfigError, match=r"\[jwt\]"):
        check_tokens(config())


def start(*flags: str) -> str:
    """Run a command that ends by itself; return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "qmt_bridge", *flags],
        capture_output=True,
        encoding="utf-8",
        timeout=30 * SLOWNESS,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("command", ["up", "gateway"])
def test_start_with_incomplete_settings_of_tokens_is_refused(command: str, keys: Path, tmp_path: Path) -> None:
    said = start(command, "--port=0", f"--data-dir={tmp_path / 'data'}", f"--jwt-jwks={keys}", "--jwt-issuer=i")
    assert "jwt_audience: is needed with jwt_jwks" in said
    # No process has started.
    assert len(said.splitlines()) == 1


def test_tokens_are_enough_where_a_key_is_required(keys: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = [f"--data-dir={tmp_path / 'data'}", f"--port={port}", "--require-key"]
        assert "every client would be refused" in start("gateway", *flags)
        said = start("gateway", *flags, f"--jwt-jwks={keys}", "--jwt-issuer=i", "--jwt-audience=a")
        assert f"cannot listen on 127.0.0.1:{port}" in said


def test_doctor_reads_the_keys_of_tokens(keys: Path, tmp_path: Path) -> None:
    tokens = {"QMT_BRIDGE_JWT_ISSUER": "i", "QMT_BRIDGE_JWT_AUDIENCE": "a", "QMT_BRIDGE_JWT_JWKS": str(keys)}
    finding = Machine(tmp_path, **tokens).run("--for", "gateway")[1]["tokens"]
    assert (finding.level, finding.said) == ("ok", f"1 public key in {keys}")
    keys.unlink()
    code, findings = Machine(tmp_path, **tokens).run("--for", "gateway")
    assert (code, findings["tokens"].level) == (1, "fail")
    assert f"jwt_jwks: cannot read {keys}: No such file" in findings["tokens"].said
