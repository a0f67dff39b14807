"""KV caches under a block mask: who owns a layer of them, and which caches are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from lit_depth.functional import from_mask_id, masked
from tests.helpers.pruning import pruned_copy
from tests.helpers.tiny_models import FAMILIES, WINDOW, placeholders, tiny_batch, tiny_model


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {family: tiny_model(family) for family in FAMILIES}


def test_kv_cache_made_inside_the_decoder(models):
    model = models["llama"]
    with masked(model, from_mask_id("0101")):
        cache = model(**tiny_batch(model), use_cache=True).past_key_values
        assert placeholders(cache) == [True, False, True, False]
        assert cache.get_seq_length() == 8
        assert [entry.keys is None for entry in cache.layers] == placeholders(cache)


def test_per_layer_lists_keep_the_entries_of_their_own_blocks(models):
    model = models["gemma2"]
    batch = tiny_batch(model)
    dynamic, static = DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=16)
    with masked(model, from_mask_id("0111")):
        model(**batch, past_key_values=dynamic)
        model(**batch, past_key_values=static)
    assert [type(entry) for entry in dynamic.layers[1:]] == [DynamicLayer, DynamicLayer, DynamicSlidingWindowLayer]
    assert isinstance(dynamic.layers[0], DummyLayer) and isinstance(static.layers[0], DummyLayer)
    assert dynamic.layers[3].sliding_window == WINDOW
    assert isinstance(static.layers[1], StaticLayer) and static.is_compileable


@pytest.mark.parametrize("make_cache", [DynamicCache, "config", "static"])
@pytest.mark.parametrize("first,second", [("0111", "1111"), ("1111", "0111"), ("0111", "1011"), ("1011", "1010")])
def test_cache_of_another_mask_is_refused(models, make_cache, first, second):
    model = models["llama"]
    batch = tiny_batch(model)
    if make_cache == "config":
        cache = DynamicCache(config=model.config)
    elif make_cache == "static":
        cache = StaticCache(model.config, max_cache_len=32)
    else:
        cache = make_cache()
    with masked(model, from_mask_id(first)):
        model(**batch, past_key_values=cache)
    with masked(model, from_mask_id(second)), pytest.raises(ValueError, match="make a new cache"):
        model(batch["input_ids"][:, -1:], past_key_values=cache)
    # the refusal left the cache usable
    assert int(cache.get_seq_length()) == 8
    with masked(model, from_mask_id(first)):
        model(batch["input_ids"][:, -1:], past_key_values=cache)


def test_masked_cache_is_refused_by_the_whole_model_and_unmasked_cache_by_a_mask(models):
    model = models["llama"]
    batch = tiny_batch(model)
    with masked(model, from_mask_id("0111")):
        cache = model(**batch, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="make a new cache"):
        model(batch["input_ids"][:, -1:], past_key_values=cache)
    cache = model(**batch, use_cache=True).past_key_values
    with masked(model, from_mask_id("1110")), pytest.raises(ValueError, match=r"blocks \[3\]"):
        model(batch["input_ids"][:, -1:], past_key_values=cache)


def test_cache_of_the_wrong_size_is_refused(models):
    model = models["llama"]
    cache = DynamicCache(config=tiny_model("llama", num_blocks=3).config)
    with masked(model, from_mask_id("0111")), pytest.raises(ValueError, match="each of 4 blocks, got 3"):
        model(**tiny_batch(model), past_key_values=cache)


def test_emptied_cache_is_accepted(models):
    model = models["llama"]
    batch = tiny_batch(model)
    cache = StaticCache(model.config, max_cache_len=16)
    model(**batch, past_key_values=cache)
    cache.reset()
    with masked(model, from_mask_id("0111")):
        logits = model(**batch, past_key_values=cache).logits
        torch.testing.assert_close(logits, model(**batch).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_cache_in_any_form_is_left_alone(models):
    decoder, batch = models["llama"].get_decoder(), tiny_batch(models["llama"])
    keys = torch.zeros(4, 2, 8, 8)
    with masked(models["llama"], from_mask_id("0110")):
        outputs = decoder(**batch, use_cache=True)
        positional = decoder(batch["input_ids"], batch["attention_mask"], None, None, use_cache=True)
        assert torch.equal(positional.last_hidden_state, outputs.last_hidden_state)
        with pytest.raises(AttributeError):  # transformers' own answer
            decoder(batch["input_ids"][:, -1:], past_key_values=((keys, keys),) * 4, use_cache=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_every_forward_gets_a_cache_of_its_own_from_the_decoder(models, family):
    model, mask = models[family], from_mask_id("0101")
    batch, pruned = tiny_batch(model), pruned_copy(models[family], mask)
    expected = pruned(**batch, use_cache=True)
    with masked(model, mask):
        outputs = [model(**batch, use_cache=True) for _ in range(3)]
        more = model(**batch, use_cache=True, past_key_values=DynamicCache())  # without sliding windows
        last = model(**batch, use_cache=True)
        with masked(model, from_mask_id("1110")):
            assert placeholders(model(**batch, use_cache=True).past_key_values) == [False, False, False, True]
    caches = [output.past_key_values for output in (*outputs, more, last)]
    of_each = [{id(entry) for entry in cache.layers} for cache in caches]  # within one, the placeholder is the same
    assert len(set.union(*of_each)) == sum(map(len, of_each)) == 5 * 3
    for output in (*outputs, last):
        assert torch.equal(output.logits, expected.logits)
        entries = [entry for entry in output.past_key_values.layers if not isinstance(entry, DummyLayer)]
        assert [type(entry) for entry in entries] == [type(entry) for entry in expected.past_key_values.layers]
        for entry, other in zip(entries, expected.past_key_values.layers):
            assert torch.equal(entry.keys, other.keys) and torch.equal(entry.values, other.values)
