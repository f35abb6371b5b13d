"""`qmt-bridge` and `python -m qmt_bridge`: prepares the process, then imports the command and runs it."""

from __future__ import annotations

import sys

from qmt_bridge.process.other_project import MIXED
from qmt_bridge.process.start import prepare


def main() -> None:
    """Run the command."""
    if not hasattr(sys.modules["qmt_bridge"], "_LAZY"):
        # Its __init__.py is that of the other project: what is imported now would be of both.
        sys.exit(f"Error: {MIXED}")
    prepare()
    from qmt_bridge import cli

    cli.main()


if __name__ == "__main__":
    main()
