"""Masks that leave recurrent blocks alone: the cache itself counts the tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from lit_depth.functional import masked
from lit_depth.functional.masking.told_length import LengthLayer, count_tokens, tell_length
from tests.helpers.model_zoo import plain_answers
from tests.helpers.zoo_hybrids import jamba, lfm2

RECURRENT = [True, False, True]


def test_a_layer_counts_what_the_cache_is_told():
    cache = DynamicCache()
    count_tokens(cache, (torch.zeros(2, 5, 8),), {})  # nobody asked for it
    cache.layers.append(LengthLayer())
    assert cache.get_seq_length() == 0 and not cache.is_initialized
    tell_length(cache, 0)
    for width, length in ((5, 5), (1, 6)):
        count_tokens(cache, (torch.zeros(2, width, 8),), {})
        assert cache.get_seq_length() == length and cache.get_mask_sizes(1, 0) == (length + 1, 0)
    twin = copy.deepcopy(cache)
    cache.crop(-2)
    assert cache.get_seq_length() == 4 and cache.layers[0].is_initialized
    cache.reset()
    assert cache.get_seq_length() == 0
    count_tokens(twin, (torch.zeros(2, 1, 8),), {})
    assert twin.get_seq_length() == 7
    with pytest.raises(ValueError, match="a mask that skips a block which now runs"):
        cache.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)
    assert cache.layers[0].update(None, None) == (None, None)


@pytest.mark.parametrize("build", [lfm2, jamba])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_decoding_without_attention_equals_recomputation(build, options):
    model, inputs = build()
    with masked(model, RECURRENT):
        expected = plain_answers(model, inputs, 5, **options | {"use_cache": False, "cache_implementation": None})
        assert torch.equal(plain_answers(model, inputs, 5, **options), expected)


@torch.no_grad()
def test_a_cache_goes_on_under_its_own_mask_alone():
    model, inputs = lfm2()
    ids = inputs["input_ids"][:1]
    with masked(model, RECURRENT):
        expected = model(input_ids=ids, use_cache=False).logits[:, -1]
        cache = model(input_ids=ids[:, :-1], use_cache=True).cache
    assert cache.get_seq_length() == ids.shape[1] - 1
    with masked(model, RECURRENT):  # another context, the same mask
        found = model(input_ids=ids[:, -1:], cache=cache).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert cache.get_seq_length() == ids.shape[1]
    with masked(model, [False, True, True]), pytest.raises(ValueError, match="block 1 is active, but this KV cache"):
        model(input_ids=ids[:, -1:], cache=cache)
    with pytest.raises(ValueError, match="make a new cache"):
        model(input_ids=ids[:, -1:], cache=cache)
