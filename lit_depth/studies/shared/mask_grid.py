"""Which masks a command evaluates: policies at numbers of active blocks, or lists of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_depth.functional import from_indices, mask_id
from lit_depth.functional.arguments import check_range
from lit_depth.functional.masking import policies as policies

MAX_SEEDS = 1000
POLICIES = ("prefix", "importance", "random", "suffix", "uniform")


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


def plan_masks(
    names: Sequence[str],
    counts: Sequence[int],
    num_blocks: int,
    importance: Sequence[float] | None = None,
    num_seeds: int = 5,
    keep: Sequence[int] = (),
) -> list[PlannedMask]:
    """Masks of every policy at every number of active blocks.

    Args:
        names: Policies, see :data:`POLICIES`.
        counts: Numbers of active blocks.
        num_blocks: Blocks of the model.
        importance: One score per block, for the importance policy.
        num_seeds: Masks that the random policy draws at each count.
        keep: Blocks that are active in every mask.

    >>> [(planned.policy, planned.id) for planned in plan_masks(["prefix", "suffix"], [1, 2], 3)]
    [('prefix', '100'), ('prefix', '110'), ('suffix', '001'), ('suffix', '011')]
    """
    plan = []
    for name in names:
        for count in counts:
            if name == "random":
                seeds = range(num_seeds)
                plan += [PlannedMask(name, policies.random(num_blocks, count, seed, keep=keep), seed) for seed in seeds]
            elif name == "importance":
                assert importance is not None
                plan.append(PlannedMask(name, policies.top_k(importance, count, keep=keep)))
            else:
                plan.append(PlannedMask(name, getattr(policies, name)(num_blocks, count, keep=keep)))
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
    policies: Sequence[str] | None,
    counts: Sequence[int] | None,
    num_blocks: int,
    num_seeds: int,
    keep: Sequence[int],
) -> tuple[list[str], list[int]]:
    """Policies and numbers of active blocks that a command asks for, checked; None stands for all."""
    names = list(dict.fromkeys(POLICIES if policies is None else policies))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        raise ValueError(f"policies must be among {', '.join(POLICIES)}, got {', '.join(unknown) or 'none'}")
    # by default every number of blocks that leaves room for those that are always kept
    chosen = list(range(max(1, len(keep)), num_blocks + 1)) if counts is None else sorted(set(counts))
    wrong = [count for count in chosen if not 1 <= count <= num_blocks]
    if wrong or not chosen:
        raise ValueError(f"num_active_blocks must lie in 1..{num_blocks}, got {wrong or 'none'}")
    check_range(1, MAX_SEEDS, num_seeds=num_seeds)
    return names, chosen
