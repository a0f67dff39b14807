"""What the full model and its draft share: rows of the prompt, and cache layers before the first skipped block."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional import from_mask_id, speculative_generate
from lit_depth.functional.engine import two_depths
from lit_depth.functional.engine.row_cache import RowCache
from tests.helpers.sweep_laws import get_to_know, rows_run
from tests.helpers.tiny_models import tiny_batch, tiny_model

NEW = 10


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def test_blocks_before_the_first_skipped_one_read_the_prompt_once(llama):
    inputs = {name: value[:1] for name, value in tiny_batch(llama).items()}
    get_to_know(llama, inputs)
    speculative_generate(llama, inputs, from_mask_id("1101"), 2, NEW)  # compared with the model at first
    counted, hooks = rows_run(llama)
    try:
        speculative_generate(llama, inputs, from_mask_id("1101"), 2, 1)
    finally:
        for hook in hooks:
            hook.remove()
    # the last block reads it at both depths, block 2 at full depth alone
    assert sum(counted) == 1 + 1 + 1 + 2


def test_caches_share_the_layers_before_the_first_skipped_block():
    read = RowCache(4, 8)
    read.extent.length = 2
    for layer in read.layers:
        layer.parts = [(torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 2, 3))]
    full, draft = two_depths._caches(read, [True, False, True, True], [0] * 4, [0, -1, 1, 1])
    assert [one is other for one, other in zip(full.layers, draft.layers)] == [True, False, False, False]
    assert [layer.is_initialized for layer in draft.layers] == [True, False, True, True]
    assert full.extent is draft.extent and full.get_seq_length() == 2


def test_a_prompt_is_read_once_for_a_draft_in_the_decode_phase(llama):
    inputs = {name: value[:1] for name, value in tiny_batch(llama).items()}
    speculative_generate(llama, inputs, from_mask_id("0101"), 2, NEW, phase="decode")
    counted, hooks = rows_run(llama)
    try:
        speculative_generate(llama, inputs, from_mask_id("0101"), 2, 1, phase="decode")
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(counted) == 4
