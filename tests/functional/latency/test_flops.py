"""Operations of a request, against sums of products of sizes written down by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lit_depth.functional import find_blocks, masked
from lit_depth.functional.latency.flops import _count as count_here
from lit_depth.functional.latency.flops import count_request
from tests.helpers.tiny_models import tiny_batch, tiny_model
from tests.helpers.tiny_molmo import tiny_inputs, tiny_molmo
from tests.helpers.visual_laws import image_places

NEW_TOKENS = 3


def llava():
    model = tiny_model("llava", num_blocks=3)
    return model, tiny_batch(model, rows=2), 3 * 32 * 48


def molmo():
    """Each token runs two of four experts, and the router looks at each."""
    model = tiny_molmo("olmoe")
    model.generation_config.pad_token_id = 0
    return model, tiny_inputs(rows=2), 2 * 3 * 32 * 48 + 32 * 4


MODELS = {"llava": llava, "molmo": molmo}


def block_flops(model, mlp: int, rows: int, text: int, made: int, keys: int) -> int:
    """Of one block.

    Args:
        mlp: Multiplications of its MLP for one token.
        text: Tokens that have queries and go through the MLP.
        made: Tokens that keys and values are made of.
        keys: Keys that each query sees.
    """
    config = model.config.get_text_config()
    heads, kept = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    projections = text * 2 * 32 * heads * width + made * 2 * 32 * kept * width
    attention = text * keys * 2 * heads * width
    return 2 * rows * (projections + attention + text * mlp)


@pytest.mark.parametrize("tokens", ["all", "visual", "visual_drop"])
@pytest.mark.parametrize("family", MODELS)
def test_blocks_are_counted_as_by_hand(family, tokens):
    model, inputs, mlp = MODELS[family]()
    rows, length = inputs["input_ids"].shape
    text = length - int(image_places(inputs)[0].sum())
    flops = count_request(model, inputs, partial(masked, model, tokens=tokens), new_tokens=NEW_TOKENS)
    by_hand = partial(block_flops, model, mlp, rows)
    whole = by_hand(length, length, length)
    steps = sum(by_hand(1, 1, length + step) for step in (1, 2))
    assert flops.active == {"vision": (0,) * 3, "prefill": (whole,) * 3, "decode": (steps,) * 3}
    # made tokens are text: they run every block that images alone skip
    skipped = (0, 0) if tokens == "all" else (by_hand(text, length, length), steps)
    assert flops.skipped == {"vision": (0,) * 3, "prefill": (skipped[0],) * 3, "decode": (skipped[1],) * 3}
    head = 2 * rows * model.get_output_embeddings().weight.numel()
    assert flops.outside["prefill"] == head and flops.outside["decode"] == 2 * head and flops.outside["vision"] > 0


@pytest.mark.parametrize("tokens", ["all", "visual"])
def test_any_mask_is_the_sum_of_its_blocks(tokens):
    model, inputs, _ = llava()
    context = partial(masked, model, tokens=tokens)
    flops = count_request(model, inputs, context, new_tokens=NEW_TOKENS)
    with torch.no_grad(), context(torch.tensor([False, True, True])):
        counted = count_here(model, inputs, NEW_TOKENS, None)
    assert flops.of_mask("011")["total"] == sum(counted.values())


def test_a_phase_runs_what_the_other_one_skips():
    model = tiny_model("llama")
    flops = count_request(
        model, {"input_ids": torch.ones(1, 5, dtype=torch.long)}, partial(masked, model, phase="decode"), new_tokens=3
    )
    assert flops.skipped["prefill"] == flops.active["prefill"] and set(flops.skipped["decode"]) == {0}


def test_the_model_is_given_back():
    model, inputs, _ = llava()
    blocks = find_blocks(model)
    with pytest.raises(ZeroDivisionError):
        hook = blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
        count_request(model, inputs, partial(masked, model), new_tokens=1)
    hook.remove()
    assert not blocks[0]._forward_hooks and not blocks[0]._forward_pre_hooks and not model._forward_hooks


def test_no_token_is_no_request():
    model, inputs, _ = llava()
    with pytest.raises(ValueError, match="new_tokens"):
        count_request(model, inputs, partial(masked, model), new_tokens=0)
