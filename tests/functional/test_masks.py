"""Masks as one type: what makes one, what is refused, and what comes from it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.functional import MaskSet, check_mask, from_mask_id, leave_one_out, mask_id
from lit_depth.functional.masks import full_id, units_of

BITS = torch.tensor([[True, True, False, True], [False, False, False, True]])


@pytest.mark.parametrize(
    "masks",
    [
        BITS,
        list(BITS),
        BITS.tolist(),
        tuple(map(tuple, BITS.tolist())),
        BITS.numpy(),
        list(BITS.numpy()),
        ["1101", "0001"],
        MaskSet.of(BITS),
    ],
    ids=["tensor", "tensors", "lists", "tuples", "array", "arrays", "ids", "set"],
)
def test_every_form_is_the_same_set(masks):
    found = MaskSet.of(masks, num_units=4, granularity="block")
    assert found.bits.dtype == torch.bool and found.bits.device.type == "cpu" and torch.equal(found.bits, BITS)
    assert (found.ids, found.granularity, found.num_units) == (("1101", "0001"), "block", 4)


@pytest.mark.parametrize(
    "mask", [BITS[0], BITS[0].tolist(), BITS[0].numpy(), "1101"], ids=["tensor", "list", "array", "id"]
)
def test_one_mask_is_a_set_of_one(mask):
    assert torch.equal(MaskSet.of(mask).bits, BITS[:1])


def test_a_set_is_taken_as_it_is():
    masks = MaskSet.of(BITS, granularity="sublayer")
    assert MaskSet.of(masks) is masks and MaskSet.of(masks, 4, "sublayer") is masks


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5).filter(any), min_size=1, max_size=8))
def test_what_comes_from_a_set(rows):
    masks = MaskSet.of(rows)
    assert len(masks) == len(rows) and [mask.tolist() for mask in masks] == rows
    assert [masks[index].tolist() for index in range(len(rows))] == rows
    assert list(masks.active) == [tuple(i for i, bit in enumerate(row) if bit) for row in rows]
    assert list(masks.counts) == [sum(row) for row in rows]
    assert MaskSet.of(list(masks.ids)).ids == masks.ids == tuple(map(mask_id, rows))
    assert masks.unique().ids == tuple(dict.fromkeys(masks.ids))
    assert masks.take(range(len(rows))[::-1]).ids == masks.ids[::-1]


def test_a_union_holds_each_mask_once_and_a_set_may_become_empty():
    first, second = MaskSet.of(["110", "011", "110"]), MaskSet.of(["111", "011"])
    assert first.union(second).ids == ("110", "011", "111")
    empty = first.take([])
    assert (len(empty), empty.ids, empty.num_units) == (0, (), 3)
    assert empty.union(second).ids == second.ids == second.union(empty).ids


def test_full_masks_and_labels():
    assert MaskSet.full(3).ids == (full_id(3),) == ("111",)
    assert MaskSet.full(3).union(MaskSet.of(leave_one_out(3)[1:2])).labels == ("no block skipped", "block 1 skipped")
    assert MaskSet.of("0101", granularity="sublayer").labels == ("sublayer 0 2 skipped",)
    assert (units_of(3, "block"), units_of(3, "sublayer")) == (3, 6)


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        ([], {}, "at least one mask"),
        (torch.zeros(0, 4, dtype=torch.bool), {}, "at least one mask"),
        (torch.zeros(2, 3, 4, dtype=torch.bool), {}, r"shape \[masks, num_blocks\]"),
        (torch.ones(2, 4), {}, "dtype torch.bool"),
        ([[True, False], [True]], {}, "a mask of 2 blocks"),
        ([[True, False], [False, False]], {}, "at least one active block"),
        ("0000", {"granularity": "sublayer"}, "at least one active sublayer"),
        (["11", "1x"], {}, "characters 0 and 1"),
        ("", {}, "characters 0 and 1"),
        ([[]], {}, "num_units from 1"),
        ("111", {"num_units": 4}, "a mask of 4 blocks"),
        ("11111111", {"num_units": 4}, "masks of sublayers need granularity='sublayer'"),
        (MaskSet.of("1111"), {"num_units": 8}, "a mask of 8 blocks"),
        (MaskSet.of("1111"), {"granularity": "sublayer"}, "expected masks of sublayers"),
        ([[1, 0]], {}, "masks as a MaskSet"),
    ],
)
def test_what_is_no_set_of_masks_is_refused(masks, options, message):
    with pytest.raises(ValueError, match=message):
        MaskSet.of(masks, **options)


def test_a_set_cannot_be_changed():
    masks = MaskSet.of("11")
    with pytest.raises(dataclasses.FrozenInstanceError):
        masks.granularity = "sublayer"  # type: ignore[misc]


def test_the_bits_of_a_set_are_its_own():
    given_bits = BITS.clone()
    masks = MaskSet.of(given_bits)
    given_bits.fill_(True)
    assert torch.equal(masks.bits, BITS)


@pytest.mark.parametrize("text", ["1", "1101", "0001"])
def test_mask_id_round_trip(text):
    mask = from_mask_id(text)
    assert mask.dtype == torch.bool and mask_id(mask) == text == mask_id(mask.tolist())
    assert torch.equal(check_mask(mask, len(text)), mask)


@pytest.mark.parametrize("text", ["", "000", "10a", "1 0"])
def test_bad_mask_ids(text):
    with pytest.raises(ValueError, match="expected"):
        from_mask_id(text)
