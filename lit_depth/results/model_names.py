"""How a run's model is called in what is told of it: by its checkpoint, and by how many experts and crops it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# arguments of the model that make it another one to compare with, and what they are called in a table
KNOBS = {"model.experts_per_token": "experts per token", "model.max_crops": "most crops"}


def model_name(arguments: Mapping[str, Any]) -> str:
    """Name of a checkpoint, with its revision: of a folder its name alone, of a hub's repository the whole of it.

    >>> model_name({"model.checkpoint": "/models/mine", "model.revision": "v2"}), model_name({})
    ('mine @ v2', '-')
    """
    checkpoint = str(arguments.get("model.checkpoint", arguments.get("checkpoint", "-")))
    revision = arguments.get("model.revision")
    name = Path(checkpoint).name if Path(checkpoint).is_absolute() else checkpoint
    return f"{name} @ {revision}" if revision else name


def model_changes(arguments: Mapping[str, Any]) -> list[str]:
    """What a run asked for in place of what the checkpoint says, in words.

    >>> model_changes({"model.experts_per_token": 1, "model.max_crops": 4})
    ['1 expert per token', 'at most 4 crops']
    """
    experts, crops = (arguments.get(name) for name in KNOBS)
    words = []
    if experts is not None:
        words.append(f"{experts} expert{'' if experts == 1 else 's'} per token")
    if crops is not None:
        words.append(f"at most {crops} crop{'' if crops == 1 else 's'}")
    return words
