"""What the tests of the engine share: sets of masks, answers without the engine, and the rows that blocks run."""

from __future__ import annotations

import torch

from lit_depth.functional import find_blocks, leave_one_out, masked, prefix, random
from lit_depth.functional.engine.api import answer_masks, sweep_forward

NEW_TOKENS = 6
FULL = torch.ones(4, dtype=torch.bool)
SETS = {
    "leave one out": torch.stack([FULL, *leave_one_out(4)]),
    "prefix": torch.stack([prefix(4, k) for k in range(1, 5)]),
    "random": torch.stack([random(4, k, seed=k) for k in (1, 2, 2, 3)]),
}


def plain(model, inputs, mask, eos=None, new_tokens=NEW_TOKENS) -> torch.Tensor:
    """What the user would do without the engine, padded to a fixed length."""
    with masked(model, mask):
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=0)[
            :, inputs["input_ids"].shape[1] :
        ]
    return torch.nn.functional.pad(tokens, (0, new_tokens - tokens.shape[1]))


def rows_run(model) -> tuple[list[int], list]:
    """Count rows that go through attention, as a hook on every block's norm sees them."""
    counted: list[int] = []
    norms = [next(m for name, m in block.named_modules() if "norm" in name) for block in find_blocks(model)]
    hooks = [norm.register_forward_hook(lambda _m, args, _o: counted.append(len(args[0]))) for norm in norms]
    return counted, hooks


def get_to_know(model, inputs, answer_ids=None) -> None:
    """The engine compares itself with a model that it has not seen: forwards that are not to be counted."""
    full = torch.ones(1, len(find_blocks(model)), dtype=torch.bool)
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    answer_masks(model, inputs, full, answer_ids=answer_ids, **options)
    sweep_forward(model, inputs, full, logits_to_keep=1)
