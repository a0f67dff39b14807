"""Complete commands and options in a shell: ``lit-depth completion bash``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lit_depth.command_help import group_options, own_options
from lit_depth.commands import every, studies

_FLAGS = ("--help", "--help-all", "--config", "--debug", "--quiet", "--json")
_HOW = {
    "bash": 'eval "$(lit-depth completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(lit-depth completion zsh)" in ~/.zshrc',
    "fish": "lit-depth completion fish > ~/.config/fish/completions/lit-depth.fish",
}
# a shell of its own words: files are completed by the shell where no name fits
_BASH = """# {how}
_lit_depth() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words=
    if (( COMP_CWORD == 1 )); then
        words='{commands}'
    elif [[ $current == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _lit_depth lit-depth
"""


def main(argv: Sequence[str]) -> None:
    """Print a script that completes commands and options in a shell: bash, zsh or fish.

    Raises:
        ValueError: If the shell is another one.
    """
    parser = argparse.ArgumentParser(
        prog="lit-depth completion",
        description=(main.__doc__ or "").partition("\n")[0],
        epilog="\n".join(f"{shell}: {how}" for shell, how in _HOW.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=list(_HOW))
    print(script(parser.parse_args(argv).shell), end="")


def script(shell: str) -> str:
    """The script of a shell; zsh reads bash's."""
    if shell == "fish":
        return _fish()
    cases = "\n".join(f"            {command}) words='{' '.join(names)}' ;;" for command, names in _options().items())
    bash = _BASH.format(how=_HOW[shell], commands=" ".join(every()), cases=cases)
    return bash if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{bash}"


def _options() -> dict[str, list[str]]:
    """Every command's options, but for Lightning's own."""
    groups = [f"--{group}.{option.name}" for group in ("model", "data") for option in group_options(group)]
    return {name: [*(f"--{each.name}" for each in own_options(name)), *groups, *_FLAGS] for name in studies()}


def _fish() -> str:
    lines = [f"# {_HOW['fish']}"]
    lines += [f"complete -c lit-depth -n __fish_use_subcommand -f -a {c} -d {_quoted(t)}" for c, t in every().items()]
    for command, names in _options().items():
        lines += [f"complete -c lit-depth -n '__fish_seen_subcommand_from {command}' -l {name[2:]}" for name in names]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
