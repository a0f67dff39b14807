"""Masks of image tokens in the engine: every answer is that of one mask alone, in one pass with masks of all tokens."""

from __future__ import annotations

import warnings

import pytest
import torch

from lit_depth.functional import find_blocks, masked, sweep_forward, sweep_generate
from lit_depth.functional.engine.api import answer_masks, score_continuations
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.masks import MaskSet
from tests.functional.masking.test_visual import DRAWN, FAMILIES, draws
from tests.helpers.sweep_laws import ANSWERS, rows_run
from tests.helpers.visual_laws import NEW_TOKENS, image_places, reference

KINDS = ("visual", "all", "visual_drop")


def mixed(num_blocks: int, count: int) -> tuple[torch.Tensor, list[str]]:
    full = torch.ones(1, num_blocks, dtype=torch.bool)
    masks = torch.cat([full, *(mask[None] for mask in draws(num_blocks, count) for _ in KINDS)])
    return masks, ["all", *KINDS * count]


def alone(model, inputs, mask, kind) -> torch.Tensor:
    with masked(model, mask, tokens=kind):
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    return tokens[:, inputs["input_ids"].shape[1] :]


def last_logits(model, inputs, mask, kind) -> torch.Tensor:
    """Of masks of image tokens those of the definition, without the product's code."""
    if kind == "all":
        with masked(model, mask), torch.no_grad():
            return model(**inputs).logits[:, -1:]
    usual = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    with reference(model, find_blocks(model), mask, image_places(inputs), kind == "visual_drop"), torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[:, -1:]
    model.set_attn_implementation(usual)
    return logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("blocks", "count"), DRAWN)
def test_answers_and_scores_are_those_of_one_mask_alone(family, blocks, count):
    model, inputs = FAMILIES[family](blocks)
    rows = len(inputs["input_ids"])
    answers = torch.cat([ANSWERS, ANSWERS])[:rows]
    masks, kinds = mixed(len(find_blocks(model)), count)
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0, "answer_ids": answers}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing falls back to one mask after another
        found, logprobs = answer_masks(model, inputs, masks, tokens=kinds, **options)
        logits = sweep_forward(model, inputs, masks, logits_to_keep=1, tokens=kinds).logits
    for mask, kind, tokens, logprob, last in zip(masks, kinds, found, logprobs, logits):
        assert torch.equal(tokens, alone(model, inputs, mask, kind)), (mask, kind)
        expected = last_logits(model, inputs, mask, kind)
        torch.testing.assert_close(last, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        one = answer_masks(model, inputs, mask[None], tokens=kind, **options)[1][0]
        torch.testing.assert_close(logprob, one, rtol=0, atol=1e-4)


def test_scores_of_texts_are_those_of_the_definition():
    model, inputs = FAMILIES["llava"]()
    masks, kinds = mixed(3, 2)
    ids = torch.tensor([[5, 6], [7, -100], [8, 9], [4, 3], [11, 12]])
    rows = torch.tensor([0, 0, 1, 2, 3])
    found = score_continuations(model, inputs, masks, ids, rows, pad_token_id=0, tokens=kinds)
    for index, (mask, kind) in enumerate(zip(masks, kinds)):
        for each, row in enumerate(rows.tolist()):
            real = ids[each][ids[each] >= 0]
            longer = {
                "input_ids": torch.cat([inputs["input_ids"][row], real])[None],
                "attention_mask": torch.cat([inputs["attention_mask"][row], torch.ones_like(real)])[None],
                "pixel_values": inputs["pixel_values"][row : row + 1],
            }
            with masked(model, mask, tokens=kind), torch.no_grad():
                positions = (longer["attention_mask"].cumsum(1) - 1).clamp(min=0)
                logits = model(**longer, position_ids=positions).logits[0, -len(real) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, real[:, None]).sum()
            torch.testing.assert_close(found.logprobs[index, each], expected, rtol=1e-4, atol=1e-4)


def test_blocks_run_once_for_each_distinct_beginning():
    model, inputs = FAMILIES["llava"]()
    masks = torch.tensor([[True, True, True], [True, False, True], [True, False, True], [False, True, True]])
    kinds = ["all", "all", "visual", "visual"]
    trie = MaskTrie(MaskSet.of(masks, tokens=kinds))
    # block 0: whole and for text; block 1: whole, for text, and behind the other; block 2: all four
    assert (trie.block_forwards, trie.text_block_forwards, trie.sequential_block_forwards) == (9, 2, 11)
    sweep_generate(model, inputs, masks, 1, tokens=kinds)
    counted, hooks = rows_run(model)
    sweep_generate(model, inputs, masks, 1, tokens=kinds)
    for hook in hooks:
        hook.remove()
    # a block for text is entered twice: for keys and values, and for its text tokens
    assert sum(counted) == (9 + 2) * len(inputs["input_ids"])


def test_a_set_of_masks_says_which_tokens_skip():
    masks = MaskSet.of(["101", "101", "111"], tokens=["all", "visual", "visual"])
    assert masks.unique().kinds == ("all", "visual", "visual")
    assert masks.take([1]).kinds == ("visual",)
    assert masks.union(MaskSet.of("011")).kinds == ("all", "visual", "visual", "all")
    assert MaskSet.of("101", tokens="all").tokens == ()
    with pytest.raises(ValueError, match="tokens for each of 3 masks, got 2"):
        MaskSet.of(["101", "101", "111"], tokens=["all", "visual"])
    with pytest.raises(ValueError, match="tokens as of these masks, all, got visual"):
        MaskSet.of(masks, tokens="visual")
    with pytest.raises(ValueError, match="masks of blocks for image tokens alone"):
        MaskSet.of("1011", granularity="sublayer", tokens="visual")
