"""Options chosen by log-likelihood, against hand-made cases."""

from types import SimpleNamespace

import pytest

from lit_depth.metrics.base import new_metric
from lit_depth.metrics.likelihood import Likelihood, most_likely

OPTIONS = ("no", "certainly")
FOUND = [Likelihood(-1.0, 1, 1), Likelihood(-1.8, 3, 1)]  # per character -0.5 and -0.2


@pytest.mark.parametrize(("name", "letter", "score"), [("acc", "A", 0.0), ("acc_norm", "B", 1.0)])
def test_both_normalisations_are_recorded_and_one_is_the_score(name, letter, score):
    sample = SimpleNamespace(references=("B",), options=OPTIONS)
    record = new_metric(name).judge(sample, FOUND)
    assert record == {"prediction": letter, "score": score, "acc": 0.0, "acc_norm": 1.0}


def test_the_first_of_equal_options_is_chosen():
    assert most_likely([Likelihood(-2.0, 1, 0)] * 3, ["a", "b", "c"]) == "A"


def test_a_continuation_is_greedy_where_all_its_tokens_are():
    assert [each.is_greedy for each in FOUND] == [True, False]


def test_texts_are_recorded_by_their_mean_and_their_tokens():
    record = new_metric("logprob_per_token").judge(None, [Likelihood(-30.0, 12, 3)])
    assert record == {"score": -2.5, "weight": 12}
    with pytest.raises(ValueError, match="too many values"):
        new_metric("logprob_per_token").judge(None, FOUND)
