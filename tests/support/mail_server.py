"""A small SMTP server with TLS, as far as smtplib needs one: it keeps the mails that it is given."""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

import trustme

USER, PASSWORD = "alerts@example.com", "auth-c0de"


class MailServer:
    """The server. `refusal` is its answer to each receiver.

    With `starttls` it encrypts after the command; without `offers` it says that it does not have it.
    """

    def __init__(self, folder: Path, *, starttls: bool, offers: bool, host: str) -> None:
        authority = trustme.CA()
        self.authority = folder / "mail-ca.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host).configure_cert(context)
        self.mails: list[EmailMessage] = []
        self.logins: list[bytes] = []
        self.refusal = ""
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                # A client that does not trust the certificate leaves.
                with contextlib.suppress(OSError):
                    self.serve()

            def serve(self) -> None:
                if not starttls:
                    self.encrypt()
                self.say("220 mail")
                while line := self.rfile.readline():
                    word, _, rest = line.decode().strip().partition(" ")
                    word = word.upper()
                    if word == "STARTTLS":
                        self.say("220 go on")
                        self.encrypt()
                    elif word == "AUTH":
                        given = base64.b64decode(rest.split()[1])
                        server.logins.append(given)
                        right = given == f"\0{USER}\0{PASSWORD}".encode()
                        self.say("235 welcome" if right else "535 authentication failed")
                    elif word == "RCPT" and server.refusal:
                        self.say(server.refusal)
                    elif word == "DATA":
                        self.say("354 go on")
                        self.take()
                    elif word == "EHLO":
                        is_plain = not isinstance(self.connection, ssl.SSLSocket)
                        self.say(f"250-mail\r\n250 {'STARTTLS' if is_plain and offers else 'AUTH PLAIN'}")
                    else:
                        # Also to QUIT, where 221 would be right: the mail is taken all the same.
                        self.say("250 ok")
                    if word == "QUIT":
                        return

            def take(self) -> None:
                lines = []
                while (line := self.rfile.readline()) != b".\r\n":
                    lines.append(line)
                mail = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                assert isinstance(mail, EmailMessage)
                server.mails.append(mail)
                self.say("250 taken")

            def encrypt(self) -> None:
                self.connection = context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)

            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    self.rfile.close()
                    self.wfile.close()
                self.connection.close()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def mail_server(
    folder: Path, *, starttls: bool = False, offers: bool = True, host: str = "127.0.0.1"
) -> Iterator[MailServer]:
    server = MailServer(folder, starttls=starttls, offers=offers, host=host)
    try:
        yield server
    finally:
        server.close()
