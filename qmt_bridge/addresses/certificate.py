"""The TLS certificate of a server, read again when its files change. Runs on an event loop; thin edge: files, the log.

An open connection keeps the certificate that it began with; a new one gets the newest that could be read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
import sys

from qmt_bridge.errors import ConfigError
from qmt_bridge.private import stamp

logger = logging.getLogger(__name__)

# Seconds between two looks at the files.
LOOK_EVERY = 1.0


def load(cert: str, key: str) -> ssl.SSLContext:
    """Return a server's context with the certificate and key of these PEM files; raise `ConfigError`."""
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            # OpenSSL's own error does not name the file.
            with open(path, "rb"):
                pass
        except OSError as exc:
            raise ConfigError(name, f"cannot read {path}: {exc.strerror}") from exc
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client must not be able to make the server compute new keys on one connection again and again.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a function OpenSSL would ask for a password on the terminal.
        context.load_cert_chain(cert, key, _no_password)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or str(exc)
        raise ConfigError("tls_cert", f"{cert} and {key} cannot be used: {_sentence(reason)}") from exc
    return context


class Certificate:
    """The newest certificate that could be read, for all new connections of `context`."""

    def __init__(self, cert: str, key: str) -> None:
        """Read the files and look at them from now on; raise `ConfigError`."""
        self._files = (cert, key)
        self._stamp = self._look()
        self.context = self._newest = load(cert, key)
        self._warn_of_readers()
        # A listening socket keeps its context. OpenSSL calls this in each handshake, also of a client that names no
        # server. A context is exchanged as a whole: one that is changed in place may get a certificate without its key.
        self.context.sni_callback = self._choose
        self._plan()

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _plan(self) -> None:
        asyncio.get_running_loop().call_later(LOOK_EVERY, self._refresh)

    def _refresh(self) -> None:
        self._plan()
        found = self._look()
        if found == self._stamp:
            return
        self._stamp = found
        try:
            self._newest = load(*self._files)
        except ConfigError as exc:
            logger.error("%s; new connections get the certificate from before", exc)
            return
        logger.info("%s has changed; new connections get the new certificate", self._files[0])
        self._warn_of_readers()

    def _look(self) -> tuple[tuple[int, ...], ...]:
        """Return what changes with the files; a link that leads to another file changes it too."""
        return tuple(stamp(path) for path in self._files)

    def _warn_of_readers(self) -> None:
        path = self._files[1]
        if sys.platform != "win32" and os.stat(path).st_mode & stat.S_IROTH:
            logger.warning("%s, the private key of TLS, can be read by every user: chmod 600 it", path)


def _no_password() -> str:
    raise ValueError("the private key has a password; write it without one, in a file that only you can read")


def _sentence(reason: str) -> str:
    """Return OpenSSL's name of a fault, such as KEY_VALUES_MISMATCH, as words."""
    known = {"KEY_VALUES_MISMATCH": "the key does not belong to the certificate"}
    return known.get(reason, reason.replace("_", " ").lower() if reason.isupper() else reason)
