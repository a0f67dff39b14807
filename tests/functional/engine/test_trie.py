from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.functional import MaskSet, leave_one_out, prefix, random
from lit_depth.functional.engine.trie import MaskTrie, chunk_masks


def all_masks(num_blocks: int):
    bits = st.lists(st.booleans(), min_size=num_blocks, max_size=num_blocks).filter(any)
    return st.lists(bits, min_size=1, max_size=12).map(torch.tensor)


def distinct_active_prefixes(masks: torch.Tensor) -> int:
    """The count by its definition, without a trie."""
    rows = [tuple(mask) for mask in masks.tolist()]
    return sum(len({row[: i + 1] for row in rows if row[i]}) for i in range(masks.shape[1]))


@given(all_masks(6))
def test_count_is_that_of_distinct_active_prefixes(masks):
    trie = MaskTrie(masks)
    assert trie.block_forwards == distinct_active_prefixes(masks) <= trie.sequential_block_forwards == masks.sum()


@given(all_masks(5))
def test_walking_the_plan_gives_every_mask_its_own_blocks(masks):
    trie = MaskTrie(masks)
    groups: list[tuple[int, ...]] = [()]
    for block_idx, level in enumerate(trie.levels):
        outputs = [(*groups[group], block_idx) for group in level.run]
        for mask, place in zip(masks, trie.places[:, block_idx].tolist()):
            assert (place >= 0) == bool(mask[block_idx])
            if place >= 0:
                active = mask[: block_idx + 1].nonzero().flatten().tolist()
                assert outputs[place] == tuple(active)
        groups = [groups[p] if s is None else outputs[s] for s, p in zip(level.sources, level.parents)]
    assert [groups[leaf] for leaf in trie.leaves] == [tuple(mask.nonzero().flatten().tolist()) for mask in masks]


@given(all_masks(5))
def test_groups_that_no_later_block_runs_on_come_last(masks):
    trie = MaskTrie(masks)
    for block_idx, level in enumerate(trie.levels):
        is_read = [
            any(mask[block_idx + 1 :].any() for mask, at in zip(masks, trie.places[:, block_idx]) if at == place)
            for place in range(len(level.run))
        ]
        assert is_read == [place < level.num_continued for place in range(len(level.run))]


def test_counts_of_the_usual_sets():
    full = torch.ones(1, 16, dtype=torch.bool)
    one_out = torch.cat([full, leave_one_out(16)])
    prefixes = torch.stack([prefix(16, k) for k in range(1, 17)])
    assert (MaskTrie(one_out).block_forwards, MaskTrie(one_out).sequential_block_forwards) == (136, 256)
    assert (MaskTrie(prefixes).block_forwards, MaskTrie(prefixes).sequential_block_forwards) == (16, 136)
    randoms = torch.stack([random(16, k, seed=k) for k in range(1, 17)])
    together = MaskTrie(torch.cat([one_out, prefixes, randoms]))
    assert together.block_forwards < 230 and together.sequential_block_forwards == 256 + 136 + 136


@given(all_masks(6), st.integers(1, 5))
def test_chunks_cover_every_mask_once(masks, size):
    chunks = list(chunk_masks(MaskSet.of(masks), size))
    assert sorted(index for chunk in chunks for index in chunk) == list(range(len(masks)))
    assert all(1 <= len(chunk) <= size for chunk in chunks)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one mask"):
        MaskTrie([])
    with pytest.raises(ValueError, match="at least one active block"):
        MaskTrie(torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        list(chunk_masks(MaskSet.full(2), 0))
