"""Send alerts by mail: SMTP with TLS, whose certificate is checked.

It may wait for half a minute, so it is not called on the thread that watches.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from collections.abc import Sequence
from contextlib import closing, suppress
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any, NamedTuple

from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.targets.target import Outcome
from qmt_bridge.errors import ConfigError
from qmt_bridge.system.cutoff import Cutoff

# Seconds for one answer of the server, and for a whole delivery.
TIMEOUT = 10.0
WHOLE = 30.0
_SERVER = re.compile(r"([A-Za-z0-9][\w.-]*|\[[\w:.%]+\]):(\d{1,5})", re.ASCII)
_ADDRESS = re.compile(r"[^\s@<>,;]+@[^\s@<>,;]+")


class Mailbox(NamedTuple):
    """A server and the addresses of the messages. `password` is never shown."""

    host: str
    port: int
    starttls: bool
    user: str
    password: str
    sender: str
    receivers: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Mailbox({self.host!r}, {self.port})"


def make_mailbox(
    server: str, starttls: bool, user: str, password: str, sender: str, receivers: Sequence[str]
) -> Mailbox:
    """Return a mailbox; raise `ConfigError` for what no mail can be sent with."""
    found = _SERVER.fullmatch(server.strip())
    if found is None or not 0 < int(found[2]) < 65536:
        raise ConfigError("[alerts] mail_server", "expected host:port, such as smtp.example.com:465")
    sender = sender or user
    for setting, addresses in (("mail_from", (sender,)), ("mail_to", tuple(receivers))):
        if not all(_ADDRESS.fullmatch(address) for address in addresses):
            raise ConfigError(f"[alerts] {setting}", "expected an address such as me@example.com")
    if bool(user) != bool(password):
        raise ConfigError("[alerts] mail_user", "needs mail_password, and the other way round")
    return Mailbox(found[1].strip("[]"), int(found[2]), starttls, user, password, sender, tuple(receivers))


def message_of(mailbox: Mailbox, notices: Sequence[Notice]) -> EmailMessage:
    """Return the mail that tells `notices`."""
    mail = EmailMessage()
    more = f" (+{len(notices) - 1})" if len(notices) > 1 else ""
    mail["Subject"] = notices[0].title + more
    mail["From"] = mailbox.sender
    mail["To"] = ", ".join(mailbox.receivers)
    mail["Date"] = formatdate(notices[0].time / 1000)
    mail["Message-ID"] = make_msgid(domain=mailbox.sender.rpartition("@")[2])
    mail.set_content("\n\n".join(each.text for each in notices) + "\n")
    return mail


def deliver(mailbox: Mailbox, notices: Sequence[Notice]) -> tuple[Outcome, str]:
    """Send one mail with `notices`; return what became of it, with a sentence that holds no password."""
    try:
        with Cutoff(WHOLE) as cutoff, closing(_connect(mailbox, cutoff)) as server:
            if mailbox.starttls:
                server.starttls(context=ssl.create_default_context())
            if mailbox.user:
                server.login(mailbox.user, mailbox.password)
            missed = server.send_message(message_of(mailbox, notices))
            # The mail is taken, whatever the server says to the farewell.
            with suppress(OSError, smtplib.SMTPException):
                server.quit()
    except smtplib.SMTPResponseException as exc:
        # 4xx: the server is busy, or holds mail of strangers back for a while.
        return "again" if 400 <= exc.smtp_code < 500 else "refused", f"SMTP {exc.smtp_code}"
    except smtplib.SMTPRecipientsRefused as exc:
        codes = [code for code, _ in exc.recipients.values()]
        return "again" if all(400 <= code < 500 for code in codes) else "refused", f"SMTP {codes[0]} for a receiver"
    except ssl.SSLCertVerificationError as exc:
        return "refused", f"the certificate of the server is not valid: {exc.verify_message}"
    except smtplib.SMTPNotSupportedError:
        return "refused", "the server has no STARTTLS, or no login"
    except (OSError, smtplib.SMTPException) as exc:
        return "again", getattr(exc, "strerror", None) or type(exc).__name__
    return "sent", f"SMTP 250, but not for {len(missed)} of the receivers" if missed else "SMTP 250"


def _connect(mailbox: Mailbox, cutoff: Cutoff) -> smtplib.SMTP:
    """Connect, so that the connection ends when the time is over, also to a server that sends byte by byte."""

    class Plain(smtplib.SMTP):
        def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
            return cutoff.connect((host, port), timeout)

    # It encrypts what `Plain` connects.
    class Tls(smtplib.SMTP_SSL, Plain):
        pass

    # A look-up of the own name may take long, and is of no use to the server.
    options: dict[str, Any] = {"local_hostname": "[127.0.0.1]", "timeout": TIMEOUT}
    if mailbox.starttls:
        return Plain(mailbox.host, mailbox.port, **options)
    # The default of smtplib checks no certificate.
    return Tls(mailbox.host, mailbox.port, context=ssl.create_default_context(), **options)
