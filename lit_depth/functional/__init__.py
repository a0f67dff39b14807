"""Plain torch and transformers: pure functions and small value types, no Lightning."""

from lit_depth.functional.ablations import ablation_masks, contiguous_spans, importance_order, interaction
from lit_depth.functional.blocks import find_blocks, find_decoder
from lit_depth.functional.importance import ProxyScores, proxy_importance
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
from lit_depth.functional.prompts import run_token_masking
from lit_depth.functional.racing import MaskScores
from lit_depth.functional.scoring import reference_logprob
from lit_depth.functional.search import (
    Ablation,
    SearchLevel,
    SearchResult,
    beam_search,
    exhaustive_search,
    score_ablations,
)
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
from lit_depth.functional.tokens import span_masking, token_masking
from lit_depth.functional.trie import MaskTrie

__all__ = [
    "Ablation",
    "Candidate",
    "Line",
    "MaskScores",
    "MaskTrie",
    "ProxyScores",
    "SearchLevel",
    "SearchResult",
    "ablation_masks",
    "beam_search",
    "check_mask",
    "contiguous_spans",
    "depth_under_budget",
    "exhaustive_search",
    "find_blocks",
    "find_decoder",
    "fit_line",
    "from_indices",
    "from_mask_id",
    "generate",
    "importance_order",
    "interaction",
    "leave_one_out",
    "mask_id",
    "masked",
    "pareto_frontier",
    "percentile_bound",
    "prefix",
    "proxy_importance",
    "random",
    "reference_logprob",
    "request_mask",
    "score_ablations",
    "select_for_budget",
    "run_token_masking",
    "span_masking",
    "suffix",
    "sweep_forward",
    "sweep_generate",
    "threshold",
    "token_masking",
    "top_k",
    "uniform",
]
