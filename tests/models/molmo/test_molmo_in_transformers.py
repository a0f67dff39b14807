"""Molmo behaves as transformers' own models do: caches, outputs, attention, saving, resizing, training."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    CLIPVisionConfig,
    DynamicCache,
    StaticCache,
)

from lit_depth.models.loading import BUNDLED
from lit_depth.models.molmo import MolmoConfig, MolmoForConditionalGeneration, MolmoModel
from tests.helpers.tiny_molmo import ADDED, FAMILIES, LENGTH, VOCABULARY, tiny_config, tiny_inputs, tiny_molmo

every_family = pytest.mark.parametrize("family", FAMILIES)
GREEDY = {
    "do_sample": False, "max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0, "output_logits": True,
    "return_dict_in_generate": True,
}  # fmt: skip


# ---- a cache that holds something


def more_tokens(sequences: torch.Tensor, count: int) -> torch.Tensor:
    new = torch.randint(2, VOCABULARY, (len(sequences), count), generator=torch.Generator().manual_seed(count))
    return torch.cat([sequences, new], dim=1)


def longer(inputs, ids):
    """The same request with tokens behind it: whatever there is of padding stands in front."""
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - LENGTH), value=1)
    return {**inputs, "input_ids": ids, "attention_mask": mask}


def cache_of(kind: str, model):
    if kind == "dynamic":
        return DynamicCache(config=model.config.text_config)
    return StaticCache(config=model.config.text_config, max_cache_len=64)


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@every_family
def test_a_second_turn_is_what_it_would_be_without_the_cache(family, kind, count):
    model, inputs = tiny_molmo(family), tiny_inputs()
    cache = cache_of(kind, model)
    first = model.generate(**inputs, **GREEDY, cache=cache)
    second = longer(inputs, more_tokens(first.sequences, count))
    expected = model.generate(**second, **GREEDY)
    found = model.generate(**second, **GREEDY, cache=cache)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("with_images", [True, False])
@every_family
def test_generation_in_two_calls_is_generation_in_one(family, with_images):
    """The law of transformers' own test_generate_continue_from_past_key_values."""
    model, inputs = tiny_molmo(family), tiny_inputs()
    if not with_images:
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    whole = model.generate(**inputs, **GREEDY)
    start = model.generate(**inputs, **GREEDY | {"max_new_tokens": 3})
    rest = model.generate(**longer(inputs, start.sequences), **GREEDY | {"max_new_tokens": 1}, cache=start.cache)
    assert torch.equal(rest.sequences, whole.sequences)
    for ours, theirs in zip(rest.cache.layers, whole.cache.layers):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-5, rtol=0)


@every_family
def test_embeddings_continue_a_cache_too(family):
    model, inputs = tiny_molmo(family), tiny_inputs()
    first = model.generate(**inputs, **GREEDY)
    second = longer(inputs, more_tokens(first.sequences, 3))
    expected = model.generate(**second, **GREEDY)
    with torch.no_grad():
        embeddings, _ = model.model.embed(
            second["input_ids"], inputs["images"], inputs["image_masks"], inputs["image_input_idx"]
        )
    found = model.generate(
        inputs_embeds=embeddings,
        attention_mask=second["attention_mask"],
        **GREEDY,
        cache=first.cache,
    )
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4, rtol=0)


@every_family
@torch.no_grad()
def test_an_image_of_a_later_turn_is_seen_where_it_stands(family):
    """Given with those of all turns, or alone; positions count from the beginning of the sequence."""
    model, inputs, other = tiny_molmo(family), tiny_inputs(), tiny_inputs(seed=2)
    ids = more_tokens(inputs["input_ids"], 9)
    both = longer(inputs, ids)
    new_index = torch.arange(LENGTH + 2, LENGTH + 6).repeat(len(ids), 1, 1)
    for name, second in (
        ("images", other["images"]),
        ("image_masks", other["image_masks"]),
        ("image_input_idx", new_index),
    ):
        both[name] = torch.cat([inputs[name], second], dim=1)
    expected = model(**both).logits[:, LENGTH:]
    without = model(**longer(inputs, ids)).logits[:, LENGTH:]
    assert (expected - without).abs().max() > 0.1
    cache = model(**inputs, use_cache=True).cache
    alone = {**both, "images": other["images"], "image_masks": other["image_masks"], "image_input_idx": new_index}
    for given in (both, alone):
        turn = {**given, "input_ids": ids[:, LENGTH:]}
        found = model(**turn, cache=copy.deepcopy(cache)).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_images_that_were_seen_are_not_looked_at_again():
    model, inputs = tiny_molmo("qwen2"), tiny_inputs()
    cache = model(**inputs, use_cache=True).cache
    looked = []
    model.model.vision_tower.register_forward_hook(lambda *_: looked.append(1))
    turn = longer(inputs, more_tokens(inputs["input_ids"], 2))
    found = model(**{**turn, "input_ids": turn["input_ids"][:, LENGTH:]}, cache=cache)
    assert looked == [] and found.image_outputs is None
    torch.testing.assert_close(found.logits, model(**turn).logits[:, LENGTH:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_positions_behind_the_sequence_are_named():
    model, inputs = tiny_molmo("qwen2"), tiny_inputs()
    moved = {**inputs, "image_input_idx": inputs["image_input_idx"] + 6}
    with pytest.raises(ValueError, match=r"below 12, the length of the sequence, got 12"):
        model(**moved)
    cache = model(**inputs, use_cache=True).cache
    turn = longer(moved, more_tokens(inputs["input_ids"], 2)) | {"image_input_idx": inputs["image_input_idx"] + 11}
    with pytest.raises(ValueError, match=r"below 14, .*\(12 cached tokens and 2 new ones\), got 17"):
        model(**turn | {"input_ids": turn["input_ids"][:, LENGTH:]}, cache=cache)


# ---- outputs


@every_family
@torch.no_grad()
def test_tuples_in_place_of_named_outputs(family):
    model, inputs = tiny_molmo(family), tiny_inputs()
    named = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True)
    plain = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(named)
    for ours, theirs in zip(plain, named.values()):
        if isinstance(theirs, torch.Tensor):
            assert torch.equal(ours, theirs)
    base = model.model(**inputs, return_dict=False)
    assert isinstance(base, tuple) and torch.equal(base[0], model.model(**inputs).last_hidden_state)
    model.config.return_dict = False
    assert torch.equal(model(**inputs)[0], named.logits) and isinstance(model(**inputs), tuple)
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0),
        tiny_molmo(family).generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0),
    )


@every_family
@torch.no_grad()
def test_states_and_attention_of_every_block(family):
    model, inputs = tiny_molmo(family), tiny_inputs()
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 4 and len(outputs.attentions) == 3
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [tuple(each.shape) for each in outputs.attentions] == [(2, 4, LENGTH, LENGTH)] * 3


# ---- configurations


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_attention_asked_for_is_the_one_that_runs(name, tmp_path):
    tiny_molmo("qwen2").save_pretrained(tmp_path)
    for folder in (BUNDLED, tmp_path):
        for load in (AutoModelForImageTextToText.from_pretrained, MolmoForConditionalGeneration.from_pretrained):
            model = load(folder, attn_implementation=name)
            parts = (model, model.model, model.model.language_model, model.model.vision_tower)
            assert [part.config._attn_implementation for part in parts] == [name] * 4
    config = AutoConfig.from_pretrained(BUNDLED, attn_implementation=name)
    assert AutoModelForImageTextToText.from_config(config).model.vision_tower.config._attn_implementation == name


def test_further_arguments_of_a_configuration_reach_every_part():
    model = AutoModelForImageTextToText.from_pretrained(BUNDLED, experts_implementation="eager")
    assert model.model.language_model.config._experts_implementation == "eager"
    parts = {"text_config": "eager", "vision_config": "sdpa"}
    model = AutoModelForImageTextToText.from_pretrained(BUNDLED, attn_implementation=parts)
    assert model.model.language_model.config._attn_implementation == "eager"
    assert model.model.vision_tower.config._attn_implementation == "sdpa"


def test_without_arguments_it_is_the_mixture_of_experts_that_was_released(golden_dir):
    flat = json.loads((golden_dir / "molmoe_tokenizer" / "model_config_full_size.json").read_text())
    ours, released = MolmoConfig().to_dict(), MolmoConfig(**flat).to_dict()
    assert ours | {"architectures": None} == released | {"architectures": None}
    assert MolmoConfig(**MolmoConfig().to_dict()).to_dict() == ours
    assert MolmoConfig(moe_top_k=2).text_config.num_experts_per_tok == 2


def test_a_vision_tower_given_alone_is_kept_and_one_left_out_is_the_released():
    config = MolmoConfig(vision_config={"hidden_size": 64, "num_attention_heads": 4})
    assert config.vision_config.hidden_size == 64 and config.text_config.hidden_size == 2048
    config = MolmoConfig(text_config={"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4})
    assert (config.vision_config.image_size, config.vision_config.num_hidden_layers) == (336, 23)
    assert config.text_config.hidden_size == 64 and isinstance(config.vision_config, CLIPVisionConfig)


def test_half_a_configuration_is_still_refused():
    with pytest.raises(ValueError, match="released field.*n_layers"):
        MolmoConfig(block_type="moe", d_model=32)


@every_family
def test_tied_embeddings_are_refused_in_either_spelling(family):
    with pytest.raises(ValueError, match="tie_word_embeddings = False, got True"):
        tiny_config(family, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="tie_word_embeddings = False, got True"):
        MolmoConfig(text_config=tiny_config(family).text_config.to_dict() | {"tie_word_embeddings": True})


# ---- saving


def assert_comes_back(model, folder) -> MolmoForConditionalGeneration:
    model.save_pretrained(folder)
    again, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return again.eval()


@every_family
@torch.no_grad()
def test_a_model_comes_back_as_it_was_saved(family, tmp_path):
    model, inputs = tiny_molmo(family), tiny_inputs()
    again = assert_comes_back(model, tmp_path)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.config.additional_vocab_size == ADDED


@pytest.mark.parametrize("rows", [VOCABULARY + ADDED + 5, VOCABULARY - 3, VOCABULARY])
@every_family
@torch.no_grad()
def test_resized_embeddings_come_back(family, rows, tmp_path):
    model, inputs = tiny_molmo(family), tiny_inputs()
    inputs["input_ids"] = inputs["input_ids"].clamp(max=rows - 1)
    before = model(**inputs).logits
    table = model.resize_token_embeddings(rows)
    config = model.config
    assert len(table.weight) == len(model.lm_head.weight) == config.text_config.vocab_size == rows
    assert config.additional_vocab_size == config.text_config.additional_vocab_size == 0
    assert config.tokenizer_vocab_size <= rows
    kept = min(rows, VOCABULARY)
    torch.testing.assert_close(model(**inputs).logits[..., :kept], before[..., :kept])
    again = assert_comes_back(model, tmp_path)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


# ---- training


@every_family
def test_checkpointed_gradients_are_those_of_plain_ones(family):
    gradients = []
    for checkpoints in (False, True):
        model, inputs = tiny_molmo(family).train(), tiny_inputs()
        if checkpoints:
            model.gradient_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert any(name.startswith("model.vision_tower.encoder") for name in gradients[0])
    for name, gradient in gradients[0].items():
        if gradient is None:
            assert gradients[1][name] is None, name
        else:
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


# ---- what transformers calls by name


@every_family
@torch.no_grad()
def test_image_features_come_as_transformers_names_them(family):
    model, inputs = tiny_molmo(family), tiny_inputs(rows=3)
    given = {name: inputs[name] for name in ("images", "image_masks", "image_input_idx")}
    model.set_attn_implementation("eager")
    whole = model.get_image_features(**given, output_hidden_states=True, output_attentions=True)
    assert whole.last_hidden_state.shape == (3, 17, 16) and whole.pooler_output.shape == (3, 4, 32)
    assert [tuple(each.shape) for each in whole.hidden_states] == [(3, 17, 16)] * 3
    assert [tuple(each.shape) for each in whole.attentions] == [(3, 2, 17, 17)] * 2
    assert torch.equal(whole.hidden_states[-1], whole.last_hidden_state)
    plain = model.get_image_features(inputs["images"], inputs["image_masks"])
    assert torch.equal(plain.pooler_output, whole.pooler_output) and plain.hidden_states is None
    tuples = model.get_image_features(**given, return_dict=False)
    assert torch.equal(tuples[0], plain.last_hidden_state) and torch.equal(tuples[1], plain.pooler_output)
    # the text model adds these at the places of their tokens, and nothing elsewhere
    embeddings, _ = model.model.embed(inputs["input_ids"], **given)
    added = embeddings - model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(added[:, 3:7], plain.pooler_output, atol=1e-5, rtol=0)
    assert not added[:, :3].any() and not added[:, 7:].any()


@every_family
def test_experts_are_switched_where_there_are_some(family):
    model = tiny_molmo(family)
    text = model.model.language_model
    if family == "olmoe":
        for name in ("eager", "grouped_mm"):
            model.set_experts_implementation(name)
            assert text.config._experts_implementation == model.config._experts_implementation == name
    else:
        for part in (model, model.model, text):
            with pytest.raises(ValueError, match="does not support setting experts"):
                part.set_experts_implementation("grouped_mm")


@every_family
def test_every_auto_class_of_the_release_finds_it(family, tmp_path):
    model = tiny_molmo(family)
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "base")
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert type(auto.from_pretrained(tmp_path / "whole")) is MolmoForConditionalGeneration
    for folder in ("whole", "base"):
        base, report = AutoModel.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert type(base) is MolmoModel and not report["missing_keys"]
        ours, theirs = model.model.state_dict(), base.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def test_rows_that_were_padded_without_their_positions_are_refused():
    model, inputs = tiny_molmo("qwen2"), tiny_inputs()
    inputs["input_ids"][:, 3:7] = 9
    model(**inputs)
    for places in ([4, 5, 6, 7], [3, 4, 5, 0]):
        moved = inputs["image_input_idx"].clone()
        moved[1] = torch.tensor(places)
        with pytest.raises(ValueError, match="of row 1 does not point at its image tokens"):
            model(**{**inputs, "image_input_idx": moved})


@every_family
def test_the_loss_takes_targets_that_are_shifted_and_a_count_of_them(family):
    model, inputs = tiny_molmo(family), tiny_inputs()
    targets = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model(**inputs, labels=inputs["input_ids"], shift_labels=targets, num_items_in_batch=100)
        expected = torch.nn.functional.cross_entropy(found.logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(found.loss, expected / 100)
