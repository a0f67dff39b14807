"""Quality by type: the mean over types, weighted by their questions, is the quality of all."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.question_types import describe_question_types, question_type_sections
from lit_depth.studies.shared.scores import Scores


def measured(**columns) -> Measured:
    generator = np.random.default_rng(0)
    rows = [
        {"mask": mask, "sample": str(sample), "image": str(sample // 2), "prediction": "x", "reference_logprob": -1.0}
        | {"score": float(generator.random() < 0.6), "question_type": ("count", "color", "color")[sample % 3]}
        for mask in ("111", "110", "011")
        for sample in range(30)
    ]
    records = pd.DataFrame(rows).assign(**columns)
    return Measured(None, "validation", Scores.from_records(records), SimpleNamespace(records=records))  # type: ignore[arg-type]


GROUPS = {"prefix_2": ["110"], "both_2": ["110", "011"]}


def test_types_add_up_to_all():
    one = measured()
    found = describe_question_types(one, GROUPS, 0.95)["question_types"]
    assert {kind: each["num_samples"] for kind, each in found.items()} == {"color": 20, "count": 10}
    for name, ids in {"full": ["111"], **GROUPS}.items():
        total = sum(each["num_samples"] * each["quality"][name]["quality"] for each in found.values()) / 30
        assert total == pytest.approx(one.scores.rows(ids).mean())
        assert all(each["quality"][name]["quality_ci"][0] < each["quality"][name]["quality"] for each in found.values())
    (section,) = question_type_sections({"question_types": found, "task": "t"}, {"prefix_2": "prefix, 2 blocks"})
    assert section.printed and [row[:2] for row in section.table.rows] == [["color", 20], ["count", 10]]


def test_of_one_image_there_is_no_interval():
    one = measured(image="the only one", question_type=["a"] * 1 + ["b"] * 29 + (["a"] + ["b"] * 29) * 2)
    found = describe_question_types(one, {}, 0.95)["question_types"]
    assert found["a"]["quality"]["full"]["quality_ci"] is None


@pytest.mark.parametrize("kinds", ["all the same", None])
def test_without_types_there_is_nothing(kinds):
    assert describe_question_types(measured(question_type=kinds), GROUPS, 0.95) == {}
    assert question_type_sections({"task": "t"}, {}) == []
