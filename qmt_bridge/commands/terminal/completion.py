"""`qmt-bridge completion`: what a shell reads to complete commands, options, files and codes."""

from __future__ import annotations

from importlib.metadata import entry_points

import click
from click.shell_completion import CompletionItem, get_completion_class

from qmt_bridge.config import SOURCE_GROUP, SOURCES

# What click asks for completions by; it follows from the name of the command.
COMPLETE_ENV = "_QMT_BRIDGE_COMPLETE"
PROGRAM = "qmt-bridge"
SHELLS = ("bash", "zsh", "fish", "powershell")
# By the first digits of a code the market that it may have: 000001 is an index of Shanghai, too.
_MARKETS = {
    "SH": ("60", "68", "51", "56", "58", "00"),
    "SZ": ("00", "30", "15", "39"),
    "BJ": ("43", "83", "87", "92"),
}
# What a topic or a URL begins with.
_BEGINNINGS = (
    *("quote/", "whole/SH/", "whole/SZ/", "whole/BJ/", "l2/", "trade/", "status/feeder/"),
    *("ws://127.0.0.1:8000/ws/realtime", "ws://127.0.0.1:8000/ws/whole_quote", "ws://127.0.0.1:8000/ws/trade"),
)
_DIGITS = 6
# PowerShell has no such file of click's; the shell asks for bash's words and gives them to the user.
_POWERSHELL = """\
Register-ArgumentCompleter -Native -CommandName qmt-bridge -ScriptBlock {
    param($word, $line, $position)
    $words = $line.ToString()
    if (-not $word) { $words += ' ' }
    $env:_QMT_BRIDGE_COMPLETE = 'bash_complete'
    $env:COMP_WORDS = $words
    $env:COMP_CWORD = ($words -split '\\s+').Count - 1
    try {
        qmt-bridge | ForEach-Object {
            $kind, $value = $_ -split ',', 2
            if ($kind -eq 'plain') { [System.Management.Automation.CompletionResult]::new($value) }
        }
    } finally {
        Remove-Item 'Env:_QMT_BRIDGE_COMPLETE', 'Env:COMP_WORDS', 'Env:COMP_CWORD'
    }
}
"""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print what completes commands, options, files and codes in a shell.

    \b
    bash:        qmt-bridge completion bash >> ~/.bashrc
    zsh:         qmt-bridge completion zsh >> ~/.zshrc
    fish:        qmt-bridge completion fish > ~/.config/fish/completions/qmt-bridge.fish
    PowerShell:  qmt-bridge completion powershell >> $PROFILE
    """
    if shell == "powershell":
        click.echo(_POWERSHELL)
        return
    found = get_completion_class(shell)
    assert found is not None, "click completes in these shells"
    click.echo(found(context.find_root().command, {}, PROGRAM, COMPLETE_ENV).source())


def complete_code(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the codes that six digits may be, or what a topic or a URL may begin with."""
    if len(incomplete) == _DIGITS and incomplete.isdigit():
        found = [market for market, digits in _MARKETS.items() if incomplete.startswith(digits)]
        return [CompletionItem(f"{incomplete}.{market}") for market in found]
    return [CompletionItem(each) for each in _BEGINNINGS if each.startswith(incomplete)]


def complete_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the name of a file or a folder."""
    return [CompletionItem(incomplete, type="file")]


def complete_source(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the name of a source, also of one of another package."""
    names = dict.fromkeys(("auto", *SOURCES, *(point.name for point in entry_points(group=SOURCE_GROUP))))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
