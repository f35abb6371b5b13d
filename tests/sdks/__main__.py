"""Download every version of xtquant that the package index has, and keep the Python layer of each: `make sdks`.

A wheel has 34 to 69 MB, nearly all of it native modules for Windows; the layer has 1.5 MB. What is kept already is not
downloaded again, so a second run needs no network.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import click

from tests.sdks.wheels import CACHE, KEPT, WHEELS, Wheel


def fetch(wheel: Wheel) -> None:
    """Download a wheel, compare its hash, and unpack the files of its Python layer."""
    wheel.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.folder.parent) as name:
        requirements, layer = Path(name, "requirements.txt"), Path(name, "layer")
        requirements.write_text(wheel.requirement, encoding="utf-8")
        # The version of Python, because the oldest ones say that they are for earlier ones than 3.12.
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"),
                *("--no-deps", "--only-binary=:all:", "--python-version=3.11", "--require-hashes"),
                *("--no-cache-dir", f"--dest={name}", f"--requirement={requirements}"),
            ],
            check=True,
        )
        [path] = Path(name).glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(layer, [each for each in archive.namelist() if each.endswith(KEPT)])
        layer.rename(wheel.folder)


def main() -> None:
    """Fetch what is missing, and print where it is."""
    for wheel in WHEELS:
        if not wheel.folder.is_dir():
            click.echo(f"xtquant {wheel.version}")
            fetch(wheel)
    click.echo(f"{len(WHEELS)} versions of xtquant in {CACHE}")


if __name__ == "__main__":
    main()
