"""Real pretrained weights, exported: another program's loader scores the folder as the masked model is scored here."""

from __future__ import annotations

import json

import pytest
import torch

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional.masks import MaskSet
from tests.helpers.commands import run
from tests.helpers.family_commands import ROOT
from tests.helpers.real_weights import NUM_BLOCKS, QUESTIONS

pytestmark = [pytest.mark.real, pytest.mark.slow]


def write_questions(folder):
    """The questions as the harness's own definition of ARC reads them, the right choice in turn at each place."""
    rows = []
    for number, (question, *choices) in enumerate(QUESTIONS):
        right = number % 4
        texts = choices[1 : right + 1] + choices[:1] + choices[right + 1 :]
        rows.append(
            {
                "id": str(number),
                "question": question,
                "choices": {"text": texts, "label": list("ABCD")},
                "answerKey": "ABCD"[right],
            }
        )
    folder.mkdir()
    for split in ("test", "validation", "train"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_harnesss_own_loader_scores_an_exported_folder_as_the_masked_model(real_checkpoint, tmp_path):
    pytest.importorskip("lm_eval")
    from tests.helpers.harness_tasks import Harness

    # the best 24 of 30 that the search of benchmarks/real.py found
    found = json.loads((ROOT / "benchmarks/results/real_smollm2.json").read_text())["search"]
    (removed,) = (each["removed"] for each in found if len(each["removed"]) == NUM_BLOCKS - 24)
    mask = "".join("0" if block in removed else "1" for block in range(NUM_BLOCKS))
    out = ["--out", tmp_path / "small", "--output_dir", tmp_path, "--num_questions", "2", "--data.drop_images", "true"]
    assert run(["export", "--model.checkpoint", real_checkpoint, "--mask", mask, *out]) == 0
    assert json.loads((tmp_path / "small/certificate.json").read_text())["passed"]

    folder = write_questions(tmp_path / "questions")
    module = DepthModule(str(real_checkpoint))
    data = DepthDataModule(task="lm_eval:arc_easy", path=str(folder), num_samples=None, batch_size=8)
    data.attach(module)
    module.request_masks(MaskSet.of(mask))
    ours = {}
    for batch in data.eval_dataloader("validation"):
        with torch.no_grad():
            said = module.predict_step(batch)
        for name, likelihoods in zip(said.sample_ids, said.likelihoods[0]):
            ours[int(name.rpartition("/")[2])] = [each.logprob for each in likelihoods]
    theirs = Harness(tmp_path / "small").samples("arc_easy", folder, "1" * 24)
    assert len(theirs) == len(ours) == len(QUESTIONS)
    for sample in theirs:
        scores = [logprob for ((logprob, _),) in sample["resps"]]
        assert ours[sample["doc_id"]] == pytest.approx(scores, rel=0, abs=1e-4)
        chosen = [max(range(4), key=each.__getitem__) for each in (ours[sample["doc_id"]], scores)]
        assert chosen[0] == chosen[1]
