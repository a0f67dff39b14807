"""Molmo generates as transformers' models do: each way to generate against a plain forward of the whole sequence.

These are the laws of transformers' GenerationTesterMixin in our own words: its file is not in the source distribution.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from lit_depth.models.molmo import MolmoForConditionalGeneration
from tests.helpers.tiny_molmo import FAMILIES, LENGTH, tiny_inputs, tiny_molmo

every_family = pytest.mark.parametrize("family", FAMILIES)
NEW = 5
PLAIN = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
IMAGES = ("images", "image_masks", "image_input_idx")


@torch.no_grad()
def next_logits(model: Any, inputs: dict[str, Tensor], generated: Tensor) -> Tensor:
    """Logits of the token after `generated`, without a cache."""
    ids = torch.cat([inputs["input_ids"], generated], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(generated)], 1)
    return model(**{**inputs, "input_ids": ids, "attention_mask": mask}, use_cache=False).logits[:, -1]


def greedy(model: Any, inputs: dict[str, Tensor], count: int = NEW) -> tuple[Tensor, Tensor]:
    """Tokens `[batch, count]` of highest logit, and all logits `[batch, count, vocabulary]`."""
    tokens, logits = inputs["input_ids"][:, :0], []
    for _ in range(count):
        logits.append(next_logits(model, inputs, tokens))
        tokens = torch.cat([tokens, logits[-1].argmax(-1, keepdim=True)], 1)
    return tokens, torch.stack(logits, 1)


def answers(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    found: Tensor = model.generate(**inputs, **{**PLAIN, **options})
    return found[:, -NEW:]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> MolmoForConditionalGeneration:
    return tiny_molmo(request.param)


@pytest.fixture(scope="module")
def expected(model) -> tuple[Tensor, Tensor]:
    return greedy(model, tiny_inputs())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"},
        {"prompt_lookup_num_tokens": 2},
        {"num_beams": 1, "repetition_penalty": 1.0},
        {"logits_to_keep": 1},
        {"do_sample": True, "top_k": 1},
    ],
    ids=str,
)
def test_greedy_is_the_highest_logit_of_a_plain_forward(model, expected, options):
    inputs = tiny_inputs()
    if "prompt_lookup_num_tokens" in options or options.get("cache_implementation") == "offloaded":
        # the first takes one row at a time; the second needs a GPU to copy from
        if "cache_implementation" in options and not torch.cuda.is_available():
            pytest.skip("an offloaded cache needs a GPU")
        inputs = {name: value[:1] for name, value in inputs.items()}
    assert torch.equal(answers(model, inputs, **options), expected[0][: len(inputs["input_ids"])])


def test_a_draft_model_changes_nothing(model, expected):
    inputs = {name: value[:1] for name, value in tiny_inputs().items()}
    drafted = answers(model, inputs, assistant_model=tiny_molmo(model.config.text_config.model_type))
    assert torch.equal(drafted, expected[0][:1])


def test_what_is_returned_beside_tokens(model, expected):
    model.set_attn_implementation("eager")
    found = model.generate(
        **tiny_inputs(), **PLAIN, return_dict_in_generate=True, output_logits=True, output_scores=True,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(torch.stack(found.logits, 1), expected[1], atol=1e-4, rtol=0)
    assert found.cache.get_seq_length() == LENGTH + NEW - 1
    for step, (states, weights) in enumerate(zip(found.hidden_states, found.attentions, strict=True)):
        new = 1 if step else LENGTH
        assert [tuple(each.shape) for each in states] == [(2, new, 32)] * 4
        assert [tuple(each.shape) for each in weights] == [(2, 4, new, LENGTH + step)] * 3


def test_rows_of_a_batch_are_answered_as_alone(model, expected):
    inputs = tiny_inputs()
    pad = int((inputs["attention_mask"][1] == 0).sum())
    alone = {name: value[1:] for name, value in inputs.items()}
    alone |= {name: alone[name][:, pad:] for name in ("input_ids", "attention_mask")}
    alone["image_input_idx"] = alone["image_input_idx"] - pad
    assert torch.equal(answers(model, alone), expected[0][1:])
    torch.testing.assert_close(greedy(model, alone)[1], expected[1][1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 3}], ids=str)
def test_embeddings_stand_for_tokens(model, options):
    """Plain ones with the images beside them, and those that hold the images already."""
    inputs = tiny_inputs()
    found = answers(model, inputs, **options)
    plain = model.get_input_embeddings()(inputs["input_ids"])
    whole, _ = model.model.embed(inputs["input_ids"], *(inputs[name] for name in IMAGES))
    mask = {"attention_mask": inputs["attention_mask"]}
    assert torch.equal(answers(model, {"inputs_embeds": whole} | mask, **options), found)
    with_images = {"inputs_embeds": plain, **{name: inputs[name] for name in IMAGES}} | mask
    assert torch.equal(answers(model, with_images, **options), found)
    assert torch.equal(answers(model, {**inputs, "inputs_embeds": plain}, **options), found)


def test_beams_are_scored_by_what_they_say(model, expected):
    inputs = tiny_inputs()
    found = model.generate(
        **inputs, **PLAIN, num_beams=4, num_return_sequences=3, return_dict_in_generate=True, output_scores=True
    )
    repeated = {name: value.repeat_interleave(3, 0) for name, value in inputs.items()}

    def score(rows: dict[str, Tensor], tokens: Tensor) -> Tensor:
        steps = [next_logits(model, rows, tokens[:, :step]).log_softmax(-1) for step in range(NEW)]
        chosen = [step.gather(1, tokens[:, i : i + 1])[:, 0] for i, step in enumerate(steps)]
        return torch.stack(chosen).sum(0) / NEW

    scores = score(repeated, found.sequences[:, -NEW:])
    torch.testing.assert_close(found.sequences_scores, scores, atol=1e-4, rtol=0)
    by_row = scores.view(2, 3)
    assert (by_row.diff(dim=1) <= 1e-6).all()
    # four beams of all that there are after one token: the best first token is among them
    assert (by_row[:, 0] >= score(inputs, expected[0]) - 1e-5).all()


def test_samples_follow_the_logits(model, expected):
    inputs = tiny_inputs()
    torch.manual_seed(0)
    found = model.generate(
        **inputs, do_sample=True, top_k=0, max_new_tokens=1, num_return_sequences=1000, pad_token_id=0, temperature=2.0
    )
    probabilities = (expected[1][:, 0] / 2.0).softmax(-1)
    counts = torch.nn.functional.one_hot(found[:, -1].view(2, 1000), probabilities.shape[1]).float().mean(1)
    # five standard errors of a share
    assert ((counts - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / 1000).sqrt() + 1e-3).all()


def test_a_mask_of_four_axes_is_that_of_two(model):
    inputs = tiny_inputs()
    real = inputs["attention_mask"].bool()
    square = real[:, None, None, :] & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        two, four = model(**inputs), model(**{**inputs, "attention_mask": square}, position_ids=places)
    torch.testing.assert_close(four.logits[real], two.logits[real], atol=1e-5, rtol=0)


def test_an_answer_stops_at_its_end_token(model, expected):
    end = int(expected[0][0, 1])
    found = model.generate(**tiny_inputs(), max_new_tokens=NEW, do_sample=False, eos_token_id=end, pad_token_id=0)
    for row, tokens in enumerate(expected[0].tolist()):
        length = tokens.index(end) + 1 if end in tokens else NEW
        answer = found[row, LENGTH:].tolist()
        assert answer[:length] == tokens[:length] and not any(answer[length:])


@torch.no_grad()
def test_a_prompt_read_in_pieces_is_the_prompt(model, expected):
    inputs, cache = tiny_inputs(), DynamicCache(config=model.config.text_config)
    for start, stop in ((0, 5), (5, 9), (9, LENGTH)):
        piece = {**inputs, "input_ids": inputs["input_ids"][:, start:stop]}
        piece["attention_mask"] = inputs["attention_mask"][:, :stop]
        index = inputs["image_input_idx"]
        piece["image_input_idx"] = torch.where(index < stop, index, -100)
        logits = model(**piece, cache=cache).logits
    torch.testing.assert_close(logits[:, -1], expected[1][:, 0], atol=1e-4, rtol=0)
