"""Read what ``lit-depth compare`` and ``lit-depth latency`` measured, for a choice among their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_depth.results.reading import read_object
from lit_depth.results.schema import validate_comparison

# what is kept of a mask; the last three are not in files of earlier versions
_KEYS = ("quality", "quality_ci", "drop", "drop_ci", "drop_simultaneous_ci", "drop_p_holm", "num_distinct_answers")


class Option(NamedTuple):
    """A mask that may be chosen, and how good it is (``quality``, ``quality_ci``, ``drop``, ``drop_ci``)."""

    mask_id: str
    policies: list[str]
    chosen_by: dict[str, Any] | None  # on the questions that the choice looks at
    expected: dict[str, Any] | None  # on others, where there are others


def quality_by_mask(
    full: Mapping[str, Any], strategies: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Policies and quality of every mask of a comparison.

    Args:
        full: The full model, a `lit_depth.results.schema.MaskResult`.
        strategies: All policies at all counts, each a `lit_depth.results.schema.Strategy`.

    >>> shares = {"quality_ci": [0.5, 0.7], "drop_ci": [0.2, 0.4]}
    >>> full = {"mask_id": "11", "quality": 0.9, "drop": 0.0, **shares}
    >>> half = {"mask_id": "10", "quality": 0.6, "drop": 0.3, **shares}
    >>> found = quality_by_mask(full, [{"policy": name, "masks": [half]} for name in ("prefix", "uniform")])
    >>> {mask: (policies, entry["quality"]) for mask, (policies, entry) in found.items()}
    {'11': (['full'], 0.9), '10': (['prefix', 'uniform'], 0.6)}
    """
    found = {full["mask_id"]: (["full"], {key: full.get(key) for key in _KEYS})}
    for strategy in strategies:
        for entry in strategy["masks"]:
            names, _ = found.setdefault(entry["mask_id"], ([], {key: entry.get(key) for key in _KEYS}))
            if strategy["policy"] not in names:
                names.append(strategy["policy"])
    return found


def read_comparison(path: str, num_blocks: int, task: str) -> tuple[list[Option], dict[str, Any] | None]:
    """Masks of ``m5_mask_strategy_comparison.json``, chosen by the quality that it reports, and its ``baseline``.

    Args:
        path: The file.
        num_blocks: Blocks of the model that the masks are for.
        task: Name of the task that they are chosen for.

    Raises:
        ValueError: If the file cannot be read, or is of another task or number of blocks.
    """
    try:
        content = validate_comparison(read_object(path))
    except ValueError as error:
        raise ValueError(
            f"comparison: expected the JSON file that `lit-depth compare` writes: {path}: {error}"
        ) from error
    for what, there, now in (("blocks", content["num_blocks"], num_blocks), ("task", content["task"], task)):
        if there != now:
            raise ValueError(f"comparison: {path} was measured with {what} {there}, this run has {now}")
    found = quality_by_mask(content["full"], content["strategies"])
    # one split only: what is chosen by these numbers looks a little better in them than it is
    options = [Option(mask, names, entry, None) for mask, (names, entry) in found.items()]
    return options, content.get("baseline")  # type: ignore[return-value]


def read_latency(path: str, num_blocks: int, new_tokens: int, device: str) -> dict[str, list[float]]:
    """Total times in milliseconds by mask of the ``latency.json`` that ``lit-depth latency`` writes.

    Args:
        path: The file; ``latency_details.json`` beside it, where there is one, tells the batch size and the device.
        num_blocks: Blocks of the model.
        new_tokens: Tokens that every request must have generated.
        device: Name of the device that the times are compared with.

    Raises:
        ValueError: If the file cannot be read or holds no request, or is of other requests or another device.
    """
    try:
        samples = read_object(path)["all_samples"]
        rows = [
            (set(row["active_block_indices"]), row["num_total_blocks"], float(row["T_total"]), row["num_output_tokens"])
            for row in samples
        ]
        details = Path(path).with_name("latency_details.json")
        run = read_object(details) if details.is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"latency: expected the latency.json that `lit-depth latency` writes: {path}: {error}"
        ) from error
    now = {"batch_size": 1, "device": device}
    for key, value in now.items():
        if run.get(key, value) != value:
            raise ValueError(f"latency: {path} was measured with {key} {run[key]}, this run has {value}")
    times: dict[str, list[float]] = {}
    for active, total_blocks, total, output in rows:
        if total_blocks != num_blocks or output != new_tokens:
            raise ValueError(
                f"latency: {path} has requests of {output} new tokens and {total_blocks} blocks, "
                f"this run has {new_tokens} and {num_blocks}"
            )
        times.setdefault("".join("1" if index in active else "0" for index in range(num_blocks)), []).append(total)
    if not times:
        raise ValueError(f"latency: {path} holds no request")
    return times
