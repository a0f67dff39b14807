"""Which masks a command evaluates: policies at numbers of active blocks, or lists of blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_depth.functional import check_mask, from_indices, mask_id
from lit_depth.functional.arguments import check_range
from lit_depth.functional.class_paths import object_at, signature_of, taken_by
from lit_depth.functional.masking.policies import POLICIES
from lit_depth.results.unit_names import ranges

MAX_SEEDS = 1000
# what a policy is given, as far as its signature names it
GIVEN = ("num_blocks", "k", "importance", "keep", "seed")


@dataclass(frozen=True)
class PlannedMask:
    """One mask to evaluate, and why."""

    policy: str
    mask: Tensor
    seed: int | None = None

    @property
    def id(self) -> str:
        return mask_id(self.mask)

    @property
    def count(self) -> int:
        return int(self.mask.sum())


def policy(name: str) -> Callable[..., Tensor]:
    """A policy by its name, or a function of one's own by its dotted path.

    >>> policy("lit_depth.functional.prefix") is policy("prefix")
    True

    Raises:
        ValueError: If there is none, or it needs what no policy is given.
    """
    if name in POLICIES:
        return POLICIES[name]
    if "." not in name:
        raise ValueError(f"policies must be among {', '.join(POLICIES)}, or the path of a function, got {name}")
    found = object_at(name, "a policy")
    if taken_by(found, GIVEN) is None:
        raise ValueError(
            f"policies: expected a function of some of {', '.join(GIVEN)}, got {name}{signature_of(found) or ''}"
        )
    return found


def needs_importance(names: Sequence[str]) -> bool:
    """Whether one of these policies goes by the importance of blocks.

    >>> needs_importance(["prefix", "uniform"]), needs_importance(["prefix", "importance"])
    (False, True)
    """
    return any("importance" in (taken_by(policy(name), GIVEN) or ()) for name in names)


def plan_masks(
    names: Sequence[str],
    counts: Sequence[int],
    num_blocks: int,
    importance: Sequence[float] | None = None,
    num_seeds: int = 5,
    keep: Sequence[int] = (),
) -> list[PlannedMask]:
    """Masks of every policy at every number of active blocks.

    Raises:
        ValueError: If a policy gives anything but a mask of so many blocks.

    >>> [(planned.policy, planned.id) for planned in plan_masks(["prefix", "suffix"], [1, 2], 3)]
    [('prefix', '100'), ('prefix', '110'), ('suffix', '001'), ('suffix', '011')]
    """
    plan = []
    for name in names:
        function = policy(name)
        wanted = taken_by(function, GIVEN) or ()
        for count in counts:
            for seed in range(num_seeds) if "seed" in wanted else [None]:
                given = {"num_blocks": num_blocks, "k": count, "importance": importance, "keep": keep, "seed": seed}
                mask = function(**{key: given[key] for key in wanted})
                plan.append(PlannedMask(name, _check_made(name, mask, num_blocks, count), seed))
    return plan


def mask_names(plan: Sequence[PlannedMask]) -> dict[str, list[str]]:
    """Ids of the masks of every policy at every number of active blocks, by a name of the two.

    >>> mask_names(plan_masks(["prefix", "suffix"], [1], 2))
    {'prefix_1': ['10'], 'suffix_1': ['01']}
    """
    names: dict[str, list[str]] = {}
    for planned in plan:
        ids = names.setdefault(f"{planned.policy}_{planned.count}", [])
        if planned.id not in ids:
            ids.append(planned.id)
    return names


def _check_made(name: str, mask: Tensor, num_blocks: int, count: int) -> Tensor:
    """What a policy made, as a mask of so many active blocks."""
    try:
        mask = check_mask(mask, num_blocks)
        if int(mask.sum()) != count:
            raise ValueError(f"expected {count} active blocks, got {int(mask.sum())}")
    except ValueError as error:
        raise ValueError(f"policies: {name}: {error}") from error
    return mask


def plan_indices(index_lists: Sequence[Sequence[int]], num_blocks: int) -> list[PlannedMask]:
    """Masks given by their active blocks; each is a policy of its own, named by its blocks.

    >>> [planned.policy for planned in plan_indices([[0, 2], [1], [2, 0]], 3)]
    ['blocks 0 2', 'blocks 1', 'blocks 0 2 (2)']
    """
    if not index_lists:
        raise ValueError("active_block_indices must hold at least one list of blocks, got none")
    masks = [from_indices(num_blocks, indices) for indices in index_lists]
    plan: list[PlannedMask] = []
    for mask in masks:
        name = f"blocks {ranges(mask.nonzero().flatten().tolist())}"
        # a mask given twice is reported twice (and evaluated once)
        given = sum(torch.equal(mask, planned.mask) for planned in plan)
        plan.append(PlannedMask(f"{name} ({given + 1})" if given else name, mask))
    return plan


def check_plan(
    policies: Sequence[str] | None, counts: Sequence[int] | None, num_blocks: int, num_seeds: int, keep: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Policies and numbers of active blocks that a command asks for, checked; None stands for all."""
    names = list(dict.fromkeys(POLICIES if policies is None else policies))
    if not names:
        raise ValueError(f"policies must be among {', '.join(POLICIES)}, got none")
    for name in names:
        policy(name)
    # by default every number of blocks that leaves room for those that are always kept
    chosen = list(range(max(1, len(keep)), num_blocks + 1)) if counts is None else sorted(set(counts))
    wrong = [count for count in chosen if not 1 <= count <= num_blocks]
    if wrong or not chosen:
        raise ValueError(f"num_active_blocks must lie in 1..{num_blocks}, got {wrong or 'none'}")
    check_range(1, MAX_SEEDS, num_seeds=num_seeds)
    return names, chosen
