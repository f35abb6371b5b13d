"""The findings of `qmt-bridge doctor` as text and as JSON, and the exit code. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qmt_bridge.commands.doctor.findings.finding import Finding


def to_text(findings: Sequence[Finding]) -> str:
    """Return one line a finding."""
    width = max(len(finding.check) for finding in findings)
    return "\n".join(
        f"{finding.level:<4}  {finding.check:<{width}}  {finding.said}"
        + (f" -> {finding.advice}" if finding.advice else "")
        for finding in findings
    )


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON: ``{"ok":true,"checks":[{"check":..,"level":..,"said":..,"advice":..}]}``."""
    return json.dumps({"ok": exit_code(findings) == 0, "checks": [finding._asdict() for finding in findings]})


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 if something has failed; a warning is no failure."""
    return int(any(finding.level == "fail" for finding in findings))
