"""Speculative decoding: the tokens are the full model's, the drafts are the masked model's, and both are counted."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from transformers import GenerationConfig

from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, from_mask_id, leave_one_out, masked, prefix, speculative_generate
from lit_depth.models.loading import load_bundled, load_checkpoint
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from tests.helpers.model_zoo import ZOO, plain_answers
from tests.helpers.speculative_laws import FAMILIES, compare_answers
from tests.helpers.sweep_laws import FULL, plain
from tests.helpers.tiny_models import FAMILIES as TINY
from tests.helpers.tiny_models import tiny_batch, tiny_model
from tests.helpers.zoo_hybrids import lfm2

MASKS = ("1100", "0111", "1011", "1111")
NEW = 10


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.mark.parametrize("family", TINY)
def test_tokens_are_the_full_models(family):
    model = tiny_model(family)
    inputs = tiny_batch(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for eos in (None, [5, 9, 30, 31, 32, 33]):
            expected = plain(model, inputs, FULL, eos=eos, new_tokens=NEW)
            for mask, num_draft in zip(MASKS, (3, 2, 1, 4)):
                found = speculative_generate(model, inputs, from_mask_id(mask), num_draft, NEW, eos_token_id=eos)
                assert torch.equal(found.tokens, expected), (mask, eos)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_prompts(family):
    outcome = compare_answers(tiny_model(family), 8, seed=1)
    assert outcome.different == 0 and outcome.drafted > outcome.accepted > 0


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_many_random_prompts(family):
    outcome = compare_answers(tiny_model(family), 84, seed=2)
    assert outcome.different == 0 and outcome.ties <= 1


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is answered without drafts")
@pytest.mark.parametrize("name", ZOO)
def test_tokens_are_the_full_models_in_every_family(name):
    model, inputs = ZOO[name]()
    try:
        num_blocks = len(find_blocks(model))
        masks = leave_one_out(num_blocks)[[0, -1]]
        for mask in masks:
            with masked(model, mask):
                pass
    except ValueError:
        pytest.skip("its blocks cannot be skipped")
    expected = plain_answers(model, inputs, NEW)
    for mask in masks:
        assert torch.equal(speculative_generate(model, inputs, mask, 3, NEW).tokens, expected)


def drafts_and_counts(model, inputs, mask, num_draft, new_tokens):
    """The rounds of one request by `masked` and ``generate`` alone, each from the beginning."""
    expected = plain(model, inputs, FULL, new_tokens=new_tokens)[0].tolist()
    decided, drafted, accepted, rounds = 1, 0, 0, 0
    while decided < new_tokens:
        ids = torch.cat([inputs["input_ids"], torch.tensor([expected[:decided]])], dim=1)
        count = min(num_draft, new_tokens - decided - 1)
        longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        drafts = plain(model, longer, mask, new_tokens=count)[0].tolist() if count else []
        agreed = 0
        while agreed < count and drafts[agreed] == expected[decided + agreed]:
            agreed += 1
        decided, drafted, accepted, rounds = decided + agreed + 1, drafted + count, accepted + agreed, rounds + 1
    return drafted, accepted, rounds


@pytest.mark.parametrize("mask", ["1110", "1101", "1111"])
def test_drafts_are_those_of_the_masked_model(llama, mask):
    """After every acceptance and rejection the draft goes on from the state that it would have had from the start."""
    inputs = {name: value[:1] for name, value in tiny_batch(llama).items()}
    found = speculative_generate(llama, inputs, from_mask_id(mask), 3, 12)
    counts = tuple(int(count) for count in found[1:])
    assert counts == drafts_and_counts(llama, inputs, from_mask_id(mask), 3, 12)


@torch.no_grad()
def test_a_draft_in_the_decode_phase_reads_on_from_the_full_models_prompt(llama):
    inputs, mask, num_draft, new = {k: v[:1] for k, v in tiny_batch(llama).items()}, from_mask_id("1101"), 3, 12
    expected = plain(llama, inputs, FULL, new_tokens=new)[0].tolist()
    found = speculative_generate(llama, inputs, mask, num_draft, new, phase="decode")
    assert found.tokens[0].tolist() == expected
    decided, drafted, accepted, rounds = 1, 0, 0, 0
    while decided < new:
        count, agreed = min(num_draft, new - decided - 1), 0
        with masked(llama, mask, phase="decode"):
            cache = llama(**inputs, use_cache=True).cache
            token = llama(torch.tensor([expected[:decided]]), cache=cache).logits[0, -1].argmax()
            while agreed < count and int(token) == expected[decided + agreed]:
                agreed += 1
                token = llama(token[None, None], cache=cache).logits[0, -1].argmax()
        decided, drafted, accepted, rounds = decided + agreed + 1, drafted + count, accepted + agreed, rounds + 1
    assert tuple(int(count) for count in found[1:]) == (drafted, accepted, rounds)


def test_the_full_model_as_its_own_draft_is_always_accepted(llama):
    found = speculative_generate(llama, tiny_batch(llama), FULL, 3, 13)
    assert torch.equal(found.num_accepted, found.num_drafted)
    assert found.num_verifications.tolist() == [3] * 4  # 12 tokens behind the first, 4 in each round


def test_a_row_has_the_counts_that_it_has_alone(llama):
    inputs, mask = tiny_batch(llama), prefix(4, 3)
    together = speculative_generate(llama, inputs, mask, 3, NEW, eos_token_id=[7, 8, 9])
    for row in range(4):
        real = inputs["attention_mask"][row].bool()
        alone = {name: value[row : row + 1, real] for name, value in inputs.items()}
        found = speculative_generate(llama, alone, mask, 3, NEW, eos_token_id=[7, 8, 9])
        for several, one in zip(together, found):
            assert torch.equal(several[row], one[0])


def test_without_drafts_it_decodes_plainly(llama):
    found = speculative_generate(llama, tiny_batch(llama), prefix(4, 2), 0, NEW)
    assert torch.equal(found.tokens, plain(llama, tiny_batch(llama), FULL, new_tokens=NEW))
    assert not found.num_drafted.any() and found.num_verifications.tolist() == [NEW - 1] * 4


def test_an_end_token_ends_draft_and_answer(llama):
    inputs = {name: value[:1] for name, value in tiny_batch(llama).items()}
    answer = plain(llama, inputs, FULL, new_tokens=NEW)[0]
    end = int(answer[3])
    assert end not in answer[:3]
    found = speculative_generate(llama, inputs, FULL, 6, NEW, eos_token_id=end)
    assert found.tokens[0].tolist() == answer[:4].tolist() + [0] * (NEW - 4)
    # the draft stops at the end token, and what the full model says behind it is no part of the answer
    assert (int(found.num_drafted), int(found.num_accepted), int(found.num_verifications)) == (3, 3, 1)


def test_penalties_are_honoured(llama):
    inputs, neutral = tiny_batch(llama), plain(llama, tiny_batch(llama), FULL, new_tokens=NEW)
    before = llama.generation_config
    llama.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1)
    llama.generation_config.repetition_penalty = 1.4
    llama.generation_config.no_repeat_ngram_size = 2
    try:
        expected = plain(llama, inputs, FULL, new_tokens=NEW)
        found = speculative_generate(llama, inputs, prefix(4, 3), 3, NEW)
    finally:
        llama.generation_config = before
    assert torch.equal(found.tokens, expected) and not torch.equal(expected, neutral)
    assert found.num_accepted.any()


def test_recurrent_states_are_answered_without_drafts():
    model, inputs = lfm2()
    mask = torch.tensor([True, True, False])
    with pytest.warns(UserWarning, match="Lfm2ForCausalLM is answered without drafts: some of its blocks keep a recur"):
        found = speculative_generate(model, inputs, mask, 3, 6)
    assert torch.equal(found.tokens, plain_answers(model, inputs, 6))
    assert not any(count.any() for count in found[1:])


def test_a_model_that_is_masked_is_asked_as_a_whole(llama):
    expected = speculative_generate(llama, tiny_batch(llama), prefix(4, 3), 3, NEW)
    with masked(llama, prefix(4, 1)):
        found = speculative_generate(llama, tiny_batch(llama), prefix(4, 3), 3, NEW)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_draft": 65}, "num_draft"),
        ({"num_draft": -1}, "num_draft"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 500}, "context"),
        ({"mask": [True, True]}, "expected a mask of 4 blocks, got 2"),
        ({"mask": torch.zeros(4, dtype=torch.bool)}, "at least one active block"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask"),
    ],
)
def test_mistakes_are_named(llama, change, message):
    arguments = {"mask": prefix(4, 2), "num_draft": 2, "max_new_tokens": 4} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        speculative_generate(llama, tiny_batch(llama), **arguments)


@pytest.mark.slow
def test_bundled_molmo_on_real_questions():
    model, processor = load_bundled()
    data = DepthDataModule(prompter_for(model, processor), batch_size=8, num_samples=8)
    inputs = model_inputs(next(iter(data.eval_dataloader())))
    expected = plain(model, inputs, torch.ones(16, dtype=torch.bool), new_tokens=8)
    found = speculative_generate(model, inputs, prefix(16, 12), 3, 8)
    assert torch.equal(found.tokens, expected) and found.num_drafted.any()


@pytest.mark.real
@pytest.mark.slow
def test_smollm2(real_checkpoint):
    model, tokenizer = load_checkpoint(str(real_checkpoint), dtype="float32")
    prompts = ["The capital of France is", "A list of the days of the week: Monday, Tuesday, Wednesday,"]
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    mask = torch.ones(30, dtype=torch.bool)
    mask[[10, 11, 12, 20]] = False
    expected = plain(model, inputs, torch.ones(30, dtype=torch.bool), new_tokens=24)
    found = speculative_generate(model, inputs, mask, 4, 24)
    assert torch.equal(found.tokens, expected) and found.num_accepted.any()
