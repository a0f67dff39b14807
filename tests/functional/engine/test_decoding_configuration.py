"""One greedy decoding: the model's own penalties count in every path alike, everything else of its settings nowhere."""

from __future__ import annotations

import inspect
import json
import logging
import re

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

from lit_depth.functional import generate, leave_one_out, masked, sweep_generate, token_masking
from lit_depth.functional.engine import api as sweep_module
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.engine.decoding_configuration import (
    HONOURED,
    decoding_configuration,
    end_token_ids,
    generating_model,
)
from lit_depth.functional.latency.stage_timer import time_generation
from tests.helpers.model_zoo import ZOO, plain_answers
from tests.helpers.tiny_models import tiny_batch, tiny_model
from tests.helpers.zoo_parts import ROWS

NEW_TOKENS = 6
MASKS = torch.cat([torch.ones(1, 4, dtype=torch.bool), leave_one_out(4)])
# the engine knows the first kind, and leaves the second to the model
PENALTIES = {
    "bad_words_ids": [[7], [11, 12], [25]],
    "begin_suppress_tokens": list(range(0, 64, 2)),
    "encoder_no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 1.8,
    "exponential_decay_length_penalty": (2, 3.0),
    "forced_eos_token_id": 10,
    "min_length": 13,
    "min_new_tokens": 5,
    "no_repeat_ngram_size": 1,
    "repetition_penalty": 1.5,
    "sequence_bias": [[[20], 4.0], [[21, 22], 9.0]],
    "suppress_tokens": list(range(0, 64, 3)),
}
OTHERS = {"guidance_scale": 1.7, "watermarking_config": {"bias": 6.0, "seeding_scheme": "lefthash"}}
# another kind of decoding, of stopping, or of what is returned
OVERRULED = {
    "cache_implementation": "static",
    "do_sample": True,
    "max_length": 9,
    "max_time": 1e-9,
    "num_beams": 3,
    "num_return_sequences": 2,
    "output_hidden_states": True,
    "prefill_chunk_size": 2,
    "return_dict_in_generate": True,
    "stop_strings": ["a"],
    "use_cache": False,
}


@pytest.fixture(scope="module")
def subject():
    """A model, inputs, and the token that most often ends an answer early."""
    model = tiny_model("llama")
    inputs = tiny_batch(model)
    tokens = torch.stack([answers_of(model, inputs, mask) for mask in MASKS])
    values, counts = tokens[:, :, :4].flatten().unique(return_counts=True)
    return model, inputs, int(values[counts.argmax()])


def answers_of(model, inputs, mask, eos=None, **masking):
    with masked(model, mask, **masking):
        return plain_answers(model, inputs, NEW_TOKENS, eos_token_id=eos)


def with_settings(model, settings):
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1)
    for name, value in settings.items():  # some alone would be refused
        setattr(model.generation_config, name, value)
    sweep_module._REFUSED.pop(model, None)
    sweep_module._WARNED.pop(model, None)


@pytest.mark.filterwarnings("ignore:.*one mask after another")
@pytest.mark.filterwarnings("ignore:.*Unfeasible length")
@pytest.mark.parametrize("name", [*PENALTIES, *OTHERS, "all"])
def test_every_path_honours_the_models_own_penalties(subject, name):
    model, inputs, eos = subject
    settings = PENALTIES | OTHERS
    neutral = torch.stack([answers_of(model, inputs, mask, eos) for mask in MASKS])
    with_settings(model, PENALTIES if name == "all" else {name: settings[name]})
    options = {"eos_token_id": eos, "pad_token_id": 0}
    try:
        expected = torch.stack([answers_of(model, inputs, mask, eos) for mask in MASKS])
        assert not torch.equal(expected, neutral)  # or this test would show nothing
        assert torch.equal(sweep_generate(model, inputs, MASKS, NEW_TOKENS, **options), expected)
        for drafts in (expected[0], neutral[1]):  # a draft of the right answer, and of another
            tokens, _ = answer_masks(model, inputs, MASKS, max_new_tokens=NEW_TOKENS, answer_ids=drafts, **options)
            assert torch.equal(tokens, expected)
        rows = generate(model, inputs, MASKS[:4], NEW_TOKENS, **options)
        assert torch.equal(rows, torch.stack([expected[row, row] for row in range(4)]))
        halves = MASKS.repeat_interleave(2, dim=1)
        found = sweep_generate(model, inputs, halves[:2], NEW_TOKENS, granularity="sublayer", **options)
        assert torch.equal(found, expected[:2])
        found, _ = answer_masks(model, inputs, MASKS[1:2], max_new_tokens=NEW_TOKENS, phase="decode", **options)
        assert torch.equal(found[0], answers_of(model, inputs, MASKS[1], eos, phase="decode"))
        assert (model in sweep_module._REFUSED) == (name in OTHERS)
    finally:
        with_settings(model, {})


@pytest.mark.filterwarnings("error:.*one mask after another")
@pytest.mark.parametrize("name", OVERRULED)
def test_no_path_follows_other_settings(subject, name):
    model, inputs, eos = subject
    expected = torch.stack([answers_of(model, inputs, mask, eos) for mask in MASKS])
    in_decode = answers_of(model, inputs, MASKS[1], eos, phase="decode")
    # alone, several answers of greedy decoding are refused
    with_settings(model, {name: OVERRULED[name]} | ({"do_sample": True} if name == "num_return_sequences" else {}))
    options = {"eos_token_id": eos, "pad_token_id": 0}
    try:
        assert torch.equal(sweep_generate(model, inputs, MASKS, NEW_TOKENS, **options), expected)
        halves = MASKS[:2].repeat_interleave(2, dim=1)
        assert torch.equal(
            sweep_generate(model, inputs, halves, NEW_TOKENS, granularity="sublayer", **options), expected[:2]
        )
        found, _ = answer_masks(model, inputs, MASKS[1:2], max_new_tokens=NEW_TOKENS, phase="decode", **options)
        assert torch.equal(found[0], in_decode) and not torch.equal(in_decode, expected[0])
        times = time_generation(model, inputs, new_tokens=NEW_TOKENS)
        assert len(times["decode_steps"]) == NEW_TOKENS - 1
    finally:
        with_settings(model, {})


@pytest.mark.filterwarnings("ignore:Passing")
@pytest.mark.filterwarnings("error:.*one mask after another")
@pytest.mark.parametrize("name", ["encoder_repetition_penalty", "no_repeat_ngram_size", "repetition_penalty"])
def test_penalties_of_prompts_that_are_given_as_embeddings(name):
    model, inputs = ZOO["blip2"]()
    setattr(model.language_model.generation_config, name, PENALTIES[name])
    masks = torch.cat([torch.ones(1, 3, dtype=torch.bool), leave_one_out(3)])
    expected = torch.stack([answers_of(model, inputs, mask, 9) for mask in masks])
    assert torch.equal(sweep_generate(model, inputs, masks, NEW_TOKENS, eos_token_id=9), expected)
    rows = generate(model, inputs, masks[:ROWS], NEW_TOKENS, eos_token_id=9)
    assert torch.equal(rows, torch.stack([expected[row, row] for row in range(ROWS)]))


def test_penalties_count_for_what_a_prompt_is_analysed_with():
    model, inputs = ZOO["llama"]()
    inputs = {name: value[:1] for name, value in inputs.items()}  # without padding
    plain = token_masking(model, inputs, 4).attrs
    with_settings(model, {"suppress_tokens": [plain["next_id"], plain["generated_ids"][1]]})
    expected = plain_answers(model, inputs, 4)[0].tolist()
    found = token_masking(model, inputs, 4).attrs
    assert [*found["generated_ids"], found["next_id"]] == expected != [*plain["generated_ids"], plain["next_id"]]


@pytest.mark.parametrize("eos", [None, [9, 23]])
def test_nothing_is_said_about_end_tokens(subject, eos):
    model, inputs, _ = subject
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        for granularity, masks in (("block", MASKS), ("sublayer", MASKS.repeat_interleave(2, dim=1))):
            sweep_generate(model, inputs, masks[:2], 2, eos_token_id=eos, granularity=granularity)
    finally:
        logger.removeHandler(handler)
    assert said == []


# ---- what stands in a manifest


def test_the_configuration_names_what_changes_an_answer():
    model = tiny_model("llama")
    with_settings(model, PENALTIES | OVERRULED | {"eos_token_id": [5, 3], "repetition_penalty": 1.0, "min_length": 0})
    found = decoding_configuration(model, 8, end_token_ids(model), 0)
    assert found == json.loads(json.dumps(found))
    settings = found.pop("generation_config")
    assert found == {"greedy": True, "max_new_tokens": 8, "end_token_ids": [3, 5], "pad_token_id": 0}
    assert settings.keys() == PENALTIES.keys() - {"repetition_penalty", "min_length"}
    assert settings["sequence_bias"] == [[[20], 4.0], [[21, 22], 9.0]] and settings["forced_eos_token_id"] == 10
    model.generation_config.sequence_bias = {(20,): 4.0, (21, 22): 9.0}
    again = decoding_configuration(model, 8, [], 0)
    assert again["generation_config"]["sequence_bias"] == settings["sequence_bias"]
    with_settings(model, {})
    assert decoding_configuration(model, 8, [], 0)["generation_config"] == {}


def test_every_setting_that_makes_a_processor_is_known():
    """What transformers makes processors of is honoured, or does nothing to a greedy answer."""
    read = set(re.findall(r"generation_config\.([a-z]\w*)", inspect.getsource(GenerationMixin._get_logits_processor)))
    sampling = {
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "top_h",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
    }
    neutral = {"num_beams", "num_return_sequences", "max_length", "use_cache", "renormalize_logits"}
    assert read - sampling - neutral == HONOURED.keys()


class Tokenizer:
    def __init__(self, eos_token_id):
        self.eos_token_id = eos_token_id


@pytest.mark.parametrize(
    ("own", "tokenizer", "expected"),
    [(None, None, []), (5, None, [5]), (None, 7, [7]), ([9, 5], 7, [5, 7, 9]), ([7, 5], 7, [5, 7]), (0, 0, [0])],
)
def test_end_tokens_are_the_models_and_the_tokenizers(own, tokenizer, expected):
    model = tiny_model("llama")
    model.generation_config.eos_token_id = own
    assert end_token_ids(model, None if tokenizer is None else Tokenizer(tokenizer)) == expected
    assert end_token_ids(torch.nn.ModuleList([model]), Tokenizer(tokenizer)) == expected
    assert end_token_ids(torch.nn.Linear(1, 1), Tokenizer(tokenizer)) == ([] if tokenizer is None else [tokenizer])


def test_generate_may_lie_deeper():
    model, inputs = ZOO["blip2"]()
    assert generating_model(model) is model and generating_model(torch.nn.ModuleList([model])) is model
    assert generating_model(model.language_model.model) is None
    with pytest.raises(ValueError, match="expected a model with generate, got OPTModel"):
        sweep_generate(model.language_model.model, {"input_ids": inputs["input_ids"]}, torch.ones(1, 3).bool(), 1)
    assert len(inputs["input_ids"]) == ROWS
