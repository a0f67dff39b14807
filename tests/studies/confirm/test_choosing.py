"""The metric of a log, and the task of our run that it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lit_depth.integrations.harness_logs import read_harness_log
from lit_depth.results.run_records import read_run
from lit_depth.studies.confirm.choosing import choose_metric, find_ours
from tests.helpers.sample_logs import lm_eval_row, log_of, write_lm_eval, write_run


def test_the_task_of_our_run_is_found_by_its_name(tmp_path):
    for task in ("lm_eval_sums_easy", "lm_eval_sums_2_shot_acc", "lm_eval_sums_other"):
        write_run(tmp_path, task, {"11": {"test/0": 1.0}})
    run = read_run(tmp_path)
    run = replace(run, tasks={name: replace(each, metric="acc") for name, each in run.tasks.items()})
    two = log_of(tmp_path / "e", {0: 1.0}, **{"n-shot": 2})
    found = find_ours(two, run, None)
    assert found is not None and found.task == "lm_eval_sums_2_shot_acc"
    with pytest.raises(ValueError, match="was asked with 0 examples, lm_eval_sums_2_shot_acc of our run with 2"):
        find_ours(log_of(tmp_path / "f", {0: 1.0}), run, None)
    chosen = find_ours(two, run, "lm_eval_sums_easy")
    assert chosen is not None and chosen.task == "lm_eval_sums_easy"
    assert find_ours(log_of(tmp_path / "g", {0: 1.0}, task="others"), run, None) is None
    with pytest.raises(ValueError, match="--task: expected one of lm_eval_sums"):
        find_ours(two, run, "arc")


@pytest.fixture
def several(tmp_path):
    rows = [
        lm_eval_row(doc, values, name)
        for name, values in (("strict", {"em": 0.0, "words": ["a"]}), ("loose", {"em": 1.0, "f1": 0.5}))
        for doc in range(2)
    ]
    return read_harness_log(write_lm_eval(tmp_path, rows, higher_is_better={"f1": False}))


@pytest.mark.parametrize(
    ("wanted", "name", "expected"),
    [
        (None, None, "em,strict"),
        (None, "loose", "em,loose"),
        ("em", "loose", "em,loose"),
        ("em,loose", None, "em,loose"),
    ],
)
def test_a_metric_is_chosen_and_told(wanted, name, expected, several):
    metric, told = choose_metric(several, wanted, name, None)
    assert metric == expected and told.startswith(f"sums: metric {expected} (")


@pytest.mark.parametrize(
    ("wanted", "name", "message"),
    [
        ("em", None, "is there for several filters: give --filter strict or loose"),
        ("acc", None, "expected --metric of em,strict, em,loose, f1,loose, got acc; words,strict is no number"),
        ("words,strict", None, "got words,strict; words,strict is no number \\(a list at sample 0"),
        (None, "other", "expected a metric of the filter other that is a number, got em,strict"),
        ("f1", None, "of f1,loose less is better"),
    ],
)
def test_a_metric_is_refused_by_name(wanted, name, message, several):
    with pytest.raises(ValueError, match=message):
        choose_metric(several, wanted, name, None)


def test_by_default_a_metric_is_one_whose_mean_is_the_harnesses_own(tmp_path):
    rows = [lm_eval_row(doc, {"perplexity": -2.0, "acc": 1.0}) for doc in range(2)]
    told = {"perplexity,none": 7.39, "acc,none": 1.0}
    log = read_harness_log(write_lm_eval(tmp_path, rows, results=told, higher_is_better={"perplexity": False}))
    assert choose_metric(log, None, None, None)[0] == "acc"
