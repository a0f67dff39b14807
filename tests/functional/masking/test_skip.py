from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from lit_depth.functional import find_blocks, from_mask_id, leave_one_out, mask_id, masked, random
from tests.helpers.masking_laws import NEW_TOKENS, CountOperations, assert_restored, generate, snapshot
from tests.helpers.model_zoo import plain_answers
from tests.helpers.pruning import pruned_copy
from tests.helpers.tiny_models import FAMILIES, placeholders, tiny_batch, tiny_model
from tests.helpers.zoo_hybrids import bamba, lfm2

# each single skip, and masks that skip neighbours, the middle, and all blocks of one kind of gemma2
MASKS = [mask_id(mask) for mask in leave_one_out(4)] + ["0011", "1001", "0110", "0100"]


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_pruned_equals_cache_free(models, family):
    model = models[family]
    batch = tiny_batch(model)
    for text in MASKS:
        mask = from_mask_id(text)
        pruned = pruned_copy(model, mask)
        with masked(model, mask):
            free_tokens, free_logits = generate(model, batch, use_cache=False)
        for cache in ("dynamic", "lazy", "static"):

            def arguments(cache=cache):
                # a new cache for each call
                return {
                    "dynamic": lambda: {},
                    "lazy": lambda: {"past_key_values": DynamicCache()},
                    "static": lambda: {"cache_implementation": "static"},
                }[cache]()

            expected_tokens, expected_logits = generate(pruned, batch, **arguments())
            with masked(model, mask):
                tokens, logits = generate(model, batch, **arguments())
            label = f"{text} {cache}"
            assert torch.equal(tokens, expected_tokens), label
            assert torch.equal(tokens, free_tokens), label
            torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-5, msg=label)
            torch.testing.assert_close(logits, free_logits, rtol=0, atol=1e-5, msg=label)


@pytest.mark.parametrize("family", ["llama", "gemma2", "llava"])
def test_beam_search_equals_pruned(models, family):
    model = models[family]
    batch = tiny_batch(model)
    for text in ("0111", "1010"):
        kwargs = dict(max_new_tokens=NEW_TOKENS, num_beams=3, do_sample=False)
        expected = pruned_copy(model, from_mask_id(text)).generate(**batch, **kwargs)
        with masked(model, from_mask_id(text)):
            assert torch.equal(model.generate(**batch, **kwargs), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_equals_pruned(models, family):
    model = copy.deepcopy(models[family]).train()
    batch = tiny_batch(model)
    mask = from_mask_id("0101")
    pruned = pruned_copy(model, mask)
    with masked(model, mask):
        loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    expected = pruned(**batch, labels=batch["input_ids"]).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    blocks, kept = find_blocks(model), find_blocks(pruned)
    for block, reference in zip((blocks[1], blocks[3]), kept):
        for (name, parameter), other in zip(block.named_parameters(), reference.parameters()):
            torch.testing.assert_close(parameter.grad, other.grad, msg=name)
    assert all(parameter.grad is None for index in (0, 2) for parameter in blocks[index].parameters())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    model = tiny_model("llama").train()
    batch = tiny_batch(model)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        with masked(model, [False, True, False, True]):
            model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append(find_blocks(model)[1].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
@torch.no_grad()
def test_a_copy_of_a_masked_model_is_masked(models, copied):
    model, mask, other = models["llama"], from_mask_id("0110"), from_mask_id("1010")
    batch = tiny_batch(model)
    with masked(model, mask):
        model(**batch, use_cache=True)
        twin = copy.deepcopy(model) if copied == "deepcopy" else pickle.loads(pickle.dumps(model))
    for use_cache in (False, True):
        expected = pruned_copy(model, mask)(**batch, use_cache=use_cache).logits
        torch.testing.assert_close(twin(**batch, use_cache=use_cache).logits, expected, atol=1e-5, rtol=0)
    with masked(twin, other):
        expected = pruned_copy(model, other)(**batch).logits
        torch.testing.assert_close(twin(**batch).logits, expected, atol=1e-5, rtol=0)


def test_exact_restore_also_after_an_exception(models):
    model = models["llama"]
    batch = tiny_batch(model)
    before, logits = snapshot(model), model(**batch).logits
    list_class = type(find_blocks(model))
    with pytest.raises(RuntimeError, match="inside"), masked(model, from_mask_id("0110")):
        assert list(model.state_dict()) == list(before[0])
        assert len(find_blocks(model)) == 4
        assert not torch.equal(model(**batch).logits, logits)
        raise RuntimeError("inside")
    assert_restored(model, before)
    assert type(find_blocks(model)) is list_class
    assert torch.equal(model(**batch).logits, logits)


def test_instance_forward_survives(models):
    model = copy.deepcopy(models["llama"])
    batch = tiny_batch(model)
    calls = []
    for block_idx in (0, 1):
        block = find_blocks(model)[block_idx]
        # what accelerate does
        block.forward = lambda *args, old=block.forward, i=block_idx, **kwargs: (calls.append(i), old(*args, **kwargs))[
            1
        ]
    own = [block.__dict__.get("forward") for block in find_blocks(model)]
    with masked(model, from_mask_id("0111")):
        model(**batch)
        assert calls == [1]
    assert [block.__dict__.get("forward") for block in find_blocks(model)] == own
    model(**batch)
    assert calls == [1, 0, 1]


def test_inner_mask_replaces_the_outer_one(models):
    model = models["llama"]
    batch = tiny_batch(model)
    reference = {text: pruned_copy(model, from_mask_id(text))(**batch).logits for text in ("0111", "1101", "1111")}
    before = snapshot(model)
    with masked(model, from_mask_id("0111")):
        for inner in ("1101", "1111", "0111"):
            with masked(model, from_mask_id(inner)):
                assert torch.equal(model(**batch, use_cache=True).logits, reference[inner])
                with masked(model, from_mask_id("0111")):
                    cache = model(**batch, use_cache=True).past_key_values
                    assert placeholders(cache) == [True, False, False, False]
                assert torch.equal(model(**batch).logits, reference[inner])
            assert torch.equal(model(**batch).logits, reference["0111"])
    assert_restored(model, before)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_hooks_fire_and_hidden_states_are_complete(models, family):
    model = models[family]
    batch = tiny_batch(model)
    fired: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, index=index: fired.append(index))
        for index, block in enumerate(find_blocks(model))
    ]
    with masked(model, from_mask_id("0101")):
        states = model(**batch, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert fired == [0, 1, 2, 3]
    assert len(states) == 5
    # no copy: the skipped block hands on the very storage it was given
    assert states[1].data_ptr() == states[0].data_ptr() and states[3].data_ptr() == states[2].data_ptr()
    assert not torch.equal(states[2], states[1])


def operations(model: PreTrainedModel, batch: dict, text: str | None = None) -> list[str]:
    """Names of the tensor operations of a prefill and a decoding step, under a mask if there is one."""
    cache = DynamicCache(config=model.config)
    with masked(model, from_mask_id(text)) if text else nullcontext(), CountOperations() as counted:
        model(**batch, past_key_values=cache)
        model(batch["input_ids"][:, :1], past_key_values=cache)
    return counted.names


@pytest.mark.parametrize("family", FAMILIES)
def test_skipping_adds_no_tensor_operation(models, family):
    model = models[family]
    batch = tiny_batch(model)
    for text in ("0111", "1001"):
        assert operations(model, batch, text) == operations(pruned_copy(model, from_mask_id(text)), batch)


def test_global_rng_is_untouched(models):
    model = models["llama"]
    state = torch.get_rng_state()
    with masked(model, random(4, 2, seed=3)):
        model(**tiny_batch(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_wrapped_model(models):
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = models["llava"]

    batch = tiny_batch(models["llava"])
    expected = pruned_copy(models["llava"], from_mask_id("0111"))(**batch).logits
    with masked(Holder(), from_mask_id("0111")):
        assert torch.equal(models["llava"](**batch).logits, expected)
    with masked(Holder(), from_mask_id("0111"), blocks="model.model.language_model.layers"):
        assert torch.equal(models["llava"](**batch).logits, expected)


@pytest.mark.parametrize(
    "mask,message",
    [
        ([True, True, True], "4 blocks, got 3"),
        (torch.ones(4), "dtype torch.bool, got torch.float32"),
        ([1, 0, 1, 1], r"bools, got \[1, 0, 1, 1\]"),
        (torch.ones(1, 2, 4, dtype=torch.bool), r"shape \[4\], got \[1, 2, 4\]"),
        (torch.ones(2, 3, dtype=torch.bool), r"shape \[4\], got \[2, 3\]"),
        (torch.tensor(True), "shape"),
        ([False] * 4, "at least one active block"),
    ],
)
def test_bad_masks_are_refused_before_the_context_is_entered(models, mask, message):
    with pytest.raises(ValueError, match=message):
        masked(models["llama"], mask)


def test_what_is_not_supported_yet_says_so(models):
    mask = torch.ones(4, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="per-row"):
        masked(models["llama"], mask.expand(2, 4))
    for kwargs in ({"granularity": "head"}, {"phase": "encode"}):
        with pytest.raises(ValueError, match="expected .* as '.*' or '"):
            masked(models["llama"], mask, **kwargs)


@pytest.mark.parametrize("build", [bamba, lfm2])
@pytest.mark.parametrize("phases", [{"phase": "decode"}, {"phase": "prefill", "decode_without_prompt": True}])
def test_attention_that_alone_tells_the_length_is_kept_where_phases_differ(build, phases):
    model, inputs = build()
    with masked(model, [True, False, True], **phases):
        with pytest.raises(ValueError, match=r"one active block with attention, .* skips all of them: \[1\]"):
            plain_answers(model, inputs, 2)
    with masked(model, [False, True, True]):
        assert plain_answers(model, inputs, 2).shape == (3, 2)
