"""Blocks run again at the final position alone."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional import find_blocks, token_masking
from lit_depth.functional.token_masking.capture import recording
from lit_depth.functional.token_masking.replay import (
    check_rebuilt,
    in_float32,
    note_calls,
    replay,
    weights_in_float32,
)
from tests.helpers.tiny_models import tiny_model

TOKENS = torch.arange(2, 13)[None]


def test_products_are_exact_and_the_setting_comes_back():
    model, seen = tiny_model("llama"), []
    model.model.layers[1].mlp.register_forward_pre_hook(
        lambda module, args: seen.append(torch.get_float32_matmul_precision())
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # TF32 on a GPU, bfloat16 on some CPUs
    try:
        token_masking(model, {"input_ids": TOKENS})
        assert seen == ["highest"] * 2 and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def test_a_replayed_block_gives_what_the_forward_gave():
    """With the heads' own outputs, recomputed from the recorded logits and values."""
    model = tiny_model("llama")
    blocks = find_blocks(model)
    with recording(blocks, model.config) as recorder:
        calls, _ = note_calls(lambda: model(TOKENS, use_cache=False), blocks, recorder)
        for block_idx, block in enumerate(blocks):
            (attention,) = recorder.attentions[block]
            values = attention.values.repeat_interleave(len(attention.logits) // len(attention.values), dim=0)
            heads = (attention.logits.softmax(-1)[:, None] @ values)[:, 0]
            _, update = replay(
                block, "block", calls[block_idx], attention.module, recorder, torch.stack([heads, 2 * heads])
            )
            expected = (calls[block_idx].output - calls[block_idx].hidden)[0, -1]
            torch.testing.assert_close(update[0], expected, rtol=1e-4, atol=1e-5)
            check_rebuilt("block", calls[block_idx], update[0])
            with pytest.raises(ValueError, match="is off by"):
                check_rebuilt("block", calls[block_idx], update[1])


def test_low_precision_weights_come_back_as_the_same_tensors():
    block = torch.nn.Linear(3, 3).to(torch.bfloat16)
    stored = block.weight.data_ptr()
    with weights_in_float32(block) as raised:
        assert raised and block.weight.dtype == torch.float32
    assert block.weight.data_ptr() == stored and block.weight.dtype == torch.bfloat16
    with weights_in_float32(torch.nn.Linear(3, 3)) as raised:
        assert not raised


def test_hidden_keys_of_16_bit_masks_stay_hidden_in_float32():
    mask = torch.tensor([0.0, torch.finfo(torch.bfloat16).min], dtype=torch.bfloat16)
    (raised,) = in_float32((mask,))
    assert raised.tolist() == [0.0, -torch.inf] and raised.dtype == torch.float32
    assert in_float32({"a": 1, "b": torch.ones(2)})["b"].dtype == torch.float32
