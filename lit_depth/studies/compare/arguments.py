"""What a comparison is asked for, checked before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_depth.functional.arguments import MAX_TOKENS, check_least, check_range
from lit_depth.studies.shared.checks import check_shares
from lit_depth.studies.shared.mask_grid import PlannedMask, check_plan, needs_importance, plan_indices, plan_masks


@dataclass(frozen=True)
class CompareArguments:
    """The arguments of ``lit-depth compare``, as the command names them.

    Raises:
        ValueError: If one is out of range.
    """

    num_blocks: int
    policies: list[str] | None = None
    num_active_blocks: list[int] | None = None
    active_block_indices: list[list[int]] | None = None
    keep: list[int] = field(default_factory=list)
    num_seeds: int = 5
    confidence: float = 0.95
    num_requests: int = 5
    new_tokens: int = 4
    max_bad_samples: float = 0.01
    acceptance: bool = False
    names: list[str] = field(init=False)
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        names, counts = check_plan(self.policies, self.num_active_blocks, self.num_blocks, self.num_seeds, self.keep)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "counts", counts)
        plan_masks(names, counts, self.num_blocks, [0.0] * self.num_blocks, self.num_seeds, self.keep)
        if self.active_block_indices is not None:
            plan_indices(self.active_block_indices, self.num_blocks)
        check_shares(self.confidence, self.max_bad_samples)
        check_least(0, num_requests=self.num_requests)
        # the first token is the prefill's: one alone has no time of its own
        check_range(2 if self.num_requests else 1, MAX_TOKENS, new_tokens=self.new_tokens)

    @property
    def needs_importance(self) -> bool:
        """Whether the plan goes by the importance of blocks."""
        return self.active_block_indices is None and needs_importance(self.names)

    def plan(self, importance: Sequence[float] | None) -> list[PlannedMask]:
        """The masks to compare, given one score per block where they are needed."""
        if self.active_block_indices is not None:
            return plan_indices(self.active_block_indices, self.num_blocks)
        return plan_masks(self.names, self.counts, self.num_blocks, importance, self.num_seeds, self.keep)

    def identity(self, importance: Sequence[float] | None) -> dict[str, Any]:
        """What the manifest holds: all that changes qualities, with the scores that were given, if any.

        >>> CompareArguments(2, ["prefix", "prefix"]).identity(None)["policies"]
        ['prefix']
        """
        return {
            "policies": self.names,
            "num_active_blocks": self.counts,
            "active_block_indices": self.active_block_indices,
            "keep": self.keep,
            "num_seeds": self.num_seeds,
            "importance": importance,
            "confidence": self.confidence,
            **({"acceptance": True} if self.acceptance else {}),
        }
