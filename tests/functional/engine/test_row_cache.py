"""The engine's cache: rows dealt out, kept, grown without copies, and tokens counted."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional.engine.decoding_configuration import CannotDriveError
from lit_depth.functional.engine.row_cache import RowCache

HEADS, SIZE = 2, 3


def states(rows: int, tokens: int, first: float = 0.0) -> torch.Tensor:
    return first + torch.arange(rows * HEADS * tokens * SIZE).float().view(rows, HEADS, tokens, SIZE)


def test_tokens_are_appended_in_place():
    cache = RowCache(num_blocks=1, capacity=5)
    first, second = states(2, 3), states(2, 1, 100.0)
    assert torch.equal(cache.layers[0].update(first, -first)[0], first)
    cache.advance([True], 3)
    memory = cache.layers[0].keys.data_ptr()
    keys, values = cache.layers[0].update(second, -second)
    cache.advance([True], 1)
    assert torch.equal(keys, torch.cat([first, second], dim=2)) and torch.equal(values, -keys)
    assert keys.data_ptr() == memory and cache.get_seq_length() == 4
    assert cache.get_mask_sizes(1) == (5, 0) and cache.is_initialized


@pytest.mark.parametrize("sources", [[0, 1, 2, 3], [3, 0], [1, 2, 2, 0, 1], [2]])
def test_rows_take_the_keys_and_values_of_their_groups(sources):
    """The calls of two groups, of 2 rows each; the answer's token behind the prompt is forgotten."""
    cache = RowCache(num_blocks=1, capacity=6)
    layer = cache.layers[0]
    layer.parts = []
    groups = states(2, 4), states(2, 4, 1000.0)
    for each in groups:
        layer.update(each, -each)
    cache.advance([True], 4, length=3)
    layer.assign(torch.tensor(sources))
    expected = torch.cat(groups)[sources][:, :, :3]
    assert torch.equal(layer.keys[:, :, :3], expected) and torch.equal(layer.values[:, :, :3], -expected)
    layer.keep_rows(torch.tensor([0]))
    assert torch.equal(layer.keys[:, :, :3], expected[:1])


@pytest.mark.parametrize("sources", [[-1, 1, -1, -1, 0], [-1, -1]])
def test_rows_without_a_prompt_begin_with_numbers(sources):
    """Nobody attends to them, but what is not a number would spread all the same."""
    cache = RowCache(num_blocks=2, capacity=4)
    for layer in cache.layers:
        layer.parts = []
    given = states(2, 2, 1.0)
    cache.layers[0].update(given, -given)
    cache.advance([True, False], 2)
    for layer in cache.layers:  # no row has read the prompt in the second
        layer.assign(torch.tensor(sources if layer is cache.layers[0] else [-1] * len(sources)))
        layer.update(states(len(sources), 1), states(len(sources), 1))
        for row, source in enumerate(sources):
            expected = given[source] if source >= 0 and layer is cache.layers[0] else torch.zeros(HEADS, 2, SIZE)
            assert torch.equal(layer.keys[row, :, :2], expected) and torch.equal(layer.values[row, :, :2], -expected)


def test_a_block_without_rows_holds_nothing_and_the_length_is_known():
    cache = RowCache(num_blocks=2, capacity=6)
    cache.layers[0].parts, cache.layers[1].parts = [], []
    cache.layers[1].update(states(1, 3), states(1, 3))
    cache.advance([False, True], 3)
    cache.layers[0].assign(torch.tensor([], dtype=torch.long))
    assert cache.layers[0].keys is None and cache.layers[0].get_seq_length() == 3
    assert cache.layers[0].get_max_length() == 6


@pytest.mark.parametrize(
    ("ran", "written", "message"),
    [([True, True], 3, "block 0 keeps its state elsewhere"), ([False, True], 2, "block 1 keeps keys and values of 3")],
)
def test_a_block_that_writes_otherwise_is_noticed(ran, written, message):
    cache = RowCache(num_blocks=2, capacity=6)
    cache.layers[1].update(states(1, 3), states(1, 3))
    with pytest.raises(CannotDriveError, match=message):
        cache.advance(ran, written)
