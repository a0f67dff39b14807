"""Masks that skip the attention or the MLP of a block, against copies in which that half adds zeros."""

from __future__ import annotations

import copy
import json
import warnings
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

from lit_depth.data import DepthDataModule
from lit_depth.functional import (
    find_blocks,
    from_mask_id,
    leave_one_out,
    mask_id,
    masked,
    random,
    reference_logprob,
    sweep_forward,
    sweep_generate,
)
from lit_depth.functional import generate as generate_rows
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.masking.sublayers import find_halves
from lit_depth.models.loading import load_bundled
from lit_depth.models.molmo import MolmoForConditionalGeneration
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from tests.helpers.masking_laws import CountOperations, assert_restored, generate, snapshot
from tests.helpers.tiny_models import FAMILIES, placeholders, tiny_batch, tiny_model
from tests.helpers.zeroing import zeroed_copy

REFUSED = ("gpt_neox", "falcon")
SUPPORTED = [family for family in FAMILIES if family not in REFUSED]
SUBLAYERS = {"granularity": "sublayer"}
# each single half, and some: among them both halves of a block, halves of all blocks, and one attention alone
SINGLE = [mask_id(mask) for mask in leave_one_out(8)]
SOME = ["00111111", "01101101", "10101010", "00000010", mask_id(random(8, 5, seed=1))]


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.mark.slow
@pytest.mark.parametrize("family", SUPPORTED)
def test_masked_generate_equals_a_copy_with_zeroed_outputs(models, family):
    model = models[family]
    batch = tiny_batch(model)
    for text in SINGLE + SOME:
        expected_tokens, expected_logits = generate(zeroed_copy(model, from_mask_id(text)), batch)
        with masked(model, from_mask_id(text), **SUBLAYERS):
            for kind in ("dynamic", "static"):
                tokens, logits = generate(model, batch, cache_implementation=kind)
                assert torch.equal(tokens, expected_tokens), f"{text} {kind}"
                torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-5, msg=f"{text} {kind}")
    # or else the law could hold for masks that are ignored
    whole = generate(model, batch)[1][:, 0]
    for text in SINGLE:
        with masked(model, from_mask_id(text), **SUBLAYERS):
            assert (generate(model, batch)[1][:, 0] - whole).abs().max() > 0.01, text


@pytest.mark.slow
@pytest.mark.parametrize("family", ["molmoe_tiny", "molmo_dense_tiny", "molmo_o_tiny"])
@torch.no_grad()
def test_molmo_with_images(golden_dir, family):
    # one row with an image, one without and padded on the left
    model = MolmoForConditionalGeneration.from_pretrained(golden_dir / family).eval()
    cases = load_file(golden_dir / family / "cases.safetensors")
    names = ("input_ids", "attention_mask", "images", "image_masks", "image_input_idx")
    inputs = {name: cases[f"batch_left.{name}"] for name in names}
    pad = json.loads((golden_dir / family / "cases.json").read_text())["special_token_ids"]["pad"]
    real = inputs["attention_mask"].bool()
    num_units = 2 * len(find_blocks(model))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": pad}
    for mask in [*leave_one_out(num_units), random(num_units, num_units // 2, seed=0)]:
        reference = zeroed_copy(model, mask)
        with masked(model, mask, **SUBLAYERS):
            logits, tokens = model(**inputs).logits, model.generate(**inputs, **options)
        torch.testing.assert_close(logits[real], reference(**inputs).logits[real], rtol=0, atol=1e-5)
        assert torch.equal(tokens, reference.generate(**inputs, **options)), mask_id(mask)


@torch.no_grad()
def test_the_bundled_checkpoint():
    model, processor = load_bundled()
    data = DepthDataModule(prompter_for(model, processor), num_samples=4, batch_size=4)
    inputs = model_inputs(next(iter(data.eval_dataloader("validation"))))
    assert not inputs["attention_mask"].all()
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    for mask in [*leave_one_out(32)[[0, 15]], random(32, 24, seed=0)]:
        reference = zeroed_copy(model, mask).generate(**inputs, **options)
        with masked(model, mask, **SUBLAYERS):
            assert torch.equal(model.generate(**inputs, **options), reference), mask_id(mask)


@pytest.mark.parametrize("family", SUPPORTED)
def test_equal_pairs_are_a_block_mask(models, family):
    model = models[family]
    batch = tiny_batch(model)
    for text in ("0111", "1010", "1111"):
        pairs = from_mask_id(text).repeat_interleave(2)
        results = []
        for mask, options in ((from_mask_id(text), {}), (pairs, SUBLAYERS)):
            cache = DynamicCache(config=model.config)
            with masked(model, mask, **options):
                results.append((*generate(model, batch, past_key_values=cache), placeholders(cache)))
        (tokens, logits, owned), (other_tokens, other_logits, other_owned) = results
        assert torch.equal(tokens, other_tokens) and torch.equal(logits, other_logits) and owned == other_owned


@pytest.mark.parametrize("kind", ["dynamic", "lazy", "static"])
@torch.no_grad()
def test_attention_alone_decides_about_the_cache(models, kind):
    model = models["llama"]
    cache = {
        "dynamic": lambda: DynamicCache(config=model.config),
        "lazy": DynamicCache,
        "static": lambda: StaticCache(model.config, max_cache_len=16),
    }[kind]()
    batch = tiny_batch(model)
    with masked(model, from_mask_id("01101001"), **SUBLAYERS):
        model(**batch, past_key_values=cache)
        model(batch["input_ids"][:, -1:], past_key_values=cache)
    assert placeholders(cache) == [True, False, False, True]
    assert [entry.keys is None for entry in cache.layers] == placeholders(cache)
    assert int(cache.get_seq_length()) == 9
    # blocks 1 and 2 store the same whether their MLP runs or not
    with masked(model, from_mask_id("0110")):
        model(batch["input_ids"][:, -1:], past_key_values=cache)
    with masked(model, from_mask_id("0111")), pytest.raises(ValueError, match="make a new cache"):
        model(batch["input_ids"][:, -1:], past_key_values=cache)


def test_beam_search(models):
    model = models["olmoe"]
    batch = tiny_batch(model)
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    for text in ("01111111", "10011101"):
        expected = zeroed_copy(model, from_mask_id(text)).generate(**batch, **options)
        with masked(model, from_mask_id(text), **SUBLAYERS):
            assert torch.equal(model.generate(**batch, **options), expected)


def test_hooks_of_the_skipped_half_do_not_fire(models):
    model = models["qwen3"]
    fired = []
    blocks = find_blocks(model)
    handles = [
        module.register_forward_hook(lambda *_, index=index, name=name: fired.append(f"{index} {name}".strip()))
        for index, block in enumerate(blocks[:2])
        for name, module in block.named_modules()
        if name in ("", "self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    ]
    with masked(model, from_mask_id("01101111"), **SUBLAYERS):
        states = model(**tiny_batch(model), output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert fired == ["0 post_attention_layernorm", "0 mlp", "0", "1 input_layernorm", "1 self_attn", "1"]
    assert len(states) == 5


def operations(model: PreTrainedModel, batch: dict, text: str) -> Counter[str]:
    """Tensor operations of a prefill and a decode step under a mask."""
    cache = DynamicCache(config=model.config)
    with masked(model, from_mask_id(text), **SUBLAYERS), CountOperations() as counted:
        model(**batch, past_key_values=cache)
        model(batch["input_ids"][:, :1], past_key_values=cache)
    return Counter(counted.names)


@pytest.mark.parametrize("family", SUPPORTED)
def test_halves_make_up_the_operations_of_a_block(models, family):
    # whole blocks are skipped without any other operation (test_masking), so halves are too if they add up to one
    model = models[family]
    batch = tiny_batch(model)
    whole = operations(model, batch, "11111111")
    saved = [whole - operations(model, batch, text) for text in ("11011111", "11101111", "11001111")]
    assert all(saved[:2]) and saved[0] + saved[1] == saved[2]
    assert not operations(model, batch, "11011111") - whole


@pytest.mark.parametrize("family", ["llama", "olmoe", "olmo2"])
@pytest.mark.parametrize("checkpointing", [None, True, False])  # None = off, else use_reentrant
def test_training_equals_a_copy_with_zeroed_outputs(family, checkpointing):
    model = tiny_model(family).train()
    batch = tiny_batch(model)
    mask = from_mask_id("11011011")
    reference = zeroed_copy(model, mask)
    calls = []
    find_blocks(model)[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    with masked(model, mask, **SUBLAYERS):
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
    assert len(calls) == (1 if checkpointing is None else 2)  # recomputed, with the mask
    expected = reference(**batch, labels=batch["input_ids"]).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    skipped = ("layers.1.self_attn", "layers.2.mlp")
    norms = {"olmo2": ("layers.1.post_attention", "layers.2.post_feed")}.get(
        family, ("layers.1.input_layernorm", "layers.2.post_attention")
    )
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters()):
        if any(part in name for part in (*skipped, *norms)):
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, other.grad, msg=name)


@pytest.mark.parametrize("scope", [pytest.param("model", marks=pytest.mark.slow), "blocks"])
@torch.no_grad()
def test_compiled_models_never_run_stale_code(scope):
    torch._dynamo.reset()
    model = tiny_model("llama")
    batch = tiny_batch(model)
    texts = ["01111111", "10111111", "11111111", "01111111"]
    expected = {text: zeroed_copy(model, from_mask_id(text))(**batch, use_cache=False).logits for text in set(texts)}
    for module in [model] if scope == "model" else find_blocks(model):
        module.compile(backend="eager")
    for text in texts:
        with masked(model, from_mask_id(text), **SUBLAYERS):
            logits = model(**batch, use_cache=False).logits
        torch.testing.assert_close(logits, expected[text], rtol=0, atol=1e-5, msg=text)
    torch._dynamo.reset()


def test_contexts_nest_across_granularities_and_leave_no_trace(models):
    model = models["llama"]
    batch = tiny_batch(model)
    kinds = [("01111010", SUBLAYERS), ("0110", {}), ("11101111", SUBLAYERS), ("0111", {"phase": "decode"})]
    alone = []
    for text, options in kinds:
        with masked(model, from_mask_id(text), **options):
            alone.append(generate(model, batch)[1])
    before = snapshot(model)
    for (outer, outer_options), outer_alone in zip(kinds, alone):
        with pytest.raises(RuntimeError, match="inside"), masked(model, from_mask_id(outer), **outer_options):
            for (inner, inner_options), inner_alone in zip(kinds, alone):
                with masked(model, from_mask_id(inner), **inner_options):
                    assert torch.equal(generate(model, batch)[1], inner_alone), (outer, inner)
                assert torch.equal(generate(model, batch)[1], outer_alone), (outer, inner)
            raise RuntimeError("inside")
        assert_restored(model, before)


@pytest.mark.parametrize(
    ("family", "departure"),
    [
        ("gpt_neox", "self.input_layernorm"),
        ("falcon", "new_decoder_architecture"),
    ],
)
def test_other_forms_of_blocks_are_refused(models, family, departure):
    name = type(find_blocks(models[family])[0]).__name__
    with pytest.raises(ValueError, match=f"cannot skip half of a {name}: .*{departure}.*; skip whole blocks instead"):
        masked(models[family], [True] * 8, **SUBLAYERS)


class Doubled(nn.Module):
    """As Llama's blocks but for one factor."""

    def forward(self, hidden_states, **kwargs):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states=hidden_states, **kwargs)
        hidden_states = residual + 2 * hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class Selective(nn.Module):
    """As Llama's blocks, but an argument does not reach the attention."""

    def forward(self, hidden_states, attention_mask=None, position_ids=None, **kwargs):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states=hidden_states, attention_mask=attention_mask, **kwargs)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


def test_a_form_is_recognised_by_every_statement():
    halves, departure = find_halves(Doubled.forward)
    assert halves is None and "'hidden_states = residual + 2 * hidden_states'" in departure
    halves, departure = find_halves(Selective.forward)
    assert halves is None and "attention_mask=attention_mask" in departure
    namespace: dict = {}
    exec("def forward(self, hidden_states): return hidden_states", namespace)
    assert find_halves(namespace["forward"]) == (None, "the source of its forward cannot be read")


@pytest.mark.parametrize(
    ("mask", "options", "error", "message"),
    [
        ([True] * 4, SUBLAYERS, ValueError, "a mask of 8 sublayers, got 4"),
        ([True] * 8, {}, ValueError, "a mask of 4 blocks, got 8; .*granularity='sublayer'"),
        ([False] * 8, SUBLAYERS, ValueError, "at least one active sublayer, .* all 8"),
        ([False, True] * 4, SUBLAYERS, ValueError, "at least one active attention"),
        ([True] * 8, SUBLAYERS | {"phase": "decode"}, NotImplementedError, "'sublayer' with phase='decode'"),
        (
            [True] * 8,
            SUBLAYERS | {"phase": "prefill", "decode_without_prompt": True},
            NotImplementedError,
            "decode_without_prompt=True",
        ),
        ([True] * 8, {"granularity": "head"}, ValueError, "expected granularity as 'block' or 'sublayer'"),
    ],
)
def test_mistakes_are_refused_before_the_context_is_entered(models, mask, options, error, message):
    with pytest.raises(error, match=message):
        masked(models["llama"], mask, **options)


def test_skipping_the_prefill_is_skipping_both(models):
    model = models["llama"]
    batch = tiny_batch(model)
    mask = from_mask_id("10011111")
    with masked(model, mask, **SUBLAYERS):
        expected = generate(model, batch)[1]
    with masked(model, mask, phase="prefill", **SUBLAYERS):
        assert torch.equal(generate(model, batch)[1], expected)


def test_half_of_a_block_with_a_forward_of_its_own_is_refused(models):
    model = copy.deepcopy(models["llama"])
    block = find_blocks(model)[1]
    block.forward = own = block.forward
    before = snapshot(model)
    with pytest.raises(ValueError, match="half of block 1: it has a forward of its own on the instance"):
        with masked(model, from_mask_id("11011111"), **SUBLAYERS):
            pass
    assert_restored(model, before)
    # other blocks may be halved, and this one may be skipped whole
    batch = tiny_batch(model)
    for text in ("01111111", "11001111"):
        with masked(model, from_mask_id(text), **SUBLAYERS):
            logits = model(**batch).logits
        expected = zeroed_copy(models["llama"], from_mask_id(text))(**batch).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert block.__dict__["forward"] is own


@pytest.mark.parametrize("family", ["llama", "olmo2", "llava"])
def test_many_masks_are_answered_as_copies_with_zeroed_outputs(models, family):
    model = models[family]
    batch = tiny_batch(model)
    answer_ids = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 10, -100], [11, 12, 13]])
    masks = [from_mask_id(text) for text in (*SINGLE[:3], *SOME[:3])]
    options = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0, **SUBLAYERS}
    finished = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens, logprobs = answer_masks(
            model, batch, masks, answer_ids=answer_ids, on_mask=lambda: finished.append(1), **options
        )
    assert len(finished) == len(masks) and torch.equal(sweep_generate(model, batch, masks, **options), tokens)
    for mask, answer, scores in zip(masks, tokens, logprobs):
        reference = zeroed_copy(model, mask)
        expected = reference.generate(**batch, max_new_tokens=3, do_sample=False, eos_token_id=[-1], pad_token_id=0)
        assert torch.equal(answer, expected[:, batch["input_ids"].shape[1] :]), mask_id(mask)
        expected_scores = reference_logprob(reference, batch, answer_ids, pad_token_id=0)
        torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-5)


def test_one_pass_and_per_row_masks_take_whole_blocks_unless_told_otherwise(models):
    model = models["llama"]
    batch = tiny_batch(model)
    masks = torch.ones(4, 8, dtype=torch.bool)
    for call in (lambda: sweep_forward(model, batch, masks), lambda: generate_rows(model, batch, masks, 2)):
        with pytest.raises(ValueError, match="a mask of 4 blocks, got 8; masks of sublayers"):
            call()
