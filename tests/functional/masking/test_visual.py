"""Blocks that image tokens alone skip: equal to the definition, and the model given back."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from lit_depth.functional import find_blocks, masked
from lit_depth.functional.masking.visual import SplitBlock, hide_columns, text_positions
from tests.helpers import zoo_images
from tests.helpers.masking_laws import assert_restored, snapshot
from tests.helpers.tiny_models import tiny_batch, tiny_model
from tests.helpers.tiny_molmo import tiny_inputs, tiny_molmo
from tests.helpers.visual_laws import answers, image_places, reference
from tests.helpers.zoo_parts import TEXT


def llava(blocks=3):
    model = tiny_model("llava", num_blocks=blocks)
    return model, tiny_batch(model)


def molmo(family, blocks):
    model = tiny_molmo(family, blocks=blocks)
    model.generation_config.pad_token_id = 0
    return model, tiny_inputs(rows=3)


def of_the_zoo(build, blocks):
    with patch.dict(TEXT, num_hidden_layers=blocks):
        return build()


FAMILIES = {
    "molmo": lambda blocks=3: molmo("olmoe", blocks),
    "molmo-qwen2": lambda blocks=3: molmo("qwen2", blocks),
    "molmo-olmo2": lambda blocks=3: molmo("olmo2", blocks),
    "llava": llava,
    "qwen2_5_vl": lambda blocks=3: of_the_zoo(zoo_images.qwen2_5_vl, blocks),
    "smolvlm": lambda blocks=3: of_the_zoo(lambda: zoo_images.idefics3("SmolVLM"), blocks),
}
# blocks of the model and masks to draw; six blocks have 62 masks that skip some and keep some
DRAWN = [(3, 2), pytest.param(6, 20, marks=[pytest.mark.exhaustive, pytest.mark.slow])]


def draws(num_blocks: int, count: int) -> list[torch.Tensor]:
    """Different random masks that skip a block and keep a block."""
    generator = torch.Generator().manual_seed(3)
    masks: dict[tuple[bool, ...], torch.Tensor] = {}
    while len(masks) < count:
        mask = torch.rand(num_blocks, generator=generator) < 0.5
        if mask.any() and not mask.all():
            masks[tuple(mask.tolist())] = mask
    return list(masks.values())


def check(model, inputs, mask, tokens, **options) -> None:
    blocks = find_blocks(model)
    usual = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    with reference(model, blocks, mask, image_places(inputs), tokens == "visual_drop"):
        expected, logits = answers(model, inputs, use_cache=False)
    model.set_attn_implementation(usual)
    with masked(model, mask, tokens=tokens):
        found, found_logits = answers(model, inputs, **options)
    torch.testing.assert_close(found_logits, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("tokens", ["visual", "visual_drop"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("blocks", "count"), DRAWN)
def test_equals_the_definition(family, tokens, blocks, count):
    """Left padding, images of different sizes in one batch, prefill and decode on a cache."""
    model, inputs = FAMILIES[family](blocks)
    assert len(find_blocks(model)) == blocks
    for mask in draws(blocks, count):
        check(model, inputs, mask, tokens)


@pytest.mark.parametrize("tokens", ["visual", "visual_drop"])
@pytest.mark.parametrize("family", ["molmo", "qwen2_5_vl"])
def test_without_the_fast_path_it_is_the_same(family, tokens, monkeypatch):
    monkeypatch.setattr(SplitBlock, "fits", staticmethod(lambda block: False))
    model, inputs = FAMILIES[family]()
    check(model, inputs, torch.tensor([False, True, False]), tokens)


@pytest.mark.parametrize("tokens", ["visual", "visual_drop"])
@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 5}, {"use_cache": False}]
)
def test_caches(tokens, options):
    model, inputs = llava()
    check(model, inputs, torch.tensor([True, False, False]), tokens, **options)


@pytest.mark.parametrize("tokens", ["visual", "visual_drop"])
def test_without_images_it_is_the_full_model(tokens):
    model, inputs = llava()
    inputs["input_ids"][:, 3:7] = 9
    del inputs["pixel_values"]
    full, full_logits = answers(model, inputs)
    with masked(model, [True, False, False], tokens=tokens):
        found, logits = answers(model, inputs)
    assert torch.equal(found, full) and torch.equal(logits, full_logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mlp_of_a_skipped_block_sees_text_alone(family):
    model, inputs = FAMILIES[family]()
    seen = []
    blocks = find_blocks(model)
    mlp = next(child for name, child in blocks[1].named_children() if "mlp" in name)
    hook = mlp.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[:2].numel()))
    is_image = image_places(inputs)
    longest = int((~is_image).sum(1).max())
    with masked(model, [True, False, True], tokens="visual"):
        model(**inputs)
    hook.remove()
    assert seen == [len(is_image) * longest]
    assert longest < is_image.shape[1]


def test_only_keys_and_values_are_made_of_image_tokens():
    model, inputs = llava()
    attention = find_blocks(model)[1].self_attn
    seen = {}
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda module, args, output, name=name: seen.setdefault(name, []).append(args[0].shape[1])
        )
        for name in ("k_proj", "v_proj", "o_proj")
    ]
    with masked(model, [True, False, True], tokens="visual"):
        model(**inputs)
    for hook in hooks:
        hook.remove()
    assert seen == {"k_proj": [8, 4], "v_proj": [8, 4], "o_proj": [4]}


def test_gradients_are_those_of_the_definition():
    model, inputs = llava()
    mask = torch.tensor([True, False, False])
    given = []
    for context in (
        reference(model, find_blocks(model), mask, image_places(inputs), drops=False),
        masked(model, mask, tokens="visual"),
    ):
        model.zero_grad()
        with context:
            model(**inputs).logits[:, -1].logsumexp(-1).sum().backward()
        given.append([weight.grad.clone() for weight in find_blocks(model).parameters()])
    for found, expected in zip(*given):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("where", ["self_attn", "mlp"])
def test_the_model_is_given_back_after_an_exception(where):
    model, inputs = llava()
    full = model(**inputs).logits
    before = snapshot(model)

    def interrupt(*_):
        raise Interrupted

    hook = getattr(find_blocks(model)[1], where).register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted), masked(model, [True, False, True], tokens="visual"):
        model(**inputs)
    hook.remove()
    assert_restored(model, before)
    assert torch.equal(model(**inputs).logits, full)


def test_contexts_nest():
    model, inputs = llava()
    with masked(model, [True, False, True], tokens="visual"):
        visual = model(**inputs).logits
        with masked(model, [True, False, True]):
            inner = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, visual)
    with masked(model, [True, False, True]):
        assert torch.equal(model(**inputs).logits, inner)
        with masked(model, [True, False, True], tokens="visual"):
            assert torch.equal(model(**inputs).logits, visual)
    assert not torch.equal(inner, visual)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"granularity": "sublayer"}, NotImplementedError, "granularity='block' and phase='both'"),
        ({"phase": "decode"}, NotImplementedError, "granularity='block' and phase='both'"),
    ],
)
def test_refused(options, error, message):
    model, _ = llava()
    with pytest.raises(error, match=message):
        masked(model, [True] * (6 if "granularity" in options else 3), tokens="visual", **options)


def test_a_text_model_has_no_image_tokens():
    with pytest.raises(ValueError, match="tells its image tokens, got a LlamaForCausalLM"):
        masked(tiny_model("llama"), [True, False, True, True], tokens="visual")


def test_embeddings_do_not_tell_image_tokens():
    model, inputs = llava()
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with masked(model, [True, False, True], tokens="visual"), pytest.raises(ValueError, match="without them"):
        model(inputs_embeds=embeddings)


def test_a_kernel_without_a_mask_per_query_cannot_drop():
    model, inputs = llava()
    with masked(model, [True, False, True], tokens="visual_drop"):
        two_axes = {"attention_mask": inputs["attention_mask"]}
        hook = find_blocks(model)[1].register_forward_pre_hook(
            lambda _block, args, kwargs: (args, kwargs | two_axes), with_kwargs=True
        )
        with pytest.raises(ValueError, match=r"mask \[batch, 1, seq, keys\], got one of \[4, 8\]"):
            model(**inputs)
        hook.remove()


def test_rows_of_images_alone_are_text_nowhere():
    rows, is_real = text_positions(torch.tensor([[True, True], [True, False]]))
    assert rows.tolist() == [[0], [1]] and is_real.tolist() == [[False], [True]]


def test_columns_of_a_window_end_with_the_newest_token():
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    columns = torch.tensor([[False, False, True, False]])
    assert hide_columns(mask, columns, None)[0, 0].tolist() == [[True, False, True]] * 2
    biased = hide_columns(torch.zeros(1, 1, 1, 6), columns, None)[0, 0, 0]
    assert (biased < 0).nonzero().tolist() == [[2]]
