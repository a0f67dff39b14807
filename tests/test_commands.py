"""The list of commands is that of the folders of studies, and costs no import."""

from __future__ import annotations

import json
import subprocess
import sys

from lit_depth.commands import overview, studies, tools


def test_every_study_is_a_method_of_the_trainer_with_the_same_first_line():
    from lit_depth.trainer import DepthTrainer

    for name, line in studies().items():
        assert (getattr(DepthTrainer, name).__doc__ or "").partition("\n")[0] == line != ""


def test_the_overview_names_every_command_once():
    listed = [line.split()[0] for line in overview().partition("subcommands:")[2].splitlines() if line.startswith("  ")]
    assert listed == [*studies(), *tools(), "fit", "validate", "test", "predict"]


def test_help_loads_neither_torch_nor_lightning():
    code = (
        "import json, sys\nsys.argv = ['lit-depth', '--help']\nfrom lit_depth.__main__ import main\nmain()\n"
        "print(json.dumps(sorted({'torch', 'lightning', 'transformers', 'pandas'} & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(out.splitlines()[-1]) == [] and "compare" in out


def test_a_command_starts_without_collecting_garbage_and_collects_it_afterwards():
    """What the imports made is out of the collector's sight; what a command makes is not."""
    code = (
        "import gc, sys\nfrom lit_depth.__main__ import main, uncollected\n"
        "sys.argv = ['lit-depth', 'importance', '--no_such_option', '1']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "frozen = gc.get_freeze_count()\n"
        "with uncollected():\n    off = not gc.isenabled()\n"
        "print(code, frozen > 100_000, gc.isenabled(), off, gc.get_freeze_count() == frozen)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "True", "True", "True", "True"]
