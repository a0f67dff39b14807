"""Angular distance over spans of blocks, against hidden states that transformers returns, row by row."""

from __future__ import annotations

import math

import pytest
import torch

from lit_depth.functional import find_blocks, masked, proxy_importance
from lit_depth.functional.importance.spans import least_turning_span, span_distances
from tests.helpers.tiny_models import tiny_batch, tiny_model


def padded(batch, side: str):
    ids = batch["input_ids"]
    extra = torch.full((len(ids), 3), 1)
    parts = [extra, ids] if side == "left" else [ids, extra]
    mask = [torch.zeros_like(extra), torch.ones_like(ids)]
    return {"input_ids": torch.cat(parts, 1), "attention_mask": torch.cat(mask if side == "left" else mask[::-1], 1)}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama").eval()


@pytest.fixture(scope="module")
def batch(model):
    return {"input_ids": tiny_batch(model)["input_ids"]}


def test_distances_are_those_of_the_states_between_blocks(model, batch):
    blocks = find_blocks(model)
    seen = []
    hooks = [block.register_forward_hook(lambda block, args, output: seen.append((args, output))) for block in blocks]
    before = []
    hooks.append(blocks[0].register_forward_pre_hook(lambda block, args: before.append(args[0])))
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    states = [before[0], *(output[0] if isinstance(output, tuple) else output for _, output in seen)]
    found = span_distances(model, [batch])
    num = len(blocks)
    for first in range(num):
        for length in range(num + 1):
            if first + length > num:
                assert math.isnan(found[first, length])
                continue
            angles = []
            for row in range(len(batch["input_ids"])):
                x, y = states[first][row, -1].double(), states[first + length][row, -1].double()
                angles.append(math.acos(min(1.0, float(x @ y / (x.norm() * y.norm())))) / math.pi)
            assert found[first, length] == pytest.approx(sum(angles) / len(angles), abs=1e-6)


def test_of_one_block_it_is_the_angular_distance_of_the_last_token(model, batch):
    scores = proxy_importance(model, [batch], ["angular_distance_last_token"])
    torch.testing.assert_close(span_distances(model, [batch])[:, 1], scores["angular_distance_last_token"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batches_change_nothing(model, batch, side):
    whole = span_distances(model, [batch])
    torch.testing.assert_close(span_distances(model, [padded(batch, side)]), whole, equal_nan=True, atol=1e-5, rtol=0)
    rows = [{"input_ids": row[None]} for row in batch["input_ids"]]
    torch.testing.assert_close(span_distances(model, rows), whole, equal_nan=True, atol=1e-5, rtol=0)


def test_a_span_of_skipped_blocks_turns_nothing(model, batch):
    mask = torch.ones(len(find_blocks(model)), dtype=torch.bool)
    mask[1:3] = False
    with masked(model, mask):
        found = span_distances(model, [batch])
    # arccos of a cosine near 1 keeps half the digits
    assert found[1, 2] == pytest.approx(0.0, abs=1e-7)
    assert least_turning_span(found, 2) == (1, 2)


def test_mistakes_are_named(model):
    with pytest.raises(ValueError, match="at least one row"):
        span_distances(model, [])
    with pytest.raises(ValueError, match="expected length from 1 to 1|between 1 and 1|length"):
        least_turning_span(torch.zeros(2, 3), 2)
    broken = tiny_model("llama")
    with torch.no_grad():
        for weight in find_blocks(broken)[1].parameters():
            weight.fill_(math.nan)
    with pytest.raises(ValueError, match="finite hidden states"):
        span_distances(broken, [{"input_ids": torch.tensor([[1, 2]])}])
