"""Tasks of lm-evaluation-harness: scores are those of the harness's own run, document by document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from lightning import Trainer

from lit_depth import DepthModule
from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule, Sample, get_task
from lit_depth.integrations.lm_eval import LmEvalTask
from tests.helpers.harness_tasks import MASKS, NUM_ROWS, SHIPPED, Harness, write_model, write_rows

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def harness(checkpoint: Path) -> Harness:
    return Harness(checkpoint)


@pytest.fixture(scope="module")
def module(checkpoint: Path) -> DepthModule:
    return DepthModule(checkpoint=str(checkpoint))


def answered(module: DepthModule, folder: Path, records: Path, task: Any, split: str = "validation") -> pd.DataFrame:
    """Records of all documents of a role under all masks, by mask and number of the document."""
    data = DepthDataModule(task=task, path=str(folder), num_samples=None, calibration_samples=None, batch_size=4)
    data.attach(module)
    sweep = MaskSweep(list(map(_bits, MASKS)), records, metric=data.task.metric, max_bad_samples=0)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[sweep], **options)
    trainer.predict(module, data.eval_dataloader(split), return_predictions=False)
    assert sweep.records is not None
    number = sweep.records["sample"].str.rpartition("/")[2].astype(int)
    return sweep.records.assign(doc=number).set_index(["mask", "doc"]).sort_index()


def _bits(mask: str) -> list[bool]:
    return [bit == "1" for bit in mask]


def changed_rows(name: str, folder: Path, harness: Harness) -> Path:
    """Rows whose right answer is, for some, what the full model writes: a random model is right by no accident."""
    written = write_rows(folder / "first", name)
    wanted = {"gsm8k": "flexible-extract", "triviaqa": "remove_whitespace"}[name]
    found = {
        s["doc_id"]: s["filtered_resps"][0] for s in harness.samples(name, written, "1111") if s["filter"] == wanted
    }

    def change(n: int, row: dict[str, Any]) -> None:
        if n % 3 != 2:
            row["answer"] = f"so #### {found[n]}" if name == "gsm8k" else {"aliases": ["other", found[n]]}

    return write_rows(folder / "second", name, change)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_scores_are_the_harnesses_own(name, module, harness, tmp_path):
    generates = name in ("gsm8k", "triviaqa")
    folder = changed_rows(name, tmp_path, harness) if generates else write_rows(tmp_path / "rows", name)
    splits = ["validation", "calibration"] if len(SHIPPED[name][1]) == 1 else ["validation"]
    ours = pd.concat([answered(module, folder, tmp_path / split, f"lm_eval:{name}", split) for split in splits])
    assert len(ours) == len(MASKS) * NUM_ROWS and set(ours["sample"].str.partition("/")[0]) == {SHIPPED[name][1][0]}
    seen = []
    for mask in MASKS:
        for theirs in harness.samples(name, folder, mask):
            record = ours.loc[mask, theirs["doc_id"]]
            suffix = "" if theirs["filter"] == "none" else f",{theirs['filter']}"
            for metric in theirs["metrics"]:
                if metric != "perplexity":
                    assert record[metric + suffix] == theirs[metric], (mask, theirs["doc_id"], metric)
                    seen.append(theirs[metric])
            if generates:
                assert record["prediction"] == theirs["resps"][0][0]
            if metric == "perplexity":
                num_tokens = len(module.tokenizer(theirs["arguments"][0][1], add_special_tokens=False)["input_ids"])
                assert record["reference_logprob"] == pytest.approx(theirs["perplexity"] / num_tokens, abs=1e-4)
    assert name == "lambada_openai" or len(set(seen)) == 2  # some are right, and some are wrong


@pytest.mark.slow
def test_few_shot_examples_are_the_harnesses_own(module, harness, tmp_path):
    folder = write_rows(tmp_path / "rows", "sciq")
    task = LmEvalTask("sciq", metric="acc_norm", num_fewshot=2)
    ours = answered(module, folder, tmp_path / "records", task)
    for mask in MASKS[:2]:
        for theirs in harness.samples("sciq", folder, mask, num_fewshot=2):
            record = ours.loc[mask, theirs["doc_id"]]
            assert (record["acc"], record["score"]) == (theirs["acc"], theirs["acc_norm"])
    sample = get_sample(task, folder, "validation", 3)
    assert sample.prompt == theirs_prompt(harness, folder, 3) and sample.prompt.count("Question:") == 3


def theirs_prompt(harness: Harness, folder: Path, doc: int) -> str:
    return harness.samples("sciq", folder, "1111", num_fewshot=2)[doc]["arguments"][0][0]


def get_sample(task: LmEvalTask, folder: Path, split: str, place: int) -> Sample:
    sample = DepthDataModule(task=task, path=str(folder), num_samples=None).eval_dataset(split)[place]
    assert isinstance(sample, Sample), sample
    return sample


def test_no_document_is_an_example_in_its_own_prompt(tmp_path):
    folder, task = write_rows(tmp_path / "rows", "piqa"), LmEvalTask("piqa", num_fewshot=4)
    for place in range(NUM_ROWS):
        sample = get_sample(task, folder, "calibration", place)
        assert sample.id == f"train/{place}" and sample.prompt is not None
        questions = [line for line in sample.prompt.splitlines() if line.startswith("Question:")]
        assert len(questions) == 5 == len(set(questions))


@pytest.mark.parametrize(("name", "calibration"), [("arc_easy", "validation"), ("boolq", "train")])
def test_calibration_has_another_split(name, calibration, tmp_path):
    data = DepthDataModule(task=f"lm_eval:{name}", path=str(write_rows(tmp_path, name)), num_samples=None)
    assert {sample for sample, _ in data.eval_dataset("calibration").ids()} == {
        f"{calibration}/{place}" for place in range(NUM_ROWS)
    }
    data.check_disjoint("calibration", "validation")
    with pytest.raises(ValueError, match="for evaluation only"):
        data.eval_dataset("train")


def test_a_folder_may_be_saved_by_datasets_and_hold_several_tasks(tmp_path):
    rows = write_rows(tmp_path / "rows", "piqa")
    datasets.load_dataset(str(rows)).save_to_disk(str(tmp_path / "saved" / "piqa"))
    write_rows(tmp_path / "saved" / "boolq", "boolq")
    several = DepthDataModule(tasks=["lm_eval:piqa", "lm_eval:boolq"], path=str(tmp_path / "saved"), num_samples=None)
    saved, _ = several.for_each_task()
    plain = DepthDataModule(task="lm_eval:piqa", path=str(rows), num_samples=None)
    first, second = (each.eval_dataset("validation") for each in (saved, plain))
    assert len(first) == NUM_ROWS and first.fingerprint() == second.fingerprint()


def test_a_file_is_the_split_that_the_definition_calls_so(tmp_path):
    for split in ("test", "dev"):
        rows = [{"question": f"{split} {n}?", "choices": [*"wxyz"], "answer": n % 4} for n in range(NUM_ROWS)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = LmEvalTask("mmlu_anatomy", num_fewshot=2)
    sample = get_sample(task, tmp_path, "validation", 0)
    # `datasets` calls a file of that name a part of the validation split
    assert sample.prompt is not None and [sample.prompt.count(f"{split} ") for split in ("test", "dev")] == [1, 2]


def test_a_definition_of_ones_own_is_a_path(tmp_path):
    rows = write_rows(tmp_path / "rows", "piqa")
    definition = f"""
        task: mine
        dataset_path: {rows}
        output_type: multiple_choice
        validation_split: validation
        doc_to_text: goal
        doc_to_target: label
        doc_to_choice: {{{{letters}}}}
    """.replace("{{letters}}", str([f"no. {n}" for n in range(30)]))
    (tmp_path / "mine.yaml").write_text(definition)
    task = get_task(f"lm_eval:{tmp_path / 'mine.yaml'}:acc")
    data = DepthDataModule(task=task, num_samples=None)
    assert task.name == "lm_eval_mine_acc" and not {*data.eval_dataset("calibration").ids()} & {
        *data.eval_dataset("validation").ids()
    }
    sample = data.eval_dataset("validation")[0]
    # more choices than letters: they are texts
    assert sample.options == () and len(sample.continuations) == 30 and sample.references[0].startswith("no. ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lambada_openai:perplexity", r"mean over documents \(acc\), got 'perplexity'; perplexity cannot score"),
        ("gsm8k:acc", "exact_match,strict-match, exact_match,flexible-extract"),
        ("wmt14-en-fr", "bleu, ter, chrf cannot score a single document"),
        ("humaneval", "runs code that the model wrote"),
        ("mmmu_val_art", "shows images"),
        ("wikitext", "perplexity of a whole corpus"),
        ("gsm8k_cot_self_consistency", "at random"),
        ("squadv2", "a class of its own"),
        ("", "expected lm_eval:NAME"),
    ],
)
def test_what_cannot_be_answered_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        get_task(f"lm_eval:{name}")


@pytest.mark.slow
def test_an_unknown_task_and_a_group_name_what_there_is():
    with pytest.raises(ValueError, match="did you mean arc_easy"):
        get_task("lm_eval:arc_esy")
    with pytest.raises(ValueError, match="a group of 2: .* lm_eval:arc_challenge lm_eval:arc_easy"):
        get_task("lm_eval:ai2_arc")


def test_data_that_cannot_be_read_is_refused(tmp_path):
    write_rows(tmp_path / "rows", "piqa")
    (tmp_path / "rows" / "train.jsonl").unlink()
    for path, message in {
        None: "cannot read baber/piqa .* --data.path FOLDER",
        tmp_path / "rows": "cannot read .*rows .KeyError: 'train'",
        tmp_path / "none": "expected a folder",
    }.items():
        data = DepthDataModule(task="lm_eval:piqa", path=path if path is None else str(path))
        with pytest.raises(ValueError, match=message):
            data.eval_dataset("validation")
    with pytest.raises(ValueError, match="answer_by likelihood, got generation"):
        DepthDataModule(task="lm_eval:piqa", answer_by="generation")
