"""A QR code of an address for a phone, in characters of a terminal."""

from __future__ import annotations

import io

# White on black, whatever the colours of the terminal are: not every phone reads an inverted code.
_WHITE_ON_BLACK = "\x1b[97;40m"
_RESET = "\x1b[0m"


def qr_code(text: str) -> str:
    """Return a QR code of `text`, two of its rows in a line."""
    import segno

    drawn = io.StringIO()
    segno.make_qr(text, error="l").terminal(drawn, border=2, compact=True)
    return "\n".join(f"  {_WHITE_ON_BLACK}{line}{_RESET}" for line in drawn.getvalue().splitlines())
