"""transformers' own common tests, out of its source distribution: `make parity` fetches it, the repository has no copy.

The distribution holds ``tests/test_*_common.py``, but none of the folders beside them. What those files import from
there is stood in for by the fewest names that let them load; nothing stands in for a test.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.helpers.house import ROOT

SOURCES = Path(os.environ.get("LIT_DEPTH_PARITY", ROOT / ".parity"))
PACKAGE = "transformers_tests"
# module that the distribution lacks -> names that are imported from it
_ABSENT: dict[str, dict[str, Any]] = {
    f"{PACKAGE}.exporters": {},
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation": {},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
}


def missing_sources() -> str:
    """Why the common tests cannot run; empty where they can."""
    needed = (SOURCES / "tests" / "test_modeling_common.py", SOURCES / "site" / "parameterized")
    lacking = [path for path in needed if not path.exists()]
    return f"{lacking[0]} is absent: run `make parity`" if lacking else ""


def common_tests(name: str) -> ModuleType:
    """Import one of the distribution's files, such as ``test_modeling_common``."""
    if PACKAGE not in sys.modules:
        sys.path.append(str(SOURCES / "site"))
        for module, names in {PACKAGE: {}, **_ABSENT}.items():
            sys.modules[module] = ModuleType(module)
            vars(sys.modules[module]).update(names)
        sys.modules[PACKAGE].__path__ = [str(SOURCES / "tests")]
    return importlib.import_module(f"{PACKAGE}.{name}")
