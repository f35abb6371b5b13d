"""The check of a source of another package."""

from __future__ import annotations

from qmt_bridge.commands.doctor.answers import Made
from qmt_bridge.commands.doctor.findings.finding import Finding


def source(name: str, made: Made) -> Finding:
    """Judge whether the source `name` of another package can be made with its settings."""
    if made.error:
        advice = "install or correct that package, or choose another source; docs/sources.md has the rules"
        return Finding("source", "fail", made.error, advice)
    return Finding("source", "ok", f"{name} of the package {made.package} can be made")
