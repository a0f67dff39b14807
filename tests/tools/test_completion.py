"""The scripts are run by the shells themselves where these are installed."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from lit_depth.commands import every
from lit_depth.tools.completion import main, script


def completed(words: str, line: list[str]) -> list[str]:
    """What bash offers for the last word of a line."""
    given = " ".join(f"'{word}'" for word in line)
    offer = "_lit_depth; printf '%s\\n' \"${COMPREPLY[@]}\""
    code = f"{words}\nCOMP_WORDS=({given}); COMP_CWORD={len(line) - 1}; {offer}"
    return subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["lit-depth", "comp"], ["compare", "completion"]),
        (["lit-depth", "search", "--beam"], ["--beam_width"]),
        (["lit-depth", "compare", "--model.check"], ["--model.checkpoint"]),
        (["lit-depth", "compare", "--beam"], []),
        (["lit-depth", "data", "--"], []),
        (["lit-depth", "compare", "photos"], []),
    ],
)
def test_bash_offers_what_fits(line, offered):
    assert sorted(completed(script("bash"), line)) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_script(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script(shell))
    subprocess.run([shell, "-n", path], check=True)


def test_every_command_is_offered_in_every_shell(capsys):
    for shell in ("bash", "zsh", "fish"):
        main([shell])
        out = capsys.readouterr().out
        assert [name for name in every() if name not in out] == []


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tcsh"])
    assert stopped.value.code == 2 and "invalid choice: 'tcsh'" in capsys.readouterr().err
