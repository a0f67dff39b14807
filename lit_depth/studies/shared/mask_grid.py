"""Which masks a command evaluates: policies at numbers of active blocks, or lists of blocks."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_depth.functional import check_mask, from_indices, mask_id
from lit_depth.functional.arguments import check_range
from lit_depth.functional.masking.policies import POLICIES

MAX_SEEDS = 1000


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
        ValueError: If there is none.
    """
    if name in POLICIES:
        return POLICIES[name]
    module, _, function = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function) if module else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policies: expected the dotted path of a function, got {name!r} ({error})") from error
    if not callable(found):
        raise ValueError(f"policies must be among {', '.join(POLICIES)}, or the path of a function, got {name}")
    return found


def needs_importance(names: Sequence[str]) -> bool:
    """Whether one of these policies goes by the importance of blocks.

    >>> needs_importance(["prefix", "uniform"]), needs_importance(["prefix", "importance"])
    (False, True)
    """
    return any("importance" in _parameters(policy(name)) for name in names)


def _parameters(function: Callable[..., Tensor]) -> set[str]:
    return set(inspect.signature(function).parameters)


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
        wanted = _parameters(function)
        given = {"num_blocks": num_blocks, "importance": importance, "keep": keep}
        shared = {key: value for key, value in given.items() if key in wanted}
        for count in counts:
            for seed in range(num_seeds) if "seed" in wanted else [None]:
                own = {"k": count} if seed is None else {"k": count, "seed": seed}
                mask = check_mask(function(**shared, **own), num_blocks)
                if int(mask.sum()) != count:
                    raise ValueError(f"policies: expected {count} active blocks from {name}, got {int(mask.sum())}")
                plan.append(PlannedMask(name, mask, seed))
    return plan


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
        name = "blocks " + " ".join(map(str, mask.nonzero().flatten().tolist()))
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
