"""What ``lit-depth select`` is asked for, checked before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_depth.functional.arguments import MAX_TOKENS, check_least, check_range
from lit_depth.functional.engine.speculative import MAX_DRAFT
from lit_depth.studies.shared.checks import check_shares

DEFAULT_POLICIES = ("importance", "prefix", "uniform")


@dataclass(frozen=True)
class SelectArguments:
    """The arguments of ``lit-depth select``, which explains them.

    Raises:
        ValueError: If one is out of range, or does not go with another.
    """

    budget_ms: float | None
    complexity: Literal["simple", "medium", "complex"] | None
    comparison: str | None
    latency: str | None
    importance: str | None
    estimate_depth: bool
    policies: Sequence[str] | None
    num_active_blocks: Sequence[int] | None
    keep: list[int]
    num_seeds: int
    num_requests: int | None
    num_checks: int
    margin: float
    new_tokens: int | None
    confidence: float
    max_bad_samples: float
    lossless: bool = False
    max_draft: int = 8

    def __post_init__(self) -> None:
        check_shares(self.confidence, self.max_bad_samples)
        check_least(1, num_requests=self.num_requests, num_checks=self.num_checks)
        check_range(1, MAX_TOKENS, new_tokens=self.new_tokens)
        check_range(1, MAX_DRAFT, max_draft=self.max_draft)
        if self.lossless and self.num_checks < 2:
            raise ValueError(f"expected num_checks of at least 2 with --lossless true, got {self.num_checks}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"expected a margin of at least 0 and below 1, got {self.margin}")
        if self.budget_ms is not None and not 0 < self.budget_ms < float("inf"):
            raise ValueError(f"expected a positive and finite budget_ms, got {self.budget_ms}")
        if self.complexity is not None and self.budget_ms is None:
            raise ValueError(f"expected --budget_ms with the complexity, got {self.complexity!r} alone: give a budget")
        self._check_sources()

    def _check_sources(self) -> None:
        """Masks come from policies, a comparison or an order of importance: what belongs to another one is refused."""
        names = ("complexity", "policies", "num_active_blocks", "keep")
        given = [name for name in names if getattr(self, name)]
        no_masks = {"policies", "num_active_blocks", "keep"}.intersection(given)
        if self.comparison is not None and no_masks:
            raise ValueError(
                f"expected no policies, num_active_blocks or keep with comparison, got {', '.join(sorted(no_masks))}: "
                "comparison brings its own masks"
            )
        unknown = [name for name in given if name != "keep"]
        if self.estimate_depth and unknown:
            raise ValueError(
                "expected no complexity, policies or num_active_blocks with estimate_depth, got "
                f"{', '.join(unknown)}: it knows no quality"
            )
        if self.estimate_depth and (self.importance is None or self.budget_ms is None or self.comparison is not None):
            raise ValueError("estimate_depth needs --importance FILE and --budget_ms, and no --comparison")

    @property
    def adapts(self) -> bool:
        """Whether only masks that some budget would choose are timed, not the best of each depth."""
        return self.num_requests is None and self.latency is None and not self.estimate_depth

    def measured(self) -> dict[str, Any]:
        """Those that measurements depend on, for the manifest: another budget is answered from the same ones."""
        keys = ("comparison", "latency", "estimate_depth", "keep", "num_seeds", "confidence")
        return {key: getattr(self, key) for key in keys}
