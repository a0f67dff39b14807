"""The import direction: every module of the package imports only what stands to its left, and imports stay light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lit_depth

PACKAGE = Path(lit_depth.__file__).parent
_PARTS = {"metrics", "models", "data", "results"}
_LEFT_OF_MODULE = {"functional", *_PARTS, "callbacks"}
_LEFT_OF_STUDIES = {*_LEFT_OF_MODULE, "module", "integrations"}
# layer -> the other layers it may import: functional -> metrics | models | data | results -> callbacks -> module
# -> studies -> trainer -> cli, which reads its options through `options`; integrations stand just before studies
ALLOWED = {
    "functional": set[str](),
    **{part: {"functional"} for part in _PARTS},
    "callbacks": {"functional", *_PARTS},
    "module": _LEFT_OF_MODULE,
    "integrations": {*_LEFT_OF_MODULE, "module"},
    "studies": _LEFT_OF_STUDIES,
    "recipes": _LEFT_OF_STUDIES,
    "tool_options": {"results", "studies", "commands"},
    "tools": {*_LEFT_OF_STUDIES, "studies", "commands", "command_help", "tool_options"},
    "trainer": {*_LEFT_OF_STUDIES, "studies"},
    "options": {"functional", "results", "interrupts", "option_names"},
    "option_names": {"results"},
    # of the standard library only
    "interrupts": {"commands"},
    "commands": set(),
    "command_help": {"commands", "option_names"},
    "cli": {*_LEFT_OF_STUDIES, "options", "option_names", "commands", "studies", "tools", "trainer", "interrupts"},
    "__main__": {"cli", "commands", "command_help", "interrupts", "option_names", "results", "tool_options", "tools"},
}
# packages of others that only one layer may import, and one that a layer must do without
ONLY_INTEGRATIONS = {"wandb", "wandb_workspaces", "lm_eval", "lmms_eval", "ray"}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
# the package itself offers three names on first use; importing one of them is importing its home
HOMES = {"DepthModule": "module", "DepthTrainer": "trainer", "load_bundled": "models"}


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute dotted names that the code imports, wherever it does: in functions and under TYPE_CHECKING too.

    ``from a import b`` gives ``a.b``, which may be a module or not; ``package`` resolves relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, module: str, package: str) -> list[str]:
    """What ``module`` (its source given) imports against the rules, as readable lines."""
    layer = module.split(".")[1]
    found = []
    for name in imported_names(ast.parse(source), package):
        top, _, rest = name.partition(".")
        if top in ONLY_INTEGRATIONS and layer != "integrations":
            found.append(f"{module} imports {name}: only lit_depth.integrations may")
        if top in LIGHTNING and layer == "functional":
            found.append(f"{module} imports {name}: functional does without Lightning")
        if top == "lit_depth" and rest:
            target = rest.split(".")[0]
            target = HOMES.get(target, target)
            if target not in (*ALLOWED[layer], layer, "__version__"):
                found.append(f"{module} imports {name}: {layer} may import {sorted(ALLOWED[layer])}")
    return found


def _modules() -> dict[str, Path]:
    """Modules of the package by dotted name, without the package's own ``__init__`` (it only names lazy imports)."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = path
    del modules["lit_depth"]
    return modules


MODULES = _modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    assert violations(path.read_text(encoding="utf-8"), module, package) == []


def test_every_layer_is_known() -> None:
    assert {module.split(".")[1] for module in MODULES} <= set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lit_depth.functional.masking.skip", "from lit_depth.models import loading"),
        ("lit_depth.functional.masking.skip", "import lightning.pytorch as pl"),
        ("lit_depth.metrics.anls", "from lit_depth.data.task import Sample"),
        ("lit_depth.models.loading", "import lit_depth.results.store"),
        ("lit_depth.results.style", "def draw():\n    from lit_depth import metrics"),
        ("lit_depth.data.task", "from ..models import loading"),
        ("lit_depth.callbacks.mask_sweep", "from lit_depth import DepthModule"),
        ("lit_depth.callbacks.mask_sweep", "from lit_depth.integrations import wandb"),
        ("lit_depth.callbacks.mask_sweep", "def log():\n    import wandb"),
        (
            "lit_depth.module",
            "if TYPE_CHECKING:\n    import lit_depth.studies.compare.command",
        ),
        ("lit_depth.studies.compare.command", "from lit_depth.trainer import DepthTrainer"),
        ("lit_depth.studies.compare.command", "from wandb.sdk import wandb_run"),
        ("lit_depth.trainer", "from .cli import main"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module, module.rpartition(".")[0])) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "lit_depth.functional.engine.trie",
            "from lit_depth.functional import masking\nfrom . import blocks\nimport torch",
        ),
        ("lit_depth.callbacks.mask_sweep", "import lit_depth.metrics\nfrom ..results.store import read_records"),
        ("lit_depth.studies.compare.command", "from lit_depth.integrations.wandb import log_report"),
        ("lit_depth.studies.compare.command", "from lit_depth import DepthModule, __version__, load_bundled"),
        ("lit_depth.integrations.wandb", "import wandb\nfrom lit_depth.results.report import Report"),
        ("lit_depth.cli", "from lit_depth.trainer import DepthTrainer\nfrom lit_depth.data import DepthDataModule"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert violations(source, module, module.rpartition(".")[0]) == []


# Lightning itself imports torchmetrics, and that matplotlib where it is installed: what Lightning loads does not count,
# but an import statement of ours does
_PROBE = """
import builtins, json, sys
statement, heavy = sys.argv[1], set(sys.argv[2].split(","))
if heavy != {"torch"}:
    import lightning.pytorch
before = heavy & set(sys.modules)
ours, original = [], builtins.__import__
def recording(name, globals=None, *args, **kwargs):
    importer = (globals or {}).get("__name__") or ""
    if importer.split(".")[0] == "lit_depth" and name.split(".")[0] in heavy:
        ours.append(f"{importer} imports {name}")
    return original(name, globals, *args, **kwargs)
builtins.__import__ = recording
exec(statement)
print(json.dumps([ours, sorted((heavy & set(sys.modules)) - before)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import lit_depth", "torch"),
        ("import lit_depth.callbacks", "wandb,datasets,matplotlib,pandas"),
    ],
)
def test_light_imports(statement: str, heavy: str) -> None:
    command = [sys.executable, "-c", _PROBE, statement, heavy]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    ours, loaded = json.loads(result.stdout.splitlines()[-1])
    assert (ours, loaded) == ([], [])
