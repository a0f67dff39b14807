"""``importance``, ``consistency`` and ``search`` under ``--model.granularity sublayer``; others refuse it."""

from __future__ import annotations

import json

import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional import ablation_masks, leave_one_out, mask_id
from lit_depth.functional.inputs import reference_logprob
from lit_depth.module import DepthModule, model_inputs
from tests.helpers.commands import run
from tests.helpers.zeroing import zeroed_copy

# both halves of two of the 16 blocks
FEW = ["--skip", *map(str, range(1, 15)), "--num_samples", "8", "--data.batch_size", "8"]
SUBLAYER = ["--model.granularity", "sublayer"]
NAMES = ["0.attn", "0.mlp", "15.attn", "15.mlp"]


@pytest.mark.slow
def test_importance_of_sublayers(checkpoint, tmp_path, capsys):
    common = ["--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SUBLAYER]
    assert run(["importance", *common, *FEW]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "importance" / "default"
    scores = json.loads((folder / "layer_importance_scores.json").read_text())
    assert list(scores) == NAMES
    result = json.loads((folder / "importance.json").read_text())
    (task,) = result["tasks"]
    assert [f"{entry['block']}.{entry['sublayer']}" for entry in task["blocks"]] == NAMES
    assert list(scores.values()) == [entry["quality"]["drop"] for entry in task["blocks"]]
    lines = out.splitlines()
    assert any(line.startswith("sublayer ") for line in lines)
    assert all(any(line.startswith(name.replace(".", " ") + " ") for line in lines) for name in NAMES)
    # the untrained model is given no verdict, in halves either
    assert "No verdict on shapes_vqa" in out and "least important" not in out and "0 attn" in out
    assert json.loads((folder / "manifest.json").read_text())["arguments"]["model.granularity"] == "sublayer"
    for name in ("figures/block_importance.png", "report.html", "records.parquet"):
        assert (folder / name).stat().st_size > 0
    # against copies in which the half adds zeros
    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, batch_size=8).take("calibration", 8)
    (batch,) = data.eval_dataloader("calibration")
    copies = [zeroed_copy(module.model, mask) for mask in leave_one_out(32)[[0, 1, 30, 31]]]
    inputs, options = (model_inputs(batch), batch["answer_ids"]), {"pad_token_id": module.pad_token_id}
    means = [float(reference_logprob(each, *inputs, **options).mean()) for each in (module.model, *copies)]
    drops = [entry["reference_logprob"]["drop"] for entry in task["blocks"]]
    # records have six decimals; float32 log-probabilities of about 40 have steps of 4e-6, and processors differ
    assert drops == pytest.approx([means[0] - mean for mean in means[1:]], abs=2e-5)
    # the same command again measures nothing; whole blocks are another run, and compare cannot use the scores
    assert run(["importance", *common, *FEW]) == 0
    assert json.loads((folder / "importance.json").read_text()) == result
    assert run(["importance", *common[:4], *FEW]) == 2
    assert "another model.granularity" in capsys.readouterr().err
    compare = ["compare", *common[:4], "--importance", folder / "layer_importance_scores.json"]
    assert run(compare) == 2 and "one score for each of the blocks 0..15, got ['0.attn'" in capsys.readouterr().err


@pytest.mark.slow
def test_consistency_of_sublayers(checkpoint, tmp_path):
    arguments = ["consistency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SUBLAYER, *FEW]
    assert run(arguments) == 0
    folder = tmp_path / "consistency" / "default"
    result = json.loads((folder / "consistency.json").read_text())
    for entry in result["measurements"]:
        assert [f"{block['block']}.{block['sublayer']}" for block in entry["blocks"]] == NAMES
    (figure,) = (folder / "figures").glob("*.png")
    assert figure.stat().st_size > 0


@pytest.mark.slow
def test_search_over_sublayers(checkpoint, tmp_path, capsys):
    arguments = ["search", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SUBLAYER]
    arguments += ["--keep", *map(str, range(1, 15)), "--max_blocks_to_remove", "2", "--rank_by", "reference_logprob"]
    arguments += ["--data.calibration_samples", "8", "--data.num_samples", "8", "--data.batch_size", "8"]
    assert run([*arguments, "--exhaustive", "true"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "search" / "default"
    result = json.loads((folder / "search.json").read_text())
    assert result["num_blocks"] == 16 and len(result["units"]) == 32
    names = [[result["units"][unit] for unit in entry["removed"]] for entry in result["ablations"]]
    assert [name for (name,) in names[:4]] == NAMES and all(set(each) <= set(NAMES) for each in names)
    assert "without 0.attn" in out and "without 15.mlp" in out
    for name in ("figures/search_tree.png", "figures/drop_vs_removed.png", "report.html"):
        assert (folder / name).stat().st_size > 0
    # against copies in which the halves add zeros
    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, batch_size=8, calibration_samples=8)
    (batch,) = data.eval_dataloader("calibration")
    inputs, options = (model_inputs(batch), batch["answer_ids"]), {"pad_token_id": module.pad_token_id}
    assert [len(level["ablations"]) for level in result["levels"]] == [4, 6]
    for level in result["levels"]:
        for ablation in level["ablations"]:
            zeroed = zeroed_copy(module.model, ablation_masks(32, [ablation["removed"]])[0])
            logprobs = reference_logprob(zeroed, *inputs, **options)
            # one forward of many rows rounds otherwise than one of few
            assert ablation["reference_logprob"] == pytest.approx(float(logprobs.mean()), rel=1e-6, abs=5e-6)
            assert ablation["score"] == pytest.approx(float(logprobs.exp().mean()), abs=5e-6)
    totals = result["totals"]
    assert 0 < totals["block_forwards"] < totals["sequential_block_forwards"]  # halves share what stands before them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--keep", "16"], "between 0 and 15, got 16"),
        (["search", "--max_blocks_to_remove", "32"], "between 1 and 31 of 32 units"),
        (["compare"], "compare takes whole blocks only"),
        (["latency"], "latency takes whole blocks only"),
        (["select"], "select takes whole blocks only"),
        (["importance", "--model.phase", "decode"], "got 'sublayer' with phase='decode'"),
        (["importance", "--skip", "16"], "0..15, got [16]"),
        (["consistency", "--skip", *map(str, range(15))], "at least 4 sublayers, got 2"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    command, *rest = arguments
    assert run([command, "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SUBLAYER, *rest]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and len(err.strip().splitlines()) <= 2


def test_masks_of_the_module_have_two_entries_per_block(checkpoint):
    module = DepthModule(str(checkpoint), granularity="sublayer")
    assert (module.num_blocks, module.num_units) == (16, 32)
    with pytest.raises(ValueError, match="expected a mask of 32 sublayers, got 16"):
        module.request_masks([torch.ones(16, dtype=torch.bool)])
    masks = leave_one_out(32)[:2]
    module.request_masks(masks)
    data = DepthDataModule(module.prompter, num_samples=4, batch_size=4)
    (batch,) = data.eval_dataloader("validation")
    answered = module.predict_step(batch)
    assert answered.mask_ids == [mask_id(mask) for mask in masks]
    for mask, scores in zip(masks, answered.reference_logprobs):
        reference = zeroed_copy(module.model, mask)
        inputs = model_inputs(batch)
        expected = reference_logprob(reference, inputs, batch["answer_ids"], pad_token_id=module.pad_token_id)
        torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-5)
    assert DepthModule(str(checkpoint)).num_units == 16
