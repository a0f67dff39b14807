"""Files that lm-eval and lmms-eval write with ``--log_samples``."""

from __future__ import annotations

import json

import pytest

from lit_depth.integrations.harness_logs import read_harness_log
from tests.helpers.junk import with_junk
from tests.helpers.sample_logs import lm_eval_row, lmms_eval_row, write_lines, write_lm_eval, write_lmms_eval


def test_a_log_of_lm_eval_and_what_its_file_of_results_says(tmp_path):
    rows = [lm_eval_row(doc, {"acc": float(doc % 2), "acc_norm": 1.0}) for doc in (0, 1, 2, 7)]
    log = read_harness_log(write_lm_eval(tmp_path / "a__b", rows, "arc_easy", model="a/b"))
    assert (log.harness, log.task, log.model, log.split) == ("lm_eval", "arc_easy", "a/b", "test")
    assert log.metrics == ["acc", "acc_norm"] and not log.refused and log.means == {"acc": 0.5, "acc_norm": 1.0}
    assert {sample: each.values["acc"] for sample, each in log.samples.items()} == {"0": 0, "1": 1, "2": 0, "7": 1}
    assert log.samples["7"].answer == "answer 7" and log.remarks == ()
    assert log.binding["version of the task"] == 1.0 and log.noted["engine"] == "hf"


def test_each_filter_is_a_metric_of_its_own(tmp_path):
    rows = [
        lm_eval_row(doc, {"exact_match": score}, name)
        for name, score in (("strict-match", 0.0), ("flexible-extract", 1.0))
        for doc in range(3)
    ]
    log = read_harness_log(write_lm_eval(tmp_path, rows))
    assert log.metrics == ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert log.means == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}


def test_the_answer_to_a_choice_is_its_letter(tmp_path):
    options = [["-3.5", "False"], ["-1.25", "True"], ["-2", "False"]]
    changes = {"resps": [[each] for each in options], "filtered_resps": options}
    more = {"acc_mutual_info": 1.0}
    rows = [lm_eval_row(0, {"acc": 1.0}, **changes), lm_eval_row(1, {"acc": 1.0, **more}, **changes)]
    rows.append(lm_eval_row(2, {"acc": 1.0}, resps=[[["-7", "True"]]], filtered_resps=[["-7", "True"]]))
    log = read_harness_log(write_lm_eval(tmp_path, rows))
    assert [log.samples[sample].answer for sample in "012"] == ["B", None, None]


def test_images_are_clusters(tmp_path):
    rows = [lm_eval_row(0, {"acc": 1.0}, doc={"image_id": 12}), lm_eval_row(1, {"acc": 1.0}, doc={"image": "a.png"})]
    assert [each.cluster for each in read_harness_log(write_lm_eval(tmp_path, rows)).samples.values()] == [
        "12",
        "a.png",
    ]
    rows = [lmms_eval_row(0, {"acc": 1.0}, input_media=["a.png", "b.png"]), lmms_eval_row(1, {"acc": 1.0})]
    assert [each.cluster for each in read_harness_log(write_lmms_eval(tmp_path, rows)).samples.values()] == [
        "a.png b.png",
        None,
    ]


def test_a_log_of_lmms_eval(tmp_path):
    noted = {"question_id": "9", "category": "color", "score": 1.0}
    rows = [lmms_eval_row(doc, {"mme_score": noted, "exact_match": 0.5, "submission": {"a": 1}}) for doc in range(3)]
    log = read_harness_log(write_lmms_eval(tmp_path, rows, "mme"))
    assert (log.harness, log.task, log.split) == ("lmms_eval", "mme", "test")
    assert log.metrics == ["mme_score", "exact_match"] and log.refused == {"submission": "an object at sample 0"}
    assert log.samples["2"].values == {"mme_score": 1.0, "exact_match": 0.5}
    assert log.samples["2"].asked == ("question 2", "target 2") and log.samples["2"].answer == "answer 2"


def test_lmms_eval_names_its_filters_in_the_settings_alone(tmp_path):
    rows = [lmms_eval_row(doc, {"acc": score}) for score in (0.0, 1.0) for doc in range(3)]
    log = read_harness_log(write_lmms_eval(tmp_path, rows, filters=("plain", "letters")))
    assert {name: log.samples["1"].values[name] for name in log.metrics} == {"acc,plain": 0.0, "acc,letters": 1.0}
    with pytest.raises(ValueError, match="sample 0 stands there 2 times"):
        read_harness_log(write_lmms_eval(tmp_path / "b", rows))


def test_a_document_that_stands_there_twice_is_refused(tmp_path):
    rows = [lm_eval_row(doc, {"acc": 1.0}) for doc in (0, 1, 1)]
    with pytest.raises(ValueError, match=r"sample 1 stands there 2 times \(filter none\)"):
        read_harness_log(write_lm_eval(tmp_path, rows))


def test_fewer_documents_than_were_evaluated_are_refused(tmp_path):
    path = write_lm_eval(tmp_path, [lm_eval_row(doc, {"acc": 1.0}) for doc in range(5)])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(ValueError, match="expected 5 documents, as the file of results says, got 4"):
        read_harness_log(path)


def test_a_file_alone_says_what_could_not_be_compared(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", [lm_eval_row(doc, {"acc": 1.0}) for doc in range(2)])
    log = read_harness_log(path)
    assert (log.task, log.model, log.binding) == ("mine", tmp_path.name, {})
    assert "no file of results lies beside it" in log.remarks[0]
    (tmp_path / "results_x.json").write_text(json.dumps({"configs": {"arc": {}}, "model_name": "m"}))
    assert (read_harness_log(path).task, read_harness_log(path).model) == ("arc", "m")
    (tmp_path / "results_x.json").write_text("{")
    with pytest.raises(ValueError, match="results_x.json, beside mine.jsonl: it is no JSON"):
        read_harness_log(path)


def test_an_address_in_a_setting_is_no_difference(tmp_path):
    logs = []
    for number in (1, 2):
        settings = {"doc_to_text": f"<function ask at 0x7f{number}a>", "test_split": "test"}
        rows = [lm_eval_row(doc, {"acc": 1.0}) for doc in range(2)]
        logs.append(read_harness_log(write_lm_eval(tmp_path / str(number), rows, configs=settings)))
    assert logs[0].binding == logs[1].binding


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ({"pretrained": "a/b", "skip": "3+7"}, "a/b skip=3+7"),
        ("pretrained=a/b,mask=0111,dtype=float32", "a/b mask=0111"),
        ("pretrained=a/b", "a/b"),
        (None, "a/b"),
    ],
)
def test_one_checkpoint_under_several_masks_is_several_models(given, model, tmp_path):
    rows = [lm_eval_row(doc, {"acc": 1.0}) for doc in range(2)]
    path = write_lm_eval(tmp_path, rows, model="a/b", config={"model": "lit_depth", "model_args": given})
    assert read_harness_log(path).model == model


@pytest.mark.parametrize("write", [write_lm_eval, write_lmms_eval])
def test_junk_anywhere_is_read_or_refused_in_words(write, tmp_path):
    make = lm_eval_row if write is write_lm_eval else lmms_eval_row
    rows = [make(doc, {"acc": 1.0, "noted": {"score": 0.5}}) for doc in range(2)]
    path = write(tmp_path, rows, "task")
    (beside,) = tmp_path.glob("*.json")
    results = json.loads(beside.read_text())
    outcomes = set()
    for where, changed in with_junk(results, 4):
        beside.write_text(json.dumps(changed))
        outcomes.add(_read_or_refused(path, where))
    beside.write_text(json.dumps(results))
    for where, changed in with_junk(rows[0], 3):
        write_lines(path, [changed, rows[1]])
        outcomes.add(_read_or_refused(path, where))
    assert outcomes == {True, False}


def _read_or_refused(path, where: str) -> bool:
    try:
        log = read_harness_log(path)
    except ValueError as error:
        assert str(path.parent) in str(error), where
        return False
    assert all(isinstance(value, float) for each in log.samples.values() for value in each.values.values()), where
    assert isinstance(log.metrics, list) and isinstance(log.split, str | None) and log.binding == log.binding
    return True
