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

__all__ = [
    "check_mask",
    "find_blocks",
    "find_decoder",
    "from_indices",
    "from_mask_id",
    "leave_one_out",
    "mask_id",
    "masked",
    "prefix",
    "random",
    "suffix",
    "threshold",
    "top_k",
    "uniform",
]
