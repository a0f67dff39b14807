"""Masks of one phase in the engine: every answer is that of one mask alone, and what masks share is run once."""

from __future__ import annotations

import warnings

import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, leave_one_out, masked, random, reference_logprob
from lit_depth.functional.engine.api import answer_masks, generate, score_continuations
from lit_depth.functional.engine.greedy_tokens import GreedyTokens
from lit_depth.models.loading import load_bundled
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from tests.helpers.model_zoo import ZOO
from tests.helpers.phase_references import decode_by_hand
from tests.helpers.sweep_laws import check_answers_of_kind, rows_run
from tests.helpers.tiny_models import FAMILIES, tiny_batch, tiny_model

ANSWERS = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 10, -100], [11, 12, 13]])
NEW_TOKENS = 5
PHASES = {"decode": {"phase": "decode"}, "prefill": {"phase": "prefill", "decode_without_prompt": True}}
EXHAUSTIVE = [pytest.mark.exhaustive, pytest.mark.slow]
OPTIONS = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}


def draws(num_blocks: int, count: int) -> torch.Tensor:
    full = torch.ones(1, num_blocks, dtype=torch.bool)
    some = [random(num_blocks, 1 + seed % (num_blocks - 1), seed=seed) for seed in range(count)]
    return torch.stack([*full, *leave_one_out(num_blocks), *some])


def alone(model, inputs, mask, phase, eos=None) -> torch.Tensor:
    with masked(model, mask, **PHASES[phase]):
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=eos, pad_token_id=0)
    tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return torch.nn.functional.pad(tokens, (0, NEW_TOKENS - tokens.shape[1]))


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


def _each(names, few):
    return [pytest.param(name, marks=() if name in few else EXHAUSTIVE) for name in names]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("family", _each(FAMILIES, ["llama", "gemma2", "mistral", "falcon"]))
@pytest.mark.parametrize("count", [2, pytest.param(40, marks=EXHAUSTIVE)])
@torch.no_grad()
def test_answers_and_scores_are_those_of_one_mask_alone(models, family, phase, count):
    model, inputs = models[family], tiny_batch(models[family])
    masks = draws(4, count)
    if family == "gemma2" and phase == "prefill":
        # without a full attention, masks of its windows begin too late for a block that has not read the prompt
        masks = masks[masks[:, [1, 2]].any(1)]
    eos = int(alone(model, inputs, masks[0], phase)[1, 1])  # ends some rows early
    with warnings.catch_warnings():
        # these blocks are not known to take a mask for each query: one mask after another
        warnings.simplefilter("ignore" if phase == "prefill" and family in ("falcon", "gpt_neox") else "error")
        tokens, scores = answer_masks(model, inputs, masks, answer_ids=ANSWERS, **OPTIONS, **PHASES[phase])
        ended, _ = answer_masks(
            model, inputs, masks, max_rows=3 * len(ANSWERS), **{**OPTIONS, "eos_token_id": eos}, **PHASES[phase]
        )
    for mask, answer, shorter, score in zip(masks, tokens, ended, scores):
        assert torch.equal(answer, alone(model, inputs, mask, phase)), mask.tolist()
        assert torch.equal(shorter, alone(model, inputs, mask, phase, eos)), mask.tolist()
        with masked(model, mask, **PHASES[phase]):
            expected = reference_logprob(model, inputs, ANSWERS, pad_token_id=0, in_phases=True)
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("phase", PHASES)
def test_answers_equal_a_decoder_written_by_hand(models, phase):
    model, inputs = models["llama"], tiny_batch(models["llama"])
    masks = draws(4, 2)
    tokens, _ = answer_masks(model, inputs, masks, **OPTIONS, **PHASES[phase])
    for mask, answers in zip(masks, tokens):
        skipped = (~mask).nonzero().flatten().tolist()
        for row, answer in enumerate(answers):
            prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
            named = {"skip_in_decode" if phase == "decode" else "skip_in_prefill": skipped}
            assert torch.equal(decode_by_hand(model, prompt, NEW_TOKENS, **named)[0], answer), (mask, row)


@pytest.mark.parametrize("phase", _each(PHASES, ["decode"]))
@torch.no_grad()
def test_molmo_with_images(phase):
    model, processor = load_bundled()
    data = DepthDataModule(prompter_for(model, processor), num_samples=3, batch_size=3)
    batch = next(iter(data.eval_dataloader("validation")))
    inputs, answers = model_inputs(batch), batch["answer_ids"]
    masks = draws(16, 2)[[0, 1, 18]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens, scores = answer_masks(model, inputs, masks, answer_ids=answers, **OPTIONS, **PHASES[phase])
    for mask, answer, score in zip(masks, tokens, scores):
        assert torch.equal(answer, alone(model, inputs, mask, phase)), mask.tolist()
        with masked(model, mask, **PHASES[phase]):
            expected = reference_logprob(model, inputs, answers, pad_token_id=0, in_phases=True)
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-4)


def test_prompts_are_read_once_where_masks_decode_alone(models):
    model, inputs = models["llama"], tiny_batch(models["llama"])
    masks = draws(4, 2)
    answer_masks(model, inputs, masks, **OPTIONS, **PHASES["decode"])  # the engine compares itself
    counted, hooks = rows_run(model)
    answer_masks(model, inputs, masks, **OPTIONS, **PHASES["decode"])
    for hook in hooks:
        hook.remove()
    batch = len(inputs["input_ids"])
    assert sum(counted) == batch * (len(find_blocks(model)) + (NEW_TOKENS - 1) * int(masks.sum()))


@pytest.mark.parametrize("phase", PHASES)
def test_what_a_mask_would_draft_is_read_in_its_phase(models, phase):
    model, inputs = models["qwen3"], tiny_batch(models["qwen3"])
    masks, found = draws(4, 2), []
    answer_masks(
        model, inputs, masks, answer_ids=ANSWERS, on_greedy=found.append, acceptance=4, **OPTIONS, **PHASES[phase]
    )
    (greedy,) = found
    assert isinstance(greedy, GreedyTokens)
    full = alone(model, inputs, masks[0], phase)[:, :4]
    for mask, own in zip(masks, greedy.own):
        with masked(model, mask, **PHASES[phase]):
            step = []
            cache = None
            for place in range(4):
                ids = inputs["input_ids"] if place == 0 else full[:, place - 1 : place]
                attention = torch.cat([inputs["attention_mask"], torch.ones(4, place, dtype=torch.long)], dim=1)
                positions = (attention.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                with torch.no_grad():
                    given = {} if cache is None else {"cache": cache}
                    output = model(ids, attention_mask=attention, position_ids=positions, use_cache=True, **given)
                cache = output.cache
                step.append(output.logits[:, -1].argmax(-1))
        assert torch.equal(torch.stack(step, dim=1), own)


@pytest.mark.parametrize("phase", PHASES)
def test_scores_of_texts_are_those_of_one_text_each(models, phase):
    model, inputs = models["llava"], tiny_batch(models["llava"])
    ids = torch.tensor([[5, 6], [7, 9], [8, 9], [4, 3], [11, 12]])
    rows, first = torch.tensor([0, 0, 1, 2, 3]), [0, 2, 3, 4]
    masks = draws(4, 2)
    found = score_continuations(model, inputs, masks, ids, rows, pad_token_id=0, **PHASES[phase])
    for mask, logprobs in zip(masks, found.logprobs):
        with masked(model, mask, **PHASES[phase]):
            mean = reference_logprob(model, inputs, ids[first], pad_token_id=0, in_phases=True)
        torch.testing.assert_close(logprobs[first] / 2, mean, rtol=1e-5, atol=1e-5)


def test_phases_that_no_mask_can_do_are_refused(models):
    model, inputs = models["llama"], tiny_batch(models["llama"])
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="got 'sublayer' with phase='decode'"):
            answer_masks(model, inputs, [[True] * 8], **OPTIONS, granularity="sublayer", phase="decode")
        with pytest.raises(ValueError, match="decode_without_prompt with phase='prefill' only"):
            answer_masks(model, inputs, [[True] * 4], **OPTIONS, phase="decode", decode_without_prompt=True)


@pytest.mark.parametrize("family", ["llama", "olmoe", "gemma2", "falcon"])
def test_each_row_decodes_under_a_mask_of_its_own(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    masks = draws(4, 2)[[1, 0, 5, 6]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = generate(model, inputs, masks, NEW_TOKENS, phase="decode")
    for row, mask in enumerate(masks):
        assert torch.equal(tokens[row], alone(model, inputs, mask, "decode")[row])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*PHASES, "sublayer"])
@pytest.mark.parametrize("name", _each(ZOO, ["gpt_oss", "qwen3_vl", "bloom"]))
def test_every_family_and_kind_of_mask(name, kind):
    if (name, kind) == ("deepseek_v32", "decode"):
        pytest.skip("`reference_logprob` itself reads its answers otherwise than decoding does, under some masks")
    model, inputs = ZOO[name]()
    check_answers_of_kind(model, inputs, **PHASES.get(kind, {"granularity": "sublayer"}))
