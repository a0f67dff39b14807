"""Tasks of lm-evaluation-harness: scores are those of the harness's own run, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lightning import Trainer

from lit_depth import DepthModule
from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule
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
