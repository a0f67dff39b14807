"""Stand-ins for the forward of a block."""

from __future__ import annotations

import pickle

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer

from lit_depth.functional import find_blocks, from_mask_id, masked
from lit_depth.functional.masking.forwards import Identity, decoded_columns, num_outputs, shared_identity
from lit_depth.functional.masking.phase_cache import DecodedLayer
from tests.helpers.tiny_models import FAMILIES, tiny_batch, tiny_model

PREFILL = {"phase": "prefill", "decode_without_prompt": True}


def generate(model: PreTrainedModel, **options) -> torch.Tensor:
    return model.generate(**tiny_batch(model), max_new_tokens=6, do_sample=False, **options)


def test_too_narrow_masks_of_windows_are_refused():
    # gemma2's blocks 0 and 3 slide: without another block the masks end where the window does
    model = tiny_model("gemma2")
    with masked(model, from_mask_id("1001"), **PREFILL), pytest.raises(ValueError, match="attends as far"):
        generate(model, cache=StaticCache(model.config, max_cache_len=24))


def test_alibi_is_refused_without_the_prompt():
    model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=3, n_head=4)).eval()
    with masked(model, [False, True, True], phase="decode"):
        generate(model)
    with masked(model, [False, True, True], **PREFILL), pytest.raises(ValueError, match="alibi"):
        generate(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skipped_block_returns_its_input_in_the_form_of_the_block(family):
    """The form is read from the source of the block, and compared with what the block returns."""
    model = tiny_model(family)
    returned = []
    hook = find_blocks(model)[0].register_forward_hook(lambda _block, _args, output: returned.append(output))
    model(**tiny_batch(model), use_cache=False)
    hook.remove()
    count = num_outputs(type(find_blocks(model)[0]).forward)
    assert count == (None if isinstance(returned[0], torch.Tensor) else len(returned[0]))
    hidden = torch.rand(2, 3, 4)
    output = Identity(count)(hidden, None, use_cache=False)
    assert (output if count is None else output[0]) is hidden
    assert count is None or output[1:] == (None,) * (count - 1)


def first_of_two(self, hidden_states):
    outputs = (hidden_states, None)
    return outputs


def extended(self, hidden_states, weights):
    return (hidden_states,) + weights


def bare(self, hidden_states):
    return hidden_states


@pytest.mark.parametrize(("forward", "count"), [(first_of_two, 2), (extended, 1), (bare, None), (len, None)])
def test_the_number_of_outputs_is_that_of_the_returned_tuple(forward, count):
    assert num_outputs(forward) == count


def test_blocks_share_the_identity_and_copies_of_it_work():
    assert shared_identity(None) is shared_identity(None) is not shared_identity(2)
    hidden = torch.rand(1, 2, 3)
    assert pickle.loads(pickle.dumps(shared_identity(None)))(hidden) is hidden


@pytest.mark.parametrize("hidden", [False, torch.finfo(torch.float32).min])
def test_masks_are_cut_to_the_decoded_columns(hidden):
    """A prompt of 3 tokens, of which the block has no keys, 2 decoded ones, and the new one."""
    layer = DecodedLayer(DynamicLayer())
    layer.prompt_length = 3
    layer.is_open = True
    layer.update(torch.rand(1, 1, 2, 4), torch.rand(1, 1, 2, 4))
    mask = torch.arange(6).float()[None, None, None] if hidden else torch.tensor([[[[True, False] * 3]]])
    assert torch.equal(decoded_columns(mask, layer, num_new=1), mask[..., 3:])
    assert decoded_columns(None, layer, num_new=1) is None
    with pytest.raises(ValueError, match="expected a tensor as attention mask, got object"):
        decoded_columns(object(), layer, num_new=1)
