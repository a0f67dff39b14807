"""Memory of rows, and widths of block calls."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_depth.functional import leave_one_out
from lit_depth.functional.engine import decode, memory
from lit_depth.functional.engine.api import answer_masks
from tests.helpers.tiny_models import tiny_batch, tiny_model


class PeakBytes(TorchDispatchMode):
    """Most bytes that tensors made inside the context held at once; those that were there before do not count."""

    def __init__(self, model) -> None:
        super().__init__()
        self.alive = {each.untyped_storage()._cdata: 0 for each in (*model.parameters(), *model.buffers())}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, storage._cdata)
        return result

    def forget(self, key) -> None:
        self.now -= self.alive.pop(key, 0)


@pytest.mark.parametrize("new_tokens", [0, 4])
@pytest.mark.parametrize("family", ["llama", "olmoe"])
def test_chunks_are_planned_for_the_memory_that_they_take(monkeypatch, family, new_tokens):
    """As on a GPU: all masks share a block call, whose widest states count."""
    own = {
        "llama": {"intermediate_size": 344, "head_dim": 32},
        "olmoe": {"intermediate_size": 128, "num_experts": 16, "num_experts_per_tok": 4},
    }
    sizes = {"hidden_size": 128, "num_key_value_heads": 4, "max_position_embeddings": 512, **own[family]}
    model = tiny_model(family, num_blocks=8, **sizes)
    monkeypatch.setattr(decode, "call_width", lambda *_: None)
    monkeypatch.setattr(memory, "call_width", lambda *_: None)
    inputs, masks = tiny_batch(model, length=200), torch.cat([torch.ones(1, 8, dtype=torch.bool), leave_one_out(8)])
    answers = torch.full((4, 3), 5)
    planned = sum(4 * memory.bytes_per_row(model, inputs, new_tokens, answers, int(n)) for n in masks.sum(1))
    with PeakBytes(model) as used:
        options = {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0, "answer_ids": answers}
        answer_masks(model, inputs, masks, **options, max_rows=10**6)
    assert 0.5 * planned < used.peak < 1.1 * planned


def test_a_call_on_a_cpu_is_as_wide_as_two_mebibytes_of_hidden_states():
    model = tiny_model("llama", hidden_size=128)  # float32: 512 bytes a token
    inputs = {"input_ids": torch.ones(4, 64, dtype=torch.long)}
    assert memory.call_width(model, inputs) == 2**21 // (4 * 64 * 512) == 16
    assert memory.call_width(model, {"input_ids": torch.ones(64, 1024, dtype=torch.long)}) == 1


def test_a_row_holds_keys_and_values_of_its_active_blocks_where_it_is_decoded():
    model = tiny_model("llama", num_blocks=8)
    config, inputs = model.config, {"input_ids": torch.ones(2, 10, dtype=torch.long)}
    one, two = (memory.bytes_per_row(model, inputs, 6, None, count) for count in (1, 2))
    assert two - one == (10 + 6) * 2 * config.num_key_value_heads * config.head_dim * 4
    alone = memory.bytes_per_row(model, inputs, 0, None, 1)
    assert alone == memory.bytes_per_row(model, inputs, 0, None, 2)  # scores keep no keys and values


def test_what_a_chunk_may_take_is_bounded_by_free_memory_and_by_the_model(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(memory, "_available_host_memory", lambda: 3 * 2**20)
    assert memory.affordable_bytes(model) == 2**20
    monkeypatch.setattr(memory, "_available_host_memory", lambda: 2**40)
    assert memory.affordable_bytes(model) == 2**29  # this model is far smaller
