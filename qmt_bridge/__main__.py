"""`qmt-bridge` and `python -m qmt_bridge`: prepares the process, then imports the command and runs it."""

from __future__ import annotations

from qmt_bridge.process.start import prepare


def main() -> None:
    """Run the command."""
    prepare()
    from qmt_bridge import cli

    cli.main()


if __name__ == "__main__":
    main()
