"""How a run's model is called in what is told of it: by its checkpoint, its experts and crops, and who skips blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# arguments of the model that make it another one to compare with, and what they are called in a table
KNOBS = {"model.experts_per_token": "experts per token", "model.max_crops": "most crops"}
SKIP_TOKENS = "model.skip_tokens"
_SKIPPING = {
    "all": "all tokens skip blocks",
    "image": "image tokens alone skip blocks",
    "image_drop": "image tokens alone skip blocks, unseen by text there",
}
_WHEN = {"both": "", "decode": ", in decode steps alone", "prefill": ", in prompts alone"}


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
    """What `changed_knobs` tells; and who skips, unless all tokens always do.

    >>> model_changes({"model.max_crops": 4, "model.skip_tokens": "image"})
    ['at most 4 crops', 'image tokens alone skip blocks']
    """
    skipping = who_skips(arguments)
    return [*changed_knobs(arguments), *([] if skipping == who_skips({}) else [skipping])]


def changed_knobs(arguments: Mapping[str, Any]) -> list[str]:
    """What a run asked for in place of what the checkpoint says, in words.

    >>> changed_knobs({"model.experts_per_token": 1, "model.max_crops": 4})
    ['1 expert per token', 'at most 4 crops']
    """
    experts, crops = (arguments.get(name) for name in KNOBS)
    words = []
    if experts is not None:
        words.append(f"{experts} expert{'' if experts == 1 else 's'} per token")
    if crops is not None:
        words.append(f"at most {crops} crop{'' if crops == 1 else 's'}")
    return words


def who_skips(arguments: Mapping[str, Any]) -> str:
    """Which tokens skip blocks, in words, and when, unless always.

    >>> who_skips({}), who_skips({"model.phase": "decode"})
    ('all tokens skip blocks', 'all tokens skip blocks, in decode steps alone')
    """
    phase = arguments.get("model.phase", "both")
    if phase == "prefill" and not arguments.get("model.decode_without_prompt"):
        phase = "both"  # a block that saw no prompt has nothing to decode on
    return _SKIPPING[arguments.get(SKIP_TOKENS, "all")] + _WHEN[phase]


def without_skipping(name: str) -> str:
    """A model's name without the words of `who_skips`.

    >>> without_skipping("mine, 1 expert per token, all tokens skip blocks, in decode steps alone")
    'mine, 1 expert per token'
    """
    found = (name.removesuffix(f", {tokens}{when}") for tokens in _SKIPPING.values() for when in _WHEN.values())
    return min(found, key=len)
