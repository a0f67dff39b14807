"""Agreement with the full model, answer by answer."""

import pytest

from lit_depth.metrics.agreement import Agreement


def test_an_answer_agrees_where_it_is_the_same():
    assert [Agreement.score(answer, ["a cat"]) for answer in ("a cat", "A cat", "")] == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="expected references"):
        Agreement.score("a", [])
