"""Lightning callbacks; each also works alone in another repository."""

from lit_depth.callbacks.accuracy_drop_importance import AccuracyDropImportance
from lit_depth.callbacks.beam_search_ablation import BeamSearchAblation
from lit_depth.callbacks.block_mask import BlockMask
from lit_depth.callbacks.latency_timer import LatencyTimer
from lit_depth.callbacks.live_progress import LiveProgress
from lit_depth.callbacks.loop_answers import LoopAnswers
from lit_depth.callbacks.mask_sweep import MaskSweep
from lit_depth.callbacks.proxy_importance import ProxyImportance
from lit_depth.callbacks.token_mask_impact import TokenMaskImpact

__all__ = [
    "AccuracyDropImportance",
    "BeamSearchAblation",
    "BlockMask",
    "LatencyTimer",
    "LiveProgress",
    "LoopAnswers",
    "MaskSweep",
    "ProxyImportance",
    "TokenMaskImpact",
]
