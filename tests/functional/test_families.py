"""Laws of the package over many families of models: each holds for every one of them, or is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch

from lit_depth.functional import (
    find_blocks,
    leave_one_out,
    masked,
    proxy_importance,
    reference_logprob,
    token_masking,
)
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.masking.sublayers import find_halves
from tests.helpers.hiding import hidden_one_by_one
from tests.helpers.model_zoo import ZOO, forced_logprob, plain_answers
from tests.helpers.passing import identity_copy
from tests.helpers.pruning import pruned_copy
from tests.helpers.sweep_laws import check_every_entry
from tests.helpers.zeroing import zeroed_copy
from tests.helpers.zoo_hybrids import UNSKIPPABLE_ZOO
from tests.helpers.zoo_images import qwen3_vl
from tests.helpers.zoo_parts import IMAGE_TOKEN

NEW_TOKENS = 4
# those that a fast run looks at: one of each kind
FAST = ("llama", "gemma3", "qwen2_5_vl", "qwen3_vl", "falcon", "bloom", "lfm2", "molmo2", "gpt_oss")
# why the engine leaves a family to the model itself; the others are driven
NOT_DRIVEN = {
    "gpt2": "takes states of the prompt's shape [3, 9] alone, got [12, 1]",
    "gpt2, types": "takes states of the prompt's shape [3, 9] alone, got [12, 1]",
    "gpt_bigcode": "takes states of the prompt's shape [3, 9] alone, got [12, 1]",
    "git": "see 3 rows of 14 tokens, got 3 of 9",
    "deepseek_v32": "indexer",
    "deepseek_v4": "compression",
    "phi3, long": "turn at a length of 11 tokens",
    "moshi": "does not give the answers",
    "mamba": "recurrent state",
    "falcon_h1": "recurrent state",
    "bamba": "recurrent state",
    "lfm2": "recurrent state",
    "jamba": "recurrent state",
    "qwen3_next": "recurrent state",
    "granite_hybrid": "recurrent state",
    "nemotron_h": "recurrent state",
    "recurrent_gemma": "recurrent state",
}
# decode with a cache and without one differently, whole as they are
OTHER_WITHOUT_CACHE = {
    "deepseek_v32": "keys that it attends to tie",
    "moshi": "its cache forgets what lies outside of a window",
    "kosmos2": "it looks for image tokens among all, or among the new ones",
    "blip2": "its generate keeps a cache whatever it is told",
    "instructblip": "its generate keeps a cache whatever it is told",
}
# a configuration that counts kinds of blocks cannot be that of a shorter copy
NOT_PRUNED = ("bamba", "jamba")
HYBRIDS = ("lfm2", "qwen3_next", "granite_hybrid", "nemotron_h", "recurrent_gemma")  # their attention is block 1
DEEP_STACK = {"qwen3_vl": 2, "qwen3_vl_moe": 2}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ZOO]
)
def family(request):
    return request.param, *ZOO[request.param]()


def some_masks(num_blocks: int) -> torch.Tensor:
    """Each single skip, and the last block alone."""
    last = torch.arange(num_blocks) == num_blocks - 1
    return torch.stack([*leave_one_out(num_blocks), last])


def greedy(model, inputs, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens ``[batch, new]`` and logits ``[batch, new, vocabulary]`` of ``generate``."""
    output = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        suppress_tokens=[IMAGE_TOKEN],  # without a cache, a generated image token would ask for another image
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return output.sequences[:, -NEW_TOKENS:], torch.stack(output.logits, dim=1)


def assert_same(found, expected, tolerance: float) -> None:
    """The same tokens, and logits within a share of the largest one."""
    assert torch.equal(found[0], expected[0])
    largest = expected[1].abs().max()
    assert (found[1] - expected[1]).abs().max() <= tolerance * largest


@torch.no_grad()
def test_a_skipped_block_is_the_identity_with_a_cache_and_without(family):
    name, model, inputs = family
    for mask in some_masks(len(find_blocks(model))):
        reference = identity_copy(model, mask)
        forward = reference(**inputs, use_cache=False).logits
        with masked(model, mask):
            assert torch.equal(model(**inputs, use_cache=False).logits, forward)
            if name not in OTHER_WITHOUT_CACHE:
                expected = greedy(reference, inputs, use_cache=False)
                assert_same(greedy(model, inputs, use_cache=False), expected, 1e-6)
                assert_same(greedy(model, inputs), expected, 1e-5)


@pytest.mark.parametrize("name", OTHER_WITHOUT_CACHE)
def test_what_is_left_out_of_the_law_is_another_model_without_a_cache(name):
    model, inputs = ZOO[name]()
    with_cache, without = greedy(model, inputs)[1], greedy(model, inputs, use_cache=False)[1]
    is_ignored = "whatever it is told" in OTHER_WITHOUT_CACHE[name]
    assert torch.equal(with_cache, without) if is_ignored else (with_cache - without).abs().max() > 0.1


def test_masked_equals_pruned(family):
    name, model, inputs = family
    if name in NOT_PRUNED:
        pytest.skip("it has no shorter copy")
    for mask in some_masks(len(find_blocks(model))):
        if (name in HYBRIDS and not mask[1]) or not mask[: DEEP_STACK.get(name, 0)].all():
            continue  # transformers cannot run such a copy, or features would go behind other blocks
        expected = greedy(pruned_copy(model, mask), inputs)
        with masked(model, mask):
            assert_same(greedy(model, inputs), expected, 1e-6)


def test_sublayers_equal_a_copy_with_zeroed_outputs(family):
    name, model, inputs = family
    blocks = find_blocks(model)
    several = torch.ones(1, 2 * len(blocks), dtype=torch.bool).index_fill(1, torch.tensor([1, 4]), False)
    units = torch.cat([leave_one_out(2 * len(blocks)), several])
    if any(find_halves(type(block).forward)[0] is None for block in blocks):
        with pytest.raises(ValueError, match=f"half of a {type(blocks[0]).__name__}.*skip whole blocks instead"):
            masked(model, units[0], granularity="sublayer")
        return
    for mask in units:
        expected = greedy(zeroed_copy(model, mask), inputs)
        with masked(model, mask, granularity="sublayer"):
            assert_same(greedy(model, inputs), expected, 1e-5)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST or name in ("gpt2", "git") else pytest.mark.slow) for name in ZOO],
)
def test_every_entry_of_the_engine_gives_what_one_mask_at_a_time_gives(name):
    model, inputs = ZOO[name]()
    said = check_every_entry(model, inputs)
    if name in NOT_DRIVEN:
        assert len(said) == 1 and NOT_DRIVEN[name] in said[0]
    else:
        assert said == []


ANSWERS = (
    torch.tensor([[5, 6, 7, 8], [20, -100, -100, -100], [9, 30, -100, -100]]),
    torch.tensor([[20, 21, 22], [41, 5, 6], [7, 7, 33]]),
)


@pytest.mark.filterwarnings("ignore:.*one mask after another")
def test_answers_do_not_depend_on_references_nor_references_on_how_they_are_read(family):
    name, model, inputs = family
    rows, num_blocks = len(inputs["input_ids"]), len(find_blocks(model))
    masks = torch.cat([torch.ones(1, num_blocks, dtype=torch.bool), leave_one_out(num_blocks)[1:2]])
    options = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
    expected = []
    for mask in masks:
        with masked(model, mask):
            scores = [forced_logprob(model, inputs, answers[:rows]) for answers in ANSWERS]
            expected.append((plain_answers(model, inputs, 3), scores))
    for number, answers in enumerate(ANSWERS):
        tokens, found = answer_masks(model, inputs, masks, answer_ids=answers[:rows], **options)
        _, alone = answer_masks(model, inputs, masks, answer_ids=answers[:rows], **options | {"max_new_tokens": 0})
        for mask, row, score, scored, (right, scores) in zip(masks, tokens, found, alone, expected):
            assert torch.equal(row, right)
            torch.testing.assert_close(score, scores[number], atol=1e-4, rtol=0)
            torch.testing.assert_close(scored, scores[number], atol=1e-4, rtol=0)
            with masked(model, mask):
                plain = reference_logprob(model, inputs, answers[:rows], pad_token_id=0)
            torch.testing.assert_close(plain, scores[number], atol=1e-4, rtol=0)


# blocks that cannot be taken apart at one position: own attention functions, sinks, other states
NO_TOKEN_MASKING = {
    **dict.fromkeys(("falcon", "falcon, alibi", "mpt", "bloom", "git", "mamba"), "made 0 such calls"),
    **dict.fromkeys(("bamba", "lfm2", "jamba", "qwen3_next", "granite_hybrid", "nemotron_h"), "made 0 such calls"),
    "recurrent_gemma": "made 0 such calls",
    "gpt_oss": "rebuilt like this, the update of block 0",
    "falcon_h1": "rebuilt like this, the update of block 0",
    "deepseek_v32": "expected blocks that run on single positions",
    "deepseek_v4": r"expected hidden states \[1, seq, hidden\]",
}


def test_hiding_tokens_equals_brute_force(family):
    name, model, inputs = family
    one = one_prompt(inputs)
    if name in NO_TOKEN_MASKING:
        with pytest.raises(ValueError, match=NO_TOKEN_MASKING[name]):
            token_masking(model, one)
        return
    frame = token_masking(model, one)
    found = torch.tensor(frame.query("variant == 'Full'")["l2_distance"].to_numpy())
    if name == "ctrl, types":  # what its generate leaves out, and with it what is analysed
        del one["token_type_ids"]
    expected, norms = hidden_one_by_one(model, one)
    assert ((found.view(expected.shape) - expected).abs() <= 2e-6 * norms[:, None]).all()


def one_prompt(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first row, which has no padding or loses it, with its image."""
    shape, real = inputs["attention_mask"].shape, inputs["attention_mask"][0].bool()
    one = {}
    for name, value in inputs.items():
        one[name] = value[:1] if len(value) == shape[0] else value
        if value.shape == shape:
            one[name] = value[:1, real]
    if "image_grid_thw" in inputs:  # patches of all images in one line
        one["pixel_values"] = inputs["pixel_values"][: int(inputs["image_grid_thw"][0].prod())]
    return one


NO_PROXIES = {
    "falcon": "attention_entropy needs attention weights",
    "falcon, alibi": "attention_entropy needs attention weights",
    "mamba": "attention_entropy needs attention weights",
    "git": "padding cannot be told",
    "deepseek_v4": "activation_magnitude: expected a tensor of shape",
}


def test_proxies_are_finite(family):
    name, model, inputs = family
    unlabelled = torch.arange(inputs["input_ids"].shape[1]) < inputs["input_ids"].shape[1] - 3
    batch = inputs | {"labels": inputs["input_ids"].masked_fill(unlabelled, -100)}
    if name in NO_PROXIES:
        with pytest.raises(ValueError, match=NO_PROXIES[name]):
            proxy_importance(model, [batch])
        return
    for method, scores in proxy_importance(model, [batch]).items():
        known = scores.isfinite()
        if method == "attention_entropy" and name in (*HYBRIDS, *NOT_PRUNED):  # blocks without attention have none
            known = known[1]
        assert known.all(), method


# ---- families with laws of their own


@pytest.mark.parametrize("name", ["qwen2_vl", pytest.param("glm4v", marks=pytest.mark.slow)])
def test_positions_of_several_axes_go_on_with_the_row_that_they_belong_to(name):
    """Images take unequal room; rows lie mask after mask, and the model would repeat what it knows row by row."""
    model, inputs = ZOO[name]()
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    deltas = next(module.rope_deltas for module in model.modules() if hasattr(module, "rope_deltas"))
    assert len(deltas.unique()) > 1
    assert check_every_entry(model, inputs) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_features_added_behind_a_block_stay_where_the_block_is_skipped(depth):
    """Behind one block, or behind all of them: then nobody else adds to what the last one returns."""
    model, inputs = qwen3_vl(depth=depth)
    masks = some_masks(3)
    added = copy.deepcopy(model)
    for merger in added.model.visual.deepstack_merger_list:
        merger.linear_fc2.weight.data.zero_()
        merger.linear_fc2.bias.data.zero_()
    said = check_every_entry(model, inputs)
    assert len(said) == (depth == 3)
    for mask in masks:
        with masked(model, mask), torch.no_grad():
            logits = model(**inputs).logits
        with masked(added, mask), torch.no_grad():
            assert (logits - added(**inputs).logits).abs().max() > 0.01  # the features are felt under every mask


@pytest.mark.parametrize("name", UNSKIPPABLE_ZOO)
def test_states_beside_the_residual_stream_are_refused_by_name(name):
    model, inputs = UNSKIPPABLE_ZOO[name]()
    with pytest.raises(ValueError, match=f"cannot skip blocks of {type(model.get_decoder()).__name__}: "):
        masked(model, leave_one_out(len(find_blocks(model)))[0])
    assert plain_answers(model, inputs, 2).shape == (len(inputs["input_ids"]), 2)
