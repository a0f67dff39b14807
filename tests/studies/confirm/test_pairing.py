"""The same samples of several sides."""

from __future__ import annotations

import pytest

from lit_depth.integrations.harness_logs import read_harness_log
from lit_depth.results.run_records import read_run
from lit_depth.studies.confirm.choosing import choose_metric, find_ours
from lit_depth.studies.confirm.pairing import noted_differences, pair
from tests.helpers.sample_logs import (
    digest,
    lm_eval_row,
    lmms_eval_row,
    log_of,
    write_lm_eval,
    write_lmms_eval,
    write_run,
)


def test_samples_are_matched_by_number_and_the_others_named(tmp_path):
    exported = log_of(tmp_path / "e", {3: 0.0, 1: 1.0, 0: 0.25, 9: 1.0})
    whole = log_of(tmp_path / "w", {0: 1.0, 1: 1.0, 3: 0.5, 7: 1.0, 8: 0.0})
    found = pair(exported, whole, "acc", None, None)
    assert found.samples == ["3", "1", "0"] and found.matched_by == "id"
    assert found.whole.tolist() == [0.5, 1.0, 1.0] and found.exported.tolist() == [0.0, 1.0, 0.25]
    assert found.drop.tolist() == [0.5, 0.0, 0.75] and found.is_bounded and found.ours is None
    assert found.unmatched == {"of the exported model alone": ["9"], "of the whole model alone": ["7", "8"]}


def test_documents_that_were_numbered_otherwise_are_matched_by_their_hash(tmp_path):
    exported = log_of(tmp_path / "e", {0: 0.0, 1: 1.0, 2: 0.5})
    shifted = [lm_eval_row(doc, {"acc": float(doc)}, doc_id=doc + 1) for doc in range(3)]
    found = pair(exported, read_harness_log(write_lm_eval(tmp_path / "w", shifted)), "acc", None, None)
    assert found.matched_by == "doc_hash" and found.samples == ["0", "1", "2"]
    assert found.whole.tolist() == [0.0, 1.0, 2.0] and not found.is_bounded


def test_documents_of_which_no_number_is_shared_are_matched_by_their_hash_too(tmp_path):
    exported = log_of(tmp_path / "e", {0: 0.0, 1: 1.0, 2: 0.5})
    shifted = [lm_eval_row(doc, {"acc": float(doc)}, doc_id=doc + 100) for doc in range(1, 4)]
    found = pair(exported, read_harness_log(write_lm_eval(tmp_path / "w", shifted)), "acc", None, None)
    assert found.matched_by == "doc_hash" and found.samples == ["1", "2"] and found.whole.tolist() == [1.0, 2.0]
    assert found.unmatched == {"of the exported model alone": ["0"], "of the whole model alone": ["103"]}


@pytest.mark.parametrize(("column", "part"), [("prompt_hash", "prompts"), ("target", "targets")])
def test_documents_that_were_not_asked_alike_are_refused(column, part, tmp_path):
    exported = log_of(tmp_path / "e", {doc: 1.0 for doc in range(5)})
    rows = [lm_eval_row(doc, {"acc": 1.0}) for doc in range(5)]
    for doc in (1, 4):
        rows[doc] |= {column: digest("other")}
    whole = read_harness_log(write_lm_eval(tmp_path / "w", rows))
    with pytest.raises(ValueError, match=rf"2 of 5 shared samples were not asked alike \(1, 4\): their {part} differ"):
        pair(exported, whole, "acc", None, None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"versions": 2.0}, "version of the task: 2.0 and 1.0"),
        ({"n-shot": 5}, "number of examples: 5 and 0"),
        ({"configs": {"dataset_name": "other"}}, "dataset_name: other and None"),
        ({"chat_template_sha": "ab"}, "chat template: ab and None"),
    ],
)
def test_evaluations_that_differ_are_refused(changed, message, tmp_path):
    exported, whole = log_of(tmp_path / "e", {0: 1.0, 1: 1.0}), log_of(tmp_path / "w", {0: 1.0, 1: 1.0}, **changed)
    with pytest.raises(ValueError, match=f"evaluated otherwise .*{message}"):
        pair(exported, whole, "acc", None, None)


def test_engines_may_differ_which_is_told(tmp_path):
    exported = log_of(tmp_path / "e", {0: 1.0, 1: 1.0}, config={"model": "vllm", "limit": 2})
    whole = log_of(tmp_path / "w", {0: 1.0, 1: 1.0})
    assert pair(exported, whole, "acc", None, None).samples == ["0", "1"]
    assert noted_differences(exported, whole) == ["engine: hf and vllm", "limit: None and 2"]


def test_no_overlap_and_a_single_image_are_refused(tmp_path):
    exported = log_of(tmp_path / "e", {5: 1.0, 6: 1.0})
    with pytest.raises(
        ValueError, match="no sample is shared .* its 2 samples of the split test are 5, 6, the others 0, 1"
    ):
        pair(exported, log_of(tmp_path / "w", {0: 1.0, 1: 1.0}), "acc", None, None)
    with pytest.raises(ValueError, match="expected at least 2 samples"):
        pair(exported, log_of(tmp_path / "v", {5: 1.0, 1: 1.0}), "acc", None, None)


def test_our_records_are_matched_by_split_and_number(tmp_path):
    ours = {"111": {"test/0": 1.0, "test/1": 1.0, "test/2": 1.0}, "101": {"test/0": 1.0, "test/1": 0.0, "test/2": 0.5}}
    ours = {mask: scores | {"train/3": 0.0} for mask, scores in ours.items()}
    run = read_run(write_run(tmp_path / "run", "lm_eval_sums", ours))
    exported = log_of(tmp_path / "e", {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.0})
    records = find_ours(exported, run, None)
    assert records is not None
    whole = log_of(tmp_path / "w", {0: 1.0, 1: 1.0, 2: 0.5, 3: 1.0})
    found = pair(exported, whole, "acc", "101", records)
    assert found.ours is not None and found.ours.samples == ["0", "1", "2"]
    theirs, mine, images = found.drops_on_ours()
    assert theirs.tolist() == [0.0, 0.0, 0.0] and mine.tolist() == [0.0, 1.0, 0.5] and images[0] == "test/0"
    # test/2: the whole model has 0.5 there, 1.0 here
    assert [each.tolist() for each in found.equal_scores()] == [[True, True, False], [True, False, True]]
    assert found.unmatched == {"without a record of our run": ["3"]}
    # our answers were made of the names of our samples
    assert found.equal_answers() == [False, False, False]
    # our records stand for the whole model where no log of it is given
    alone = pair(exported, None, "acc", "101", records)
    assert alone.whole_is_ours and alone.whole.tolist() == [1.0, 1.0, 1.0]
    assert alone.unmatched == {"of the exported model alone": ["3"]}
    # what is no longer the masked model is compared with the whole one alone
    assert pair(exported, None, "acc", "101", records, confirms=False).ours is None
    with pytest.raises(ValueError, match="our run has masks of 3 entries, the export one of 4"):
        pair(exported, whole, "acc", "1011", records)


def test_samples_that_masks_were_selected_on_are_told(tmp_path):
    scores = {f"test/{doc}": 1.0 for doc in range(3)}
    write_run(tmp_path / "run", "lm_eval_sums", {"11": scores, "10": scores}, role="calibration")
    exported = log_of(tmp_path / "e", {doc: 1.0 for doc in range(3)})
    found = pair(exported, None, "acc", "10", read_run(tmp_path / "run").tasks["lm_eval_sums"])
    assert found.remarks == ("sums: our records are of samples that masks were selected on (calibration).",)


def test_images_of_our_records_are_the_clusters(tmp_path):
    scores = {f"test/{doc}": 1.0 for doc in range(4)}
    run = read_run(write_run(tmp_path / "run", "lm_eval_sums", {"11": scores, "10": scores}, image="one"))
    exported = log_of(tmp_path / "e", {doc: 1.0 for doc in range(4)})
    with pytest.raises(ValueError, match="expected at least 2 samples"):
        pair(exported, None, "acc", "10", run.tasks["lm_eval_sums"])


def test_what_lmms_eval_notes_of_a_document_is_our_score(tmp_path):
    rows = [lmms_eval_row(doc, {"mme_score": {"score": float(doc == 0)}, "other": 1.0}) for doc in range(2)]
    exported = read_harness_log(write_lmms_eval(tmp_path / "e", rows, "mme"))
    ours = {"11": {"test/0": 1.0, "test/1": 1.0}, "01": {"test/0": 1.0, "test/1": 0.0}}
    run = read_run(write_run(tmp_path / "run", "lmms_eval_mme", ours, metric="score"))
    records = find_ours(exported, run, None)
    assert choose_metric(exported, None, None, records)[0] == "mme_score"
    found = pair(exported, None, "mme_score", "01", records)
    assert all(each.all() for each in found.equal_scores())
    with pytest.raises(ValueError, match="our run has not recorded other"):
        pair(exported, None, "other", "01", records)


def test_samples_without_the_metric_are_left_out_and_counted(tmp_path):
    rows = [lmms_eval_row(doc, {"a": 1.0} if doc % 2 else {"b": 1.0}) for doc in range(6)]
    logs = [read_harness_log(write_lmms_eval(tmp_path / name, rows)) for name in "xy"]
    found = pair(*logs, "a", None, None)
    assert found.samples == ["1", "3", "5"] and "3 of 6 samples have no a (0, 2, 4)" in found.remarks[0]


def test_a_metric_that_the_whole_models_log_lacks_is_named(tmp_path):
    exported, whole = log_of(tmp_path / "e", {0: 1.0, 1: 1.0}), log_of(tmp_path / "w", {0: 1.0, 1: 1.0}, metric="f1")
    with pytest.raises(ValueError, match=r"w/samples_.*: expected the metric acc, got f1"):
        pair(exported, whole, "acc", None, None)
    rows = [lm_eval_row(doc, {"acc": "C", "f1": 1.0}) for doc in range(2)]
    whole = read_harness_log(write_lm_eval(tmp_path / "v", rows))
    with pytest.raises(ValueError, match=r"expected the metric acc \(a text at sample 0\), got f1"):
        pair(exported, whole, "acc", None, None)


def test_more_samples_of_our_run_are_named_and_those_without_the_metric_left_out(tmp_path):
    scores = {f"test/{doc}": 1.0 for doc in range(5)}
    write_run(tmp_path / "run", "lm_eval_sums", {"11": scores, "10": scores | {"test/1": float("nan")}})
    exported = log_of(tmp_path / "e", {0: 1.0, 1: 0.0, 2: 1.0})
    found = pair(exported, None, "acc", "10", read_run(tmp_path / "run").tasks["lm_eval_sums"])
    assert found.samples == ["0", "2"]
    assert found.unmatched == {"of the exported model alone": ["1"], "of our run alone": ["3", "4"]}
