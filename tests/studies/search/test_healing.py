"""Masks are patched one at a time: what is measured is what `patch` gives, whatever is killed, and nothing is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.functional import MaskSet, masked, patch, reference_logprob
from lit_depth.functional.healing.answers import with_answers
from lit_depth.metrics import ExactMatch
from lit_depth.module import model_inputs
from lit_depth.results.records import read_records
from lit_depth.studies.search import healing
from lit_depth.studies.search.healing import HealArguments, check_heal, heal_arguments, split_in_parts
from tests.helpers.commands import run
from tests.helpers.simulated_search import Simulated
from tests.helpers.simulated_search import data as simulated_data

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
SIZES = {"num_samples": 8, "calibration_samples": 16, "batch_size": 4}
SMALL = {"beam_width": 1, "max_blocks_to_remove": 1, "racing": False, "baselines": False}


def trainer() -> DepthTrainer:
    return DepthTrainer(accelerator="cpu", **QUIET)


def data(module: DepthModule, **options: Any) -> DepthDataModule:
    return DepthDataModule(module.prompter, ShapesVQA(num_images=12), **SIZES | options)


@pytest.fixture(autouse=True)
def figures(monkeypatch) -> None:
    for name in ("tree_figure", "drop_figure", "healing_report.healing_figure"):
        monkeypatch.setattr(f"lit_depth.studies.search.report.{name}", lambda result: Figure())


@pytest.fixture(scope="module")
def bundled() -> DepthModule:
    """Of the bundled model, whose answers are not all wrong, every mask."""
    return DepthModule("bundled")


def by_hand(module: DepthModule, datamodule: DepthDataModule, mask: str) -> tuple[list[float], list[float]]:
    """Scores and log-probabilities of the report split under a patch by half of the calibration images."""
    images = [image for _, image in datamodule.eval_dataset("calibration").recorded_ids()]
    first: list[str] = []
    for image in images:
        if image not in first and sum(each in first for each in images) < len(images) / 2:
            first.append(image)
    half = [position for position, image in enumerate(images) if image in first]
    batches = [
        with_answers(model_inputs(batch), batch["answer_ids"], module.pad_token_id)
        for batch in datamodule.eval_dataloader("calibration", positions=half)
    ]
    scores, logprobs = [], []
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": module.pad_token_id}
    module.use_task(8)
    with patch(module.model, mask, batches, steps=0).applied(), masked(module.model, MaskSet.of(mask)[0]):
        for batch in datamodule.eval_dataloader("validation"):
            inputs = model_inputs(batch)
            tokens = module.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
            texts = module.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            pairs = zip(texts, batch["samples"])
            scores += [ExactMatch.score(" ".join(text.split()), sample.references) for text, sample in pairs]
            found = reference_logprob(module.model, inputs, batch["answer_ids"], pad_token_id=module.pad_token_id)
            logprobs += found.tolist()
    return scores, logprobs


@pytest.mark.slow
def test_what_is_measured_is_the_patched_model_and_the_model_is_given_back(bundled, tmp_path, capsys, monkeypatch):
    before = {name: value.clone() for name, value in bundled.model.state_dict().items()}
    fits: list[str] = []

    def counted(model, mask, *args, **options):
        fits.append("".join(str(int(bit)) for bit in mask))
        if len(fits) == 3:  # two masks are done
            raise KeyboardInterrupt
        return patch(model, mask, *args, **options)

    monkeypatch.setattr(healing, "patch", counted)
    datamodule, options = data(bundled), {**SMALL, "heal": "patch", "output_dir": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        trainer().search(bundled, datamodule, **options)
    result = trainer().search(bundled, data(bundled), **options)
    assert all(torch.equal(value, before[name]) for name, value in bundled.model.state_dict().items())
    # the third was begun twice, the first two are not fitted again
    assert len(fits) == 5 and fits[2] == fits[3] and len(set(fits)) == 4
    folder = tmp_path / "search" / "default"
    masks = result["healing"]["masks"]
    assert [mask["mask_id"] for mask in masks] == list(dict.fromkeys(fits))
    assert [mask["removed"] for mask in masks] == [each["removed"] for each in result["levels"][0]["ablations"][:4]]
    datamodule.attach(bundled)
    for mask in masks[:2]:
        paths = (folder / "records/shapes_vqa/patched" / mask["mask_id"]).glob("*/validation/rank0.jsonl")
        records = read_records(list(paths)).set_index("sample")
        scores, logprobs = by_hand(bundled, datamodule, mask["mask_id"])
        names = [name for name, _ in datamodule.eval_dataset("validation").recorded_ids()]
        assert records.loc[names, "score"].tolist() == scores
        assert records.loc[names, "reference_logprob"].tolist() == pytest.approx(logprobs, rel=1e-4, abs=1e-4)
        assert mask["healed_quality"] == pytest.approx(sum(scores) / len(scores))
    out = capsys.readouterr().out
    assert out.count("Block 0 was kept") == 1 and "before patching" in out and "quality_after_patching.png" in out
    # killed, continued and never killed: the same bytes; what is done is not done again
    killed = (folder / "search.json").read_bytes()
    trainer().search(bundled, data(bundled), **options)
    assert len(fits) == 5 and (folder / "search.json").read_bytes() == killed
    trainer().search(bundled, data(bundled), **options, name="whole")
    assert (tmp_path / "search" / "whole" / "search.json").read_bytes() == killed
    # of a mask whose records are not whole the patch is fitted again: never are they completed by other weights
    (records_file,) = (folder / "records/shapes_vqa/patched" / fits[0]).glob("*/calibration/rank0.jsonl")
    records_file.write_bytes(b"".join(records_file.read_bytes().splitlines(keepends=True)[:3]))
    trainer().search(bundled, data(bundled), **options)
    assert fits[9:] == [fits[0]] and (folder / "search.json").read_bytes() == killed


def test_without_healing_a_run_is_what_it_was(checkpoint, tmp_path):
    module = Simulated(str(checkpoint))
    quick = {"beam_width": 2, "max_blocks_to_remove": 2, "output_dir": str(tmp_path)}
    found = trainer().search(module, simulated_data(module), **quick)
    named = {"heal", "heal_candidates", "heal_steps", "healing"}
    assert not named & found.keys() and found["keep"] == []
    folder = tmp_path / "search" / "default"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert not named & manifest["arguments"].keys() and not (folder / "records/shapes_vqa/patched").exists()
    # a run that heals is another run
    with pytest.raises(ValueError, match="heal"):
        trainer().search(module, simulated_data(module), heal="patch", **quick)


def test_an_exception_gives_the_weights_back(bundled, tmp_path, monkeypatch):
    before = {name: value.clone() for name, value in bundled.model.state_dict().items()}
    calls = []

    def broken(run, *args, **options):
        changed = any(not torch.equal(v, before[n]) for n, v in run.model.model.state_dict().items())
        calls.append(changed)
        raise OSError("disk is full")

    monkeypatch.setattr(healing, "sweep_samples", broken)
    with pytest.raises(OSError, match="disk is full"):
        trainer().search(bundled, data(bundled), heal="patch", output_dir=str(tmp_path), **SMALL)
    assert calls == [True]
    assert all(torch.equal(value, before[name]) for name, value in bundled.model.state_dict().items())


def test_no_image_is_in_both_parts():
    images = [f"{number // 3}" for number in range(31)]
    parts = split_in_parts(images)
    assert sorted(parts.fit + parts.choice) == list(range(31))
    assert not {images[p] for p in parts.fit} & {images[p] for p in parts.choice}
    assert 0 <= len(parts.fit) - len(parts.choice) <= 6


def test_arguments_of_healing():
    assert heal_arguments("none", None, 0, 3) is None
    assert heal_arguments("patch", None, 0, 1) == HealArguments("patch", 4, 0)
    assert heal_arguments("patch", 5, 2, 9) == HealArguments("patch", 5, 2)
    for given, message in [
        (("none", 3, 0, 3), "go with --heal patch"),
        (("none", None, 1, 3), "go with --heal patch"),
        (("patch", 0, 0, 3), "heal_candidates"),
        (("patch", 3, -1, 3), "heal_steps"),
    ]:
        with pytest.raises(ValueError, match=message):
            heal_arguments(*given)


@pytest.mark.parametrize(
    ("options", "sizes", "processes", "message"),
    [
        ({"granularity": "sublayer"}, {}, 1, "takes whole blocks only"),
        ({"phase": "decode"}, {}, 1, "expected --model.phase both, got decode"),
        (
            {},
            {"calibration_samples": 4},
            1,
            "at least 4 questions of the calibration split to fit on and 2 more images",
        ),
        ({}, {}, 2, "fits in one process, got 2: give --trainer.devices 1"),
    ],
)
def test_what_cannot_be_healed_is_refused_first(small_checkpoint, options, sizes, processes, message):
    module = DepthModule(str(small_checkpoint), **options)
    of_processes: Any = type("Trainer", (), {"world_size": processes})()
    with pytest.raises(ValueError, match=message) as refused:
        check_heal(of_processes, module, data(module, **sizes))
    assert "\n" not in str(refused.value)


def test_quantised_weights_and_texts_are_refused_first(small_checkpoint, monkeypatch):
    module, one = DepthModule(str(small_checkpoint)), trainer()
    check_heal(one, module, data(module))
    texts = data(module)
    monkeypatch.setattr(type(texts.task), "max_new_tokens", 0)
    with pytest.raises(ValueError, match="search --heal patch needs prompts that are answered"):
        check_heal(one, module, texts)
    monkeypatch.undo()
    monkeypatch.setattr(healing, "is_quantized", lambda model: True)
    with pytest.raises(ValueError, match="got quantised or offloaded weights"):
        check_heal(one, module, data(module))


def test_mistakes_end_with_code_2(small_checkpoint, tmp_path, capsys):
    common = ["search", "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path]
    for given, message in [
        (["--heal", "lora"], "heal"),
        (["--heal_candidates", "4"], "go with --heal patch"),
        (["--heal", "patch", "--model.granularity", "sublayer"], "whole blocks only"),
        (["--heal", "patch", "--max_blocks_to_remove", "6"], "max_blocks_to_remove"),
    ]:
        assert run([*common, *given]) == 2
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err
    assert not list(Path(tmp_path).rglob("*.json"))
