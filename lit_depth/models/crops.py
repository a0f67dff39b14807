"""How many crops a picture is cut into at most, whatever a family calls the setting."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# settings that are the largest number of crops, and the setting beside which they are (of other families, such a
# number is one of patches)
_NAMES = {"max_crops": None, "dynamic_hd": None, "max_num_tiles": None, "max_patches": "crop_to_patches"}


def crop_settings(
    images: Any, known: Collection[str], given: Mapping[str, Any], max_crops: int | None
) -> dict[str, Any]:
    """The settings of a part for images by which a picture has at most so many crops, its overview not counted.

    Args:
        images: A processor's part for images; None = the model takes text alone.
        known: Names of its settings.
        given: Those that are set already.
        max_crops: At least 1; None = nothing is asked for.

    Raises:
        ValueError: If it cuts pictures by something else than a largest number, or that is set already.
    """
    if max_crops is None:
        return {}
    if max_crops < 1:
        raise ValueError(f"expected max_crops of at least 1, got {max_crops}")
    kind = type(images).__name__
    name = next((name for name, beside in _NAMES.items() if name in known and beside in (None, *known)), None)
    if images is None or name is None:
        raise ValueError(f"expected no --model.max_crops for {_why_not(images, known)}, got {max_crops}; leave it out")
    if name in given:
        raise ValueError(
            f"expected --model.max_crops or {name} of --model.processor_kwargs, which is the same setting of a {kind}, "
            "got both"
        )
    # the fewest crops of a picture may be more than that
    fewest = min(getattr(images, "min_patches", max_crops), max_crops)
    return {name: max_crops} | ({"min_patches": fewest} if name == "max_patches" and "min_patches" in known else {})


def _why_not(images: Any, known: Collection[str]) -> str:
    if images is None:
        return "a model that takes text alone"
    kind = type(images).__name__
    if "image_grid_pinpoints" in known:
        return f"a {kind}, which cuts a picture by a list of sizes (image_grid_pinpoints) that its model shares"
    if {"max_pixels", "min_pixels"} & set(known) or hasattr(images, "max_pixels"):
        return f"a {kind}, which reads a picture whole (processor_kwargs.max_pixels makes it smaller)"
    return f"a {kind}, which has no largest number of crops among its settings"
