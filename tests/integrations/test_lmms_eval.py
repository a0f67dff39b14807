"""Tasks of lmms-eval: scores are those of its own run, document by document."""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lightning import Trainer

from lit_depth import DepthModule
from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule, get_task
from lit_depth.integrations.lmms_eval import cut
from lit_depth.integrations.log_files import read_logs
from tests.helpers.harness_pictures import NUM_ROWS, SHIPPED, own_run, write_rows
from tests.helpers.tiny_checkpoints import write_llava

pytest.importorskip("lmms_eval", reason="make parity installs lmms-eval")
MASKS = ("1111", "0111", "1101", "1010")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    """The entry point of the package, which a checkout need not have."""
    from lmms_eval.models import MODEL_REGISTRY_V2

    from lit_depth.integrations.lmms_eval_model import manifest

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)


def answered(checkpoint: Path, folder: Path, records: Path, name: str) -> pd.DataFrame:
    """Records of all documents, of both halves, by mask and number of the document."""
    module, frames = DepthModule(checkpoint=str(checkpoint)), []
    for split in ("calibration", "validation"):
        data = DepthDataModule(
            task=f"lmms_eval:{name}", path=str(folder), num_samples=None, calibration_samples=None, batch_size=2
        )
        data.attach(module)
        masks = [[bit == "1" for bit in mask] for mask in MASKS]
        sweep = MaskSweep(masks, records / split, metric=data.task.metric, max_bad_samples=0)
        options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", callbacks=[sweep], **options)
        trainer.predict(module, data.eval_dataloader(split), return_predictions=False)
        assert sweep.records is not None
        frames.append(sweep.records)
    every = pd.concat(frames)
    number = every["sample"].str.rpartition("/")[2].astype(int)
    return every.assign(doc=number).set_index(["mask", "doc"]).sort_index()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_scores_are_lmms_evals_own(name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of its tasks write files for a submission
    folder = write_rows(tmp_path / "first", name)
    if SHIPPED[name][2] is not None:  # a random model is right by no accident
        samples = own_run(name, folder, checkpoint, "1111")["samples"][name]
        answers = {each["doc_id"]: each["filtered_resps"][0].strip() for each in samples if each["doc_id"] % 3 != 2}
        folder = write_rows(tmp_path / "second", name, answers)
    ours = answered(checkpoint, folder, tmp_path / "records", name)
    assert len(ours) == len(MASKS) * NUM_ROWS
    seen = []
    for mask in MASKS:
        theirs = own_run(name, folder, checkpoint, mask)
        for each in theirs["samples"][name]:
            record = ours.loc[mask, each["doc_id"]]
            assert record["prediction"] == each["resps"][0][0]
            scores = {metric: value for metric, value in each.items() if _rates(metric, value)}
            for metric, value in scores.items():
                if isinstance(value, dict):
                    assert record["score"] == value["score"]
                else:
                    assert record[f"{metric},flexible-extract" if name == "ai2d" else metric] == value
                seen.append(record["score"])
            assert scores
        if name == "pope":
            assert ours.loc[mask]["score"].mean() == theirs["results"][name]["pope_accuracy,none"]
    assert SHIPPED[name][2] is None or len(set(seen)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pope", "mme", "ai2d", "docvqa_val"])
def test_the_files_that_it_writes_are_read_as_it_scored(name, checkpoint, tmp_path, monkeypatch):
    from lmms_eval.loggers import EvaluationTracker

    monkeypatch.chdir(tmp_path)
    found = own_run(name, write_rows(tmp_path / "rows", name), checkpoint, "1101")
    samples = found.pop("samples")
    scored = {each["doc_id"]: dict(each) for each in samples[name]}
    tracker = EvaluationTracker(output_path=str(tmp_path / "there"))
    tracker.general_config_tracker.log_experiment_args("hf", f"pretrained={checkpoint}", "", "", False)
    tracker.save_results_aggregated(results=found, samples=samples, datetime_str="20260102_030405")
    tracker.save_results_samples(task_name=name, samples=samples[name])
    (log,), remarks = read_logs([tmp_path / "there"])
    assert (log.harness, log.task, log.model, remarks) == ("lmms_eval", name, str(checkpoint), [])
    assert log.split == SHIPPED[name][1] and len(log.samples) == NUM_ROWS
    end = ",flexible-extract" if name == "ai2d" else ""
    for doc, each in scored.items():
        scores = {metric: value for metric, value in each.items() if _rates(metric, value)}
        expected = {f"{m}{end}": float(v["score"] if isinstance(v, dict) else v) for m, v in scores.items()}
        assert log.samples[str(doc)].values == expected and expected
        assert log.samples[str(doc)].answer == each["resps"][0][0]
        assert log.samples[str(doc)].asked[0] and log.samples[str(doc)].asked[1] == str(each["target"])


def _rates(metric: str, value: Any) -> bool:
    return metric != "doc_id" and isinstance(value.get("score") if isinstance(value, dict) else value, Real)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("videomme", "shows videos"),
        ("gsm8k", "examples in its prompts"),
        ("docvqa_val:bleu", "expected a metric among anls, score, got 'bleu'"),
        ("vqav2", "a group"),
    ],
)
def test_what_cannot_be_answered_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        get_task(f"lmms_eval:{name}")


def test_data_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a folder"):
        DepthDataModule(task="lmms_eval:pope", path=str(tmp_path / "none")).eval_dataset("validation")


def test_a_text_ends_at_the_first_that_ends_it():
    assert cut("a b\n\nc", ["\n\n"]) == "a b" and cut("a b", ["", "b"]) == "a " and cut("a b", "b") == "a "
