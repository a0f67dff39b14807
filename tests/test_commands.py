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


def test_a_start_collects_no_garbage_and_collects_it_again_afterwards():
    """What the imports made is out of the collector's sight; what a command makes is not."""
    code = (
        "import gc\nfrom lit_depth.__main__ import uncollected\nstarts = []\n"
        "gc.callbacks.append(lambda phase, info: starts.append(phase))\n"
        "with uncollected():\n    import lit_depth.cli\n    inside = len(starts)\n"
        "frozen = gc.get_freeze_count()\n"
        "class Ring:\n    pass\n"
        "ring = Ring(); ring.self = ring; import weakref; seen = weakref.ref(ring); del ring; gc.collect()\n"
        "with uncollected():\n    kept = [[] for _ in range(1000)]\n"
        "print(inside, frozen > 100_000, seen() is None, gc.get_freeze_count() == frozen, gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "True", "True", "True", "True"]
