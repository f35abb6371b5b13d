"""Mail over a real server with TLS: the message, the login, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.targets import mail
from qmt_bridge.alerts.targets.mail import Mailbox, make_mailbox
from qmt_bridge.errors import ConfigError
from tests.support.hooks import silent
from tests.support.mail_server import PASSWORD, USER, MailServer, mail_server

TITLE = "【QMT Bridge 告警】行情中断"
NOTICE = Notice(event="alert", id="1", title=TITLE, text="行情中断\n状态：断开", name="a", time=5)


def mailbox(port: int, *, starttls: bool = False, password: str = PASSWORD) -> Mailbox:
    return make_mailbox(f"127.0.0.1:{port}", starttls, USER, password, "", ("one@example.com", "two@example.com"))


def trust(server: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(server.authority))


@pytest.mark.parametrize("starttls", [False, True])
def test_alerts_arrive_by_an_encrypted_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starttls: bool) -> None:
    with mail_server(tmp_path, starttls=starttls) as server:
        trust(server, monkeypatch)
        assert mail.deliver(mailbox(server.port, starttls=starttls), [NOTICE, NOTICE]) == ("sent", "SMTP 250")
        [got] = server.mails
    assert got["Subject"] == f"{TITLE} (+1)"
    assert got["From"] == USER
    assert got["To"] == "one@example.com, two@example.com"
    assert got.get_content().split() == ["行情中断", "状态：断开"] * 2
    assert server.logins == [f"\0{USER}\0{PASSWORD}".encode()]


@pytest.mark.parametrize("starttls", [False, True])
def test_an_untrusted_mail_server_gets_no_password(tmp_path: Path, starttls: bool) -> None:
    with mail_server(tmp_path, starttls=starttls) as server:
        outcome, said = mail.deliver(mailbox(server.port, starttls=starttls), [NOTICE])
    assert outcome == "refused"
    assert "certificate" in said
    assert (server.logins, server.mails) == ([], [])


def test_a_certificate_of_another_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server(tmp_path, host="mail.example") as server:
        trust(server, monkeypatch)
        assert mail.deliver(mailbox(server.port), [NOTICE])[0] == "refused"
    assert server.logins == []


def test_a_mail_server_without_starttls_gets_no_password(tmp_path: Path) -> None:
    # It offers a login over the open connection.
    with mail_server(tmp_path, starttls=True, offers=False) as server:
        assert mail.deliver(mailbox(server.port, starttls=True), [NOTICE])[0] == "refused"
    assert server.logins == []


def test_a_wrong_password_is_refused_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server(tmp_path) as server:
        trust(server, monkeypatch)
        outcome, said = mail.deliver(mailbox(server.port, password="wr0ng-one"), [NOTICE])
    assert (outcome, said) == ("refused", "SMTP 535")
    assert "wr0ng" not in repr(mailbox(1, password="wr0ng-one"))


@pytest.mark.parametrize(("refusal", "outcome"), [("450 try again later", "again"), ("550 no such mailbox", "refused")])
def test_a_refused_receiver_decides_about_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str, outcome: str
) -> None:
    with mail_server(tmp_path) as server:
        trust(server, monkeypatch)
        server.refusal = refusal
        assert mail.deliver(mailbox(server.port), [NOTICE])[0] == outcome


@pytest.mark.parametrize("starttls", [False, True])
def test_a_mail_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, starttls: bool) -> None:
    monkeypatch.setattr(mail, "WHOLE", 0.3)
    with silent() as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        assert mail.deliver(mailbox(port, starttls=starttls), [NOTICE])[0] == "again"


@pytest.mark.parametrize(
    ("server", "sender", "receivers", "said"),
    [
        ("smtp.example.com", "", ("a@b.c",), "mail_server: expected host:port"),
        ("smtp.example.com:0", "", ("a@b.c",), "mail_server: expected host:port"),
        ("smtps://smtp.example.com:465", "", ("a@b.c",), "mail_server: expected host:port"),
        ("smtp.example.com:465", "me", ("a@b.c",), "mail_from: expected an address"),
        ("smtp.example.com:465", "", ("a@b.c\nBcc: d@e.f",), "mail_to: expected an address"),
    ],
)
def test_settings_no_mail_can_be_sent_with_are_refused(
    server: str, sender: str, receivers: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_mailbox(server, False, USER, PASSWORD, sender, receivers)


def test_a_login_needs_both_name_and_password() -> None:
    with pytest.raises(ConfigError, match="mail_user: needs mail_password"):
        make_mailbox("a.b:465", False, USER, "", "", ("a@b.c",))
