"""Plain torch and transformers: pure functions and small value types, no Lightning."""

from lit_depth.functional.blocks import find_blocks, find_decoder
from lit_depth.functional.masking import check_mask, from_mask_id, mask_id, masked
from lit_depth.functional.policies import (
    from_indices,
    leave_one_out,
    prefix,
    random,
    suffix,
    threshold,
    top_k,
    uniform,
)
from lit_depth.functional.scoring import reference_logprob
from lit_depth.functional.selection import (
    Candidate,
    Line,
    depth_under_budget,
    fit_line,
    pareto_frontier,
    percentile_bound,
    request_mask,
    select_for_budget,
)
from lit_depth.functional.sweep import generate, sweep_forward, sweep_generate
from lit_depth.functional.trie import MaskTrie

__all__ = [
    "Candidate",
    "Line",
    "MaskTrie",
    "select_for_budget",
    "check_mask",
    "depth_under_budget",
    "find_blocks",
    "find_decoder",
    "fit_line",
    "from_indices",
    "from_mask_id",
    "generate",
    "leave_one_out",
    "mask_id",
    "masked",
    "pareto_frontier",
    "percentile_bound",
    "prefix",
    "random",
    "reference_logprob",
    "request_mask",
    "suffix",
    "sweep_forward",
    "sweep_generate",
    "threshold",
    "top_k",
    "uniform",
]
