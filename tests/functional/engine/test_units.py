"""Masks of halves of blocks in the engine: every answer is that of one mask alone, in one pass, halves shared."""

from __future__ import annotations

import warnings

import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, from_mask_id, leave_one_out, masked, random, reference_logprob
from lit_depth.functional.engine.api import answer_masks, generate, score_continuations, sweep_forward, sweep_generate
from lit_depth.functional.engine.decoding_configuration import CannotDriveError
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.engine.units import units_in
from lit_depth.functional.masks import MaskSet
from lit_depth.models.loading import load_bundled
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from tests.helpers.tiny_models import FAMILIES, tiny_batch, tiny_model

HALVED = [family for family in FAMILIES if family not in ("gpt_neox", "falcon")]
ANSWERS = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 10, -100], [11, 12, 13]])
SUBLAYERS = {"granularity": "sublayer"}
NEW_TOKENS = 4
# one attention alone, one block alone, halves of all blocks, both halves of a block and a half
SOME = torch.stack([from_mask_id(text) for text in ("00000010", "00110000", "10101010", "11001011", "01110111")])


def draws(num_units: int, count: int) -> torch.Tensor:
    """The full model, single skips, and random masks that keep an attention."""
    found = [random(num_units, 1 + seed % (num_units - 1), seed=seed) for seed in range(4 * count)]
    kept = [mask for mask in found if mask[::2].any()][:count]
    return torch.stack([torch.ones(num_units, dtype=torch.bool), *leave_one_out(num_units), *kept])


def alone(model, inputs, mask) -> torch.Tensor:
    with masked(model, mask, **SUBLAYERS):
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    return tokens[:, inputs["input_ids"].shape[1] :]


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.mark.parametrize("family", HALVED)
@pytest.mark.parametrize("count", [2, pytest.param(40, marks=[pytest.mark.exhaustive, pytest.mark.slow])])
@torch.no_grad()
def test_answers_and_scores_are_those_of_one_mask_alone(models, family, count):
    model, inputs = models[family], tiny_batch(models[family])
    masks = torch.cat([draws(8, count), SOME])
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0, **SUBLAYERS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing falls back to one mask after another
        tokens, scores = answer_masks(model, inputs, masks, answer_ids=ANSWERS, **options)
        chunked = sweep_generate(model, inputs, masks, max_rows=3 * len(ANSWERS), **options)
        logits = sweep_forward(model, inputs, masks, logits_to_keep=2, **SUBLAYERS).logits
        of_rows = generate(model, inputs, masks[-4:], **options)
    assert torch.equal(chunked, tokens)
    for index, (mask, answer, score, last) in enumerate(zip(masks, tokens, scores, logits)):
        expected = alone(model, inputs, mask)
        assert torch.equal(answer, expected), mask.tolist()
        with masked(model, mask, **SUBLAYERS):
            own = model(**inputs, use_cache=False).logits[:, -2:]
            expected_score = reference_logprob(model, inputs, ANSWERS, pad_token_id=0)
        torch.testing.assert_close(last, own, rtol=0, atol=1e-5 * max(1.0, float(own.abs().max())))
        torch.testing.assert_close(score, expected_score, rtol=0, atol=1e-5)
        row = index - len(masks) + 4
        if row >= 0:
            assert torch.equal(of_rows[row], expected[row])


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=[pytest.mark.exhaustive, pytest.mark.slow])])
@torch.no_grad()
def test_molmo_with_images(count):
    model, processor = load_bundled()
    data = DepthDataModule(prompter_for(model, processor), num_samples=3, batch_size=3)
    batch = next(iter(data.eval_dataloader("validation")))
    inputs, answers = model_inputs(batch), batch["answer_ids"]
    masks = draws(32, count)
    masks = masks[[0, 1, 32, *range(33, len(masks))]] if count == 2 else masks
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0, **SUBLAYERS}
    calls: list[int] = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer_masks(model, inputs, masks[:2], answer_ids=answers, **options)  # the engine compares itself
        calls.clear()
        tokens, scores = answer_masks(model, inputs, masks, answer_ids=answers, **options)
    hook.remove()
    assert len(calls) == 1
    for mask, answer, score in zip(masks, tokens, scores):
        assert torch.equal(answer, alone(model, inputs, mask)), mask.tolist()
        with masked(model, mask, **SUBLAYERS):
            expected = reference_logprob(model, inputs, answers, pad_token_id=0)
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-4)


def test_scores_of_texts_are_those_of_one_mask_alone(models):
    model, inputs = models["llava"], tiny_batch(models["llava"])
    masks = torch.cat([draws(8, 0)[::3], SOME])
    ids = torch.tensor([[5, 6], [7, -100], [8, 9], [4, 3], [11, 12]])
    rows = torch.tensor([0, 0, 1, 2, 3])
    found = score_continuations(model, inputs, masks, ids, rows, pad_token_id=0, **SUBLAYERS)
    first = score_continuations(model, inputs, masks, ids[[0, 2, 3, 4]], pad_token_id=0, **SUBLAYERS)
    torch.testing.assert_close(found.logprobs[:, [0, 2, 3, 4]], first.logprobs, rtol=1e-5, atol=1e-5)
    for mask, logprobs in zip(masks, first.logprobs):
        with masked(model, mask, **SUBLAYERS):
            mean = reference_logprob(model, inputs, ids[[0, 2, 3, 4]], pad_token_id=0)
        torch.testing.assert_close(logprobs / 2, mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "olmoe", "olmo2", "gemma2"])
def test_halves_run_once_for_each_distinct_beginning(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    masks = MaskSet.of(torch.cat([draws(8, 2), SOME]), granularity="sublayer")
    batch, length = inputs["input_ids"].shape
    sweep_forward(model, inputs, masks, logits_to_keep=1)  # the engine compares itself
    attended: list[int] = []
    positions: list[int] = []
    hooks = [
        hook
        for block in find_blocks(model)
        for hook in (
            block.self_attn.o_proj.register_forward_hook(lambda _m, args, _o: attended.append(len(args[0]))),
            block.mlp.register_forward_hook(lambda _m, args, _o: positions.append(args[0].shape[:2].numel())),
        )
    ]
    sweep_forward(model, inputs, masks, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    rows = masks.bits.tolist()
    distinct = [len({tuple(row[: unit + 1]) for row in rows if row[unit]}) for unit in range(8)]
    read_on = [len({tuple(row[: i + 1]) for row in rows if row[i] and any(row[i + 1 :])}) for i in range(8)]
    assert sum(attended) == batch * sum(distinct[::2])
    ended = sum(distinct[1::2]) - sum(read_on[1::2])
    assert sum(positions) == batch * (length * sum(distinct[1::2]) - (length - 1) * ended)
    assert MaskTrie(masks).block_forwards == sum(distinct) < MaskTrie(masks).sequential_block_forwards


def test_a_block_that_cannot_be_halved_is_one_unit():
    block = find_blocks(tiny_model("gpt_neox"))[1]
    (unit,) = units_in(1, block.forward, per_block=1)
    assert unit.place == 1 and unit.cut(3) is unit.forward
    with pytest.raises(CannotDriveError, match="block 1 cannot be halved"):
        units_in(1, block.forward, per_block=2)


def test_halves_of_a_block_with_a_forward_of_its_own_are_left_alone():
    model = tiny_model("llama")
    inputs, block = tiny_batch(model), find_blocks(model)[1]
    block.forward = block.forward
    masks = [from_mask_id("01111111"), from_mask_id("11001111")]
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0, **SUBLAYERS}
    with pytest.warns(UserWarning, match="one mask of sublayers after another: block 1 cannot be halved"):
        found = sweep_generate(model, inputs, masks, **options)
    assert all(torch.equal(answer, alone(model, inputs, mask)) for mask, answer in zip(masks, found))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whole blocks are driven all the same
        sweep_generate(model, inputs, [from_mask_id("0111")], NEW_TOKENS)


def test_mistakes_are_refused_whatever_drives(models):
    call = {"max_new_tokens": 1, **SUBLAYERS}
    inputs = tiny_batch(models["llama"])
    for _ in range(2):
        with pytest.raises(ValueError, match="expected at least one active attention"):
            sweep_generate(models["llama"], inputs, [[True] * 8, [False, True] * 4], **call)
    with pytest.raises(ValueError, match="cannot skip half of a GPTNeoXLayer"):
        sweep_generate(models["gpt_neox"], inputs, [[True] * 8], **call)
    with pytest.raises(ValueError, match="a mask of 8 sublayers, got 4"):
        generate(models["llama"], inputs, [[True] * 4] * 4, **call)
