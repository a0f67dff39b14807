"""Help and a wrong option of the commands about files import nothing of theirs, and name what the commands take."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lit_depth import commands
from lit_depth.data.columns import MEANINGS, SEVERAL
from lit_depth.tool_options import parser_of

HEAVY = sorted(commands.tools().keys() - commands.LIGHT)
QUICK = (
    "import sys\nfrom lit_depth.__main__ import main\n"
    "sys.argv = ['lit-depth', *sys.argv[1:]]\n"
    "try: main()\n"
    "finally: assert not {'torch', 'lightning', 'transformers', 'pandas', 'numpy'} & set(sys.modules)"
)


@pytest.mark.parametrize("tool", sorted(commands.tools()))
@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--help-all", "--json"], 0), (["--wrong", "x"], 2)])
def test_help_and_a_wrong_option_import_no_model(tool: str, arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", QUICK, tool, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    told = done.stderr if code else done.stdout
    assert told.startswith(f"usage: lit-depth {tool}") and "Traceback" not in done.stderr
    assert code or commands.tools()[tool][:40] in " ".join(told.split())


@pytest.mark.parametrize("tool", HEAVY)
def test_every_tool_has_options_under_its_own_name(tool: str) -> None:
    assert parser_of(tool).prog == f"lit-depth {tool}"


def test_columns_are_those_that_are_read() -> None:
    parser = parser_of("data")
    given = vars(parser.parse_args(["a.csv"]))
    assert {name for name in given if name.startswith("columns.")} == {f"columns.{name}" for name in MEANINGS}
    several = [line for line in parser.format_help().split("--columns.") if "or several" in " ".join(line.split())]
    assert len(several) == len(SEVERAL)


def test_options_with_dashes_are_known() -> None:
    from lit_depth.__main__ import at_once

    assert at_once(["data", "a.csv", "--num-samples", "3", "--quiet", "--debug"]) is None
    with pytest.raises(SystemExit) as stopped:
        at_once(["data", "a.csv", "--num-samples", "three"])
    assert stopped.value.code == 2
