"""What the tests of the engine share: sets of masks, answers without the engine, and the rows that blocks run."""

from __future__ import annotations

import warnings

import pytest
import torch

from lit_depth.functional import (
    find_blocks,
    generate,
    leave_one_out,
    masked,
    prefix,
    random,
    sweep_generate,
)
from lit_depth.functional.engine.api import answer_masks, sweep_forward
from tests.helpers.model_zoo import forced_logprob, plain_answers

NEW_TOKENS = 6
FEW_TOKENS = 4
ANSWERS = torch.tensor([[5, 6, 7], [20, -100, -100], [9, 30, -100]])
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


def masks_for(model) -> torch.Tensor:
    num_blocks = len(find_blocks(model))
    return torch.cat([torch.ones(1, num_blocks, dtype=torch.bool), leave_one_out(num_blocks)])


def check_answers_of_kind(model, inputs, **kind) -> None:
    """Answers and scores of a kind of masks are those of each mask alone; what no mask can do is refused."""
    per_block = 2 if "granularity" in kind else 1
    num_units, rows = per_block * len(find_blocks(model)), len(inputs["input_ids"])
    masks = torch.cat([torch.ones(1, num_units, dtype=torch.bool), leave_one_out(num_units)])
    options = {"max_new_tokens": FEW_TOKENS, "eos_token_id": None, "pad_token_id": 0, **kind}
    expected, is_refused = [], False
    for mask in masks:
        try:
            with masked(model, mask, **kind):
                expected.append(
                    (plain_answers(model, inputs, FEW_TOKENS), forced_logprob(model, inputs, ANSWERS[:rows]))
                )
        except (ValueError, AttributeError):  # the latter is transformers', of a cache that is none of its own
            is_refused = True
    if is_refused:
        with pytest.raises((ValueError, AttributeError)):
            answer_masks(model, inputs, masks, answer_ids=ANSWERS[:rows], **options)
        return
    tokens, scores = answer_masks(model, inputs, masks, answer_ids=ANSWERS[:rows], **options)
    for answer, score, (own, own_score) in zip(tokens, scores, expected, strict=True):
        assert torch.equal(answer, own)
        torch.testing.assert_close(score, own_score, atol=1e-5, rtol=1e-6)


def check_every_entry(model, inputs) -> list[str]:
    """Every entry gives what `masked` and ``generate`` or a forward give; what was said meanwhile."""
    masks = masks_for(model)
    expected = []
    for mask in masks:
        with masked(model, mask):
            expected.append(plain_answers(model, inputs, FEW_TOKENS))
    rows = len(inputs["input_ids"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(sweep_generate(model, inputs, masks, FEW_TOKENS), torch.stack(expected))
        tokens, _ = answer_masks(
            model, inputs, masks, max_new_tokens=FEW_TOKENS, eos_token_id=None, pad_token_id=0,
            answer_ids=ANSWERS[:rows], max_rows=2 * rows,
        )  # fmt: skip
        assert torch.equal(tokens, torch.stack(expected))
        of_row = torch.arange(rows)
        answers = generate(model, inputs, masks[of_row], FEW_TOKENS)
        assert torch.equal(answers, torch.stack(expected)[of_row, of_row])
        together = sweep_forward(model, inputs, masks)
        last = sweep_forward(model, inputs, masks, logits_to_keep=1).logits
    for mask, logits, final in zip(masks, together.logits, last):
        with masked(model, mask), torch.no_grad():
            alone = model(**inputs, use_cache=False).logits
        # what stands at padding is nobody's business
        real = inputs["attention_mask"].bool()
        real = real if alone.shape[:2] == real.shape else torch.ones(alone.shape[:2], dtype=torch.bool)
        tolerance = 1e-5 * float(alone[real].abs().max())
        torch.testing.assert_close(logits[real], alone[real], atol=tolerance, rtol=0)
        torch.testing.assert_close(final, alone[:, -1:], atol=tolerance, rtol=0)
    return [str(each.message) for each in caught if "one mask after another" in str(each.message)]
