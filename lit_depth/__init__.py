"""Which transformer blocks of a vision-language model can be skipped: the cost in quality, the gain in latency."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_depth.models.loading import load_bundled as load_bundled
    from lit_depth.module import DepthModule as DepthModule
    from lit_depth.trainer import DepthTrainer as DepthTrainer

__version__ = "0.1.0"
__all__ = ["DepthModule", "DepthTrainer", "load_bundled"]

# imported on first use, so that taking one callback does not load the whole package
_HOME = {
    "DepthModule": "lit_depth.module",
    "DepthTrainer": "lit_depth.trainer",
    "load_bundled": "lit_depth.models.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
