"""A folder of CURVE keys: what is in it, how it is made, and how a client is added.

``feeder.key_secret`` and ``clients/`` are for the feeder; ``feeder.key`` and ``gateway.key_secret`` for its clients. A
forwarder is a client that has clients itself: with these two it connects, with ``forward.key_secret`` it listens.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import zmq

from qmt_bridge import private
from qmt_bridge.curve.certificate import ROLES, Certificate, checked_name, read_certificate, write_certificate
from qmt_bridge.errors import ConfigError
from qmt_bridge.system.in_use import patiently

End = Literal["feeder", "gateway", "forward"]
CLIENTS = "clients"


class Curve(NamedTuple):
    """Keys of one end: its own pair, and for a connecting end the feeder's public key."""

    public: bytes
    secret: bytes
    server: bytes | None


def load_curve(curve_dir: str, end: End) -> Curve | None:
    """Read the keys of `end` from `curve_dir`; None without a folder; raise `ConfigError` if one is missing."""
    if not curve_dir:
        return None
    folder = Path(curve_dir)
    try:
        own = read_certificate(folder / f"{end}.key_secret")
        server = read_certificate(folder / "feeder.key").public if end == "gateway" else None
    except (OSError, ValueError, ConfigError) as exc:
        raise ConfigError("curve_dir", f"cannot read the keys of the {end}: {exc}") from exc
    private.warn_if_exposed(folder / f"{end}.key_secret", "a secret key")
    if own.secret is None:
        raise ConfigError("curve_dir", f"{folder / f'{end}.key_secret'} holds no secret key")
    return Curve(own.public, own.secret, server)


def make_keys(folder: Path) -> list[Path]:
    """Write a key pair for the feeder and one for its gateways; return the files, never overwrite one.

    The feeder's machine needs ``feeder.key_secret`` and ``clients/``; another machine ``feeder.key`` and
    ``gateway.key_secret``. Raise `ConfigError`.
    """
    for end in ("feeder", "gateway"):
        if (folder / f"{end}.key_secret").exists():
            raise ConfigError("curve_dir", f"{folder / f'{end}.key_secret'} exists already")
    try:
        private.make_folder(folder / CLIENTS)
        written = _write_pair(folder, "feeder", "feeder", frozenset())
        written += _write_pair(folder, "gateway", "gateway", frozenset(ROLES))
        written.append(_admit(folder, read_certificate(folder / "gateway.key")))
    except OSError as exc:
        raise ConfigError("curve_dir", f"cannot write the keys: {exc}") from exc
    return written


def own_keys(folder: Path) -> None:
    """Make the keys of a feeder and of the programs of its own user, if there are none; raise `ConfigError`.

    Two processes that do this at once end with the same keys: the folder appears as a whole.
    """
    if (folder / "feeder.key_secret").exists():
        return
    try:
        private.make_folder(folder.parent)
        part = Path(tempfile.mkdtemp(".part", f"{folder.name}.", folder.parent))
        try:
            make_keys(part)
            patiently(lambda: part.rename(folder))
        except OSError:
            # Another process has made it meanwhile.
            if not (folder / "feeder.key_secret").exists():
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as exc:
        raise ConfigError("data_dir", f"cannot make the CURVE keys of trade events in {folder}: {exc}") from exc


def add_forwarder(folder: Path) -> list[Path]:
    """Make the keys with which a forwarder listens, in the folder of a client; return the files.

    It has a pair of its own: with the feeder's its machine could pretend to be the feeder everywhere. Raise
    `ConfigError` for a folder that is not one of a client, or that has such keys.
    """
    if (folder / "feeder.key_secret").exists():
        raise ConfigError(
            "curve_dir", f"{folder} has the keys of a feeder; a forwarder has a folder of its own: {_OWN}"
        )
    if not ((folder / "feeder.key").exists() and (folder / "gateway.key_secret").exists()):
        raise ConfigError("curve_dir", f"{folder} has no keys of a client of the feeder: {_OWN}")
    if (folder / "forward.key_secret").exists():
        raise ConfigError("curve_dir", f"{folder / 'forward.key_secret'} exists already")
    try:
        private.make_folder(folder / CLIENTS)
        return _write_pair(folder, "forward", "forward", frozenset())
    except OSError as exc:
        raise ConfigError("curve_dir", f"cannot write the keys: {exc}") from exc


_OWN = "`qmt-bridge keygen KEYS --name NAME --roles ROLES` on the feeder's machine makes it"


def add_client(folder: Path, name: str, roles: frozenset[str]) -> Path:
    """Make a client key that may do `roles`, and admit it; return the folder which that client needs as `curve_dir`.

    Of a forwarder's folder the client connects to the forwarder. Raise `ConfigError` for a name that is taken, and if
    there is no key in `folder` for the client to connect to.
    """
    own = folder / checked_name(name)
    if name.lower() == CLIENTS or own.exists() or (folder / CLIENTS / f"{name}.key").exists():
        raise ConfigError("--name", f"{name} is taken in {folder}")
    forwards = (folder / "forward.key").exists()
    try:
        server = read_certificate(folder / ("forward.key" if forwards else "feeder.key"))
    except OSError as exc:
        raise ConfigError("curve_dir", f"no key of a feeder in {folder}: `qmt-bridge keygen` makes one") from exc
    try:
        private.make_folder(own)
        private.make_folder(folder / CLIENTS)
        write_certificate(own / "feeder.key", server._replace(roles=frozenset()))
        _write_pair(own, "gateway", name, roles)
        # At last: the client is admitted from now on.
        _admit(folder, read_certificate(own / "gateway.key"))
    except OSError as exc:
        raise ConfigError("curve_dir", f"cannot write the key of {name}: {exc}") from exc
    return own


def client_certificates(folder: Path) -> Iterator[Certificate | ConfigError]:
    """Yield what each file in ``clients/`` says, or why it says nothing; raise `OSError` if there is no such folder."""
    clients = folder / CLIENTS
    for path in sorted(each for each in clients.iterdir() if each.suffix == ".key"):
        try:
            yield read_certificate(path)
        except FileNotFoundError:
            # It was removed while this runs.
            continue
        except OSError as exc:
            yield ConfigError(str(path), exc.strerror or str(exc))
        except ConfigError as exc:
            yield exc


def _write_pair(folder: Path, stem: str, name: str, roles: frozenset[str]) -> list[Path]:
    public, secret = zmq.curve_keypair()
    certificate = Certificate(name, public, None, roles)
    paths = [folder / f"{stem}.key", folder / f"{stem}.key_secret"]
    write_certificate(paths[0], certificate)
    write_certificate(paths[1], certificate._replace(secret=secret))
    return paths


def _admit(folder: Path, certificate: Certificate) -> Path:
    path = folder / CLIENTS / f"{certificate.name}.key"
    write_certificate(path, certificate._replace(secret=None))
    return path
