"""Masks under ``torch.compile``: a change of the mask never runs stale code, and compiled equals pruned."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import DynamicCache, PreTrainedModel, StaticCache

from lit_depth.functional import find_blocks, from_mask_id, masked
from tests.helpers.pruning import pruned_copy
from tests.helpers.tiny_models import tiny_batch, tiny_model

# there and back, the whole model in between
ORDER = ["0111", "1111", "1010", "0111", "1101", "1111"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def whole(model: PreTrainedModel):
    return torch.compile(model, backend="eager")  # tracing and its guards: what could go stale


def in_place(model: PreTrainedModel):
    model.compile(backend="eager")
    return model


def by_block(model: PreTrainedModel):
    for block in find_blocks(model):
        block.compile(backend="eager")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("compile_model", [whole, in_place, by_block])
@pytest.mark.parametrize("family", ["llama", "olmoe"])
@torch.no_grad()
def test_a_mask_change_never_runs_stale_code(family, compile_model):
    model = tiny_model(family)
    pruned = {text: pruned_copy(model, from_mask_id(text)) for text in set(ORDER)}
    batch = tiny_batch(model)
    compiled = compile_model(model)
    for text in ORDER:
        with masked(compiled, from_mask_id(text)):
            logits = compiled(**batch, use_cache=False).logits
        expected = pruned[text](**batch, use_cache=False).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5, msg=text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "dynamic", "static"])
@torch.no_grad()
def test_each_mask_is_compiled_once(kind):
    model = tiny_model("llama")
    batch = tiny_batch(model)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    counts = []
    for text in ORDER:
        cache = {
            "none": lambda: None,
            "dynamic": lambda: DynamicCache(config=model.config),
            "static": lambda: StaticCache(model.config, max_cache_len=32),
        }[kind]()
        with masked(compiled, from_mask_id(text)):
            compiled(**batch, use_cache=cache is not None, cache=cache)
        counts.append(counter.frame_count)
    assert counts == [len(set(ORDER[: call + 1])) for call in range(len(ORDER))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_compiled_decoding_equals_a_pruned_model(kind):
    model = tiny_model("llama")
    batch = tiny_batch(model)
    compiled = torch.compile(model, backend="eager")
    length = batch["input_ids"].shape[1]

    def decode(run, config) -> torch.Tensor:
        cache = StaticCache(config, max_cache_len=length + 3) if kind == "static" else DynamicCache(config=config)
        attention, tokens, rows = batch["attention_mask"], batch["input_ids"], []
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        for _ in range(3):
            logits = run(
                input_ids=tokens,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            rows.append(logits)
            tokens = logits.argmax(-1, keepdim=True)
            attention = torch.cat([attention, torch.ones_like(tokens)], dim=1)
            positions = positions[:, -1:] + 1
        return torch.stack(rows)

    for text in ("0111", "1010", "0111"):
        with masked(compiled, from_mask_id(text)):
            answer = decode(compiled, model.config)
        pruned = pruned_copy(model, from_mask_id(text))
        torch.testing.assert_close(answer, decode(pruned, pruned.config), rtol=0, atol=1e-5)
