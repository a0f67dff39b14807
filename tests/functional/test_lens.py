"""The logit lens against the same model cut off behind a block, against its own logits, and by counting rows."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional import MaskSet, find_blocks, leave_one_out, logit_lens, masked, prefix, reference_logprob
from lit_depth.functional.engine import decode
from lit_depth.functional.engine.api import answer_masks, score_continuations
from lit_depth.functional.engine.comparison import Request
from lit_depth.functional.engine.memory import bytes_per_row
from lit_depth.functional.inputs import answer_logits, proven_logits, scoring_way
from lit_depth.functional.lens import LensReading, lens_logits, read_answers
from tests.helpers.model_zoo import ZOO
from tests.helpers.sweep_laws import ANSWERS, rows_run

FAST = ("llama", "gemma2", "granite", "cohere", "falcon", "gpt2", "qwen3_vl", "molmo, olmoe", "lfm2")
# adds features of the image between its first blocks, which a lens behind an earlier one has not seen
DEEP_STACK = {"qwen3_vl": 2, "qwen3_vl_moe": 2}
SHAPE_BOUND = ("gpt_bigcode",)
OPTIONS = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.exhaustive) for name in ZOO],
)
def family(request):
    return request.param, *ZOO[request.param]()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to 4 float epsilons of the largest value: on some CPUs a product of more rows rounds otherwise."""
    atol = 4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def masks_of(num_blocks: int) -> torch.Tensor:
    return torch.cat([leave_one_out(num_blocks)[:2], torch.ones(1, num_blocks, dtype=torch.bool)])


@torch.no_grad()
def test_behind_the_last_block_it_is_the_model_itself_and_behind_each_other_the_model_cut_off_there(family):
    name, model, inputs = family
    blocks, answers = find_blocks(model), ANSWERS[: len(inputs["input_ids"])]
    if name in SHAPE_BOUND:
        with pytest.raises(ValueError, match="expected a model whose head takes states of any number of rows"):
            logit_lens(model, inputs, answers, pad_token_id=0)
        return
    found = lens_logits(model, blocks, inputs, answers, 0)
    own = proven_logits(model, inputs, answers, 0, False)
    assert_same(found[-1], own)
    way = scoring_way(model, inputs, answers, 0)
    for block_idx in range(DEEP_STACK.get(name, 1) - 1, len(blocks)):
        with masked(model, prefix(len(blocks), block_idx + 1)):
            expected = answer_logits(model, inputs, answers, 0, way)
        torch.testing.assert_close(found[block_idx], expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.filterwarnings("ignore:.*one mask after another")
def test_a_sweep_reads_the_same_on_its_way_and_its_answers_are_those_without_it(family):
    name, model, inputs = family
    answers = ANSWERS[: len(inputs["input_ids"])]
    masks, told = masks_of(len(find_blocks(model))), []
    plain = answer_masks(model, inputs, masks, answer_ids=answers, **OPTIONS)
    if name in SHAPE_BOUND:
        return
    found = answer_masks(model, inputs, masks, answer_ids=answers, on_lens=told.append, **OPTIONS)
    assert torch.equal(found[0], plain[0])
    assert_same(found[1], plain[1])
    alone = logit_lens(model, inputs, answers, pad_token_id=0)
    assert torch.equal(told[-1].ranks, alone.ranks)
    torch.testing.assert_close(told[-1].logprobs, alone.logprobs, atol=2e-6, rtol=0)
    torch.testing.assert_close(told[-1].logprobs[-1], found[1][-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "molmo, olmoe"])
def test_no_row_runs_through_a_block_for_it(name):
    model, inputs = ZOO[name]()
    answers = ANSWERS[: len(inputs["input_ids"])]
    masks, told = masks_of(len(find_blocks(model))), []
    answer_masks(model, inputs, masks, answer_ids=answers, **OPTIONS)  # it gets to know the model
    counted, hooks = rows_run(model)
    answer_masks(model, inputs, masks, answer_ids=answers, **OPTIONS)
    without = list(counted)
    counted.clear()
    answer_masks(model, inputs, masks, answer_ids=answers, on_lens=told.append, **OPTIONS)
    for hook in hooks:
        hook.remove()
    assert counted == without and len(told) == 1


def test_of_several_continuations_of_a_prompt_each_is_read():
    model, inputs = ZOO["llama"]()
    rows, told = torch.tensor([0, 0, 1, 2]), []
    texts = torch.tensor([[5, 6, 7], [20, -100, -100], [9, 30, -100], [8, -100, -100]])
    masks = masks_of(len(find_blocks(model)))
    score_continuations(model, inputs, masks, texts, rows, pad_token_id=0, on_lens=told.append)
    for index, row in enumerate(rows.tolist()):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        alone = logit_lens(model, one, texts[index : index + 1], pad_token_id=0)
        assert torch.equal(told[0].ranks[:, index], alone.ranks[:, 0])
        torch.testing.assert_close(told[0].logprobs[:, index], alone.logprobs[:, 0], atol=1e-5, rtol=0)


def test_nobody_is_told_where_the_full_model_is_not_among_the_masks():
    model, inputs = ZOO["llama"]()
    masks, told = leave_one_out(len(find_blocks(model))), []
    answer_masks(model, inputs, masks, answer_ids=ANSWERS, on_lens=told.append, **OPTIONS)
    assert told == []


def test_ranks_and_log_probabilities_are_those_of_a_sorted_softmax():
    logits = torch.randn(3, 4, 4, 9, generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([[1, 2, 3], [4, -100, -100], [8, 0, -100], [5, 5, 5]])
    ranks, logprobs = read_answers(logits, answers)
    for block in range(3):
        for row, tokens in enumerate(answers.tolist()):
            of_tokens = [(place, token) for place, token in enumerate(tokens) if token >= 0]
            order = [logits[block, row, place].argsort(descending=True).tolist() for place, _ in of_tokens]
            expected = max(1 + ranked.index(token) for ranked, (_, token) in zip(order, of_tokens))
            assert ranks[block, row] == expected
            values = [logits[block, row, place].softmax(-1)[token].log() for place, token in of_tokens]
            torch.testing.assert_close(logprobs[block, row], torch.stack(values).mean())
    assert isinstance(read_answers(logits, answers), LensReading)


def test_under_the_full_model_it_ends_with_the_reference_log_probability():
    model, inputs = ZOO["gemma2"]()
    found = logit_lens(model, inputs, ANSWERS, pad_token_id=0)
    assert_same(found.logprobs[-1], reference_logprob(model, inputs, ANSWERS, pad_token_id=0))
    with pytest.raises(ValueError, match="expected answer_ids with at least one token"):
        logit_lens(model, inputs, torch.full((3, 1), -100), pad_token_id=0)


def test_chunks_of_masks_tell_of_it_once_and_its_logits_count_as_memory(monkeypatch):
    model, inputs = ZOO["llama"]()
    masks, told = masks_of(len(find_blocks(model))), []
    answer_masks(model, inputs, masks, answer_ids=ANSWERS, on_lens=told.append, **OPTIONS)
    answer_masks(model, inputs, masks, answer_ids=ANSWERS, on_lens=told.append, max_rows=len(ANSWERS), **OPTIONS)
    assert len(told) == 2 and torch.equal(told[0].ranks, told[1].ranks)
    torch.testing.assert_close(told[0].logprobs, told[1].logprobs, atol=2e-6, rtol=0)
    request = Request(inputs, 3, (), 0, ANSWERS)
    size = len(ANSWERS) * bytes_per_row(model, inputs, 3, ANSWERS, len(find_blocks(model)))
    # with what the last chunk may take besides, the masks just fit
    monkeypatch.setattr(decode, "affordable_bytes", lambda *_: (len(masks) * size + 1) / decode._STRETCH)
    assert [len(chunk) for chunk in decode.plan_chunks(model, request, MaskSet.of(masks), None)] == [3]
    with_lens = request._replace(on_lens=told.append)
    assert len(decode.plan_chunks(model, with_lens, MaskSet.of(masks), None)) > 1
