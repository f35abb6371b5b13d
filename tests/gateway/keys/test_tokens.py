"""Tokens of an issuer of the test against a real gateway: signatures, claims, times, and changed keys."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from websockets import ConnectionClosed, InvalidStatus

from gateway.endpoints.urls import ENDPOINTS
from gateway.keys import attempts, tokens
from gateway.keys.entry import Entry
from gateway.worker import Worker
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.key import SCOPES
from qmt_bridge.tokens import location
from qmt_bridge.tokens.claims import LEEWAY
from qmt_bridge.tokens.key_set import MOST_CHARACTERS
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import KEY, Rig, Server, metrics, readiness, running_rig
from tests.support.waiting import SLOWNESS, until

ISSUER, AUDIENCE = "https://login.example/", "qmt-bridge"
# Making an RSA key takes a tenth of a second.
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
ACCOUNT, OTHER_ACCOUNT = "1000000365", "2000000001"


def public(private: Any, kid: str | None, **fields: str) -> dict[str, Any]:
    """Return the public half of a key as an entry of a JWKS."""
    kinds: dict[type, Any] = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind = next((kind for of, kind in kinds.items() if isinstance(private, of)), OKPAlgorithm)
    named = {} if kid is None else {"kid": kid}
    return {**kind.to_jwk(private.public_key(), as_dict=True), **named, **fields}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


KEYS = jwks(public(RSA, "rsa"), public(EC, "ec"), public(ED, "ed"))


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def token(
    private: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa", without: str = "", **claims: Any
) -> str:
    """Return a token that is right but for what the arguments change."""
    now = time.time()
    given = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "iat": now, "scope": " ".join(SCOPES)}
    given |= claims
    given.pop(without, None)
    return jwt.encode(given, private, algorithm, headers={} if kid is None else {"kid": kid})


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_bytes(KEYS)
    return path


@pytest.fixture
def rig(tmp_path: Path, keys: Path) -> Iterator[Rig]:
    config = Config(
        **ANY_ADDRESSES,
        data_dir=str(tmp_path / "data"),
        grace=0.0,
        lag_target=30.0,
        jwt_jwks=str(keys),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
    )
    with running_rig(config) as rig:
        rig.serve()
        yield rig


@pytest.fixture
def unbarred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test send many wrong tokens."""
    monkeypatch.setattr(attempts, "ATTEMPTS", 1000)


def url(path: str, given: str, rest: str = "&ctl=1") -> str:
    return f"{path}?api_key={given}{rest}"


async def welcomed(rig: Rig, given: str, path: str = "/ws/trade", **options: Any) -> dict[str, Any]:
    async with rig.connect(url(path, given), **options) as client:
        answer: dict[str, Any] = await client.receive()
        assert answer["type"] == "welcome"
        return answer


async def refusal(rig: Rig, given: str, path: str = "/ws/trade") -> tuple[int | None, str]:
    """Return how a socket is closed that gets no frame before."""
    async with rig.connect(url(path, given)) as client:
        with pytest.raises(ConnectionClosed):
            await client.receive()
        return await client.closed()


WRONG = (1008, "unauthorized: the API key is wrong")


@pytest.mark.parametrize(
    ("private", "algorithm", "kid"),
    [
        *(pytest.param(RSA, name, "rsa", id=name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        pytest.param(EC, "ES256", "ec", id="ES256"),
        pytest.param(ED, "EdDSA", "ed", id="EdDSA"),
    ],
)
async def test_token_opens_with_each_public_key_algorithm(rig: Rig, private: Any, algorithm: str, kid: str) -> None:
    await welcomed(rig, token(private, algorithm, kid))


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_token_is_presented_in_each_way_of_a_key(rig: Rig, path: str) -> None:
    given = token()
    ways: list[tuple[str, dict[str, Any]]] = [
        ("?ctl=1", {"additional_headers": {"Authorization": f"Bearer {given}"}}),
        ("?ctl=1", {"additional_headers": {"X-API-Key": given}}),
        ("", {"subprotocols": ["qmt.v1.json", f"key.{given}"]}),
        (f"?ctl=1&api_key={given}", {}),
    ]
    for query, options in ways:
        async with rig.connect(path + query, **options) as client:
            assert (await client.receive())["type"] == "welcome"
    async with rig.connect(path, rig.serve(require_key=True)) as client:
        await client.send({"action": "auth", "key": given, "id": 7})
        assert await client.receive() == {"type": "authenticated", "id": 7}


def unsigned(header: dict[str, Any], sign: bytes | None = None, **claims: Any) -> str:
    """Return a token that no library makes: without a signature, or signed with a public key as a secret."""
    good = token(**claims).split(".")[1]
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    made = b"" if sign is None else hmac.digest(sign, f"{head}.{good}".encode(), hashlib.sha256)
    return f"{head}.{good}.{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"


def wrong_tokens() -> dict[str, str]:
    now = time.time()
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = token().split(".")
    return {
        "issuer": token(iss="https://login.example"),
        "no-issuer": token(without="iss"),
        "audience": token(aud="another-service"),
        "audiences": token(aud=["another-service", "third"]),
        "no-audience": token(without="aud"),
        "expired": token(exp=now - LEEWAY - 60),
        "no-expiry": token(without="exp"),
        "expiry-is-text": token(exp=str(int(now) + 600)),
        "not-yet-valid": token(nbf=now + LEEWAY + 60),
        "issued-later": token(iat=now + LEEWAY + 60),
        "no-subject": token(without="sub"),
        "another-key": token(OTHER_RSA),
        "unknown-key-id": token(OTHER_RSA, kid="other"),
        "no-key-id": token(kid=None),
        "key-id-of-another": token(kid="ec"),
        "hs256-with-the-public-key": unsigned({"alg": "HS256", "kid": "rsa"}, pem),
        "hs256-with-the-jwk": unsigned({"alg": "HS256", "kid": "rsa"}, json.dumps(public(RSA, "rsa")).encode()),
        "none": unsigned({"alg": "none", "kid": "rsa"}),
        "none-without-key-id": unsigned({"alg": "none"}),
        "no-signature": ".".join((*body[:2], "")),
        "changed": ".".join((body[0], token(sub="bob").split(".")[1], body[2])),
        "own-key-in-the-header": jwt.encode(
            jwt.decode(token(), options={"verify_signature": False}),
            OTHER_RSA,
            "RS256",
            headers={"kid": "own", "jwk": public(OTHER_RSA, "own"), "jku": "https://evil.example/keys"},
        ),
        "no-token": "a.b.c",
        "header-is-a-list": "W10.e30.AA",
        "deep": base64.urlsafe_b64encode(b"[" * 3000).rstrip(b"=").decode() + ".e30.AA",
    }


@pytest.mark.parametrize("case", wrong_tokens())
@pytest.mark.usefixtures("unbarred")
async def test_wrong_token_is_answered_like_a_wrong_key(rig: Rig, case: str) -> None:
    assert await refusal(rig, wrong_tokens()[case]) == WRONG
    # On a URL that needs no key as well.
    assert await refusal(rig, wrong_tokens()[case], "/ws/realtime") == WRONG


@pytest.mark.usefixtures("unbarred")
async def test_token_that_is_too_long_is_refused_unread(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    given = token(more="x" * MOST_CHARACTERS)
    # A URL and a header that are as long are refused as such.
    frame = {"action": "auth", "key": given}
    async with rig.connect("/ws/trade") as client:
        await client.send(frame)
        assert await client.closed() == WRONG
    # It is right but for its length.
    monkeypatch.setattr("qmt_bridge.tokens.key_set.MOST_CHARACTERS", 2 * len(given))
    async with rig.connect("/ws/trade") as client:
        await client.send(frame)
        assert (await client.receive())["type"] == "authenticated"


async def test_times_may_differ_by_the_leeway(rig: Rig) -> None:
    now = time.time()
    await welcomed(rig, token(iat=now + LEEWAY / 2, nbf=now + LEEWAY / 2))
    await welcomed(rig, token(exp=now - LEEWAY / 10))


@pytest.mark.parametrize(
    "claim", ["market l2", ["market", "l2"], "qmtb:market qmtb:l2 openid", ["market", "qmtb:l2", 7]]
)
async def test_token_has_the_scopes_of_its_claim_alone(rig: Rig, claim: object) -> None:
    given = token(scope=claim)
    await welcomed(rig, given, "/ws/l2_thousand")
    lacks = "forbidden: the key jwt:alice has no scope"
    assert await refusal(rig, given) == (1008, f"{lacks} trade")
    assert await refusal(rig, given, "/ws/formula") == (1008, f"{lacks} formula")


@pytest.mark.parametrize("claim", [None, "", [], {}, "openid profile", ["Market"], 7])
async def test_token_without_scopes_opens_nothing(rig: Rig, claim: object) -> None:
    given = token(scope=claim)
    for path, endpoint in ENDPOINTS.items():
        assert await refusal(rig, given, path) == (1008, f"forbidden: the key jwt:alice has no scope {endpoint.scope}")


async def test_settings_name_the_claims(rig: Rig) -> None:
    server = rig.serve(jwt_scope_claim="https://desk.example/rights", jwt_accounts_claim="accounts")
    given = token(without="scope", accounts=[ACCOUNT], **{"https://desk.example/rights": "trade"})
    assert (await welcomed(rig, given, server=server))["accounts"] == ["******0365"]


async def test_token_sees_only_its_accounts(rig: Rig) -> None:
    server = rig.serve(jwt_accounts_claim="accounts")
    async with (
        rig.connect(url("/ws/trade", token(accounts=[ACCOUNT])), server) as own,
        rig.connect(url("/ws/trade", token(accounts=OTHER_ACCOUNT)), server) as other,
    ):
        for client in (own, other):
            assert [(await client.receive())["type"] for _ in range(2)] == ["welcome", "subscribed"]
        rig.source.sink.publish_trade(OTHER_ACCOUNT, "order", {"order_id": 1}, time.time_ns())
        rig.source.sink.publish_trade(ACCOUNT, "order", {"order_id": 2}, time.time_ns())
        rig.source.sink.publish_trade(OTHER_ACCOUNT, "order", {"order_id": 3}, time.time_ns())
        assert (await own.receive())["data"]["order_id"] == 2
        assert [(await other.receive())["data"]["order_id"] for _ in range(2)] == [1, 3]


@pytest.mark.parametrize("claim", [None, [], "", ["1000000365:STOCK"], {"a": 1}, [True]])
async def test_token_without_accounts_gets_no_trade_event(rig: Rig, claim: object) -> None:
    server = rig.serve(jwt_accounts_claim="accounts")
    given = token(accounts=claim)
    async with rig.connect(url("/ws/trade", given), server) as client:
        assert await client.closed() == (1008, "forbidden: the key jwt:alice has no scope trade")
    await welcomed(rig, given, "/ws/realtime", server=server)


async def test_expiry_of_a_token_ends_its_open_socket(rig: Rig) -> None:
    # Three seconds of the leeway are left.
    given = token(exp=time.time() - LEEWAY + 3)
    async with rig.connect(url("/ws/trade", given)) as client:
        assert [(await client.receive())["type"] for _ in range(2)] == ["welcome", "subscribed"]
        assert await client.closed() == (1008, "unauthorized: the token of jwt:alice has expired")
    assert await refusal(rig, given) == WRONG


async def test_new_file_of_keys_is_read_and_the_old_ends(rig: Rig, keys: Path) -> None:
    old, new = token(), token(OTHER_RSA, kid="new")
    async with rig.connect(url("/ws/trade", old)) as client:
        assert (await client.receive())["type"] == "welcome"
        write(keys, jwks(public(OTHER_RSA, "new"), public(EC, "ec")))
        assert await client.closed() == (
            1008,
            "unauthorized: the issuer has withdrawn the key of the token of jwt:alice",
        )
    await welcomed(rig, new)
    assert await refusal(rig, old) == WRONG


async def test_file_that_is_no_jwks_leaves_the_keys(rig: Rig, keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with rig.connect(url("/ws/trade", token())) as client:
        assert (await client.receive())["type"] == "welcome"
        write(keys, b"{")
        await until(lambda: "the keys of tokens stay as they were" in caplog.text, "the line in the log")
    await welcomed(rig, token())


async def test_key_that_may_not_sign_opens_nothing(rig: Rig, tmp_path: Path) -> None:
    secret = "a-secret-of-32-characters-or-more"
    shared = {"kty": "oct", "kid": "secret", "k": base64.urlsafe_b64encode(secret.encode()).decode().rstrip("=")}
    content = jwks(public(RSA, "rsa", use="enc"), shared, public(EC, "ec"), public(OTHER_RSA, "fixed", alg="PS256"))
    other = tmp_path / "others.json"
    other.write_bytes(content)
    server = rig.serve(jwt_jwks=str(other))
    wrong = [token(), token(secret, "HS256", "secret"), token(OTHER_RSA, "RS256", "fixed")]
    for given in wrong:
        async with rig.connect(url("/ws/trade", given), server) as client:
            assert await client.closed() == WRONG
    await welcomed(rig, token(OTHER_RSA, "PS256", "fixed"), server=server)


async def test_token_without_key_id_fits_a_single_key(rig: Rig, tmp_path: Path) -> None:
    single = tmp_path / "single.json"
    single.write_bytes(jwks(public(RSA, None)))
    await welcomed(rig, token(kid=None), server=rig.serve(jwt_jwks=str(single)))


async def test_keys_of_two_kinds_may_have_one_id(rig: Rig, tmp_path: Path) -> None:
    both = tmp_path / "both.json"
    write(both, jwks(public(RSA, "one"), public(EC, "one")))
    server = rig.serve(jwt_jwks=str(both))
    await welcomed(rig, token(kid="one"), server=server)
    await welcomed(rig, token(EC, "ES256", "one"), server=server)


async def test_worker_of_any_server_checks_the_settings(rig: Rig) -> None:
    for name in ("jwt_audience", "jwt_issuer", "jwt_jwks"):
        with pytest.raises(ConfigError, match=r"jwt_jwks"):
            Entry(msgspec.structs.replace(rig.config, **{name: ""}))


async def test_wrong_tokens_bar_an_address_and_known_ones_open(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    known, unknown = token(), token(sub="bob")
    await welcomed(rig, known)
    for _ in range(attempts.ATTEMPTS):
        assert await refusal(rig, token(OTHER_RSA)) == WRONG

    def verify(*_: object) -> None:
        raise AssertionError("a token of an address in back-off is verified")

    monkeypatch.setattr("qmt_bridge.tokens.key_set.KeySet.verify", verify)
    for given in (token(OTHER_RSA), unknown):
        with pytest.raises(InvalidStatus, match="429"):
            await refusal(rig, given)
    await welcomed(rig, known)
    assert metrics(rig.servers[0].port)["wrong_keys_total"] >= attempts.ATTEMPTS


async def test_wrong_tokens_in_later_frames_are_counted(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        for number in range(attempts.ATTEMPTS):
            await client.send({"action": "auth", "key": token(OTHER_RSA), "id": number})
            assert await client.receive() == {"type": "authenticated", "id": number}
    with pytest.raises(InvalidStatus, match="429"):
        await refusal(rig, token(sub="bob"))


def test_trade_events_are_followed_for_tokens(rig: Rig) -> None:
    # Before there is a client; otherwise its replay would have to be asked for.
    assert readiness(rig.servers[0].port)["topics"] == 1


async def test_key_of_the_settings_opens_beside_tokens(rig: Rig) -> None:
    server = rig.serve(api_key=KEY)
    await welcomed(rig, quote(KEY, safe=""), server=server)
    await welcomed(rig, token(sub="api_key"), server=server)


async def test_subject_forges_nothing_and_is_cut(rig: Rig) -> None:
    code, reason = await refusal(rig, token(scope="", sub="a\n\u202eb" + "x" * 4000))
    assert code == 1008
    assert reason == "forbidden: the key jwt:a\\n\\u202eb" + "x" * 44 + " has no scope trade"


async def test_no_token_is_written_to_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    given = token()
    await welcomed(rig, given)
    await refusal(rig, token(OTHER_RSA))
    logging.getLogger("any").error("wrong: %s", given)
    assert "/ws/trade" in caplog.text
    assert "eyJ***" in caplog.text
    assert "." not in caplog.text.partition("eyJ***")[2].splitlines()[0]
    for part in given.split("."):
        assert part not in caplog.text


async def page(server: Server, path: str, given: str) -> tuple[int, str]:
    """Return status and text of a page for a client of another machine."""
    headers = {"Authorization": f"Bearer {given}", "X-Forwarded-For": "203.0.113.7"}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)

    def get() -> tuple[int, str]:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=10 * SLOWNESS
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    return await asyncio.to_thread(get)


async def test_pages_check_a_token_like_a_key(rig: Rig) -> None:
    server = rig.serve(behind_proxy=("127.0.0.1",))
    status, text = await page(server, "/metrics", token())
    assert (status, "qmt_bridge_connections" in text) == (200, True)
    assert await page(server, "/metrics", token(scope="trade")) == (
        403,
        "forbidden: the key jwt:alice has no scope admin\n",
    )
    assert await page(server, "/readyz", token(OTHER_RSA)) == (401, "unauthorized: the API key is wrong\n")


class Issuer:
    """A web server of this machine with the keys; it answers as the test says, and counts."""

    def __init__(self) -> None:
        self.content, self.status, self.requests = KEYS, 200, 0
        self.headers: dict[str, str] = {}
        self.go = threading.Event()
        self.go.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                content, status = issuer.content, issuer.status
                issuer.go.wait(30)
                self.send_response(status)
                for name, value in issuer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/keys"


@contextmanager
def serving() -> Iterator[Issuer]:
    issuer = Issuer()
    thread = threading.Thread(target=issuer.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        issuer.go.set()
        issuer.server.shutdown()
        thread.join()
        issuer.server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serving() as issuer:
        yield issuer


async def opened(rig: Rig, given: str, server: Any) -> bool:
    """Return whether a token opens the trade events now."""
    async with rig.connect(url("/ws/trade", given), server) as client:
        try:
            return (await client.receive())["type"] == "welcome"
        except ConnectionClosed:
            return False


async def opens(rig: Rig, given: str, server: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            if await opened(rig, given, server):
                return
            await asyncio.sleep(0.05)


async def test_keys_of_a_url_are_fetched_and_go_on(
    rig: Rig, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tokens, "FETCH_EVERY", 0.5)
    monkeypatch.setattr(tokens, "FETCH_AGAIN", 0.1)
    server = rig.serve(jwt_jwks=issuer.url)
    await opens(rig, token(), server)
    issuer.status = 500
    await until(lambda: "answers with HTTP 500" in caplog.text, "the failure in the log")
    before = issuer.requests
    await until(lambda: issuer.requests > before + 1, "further attempts")
    await opens(rig, token(sub="bob"), server)
    assert caplog.text.count("answers with HTTP 500") == 1
    issuer.status, issuer.content = 200, jwks(public(OTHER_RSA, "new"))
    await opens(rig, token(OTHER_RSA, kid="new"), server)
    assert "the keys of tokens are there again" in caplog.text


async def test_keys_are_fetched_before_the_first_token(
    rig: Rig, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "_tick", lambda worker: None)
    rig.serve(jwt_jwks=issuer.url)
    await until(lambda: issuer.requests == 1, "the fetch")


async def test_client_waits_while_no_keys_were_fetched(
    rig: Rig, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.go.clear()
    # There is one fetch at a time, however long it takes.
    monkeypatch.setattr(tokens, "FETCH_AGAIN", 0.0)
    server = rig.serve(jwt_jwks=issuer.url)
    # The event loop serves meanwhile, and no attempt is counted.
    for _ in range(attempts.ATTEMPTS + 1):
        async with rig.connect(url("/ws/trade", token()), server) as client:
            code, reason = await client.closed()
            assert (code, reason.partition(":")[0]) == (1013, "upstream_unavailable")
    assert (await page(server, "/readyz", token()))[0] == 503
    issuer.go.set()
    await opens(rig, token(), server)
    assert issuer.requests == 1


async def test_unknown_key_id_fetches_the_keys_but_not_often(
    rig: Rig, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "ATTEMPTS", 1000)
    server = rig.serve(jwt_jwks=issuer.url)
    await opens(rig, token(), server)
    for number in range(5):
        assert not await opened(rig, token(OTHER_RSA, kid=f"new-{number}"), server)
    # The keys were fetched less than 30 s ago.
    assert issuer.requests == 1
    monkeypatch.setattr(tokens, "FETCH_AGAIN", 0.0)
    issuer.content = jwks(public(RSA, "rsa"), public(OTHER_RSA, "new"))
    await opens(rig, token(OTHER_RSA, kid="new"), server)
    assert issuer.requests == 2


def test_keys_of_this_machine_do_not_pass_a_proxy(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy:
        proxy.content = jwks(public(OTHER_RSA, "of-the-proxy"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert len(location.read_keys(issuer.url)) == 3
        assert proxy.requests == 0


def test_fetch_follows_no_redirect_and_is_bounded(issuer: Issuer) -> None:
    with serving() as other:
        issuer.status, issuer.headers = 302, {"Location": other.url}
        with pytest.raises(ConfigError, match="answers with HTTP 302"):
            location.read_keys(issuer.url)
        assert other.requests == 0
    issuer.status, issuer.headers, issuer.content = 200, {}, KEYS + b" " * location.MOST_BYTES
    with pytest.raises(ConfigError, match=r"more than 262,144 bytes"):
        location.read_keys(issuer.url)
    issuer.content = KEYS
    assert len(location.read_keys(issuer.url)) == 3
