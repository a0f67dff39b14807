"""Most likely tokens of a sweep against plain forwards, one mask and one row after another."""

from __future__ import annotations

import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional import masked
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.engine.greedy_tokens import GreedyTokens
from lit_depth.functional.masks import MaskSet
from lit_depth.module import DepthModule, model_inputs
from tests.helpers.sweep_laws import FULL, NEW_TOKENS, SETS, plain
from tests.helpers.tiny_models import tiny_batch, tiny_model

ANSWERS = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 10, -100], [11, 12, 13]])
FAMILIES = ("llama", "olmoe", "mistral")
LENGTH = 4


def found_by_sweep(model, inputs, masks, eos=None, **more) -> tuple[torch.Tensor, GreedyTokens]:
    found: list[GreedyTokens] = []
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": eos, "pad_token_id": 0, "on_greedy": found.append}
    tokens, _ = answer_masks(model, inputs, masks, **options, acceptance=LENGTH, **more)
    return tokens, found[-1]


def forced(model, inputs, row: int, given: torch.Tensor) -> torch.Tensor:
    """Most likely tokens at the positions of given ones, by a plain forward of one row without padding."""
    real = inputs["attention_mask"][row].bool()
    given = given[given != -100]
    ids = torch.cat([inputs["input_ids"][row][real], given])[None]
    return model(input_ids=ids).logits[0, -len(given) - 1 : -1].argmax(-1)


def check_against_plain_forwards(model, inputs, masks, found: GreedyTokens, own: torch.Tensor, **how) -> None:
    for index, mask in enumerate(masks):
        with masked(model, mask, **how), torch.no_grad():
            for row in range(len(ANSWERS)):
                for given, greedy in ((ANSWERS[row], found.reference), (own[row, :LENGTH], found.own)):
                    length = int((given != -100).sum())
                    assert torch.equal(greedy[index, row, :length], forced(model, inputs, row, given))
                    assert (greedy[index, row, length:] == -100).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_along_reference_and_own_answer(family):
    model = tiny_model(family)
    inputs, masks = tiny_batch(model), torch.cat([SETS["random"], SETS["leave one out"]])
    own = plain(model, inputs, FULL)
    for max_rows in (None, 8):  # all masks at once; two of them, where the full model is in the last chunk but two
        tokens, found = found_by_sweep(model, inputs, masks, answer_ids=ANSWERS, max_rows=max_rows)
        assert torch.equal(tokens[4], own)
        check_against_plain_forwards(model, inputs, masks, found, own)


def test_tokens_end_with_the_own_answer():
    model = tiny_model("llama")
    inputs, masks = tiny_batch(model), SETS["leave one out"]
    own = plain(model, inputs, FULL)
    eos = int(own[1, 2])
    ends = (own == eos).int().argmax(1).where((own == eos).any(1), torch.tensor(NEW_TOKENS))
    own[torch.arange(NEW_TOKENS) > ends[:, None]] = -100
    _, found = found_by_sweep(model, inputs, masks, eos, answer_ids=ANSWERS)
    check_against_plain_forwards(model, inputs, masks, found, own)
    # a text that stops an answer ends it as well
    _, stopped = found_by_sweep(model, inputs, masks, answer_ids=ANSWERS, stop=lambda tokens: tokens[:, -1] == eos)
    assert torch.equal(stopped.own, found.own)


def test_one_mask_after_another_gives_the_same():
    model = tiny_model("llama")
    inputs = tiny_batch(model)
    halves = torch.ones(4, 8, dtype=torch.bool)
    halves[0, 0] = halves[1, 3] = halves[3, 6] = False
    masks = MaskSet.of(halves, 8, "sublayer")
    tokens, found = found_by_sweep(model, inputs, masks, answer_ids=ANSWERS, granularity="sublayer")
    assert torch.equal(tokens[2], plain(model, inputs, FULL))
    check_against_plain_forwards(model, inputs, halves, found, tokens[2], granularity="sublayer")


def test_without_the_full_model_there_is_no_answer_of_its_own():
    model = tiny_model("llama")
    _, found = found_by_sweep(model, tiny_batch(model), SETS["random"], answer_ids=ANSWERS)
    assert (found.own == -100).all() and (found.reference[:, 0] >= 0).all()


def test_penalties_are_refused():
    model = tiny_model("llama")
    model.generation_config.repetition_penalty = 1.3
    with pytest.raises(ValueError, match="repetition_penalty: leave out --acceptance"):
        found_by_sweep(model, tiny_batch(model), SETS["random"])


@pytest.mark.slow
def test_bundled_model():
    module, data = DepthModule(), DepthDataModule(batch_size=4)
    data.prompter = module.prompter
    batch = next(iter(data.eval_dataloader("validation")))
    inputs, model = model_inputs(batch), module.model
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 16, generator=generator) < 0.8
    masks[3] = True
    found: list[GreedyTokens] = []
    options = {"max_new_tokens": 6, "eos_token_id": module.end_token_ids, "pad_token_id": module.pad_token_id}
    tokens, _ = answer_masks(
        model, inputs, masks, **options, answer_ids=batch["answer_ids"], on_greedy=found.append, acceptance=6
    )
    for index, mask in enumerate(masks):
        for row in range(4):
            one = {name: value[row : row + 1] for name, value in inputs.items()}
            own = tokens[3, row]
            own = own[
                : next((i + 1 for i, token in enumerate(own.tolist()) if token in module.end_token_ids), len(own))
            ]
            for given, greedy in ((batch["answer_ids"][row], found[0].reference), (own, found[0].own)):
                given = given[given != -100]
                longer = {**one, "input_ids": torch.cat([one["input_ids"], given[None]], dim=1)}
                longer["attention_mask"] = torch.cat([one["attention_mask"], torch.ones(1, len(given)).long()], dim=1)
                longer["position_ids"] = (longer["attention_mask"].cumsum(-1) - 1).clamp(min=0)
                with masked(model, mask), torch.no_grad():
                    expected = model(**longer).logits[0, -len(given) - 1 : -1].argmax(-1)
                assert torch.equal(greedy[index, row, : len(given)], expected)
