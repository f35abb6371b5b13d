"""One of the versions of xtquant in the package index, in the place of the installed one."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator

import native
import pytest

from tests.sdks.wheels import CACHE, WHEELS, Wheel
from tests.support.paths import FAKES, ROOT

EACH = [
    pytest.param(
        wheel,
        id=wheel.version,
        marks=pytest.mark.skipif(
            not wheel.folder.is_dir(),
            reason=f"xtquant {wheel.version} is not in {CACHE}: `make sdks` downloads it",
        ),
    )
    for wheel in WHEELS
]


@contextlib.contextmanager
def in_use(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> Iterator[native.Terminal]:
    """Let this process, and those that it starts, import this version of xtquant over the stand-ins."""

    def take() -> dict[str, object]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "xtquant"}

    # Not syspath_prepend, which imports pkg_resources: another package of the tests may have put its own in its place.
    monkeypatch.setattr(sys, "path", [str(wheel.folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (wheel.folder, FAKES, ROOT))))
    monkeypatch.setenv("FAKE_XT_PLATFORM", "win32")
    installed = take()
    try:
        native.import_package("win32")
        with native.installed() as terminal:
            with warnings.catch_warnings():
                # Some sources have invalid escapes, which warn when they are compiled.
                warnings.simplefilter("ignore")
                importlib.import_module("xtquant.xttrader")
            yield terminal
    finally:
        take()
        sys.modules.update(installed)  # type: ignore[arg-type]
