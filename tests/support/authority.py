"""A private certificate authority, and certificates of it in files."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Authority:
    """A certificate authority whose own certificate is the file `ca`."""

    def __init__(self, folder: Path) -> None:
        self._made = trustme.CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._made.cert_pem.write_to_path(self.ca)
        self.cert = folder / "cert.pem"
        self.key = folder / "key.pem"

    def issue(self) -> bytes:
        """Write a new certificate of this machine, and its key, into the files `cert` and `key`; return it as DER."""
        issued = self._made.issue_cert("127.0.0.1", "localhost")
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.key.chmod(0o600)
        chain = [part.bytes() for part in issued.cert_chain_pems]
        self.cert.write_bytes(b"".join(chain))
        return ssl.PEM_cert_to_DER_cert(chain[0].decode())

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings of a gateway with this certificate."""
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}
