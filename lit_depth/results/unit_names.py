"""Names and places of what importance was measured for: blocks, or the attention and the MLP of each.

An entry of a result has ``block``, and for half a block also ``sublayer``: ``attn`` or ``mlp``.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_depth.results.style import whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FOR_IMAGES = {"image": " for image tokens", "image_drop": " for image tokens, unseen by text"}


def unit_name(entry: Mapping[str, Any], separator: str = " ") -> int | str:
    """The block's index; of half a block also which one.

    >>> unit_name({"block": 3}), unit_name({"block": 3, "sublayer": "mlp"}, ".")
    (3, '3.mlp')
    """
    return f"{entry['block']}{separator}{entry['sublayer']}" if "sublayer" in entry else entry["block"]


def units_noun(entries: Sequence[Mapping[str, Any]]) -> str:
    """What the entries are: ``block`` or ``sublayer``."""
    return "sublayer" if entries and "sublayer" in entries[0] else "block"


def unit_places(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where each entry stands on an axis.

    >>> unit_places([{"block": 3, "sublayer": "attn"}, {"block": 3, "sublayer": "mlp"}])
    [6, 7]
    """
    if units_noun(entries) == "block":
        return [entry["block"] for entry in entries]
    return [2 * entry["block"] + (entry["sublayer"] == "mlp") for entry in entries]


def label_units(axes: "Axes", entries: Sequence[Mapping[str, Any]]) -> None:
    """Name the entries along the x axis; of very many blocks only some."""
    places = unit_places(entries)
    if units_noun(entries) == "sublayer":
        axes.set_xticks(places, [str(unit_name(entry)) for entry in entries], rotation=90, fontsize=8)
    elif len(places) <= 32:
        axes.set_xticks(places)
    else:
        whole_numbers(axes.xaxis)


def for_images(result: Mapping[str, Any]) -> str:
    """Words behind what a mask of the result skips, where image tokens alone skip it.

    >>> for_images({"model": {"skip_tokens": "image"}}), for_images({})
    (' for image tokens', '')
    """
    return _FOR_IMAGES.get((result.get("model") or {}).get("skip_tokens", "all"), "")


def skipping(result: Mapping[str, Any]) -> str:
    """What is added to the title of a figure where image tokens alone skip; else nothing.

    >>> skipping({"model": {"skip_tokens": "image"}}), skipping({})
    (', skipped for image tokens', '')
    """
    return f", skipped{for_images(result)}" if for_images(result) else ""


def active_blocks(result: Mapping[str, Any], count: int | None = None) -> str:
    """What an axis of numbers of active blocks is called; with the number of all blocks where it is given.

    >>> active_blocks({}, 16), active_blocks({"model": {"skip_tokens": "image"}}, 16)
    ('active blocks (of 16)', 'blocks active for image tokens (of 16)')
    """
    of = "" if count is None else f" (of {count})"
    return f"blocks active{for_images(result)}{of}" if for_images(result) else f"active blocks{of}"


def unit_names(units: Sequence[int], granularity: str) -> list[str]:
    """Names of the entries of a mask.

    >>> unit_names([2, 3], "block"), unit_names([2, 3], "sublayer")
    (['2', '3'], ['1.attn', '1.mlp'])
    """
    if granularity == "block":
        return [str(unit) for unit in units]
    return [f"{unit // 2}.{('attn', 'mlp')[unit % 2]}" for unit in units]


def list_counts(counts: Sequence[int]) -> str:
    """Numbers of blocks in words; three or more in a row are abbreviated.

    >>> list_counts([4, 8, 12]), list_counts([1, 2, 3, 4, 8, 9]), list_counts([3]), list_counts([])
    ('4, 8 and 12', '1 to 4, 8 and 9', '3', 'none')
    """
    if not counts:
        return "none"
    *most, last = _parts(counts, " to ")
    return f"{', '.join(most)} and {last}" if most else last


def ranges(indices: Sequence[int], separator: str = " ") -> str:
    """Increasing indices in a label; three or more in a row are abbreviated.

    >>> ranges([0, 2, 3, 5, 6, 7, 8]), ranges([1, 4, 6], ", ")
    ('0 2 3 5-8', '1, 4, 6')
    """
    return separator.join(_parts(indices, "-"))


def _parts(counts: Sequence[int], to: str) -> list[str]:
    runs: list[list[int]] = []
    for count in counts:
        if runs and count == runs[-1][-1] + 1:
            runs[-1].append(count)
        else:
            runs.append([count])
    return [str(part) for run in runs for part in ([f"{run[0]}{to}{run[-1]}"] if len(run) > 2 else run)]
