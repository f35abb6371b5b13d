"""A simulated download of history: the bodies that a client gets. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice

from feeder.sim.market import Record

# The code whose history cannot be downloaded, so that a client meets a failure too: 600001.SH left the exchange in
# 2009, and no terminal has it.
FAILING_DOWNLOAD = "600001.SH"
FAILURE = "no history on the quote server"

# Failed codes that the sentence names; all of them are in `failed`.
_NAMED_FAILURES = 3


def download(stocks: tuple[str, ...], known: Container[str]) -> Iterator[Record]:
    """Yield the progress of each code, then the end; codes that are not `known` fail, and `FAILING_DOWNLOAD`."""
    failed: dict[str, str] = {}
    for finished, code in enumerate(stocks, 1):
        if code not in known:
            failed[code] = f"{code} is not in the simulated market"
        elif code == FAILING_DOWNLOAD:
            failed[code] = FAILURE
        yield {"finished": finished, "total": len(stocks), "stockcode": code, "message": failed.get(code, "")}
    if not failed:
        yield {"status": "done"}
        return
    named = "; ".join(f"{code}: {reason}" for code, reason in islice(failed.items(), _NAMED_FAILURES))
    more = "; ..." if len(failed) > _NAMED_FAILURES else ""
    yield {
        "status": "error",
        "type": "error",
        "code": "upstream_refused",
        "error": f"download failed for {len(failed)} of {len(stocks)} codes: {named}{more}",
        "failed": failed,
    }
