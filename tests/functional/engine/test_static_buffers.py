"""Buffers hold what a prompt left, move on by one token, and forget what was before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, LinearAttentionLayer

from lit_depth.functional.engine.decoding_configuration import CannotDriveError
from lit_depth.functional.engine.static_buffers import Prompt, StaticBuffers


def step_inputs(length: int, value: float, **others):
    kept = DynamicLayer()
    kept.update(torch.full((2, 1, length, 3), value), torch.full((2, 1, length, 3), -value))
    mask = torch.ones(2, length + 1, dtype=torch.long)
    mask[1, 0] = 0
    given = {"input_ids": torch.tensor([[7], [8]]), "attention_mask": mask, "position_ids": mask.sum(1, keepdim=True)}
    return {**given, "cache": Cache(layers=[DummyLayer(), kept]), "use_cache": True, **others}


def test_what_one_prompt_left_does_not_reach_the_next():
    long, short = Prompt.of(step_inputs(5, 1.0)), Prompt.of(step_inputs(3, 2.0))
    assert long.kind() == short.kind()
    buffers = StaticBuffers(long, capacity=8)
    (layer,) = [each for each in buffers.layers if each is not None]
    addresses = [tensor.data_ptr() for tensor in (layer.keys, layer.values, buffers.mask, buffers.tokens)]
    buffers.load(long)
    for token in (1, 2):
        buffers.advance(torch.eye(4)[[token, 3]])
    assert buffers.found[:, :2].tolist() == [[1, 2], [3, 3]]
    assert buffers.mask.tolist() == [[1] * 8, [0] + [1] * 7]
    assert buffers.inputs["position_ids"].tolist() == [[8], [7]]
    layer.keys.fill_(float("nan"))
    buffers.load(short)
    assert layer.keys[0, 0, :, 0].tolist() == [2.0] * 3 + [0.0] * 5
    assert layer.values[:, :, :3].eq(-2.0).all() and int(layer.get_seq_length()) == 3
    assert buffers.mask.tolist() == [[1] * 4 + [0] * 4, [0] + [1] * 3 + [0] * 4]
    assert buffers.tokens.tolist() == [[7], [8]] and int(buffers.num_found) == 0
    assert addresses == [tensor.data_ptr() for tensor in (layer.keys, layer.values, buffers.mask, buffers.tokens)]


def test_room_is_made_for_what_another_mask_keeps():
    first = Prompt.of(step_inputs(5, 1.0))
    swapped = first._replace(keys_values=first.keys_values[::-1], placeholders=first.placeholders[::-1])
    assert first.kind() == swapped.kind()
    buffers = StaticBuffers(first, capacity=8)
    kept = buffers.layers[1]
    assert buffers.layers[0] is None
    buffers.make_room(swapped)
    assert buffers.layers[1] is kept
    caches = []

    def model(**given):
        caches.append(given["cache"].layers)
        return SimpleNamespace(logits=torch.zeros(2, 1, 4))

    for prompt in (first, swapped):
        buffers.forward(model, prompt)()
    assert caches == [[first.placeholders[0], kept], [buffers.layers[0], first.placeholders[0]]]
    buffers.load(swapped)
    assert buffers.layers[0].keys[0, 0, :5, 0].tolist() == [1.0] * 5
    assert buffers.layers[1].keys[0, 0, :5, 0].tolist() == [0.0] * 5


def test_prompts_of_another_kind_have_other_buffers():
    first = Prompt.of(step_inputs(5, 1.0))
    others = [
        Prompt.of(step_inputs(5, 1.0, token_type_ids=torch.zeros(2, 1))),
        Prompt.of(step_inputs(5, 1.0, use_cache=False)),
        Prompt.of(step_inputs(5, 1.0, position_ids=torch.zeros(2, 1))),
    ]
    assert all(other.kind() != first.kind() for other in others)


def test_a_prompt_without_padding_needs_no_mask():
    given = step_inputs(5, 1.0, attention_mask=None)
    assert Prompt.of(given).inputs["attention_mask"].tolist() == [[1] * 6] * 2
    assert Prompt.of(given).kind() == Prompt.of(step_inputs(5, 1.0)).kind()


def test_other_states_and_arguments_are_refused():
    given = step_inputs(5, 1.0)
    for wrong, message in (
        ({"cache": Cache(layers=[LinearAttentionLayer()])}, "block 0 keeps a LinearAttentionLayer"),
        ({"cache": None}, "do not take a cache"),
        ({"attention_mask": torch.ones(2, 4)}, "attention mask"),
        ({"input_ids": None}, "input_ids"),
    ):
        with pytest.raises(CannotDriveError, match=message):
            Prompt.of({**given, **wrong})
