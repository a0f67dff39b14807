"""The fresh process imports nothing of this package but itself, and tells every difference."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from lit_depth.models.certify import NEEDS, Case, compare, digest, tolerance_of

LOGITS = torch.tensor([[[1.0, -4.0]], [[2.0, 0.5]]])
CASE = Case("two", {"attention_mask": torch.tensor([[0, 1], [1, 1]])}, LOGITS, torch.tensor([[3, 4], [5, 6]]))


def test_nothing_of_this_package_is_imported_besides():
    code = "import json, sys, lit_depth.models.certify\n"
    code += "print(json.dumps([m for m in sys.modules if m.partition('.')[0] == 'lit_depth']))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(said) == ["lit_depth", "lit_depth.models", "lit_depth.models.certify"]
    assert set(NEEDS) == {"molmo", "phi4_multimodal"}


def test_equal_is_equal():
    found = compare(CASE, LOGITS.clone(), CASE.tokens.clone(), 0)
    assert found == {
        "name": "two",
        "rows": 2,
        "padded_positions": 1,
        "largest_logit": 4.0,
        "largest_difference": 0.0,
        "ratio": 0.0,
        "logits_equal": True,
        "num_tokens": 4,
        "tokens_differ": 0,
    }


@pytest.mark.parametrize(
    ("shift", "equal"), [(3.9e-6, True), (4.4e-6, False), (float("nan"), False), (float("inf"), False)]
)
def test_logits_are_held_to_a_share_of_the_largest(shift, equal):
    logits = LOGITS.double()
    logits[0, 0, 1] -= shift
    assert compare(CASE, logits, CASE.tokens, tolerance_of("float32"))["logits_equal"] is equal


@pytest.mark.parametrize(
    ("tokens", "number"), [([[3, 4], [5, 7]], 1), ([[3], [5]], 2), ([[3, 4, 0], [5, 6, 0]], 2), ([[9, 9], [9, 9]], 4)]
)
def test_tokens_are_counted_also_where_answers_end_elsewhere(tokens, number):
    assert compare(CASE, LOGITS, torch.tensor(tokens), 1)["tokens_differ"] == number


def test_logits_of_another_shape_are_no_comparison():
    with pytest.raises(ValueError, match=r"expected logits of shape \[2, 1, 2\], got \[2, 1, 1\]"):
        compare(CASE, LOGITS[:, :, :1], CASE.tokens, 1)


def test_a_digest_tells_names_shapes_formats_and_values():
    one = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.zeros(2, 3).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(1e-30))},
    ]
    assert digest(one) == digest({"a": torch.zeros(3, 2).T.clone().zero_()})
    assert len({digest(each) for each in (one, *others)}) == 5
