"""``--model.skip_tokens`` in the commands: answers under masks of image tokens, and clear refusals."""

from __future__ import annotations

import json

import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional import from_mask_id, leave_one_out, masked
from lit_depth.functional.inputs import reference_logprob
from lit_depth.functional.masks import MaskSet
from lit_depth.module import DepthModule, model_inputs
from lit_depth.results.flop_shares import share_of_full
from lit_depth.studies.shared.effort import block_forwards
from tests.helpers.commands import run
from tests.helpers.tiny_checkpoints import write_llama

IMAGE = ["--model.skip_tokens", "image"]
FEW = ["--skip", *map(str, range(1, 15)), "--num_samples", "8", "--data.batch_size", "8"]


@pytest.mark.slow
def test_importance_for_image_tokens(checkpoint, tmp_path, capsys):
    common = ["--model.checkpoint", checkpoint, "--output_dir", tmp_path]
    assert run(["importance", *common, *FEW, *IMAGE]) == 0
    folder = tmp_path / "importance" / "default"
    (task,) = json.loads((folder / "importance.json").read_text())["tasks"]
    assert json.loads((folder / "manifest.json").read_text())["arguments"]["model.skip_tokens"] == "image"
    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, batch_size=8).take("calibration", 8)
    (batch,) = data.eval_dataloader("calibration")
    inputs, options = (model_inputs(batch), batch["answer_ids"]), {"pad_token_id": module.pad_token_id}
    full = float(reference_logprob(module.model, *inputs, **options).mean())
    means = []
    for mask in leave_one_out(16)[[0, 15]]:
        with masked(module.model, mask, tokens="visual"):
            means.append(float(reference_logprob(module.model, *inputs, **options).mean()))
    drops = [entry["reference_logprob"]["drop"] for entry in task["blocks"]]
    assert drops == pytest.approx([full - mean for mean in means], abs=2e-5)
    # of the last block, image tokens hand nothing on
    assert drops[0] != pytest.approx(0.0, abs=1e-4) and drops[1] == pytest.approx(0.0, abs=2e-5)
    page = (folder / "report.html").read_text()
    assert "block for image tokens" in page
    capsys.readouterr()
    assert run(["importance", *common, *FEW]) == 2
    assert "another model.skip_tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "--skip", "[3]", *IMAGE],
            "export takes blocks that all tokens skip: leave out --model.skip_tokens",
        ),
        (["select", "--lossless", "true", *IMAGE], "--lossless true takes blocks that all tokens skip"),
        (["compare", "--model.phase", "decode", *IMAGE], "expected granularity='block' and phase='both'"),
        (["tokens", *IMAGE], "tokens takes blocks that all tokens skip"),
        (["latency", "--plan", "true", *IMAGE], "--plan takes blocks that all tokens skip"),
        (
            ["importance", "--data.drop_images", "true", *IMAGE],
            "expected questions about images for --model.skip_tokens",
        ),
        (["compare", "--model.granularity", "sublayer", *IMAGE], "expected granularity='block' and phase='both'"),
        (["compare", "--model.skip_tokens", "vision"], "expected all, image or image_drop, got 'vision'"),
    ],
)
def test_refused(arguments, message, checkpoint, tmp_path, capsys):
    assert run([*arguments, "--model.checkpoint", checkpoint, "--output_dir", tmp_path]) == 2
    assert message in capsys.readouterr().err


def test_questions_without_images_are_refused(checkpoint, tmp_path, capsys):
    table = tmp_path / "words.jsonl"
    table.write_text("".join(json.dumps({"question": f"{n}?", "answer": "yes"}) + "\n" for n in range(8)))
    common = ["importance", "--data.path", table, "--model.checkpoint", checkpoint, "--output_dir", tmp_path]
    assert run([*common, *IMAGE]) == 2
    told = capsys.readouterr().err
    assert "has none: no block would be skipped" in told and "Traceback" not in told


@pytest.mark.slow
def test_times_and_operations_of_image_tokens(checkpoint, tmp_path, capsys):
    """A block that image tokens skip still costs its keys and values, and the figure says who skips."""
    few = ["--num_active_blocks", "[8]", "--num_samples", "2", "--new_tokens", "2"]
    common = ["latency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *few]
    assert run([*common, *IMAGE]) == 0 and run([*common, "--name", "all"]) == 0
    capsys.readouterr()
    shares = {}
    for name in ("default", "all"):
        folder = tmp_path / "latency" / name
        result = json.loads((folder / "latency_details.json").read_text())
        shares[name] = [share_of_full(result["flops"], entry["mask_id"]) for entry in result["configurations"]]
        figure = (folder / "figures" / "latency_vs_blocks.svg").read_text()
        words = "Blocks active for image tokens (of 16)"
        # letters are drawn as paths, and named in a comment
        assert (words in figure) is (name == "default")
        assert ("image tokens alone skip blocks" in (folder / "report.html").read_text()) is (name == "default")
    assert shares["default"][0] == shares["all"][0] == 1.0 and shares["all"][1] < shares["default"][1] < 1.0


def test_a_text_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tells its image tokens, got a LlamaForCausalLM"):
        DepthModule(str(write_llama(tmp_path / "llama")), skip_tokens="image")


def test_block_forwards_are_those_of_the_pass(checkpoint):
    masks = MaskSet.of(torch.stack([from_mask_id("1" * 16), from_mask_id("0" + "1" * 15)]))
    alone_together = {
        kind: block_forwards(DepthModule(str(checkpoint), skip_tokens=kind), masks)
        for kind in ("all", "image", "image_drop")
    }
    assert alone_together == {"all": (31, 31), "image": (32, 32), "image_drop": (32, 32)}
