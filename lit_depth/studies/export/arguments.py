"""Which mask is exported: given, or the choice of an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lit_depth.functional.arguments import checked
from lit_depth.functional.masks import Granularity, MaskSet
from lit_depth.module import DepthModule
from lit_depth.results.reading import read_object
from lit_depth.studies.shared.identity import check_same_model

# result file of each command that has masks to choose from
RESULTS = {"select": "selection.json", "search": "search.json", "compare": "m5_mask_strategy_comparison.json"}


class Choice(NamedTuple):
    """A mask, and what is known of it."""

    masks: MaskSet  # one
    origin: str
    expected: dict[str, Any] | None = None
    """Quality and drop with their intervals, task, metric and number of samples."""
    latency: dict[str, Any] | None = None
    """Median time of a request in ms, on which device."""


@checked
def given_mask(skip: Sequence[int] | None, mask: str | None, num_units: int, granularity: Granularity) -> Choice:
    """A mask by the units that it skips, or by its id.

    >>> given_mask([1], None, 4, "block").masks.ids, given_mask(None, "1001", 4, "block").masks.ids
    (('1011',), ('1001',))

    Raises:
        ValueError: If there is no such unit, or the mask does not fit.
    """
    if mask is not None:
        return Choice(MaskSet.of(mask, num_units, granularity), f"--mask {mask}")
    skipped = sorted(set(skip or ()))
    wrong = [unit for unit in skipped if not 0 <= unit < num_units]
    if wrong or not skipped:
        raise ValueError(f"--skip: expected {granularity}s from 0 to {num_units - 1}, got {wrong or 'none'}")
    bits = "".join("0" if unit in skipped else "1" for unit in range(num_units))
    return Choice(MaskSet.of(bits, num_units, granularity), f"--skip {' '.join(map(str, skipped))}")


def result_file(run: str) -> Path:
    """The result of a run, given its folder or the file itself.

    Raises:
        ValueError: If there is none with masks to choose from.
    """
    path = Path(run).expanduser()
    found = [path] if path.is_file() else [path / file for file in RESULTS.values() if (path / file).is_file()]
    if len(found) != 1:
        raise ValueError(
            f"--from_run: expected the folder of a run of {', '.join(RESULTS)}, {run} has no result of one"
        )
    return found[0]


def mask_of_run(
    path: Path,
    num_active: int | None,
    policy: str | None,
    num_units: int,
    granularity: Granularity,
    healed: bool = False,
) -> Choice:
    """The mask that a run chose; of a search and a comparison, that of a number of active units.

    Args:
        num_active: Active units; None = what ``select`` selected, or the most that ``search`` removed.
        policy: Of a comparison.
        healed: Whether the mask is to be healed: of a search that patched its masks the best after that is then taken,
            and else the best before.

    Raises:
        ValueError: If the file is no such result, holds no such mask, or one of another model.
    """
    try:
        result = read_object(path)
    except ValueError as error:
        raise ValueError(f"--from_run: {path}: {error}") from error
    choosers: dict[str, Callable[..., tuple[Mapping[str, Any], str]]]
    choosers = {"select": _selected, "search": partial(_found, healed=healed), "compare": _compared}
    command = result.get("command")
    if command not in choosers:
        raise ValueError(f"--from_run: expected a result of {', '.join(choosers)}, {path} is one of {command}")
    try:
        entry, why = choosers[command](result, num_active, policy)
        masks = MaskSet.of(entry["mask_id"], num_units, granularity)
    except (KeyError, TypeError) as error:
        raise ValueError(f"--from_run: {path} is damaged: {error!r} is missing or of another type") from error
    except ValueError as error:
        raise ValueError(f"--from_run: {path}: {error}") from error
    return Choice(masks, f"{command}, {why}", _expected(result, entry), _latency(result, entry))


def _selected(result: Mapping[str, Any], num_active: int | None, policy: str | None) -> tuple[Mapping[str, Any], str]:
    if num_active is not None or policy is not None:
        raise ValueError("select has chosen one mask: leave out --num_active_blocks and --policy")
    if not result["selected"]:
        raise ValueError("expected a run that selected a mask, this one shows the frontier alone: give it --budget_ms")
    return result["selected"], f"selected under a budget of {result['budget_ms']} ms"


def _found(
    result: Mapping[str, Any], num_active: int | None, policy: str | None, healed: bool
) -> tuple[Mapping[str, Any], str]:
    if policy is not None:
        raise ValueError("a search has no policies: leave out --policy")
    healing = result.get("healing")
    if healing and healed:
        of = {tuple(mask["removed"]): mask for mask in healing["masks"]}
        # its quality is that of another patch: of half of the questions
        found = [{"mask_id": of[tuple(level["best_after"])]["mask_id"]} for level in healing["levels"]]
    else:
        found = [entry for entry in result["ablations"] if "search" in entry["found_by"]]
    counts = {entry["mask_id"].count("1"): entry for entry in found}
    count = min(counts) if num_active is None else num_active
    if count not in counts:
        raise ValueError(f"expected --num_active_blocks of a mask that it found ({_or(counts)}), got {count}")
    when = f", ranked {'after' if healed else 'before'} patching" if healing else ""
    return counts[count], f"the best {count} of {len(counts[count]['mask_id'])} that it found{when}"


def _compared(result: Mapping[str, Any], num_active: int | None, policy: str | None) -> tuple[Mapping[str, Any], str]:
    from lit_depth.studies.shared.comparison_schema import validate_comparison  # pydantic, for this file alone

    validate_comparison(result)
    by_name = {(each["policy"], each["num_active_blocks"]): each["masks"] for each in result["strategies"]}
    if num_active is None or policy is None:
        raise ValueError("a comparison has many masks: give --num_active_blocks and --policy")
    if (policy, num_active) not in by_name:
        known = sorted({name for name, _ in by_name}), sorted({count for _, count in by_name})
        raise ValueError(
            f"expected --policy of {_or(known[0])} and --num_active_blocks of {_or(known[1])}, got {policy} and "
            f"{num_active}"
        )
    masks = by_name[policy, num_active]
    if len({mask["mask_id"] for mask in masks}) > 1:
        raise ValueError(
            f"{policy} has {len(masks)} masks of {num_active} blocks: give one by --mask, such as {masks[0]['mask_id']}"
        )
    return masks[0], f"policy {policy} at {num_active} blocks"


def _or(values: Any) -> str:
    return ", ".join(map(str, sorted(values)))


def _expected(result: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Quality on questions that the choice did not look at, where the run knows it."""
    # select keeps what it chose by and what it reports apart
    numbers = entry["expected"] if "chosen_by" in entry else entry
    if not numbers or numbers.get("quality") is None:
        return None
    samples = result.get("report", result).get("num_samples")
    about = {"task": result["task"], "metric": result["metric"], "num_samples": samples}
    kept = {key: numbers.get(key) for key in ("quality", "quality_ci", "drop", "drop_ci")}
    return {**about, "confidence": result.get("confidence"), **kept}


def _latency(result: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any] | None:
    known = entry.get("latency_ms") or {}
    median = known.get("P50") if "P50" in known else (known.get("total") or {}).get("P50")
    if median is None:
        return None
    full = (result.get("full") or {}).get("latency_ms") or {}
    return {
        "request_ms": median,
        "full_request_ms": (full.get("total") or {}).get("P50"),
        "device": result.get("device") or result.get("latency_device"),
    }


def whole_blocks(masks: MaskSet) -> MaskSet | None:
    """A mask of halves as one of whole blocks; None where it skips half of a block.

    >>> whole_blocks(MaskSet.of("1100", granularity="sublayer")).ids, whole_blocks(MaskSet.of("10", None, "sublayer"))
    (('10',), None)
    """
    if masks.granularity == "block":
        return masks
    attention, mlp = masks.bits[:, ::2], masks.bits[:, 1::2]
    return MaskSet.of(attention) if bool((attention == mlp).all()) else None


def choose(
    model: DepthModule,
    skip: Sequence[int] | None,
    mask: str | None,
    from_run: str | None,
    num_active_blocks: int | None,
    policy: str | None,
    healed: bool = False,
) -> Choice:
    """The mask that the arguments of the command ask for; `mask_of_run` says what ``healed`` changes.

    Raises:
        ValueError: If none or several are asked for, or a run was made with another model.
    """
    given = {"--skip": skip, "--mask": mask, "--from_run": from_run}
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"expected exactly one of {', '.join(given)}, got {' and '.join(named) or 'none'}")
    granularity = model.hparams["granularity"]
    if from_run is None:
        if num_active_blocks is not None or policy is not None:
            raise ValueError(f"--num_active_blocks and --policy go with --from_run: leave them out with {named[0]}")
        return given_mask(skip, mask, model.num_units, granularity)
    path = result_file(from_run)
    choice = mask_of_run(path, num_active_blocks, policy, model.num_units, granularity, healed)
    check_same_model(path, "--from_run", model, {})
    # its name, not its place: the card may be read by others
    return choice._replace(origin=f"run {path.resolve().parent.name} of {choice.origin}")
