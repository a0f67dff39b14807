"""Plain torch and transformers: pure functions and small value types, no Lightning."""

from lit_depth.functional.engine.api import generate, sweep_forward, sweep_generate
from lit_depth.functional.engine.speculative import SpeculativeAnswers, speculative_generate
from lit_depth.functional.engine.static_decode import StaticDecoder
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.healing.patch import patch
from lit_depth.functional.importance.proxies import ProxyScores, proxy_importance
from lit_depth.functional.importance.spans import least_turning_span, span_distances
from lit_depth.functional.inputs import reference_logprob
from lit_depth.functional.latency.budget import (
    Candidate,
    Line,
    depth_under_budget,
    fit_line,
    pareto_frontier,
    percentile_bound,
    request_mask,
    select_for_budget,
)
from lit_depth.functional.lens import LensReading, logit_lens
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.masking.policies import (
    from_indices,
    leave_one_out,
    prefix,
    random,
    suffix,
    threshold,
    top_k,
    uniform,
)
from lit_depth.functional.masking.skip import masked
from lit_depth.functional.masks import MaskSet, check_mask, from_mask_id, mask_id
from lit_depth.functional.search.ablations import ablation_masks, contiguous_spans, importance_order, interaction
from lit_depth.functional.search.beam import (
    Ablation,
    SearchLevel,
    SearchResult,
    beam_search,
    exhaustive_search,
    score_ablations,
)
from lit_depth.functional.search.pairwise import pairwise_search
from lit_depth.functional.search.racing import MaskScores
from lit_depth.functional.search.second_order import fit_second_order, singles_and_pairs
from lit_depth.functional.statistics.stability import Stability, best_of, decision_stability, least
from lit_depth.functional.statistics.transfer import transfer_regret
from lit_depth.functional.statistics.winner import Winner, winner_interval
from lit_depth.functional.token_masking.distances import span_masking, token_masking
from lit_depth.functional.token_masking.knockout import Knockouts, span_knockout
from lit_depth.functional.token_masking.prompt import run_token_masking

__all__ = [
    "Ablation",
    "Candidate",
    "Knockouts",
    "LensReading",
    "Line",
    "MaskScores",
    "MaskSet",
    "MaskTrie",
    "ProxyScores",
    "SearchLevel",
    "SearchResult",
    "SpeculativeAnswers",
    "Stability",
    "StaticDecoder",
    "Winner",
    "ablation_masks",
    "beam_search",
    "best_of",
    "check_mask",
    "contiguous_spans",
    "decision_stability",
    "depth_under_budget",
    "exhaustive_search",
    "find_blocks",
    "find_decoder",
    "fit_line",
    "fit_second_order",
    "from_indices",
    "from_mask_id",
    "generate",
    "importance_order",
    "interaction",
    "least",
    "least_turning_span",
    "leave_one_out",
    "logit_lens",
    "mask_id",
    "masked",
    "pairwise_search",
    "pareto_frontier",
    "patch",
    "percentile_bound",
    "prefix",
    "proxy_importance",
    "random",
    "reference_logprob",
    "request_mask",
    "score_ablations",
    "select_for_budget",
    "run_token_masking",
    "span_knockout",
    "singles_and_pairs",
    "span_distances",
    "span_masking",
    "speculative_generate",
    "suffix",
    "sweep_forward",
    "sweep_generate",
    "threshold",
    "token_masking",
    "top_k",
    "transfer_regret",
    "uniform",
    "winner_interval",
]
