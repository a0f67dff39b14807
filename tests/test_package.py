"""The installed package: its console script, ``python -m lit_depth``, its public names and its metadata."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata

import pytest

import lit_depth

COMMANDS = ("fit", "validate", "test", "predict", "compare")
# every public name, by the package that offers it; a name that does not exist yet is not listed
PUBLIC = {
    "lit_depth": ("DepthModule", "DepthTrainer", "load_bundled"),
    "lit_depth.functional": (
        "find_blocks",
        "masked",
        "prefix",
        "suffix",
        "uniform",
        "random",
        "top_k",
        "threshold",
        "from_indices",
    ),
    "lit_depth.callbacks": ("BlockMask", "MaskSweep", "AccuracyDropImportance"),
    "lit_depth.metrics": ("exact_match", "clean_prediction", "ExactMatch"),
    "lit_depth.models.molmo": (
        "MolmoConfig",
        "MolmoForConditionalGeneration",
        "MolmoProcessor",
        "MolmoImageProcessor",
    ),
}


@pytest.mark.parametrize(("package", "name"), [(p, n) for p, names in PUBLIC.items() for n in names])
def test_public_names(package: str, name: str) -> None:
    module = importlib.import_module(package)
    assert name in module.__all__
    assert callable(getattr(module, name))


@pytest.mark.parametrize("package", PUBLIC)
def test_all_names_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Depth'"):
        _ = lit_depth.Depth  # type: ignore[attr-defined]


def test_console_script() -> None:
    (script,) = (point for point in metadata.entry_points(group="console_scripts") if point.name == "lit-depth")
    assert script.load() is importlib.import_module("lit_depth.__main__").main


def test_version() -> None:
    assert metadata.version("lit_depth") == lit_depth.__version__


@pytest.mark.slow
def test_help_names_the_commands() -> None:
    command = [sys.executable, "-m", "lit_depth", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert [name for name in COMMANDS if name not in result.stdout.split("subcommands", 1)[-1]] == []
