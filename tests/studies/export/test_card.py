"""The model card says what was removed and what is known, and nothing that is not."""

from __future__ import annotations

import math
import shlex
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries

from lit_depth.data.tasks import get_task
from lit_depth.functional.healing.patch import Patch, PatchedSpan
from lit_depth.functional.masks import MaskSet
from lit_depth.studies.export.arguments import Choice
from lit_depth.studies.export.card import card, evaluation_results
from lit_depth.studies.export.healing import Healing
from lit_depth.studies.export.training import Training

COLLATOR = "lit_depth.recipes.packing.PackedCollator"
CERTIFICATE = {
    "mask_id": "1011",
    "blocks": {"source": 4, "export": 3},
    "cases": [{"ratio": 0.0, "num_tokens": 8}, {"ratio": 2e-7, "num_tokens": 4}],
    "held_to": {"auto_class": "AutoModelForImageTextToText", "dtype": "float32"},
    "questions": {"task": "text_vqa", "ids": ["a", "b", "c"]},
    "tolerance": 1e-6,
    "needs": None,
    "versions": {"transformers": "5.0"},
}
EXPECTED = {
    "task": "text_vqa",
    "metric": "vqa_accuracy",
    "num_samples": 256,
    "confidence": 0.95,
    "quality": 0.5,
    "quality_ci": [0.44, 0.56],
    "drop": 0.125,
    "drop_ci": [0.1, 0.15],
}
LATENCY = {"request_ms": 12.34, "full_request_ms": 20.0, "device": "a GPU"}
BARE = Choice(MaskSet.of("1011"), "--skip 1")
KNOWN = BARE._replace(origin="run default of search, the best 3 of 4", expected=EXPECTED, latency=LATENCY)


@pytest.fixture
def run() -> SimpleNamespace:
    hparams = {"checkpoint": "organisation/whole", "revision": "abc", "dtype": "auto"}
    data = SimpleNamespace(task=get_task("text_vqa"), path=None)
    return SimpleNamespace(model=SimpleNamespace(hparams=hparams), datamodule=data)


def test_a_card_tells_the_choice_the_proof_and_what_is_expected(run, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\nextra: 1\n---\n# Whole\n")
    text = card(run, KNOWN, CERTIFICATE, (4000, 3000), "small", tmp_path)
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "apache-2.0",
        "base_model": "organisation/whole",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["lit_depth", "depth-pruned"],
    }
    for told in (
        "# small",
        "without transformer blocks 1 (counted from 0): 3 of 4 blocks, 3,000 of 4,000 parameters",
        "chosen by run default of search, the best 3 of 4 (mask `1011`)",
        "vqa_accuracy on 256 questions of text_vqa: 0.500 (95% interval 0.440 to 0.560)",
        "on the same questions: 0.125 (95% interval 0.100 to 0.150)",
        "median time of a request on a GPU: 12.3 ms, the whole model 20.0 ms",
        "logits differ by at most 2.0e-07 of the largest (allowed: 1.0e-06), and 12 greedy tokens of 2 batches",
        "--model.checkpoint organisation/whole --model.revision abc --mask 1011 --out DIR",
    ):
        assert told in body, told
    assert str(tmp_path) not in text  # nothing of the machine


@pytest.mark.parametrize(
    "content", [b"---\nlicense: [a\nb: : :\n---\n", b"---\nlicense: mit\n---\n\xff\xfe", b"---\n- a\n---\n"]
)
def test_a_damaged_card_of_the_source_is_no_reason_to_fail(content, run, tmp_path):
    (tmp_path / "README.md").write_bytes(content)
    with pytest.warns(UserWarning, match="README.md cannot be read, so the new card does not repeat its licence"):
        text = card(run, BARE, CERTIFICATE, (4000, 3000), "small", tmp_path)
    assert "license" not in yaml.safe_load(text.split("---\n", 2)[1])


def test_a_metric_is_told_without_its_modules(run, tmp_path):
    known = KNOWN._replace(expected={**EXPECTED, "metric": "lit_depth.integrations.harness.acc_norm"})
    assert "- acc_norm on 256 questions" in card(run, known, CERTIFICATE, (4000, 3000), "small", tmp_path)
    (text,) = evaluation_results(run, known).values()
    assert yaml.safe_load(text)[0]["notes"].startswith("acc_norm, 256 questions")


def test_names_with_hostile_characters_stay_names(run, tmp_path):
    run.model.hparams["checkpoint"] = "/a folder/$(whole) `x`"
    text = card(run, BARE, CERTIFICATE, (4000, 3000), "small\n---\nlicense: none", tmp_path)
    (title,) = (line for line in text.splitlines() if line.startswith("# "))
    assert title == "# small --- license: none"
    assert "license" not in yaml.safe_load(text.split("---\n", 2)[1])
    (command,) = (line for line in text.splitlines() if line.startswith("lit-depth export"))
    assert shlex.split(command)[3] == "/a folder/$(whole) `x`"


def test_what_is_not_known_is_not_told(run, tmp_path):
    run.model.hparams["checkpoint"] = str(tmp_path)
    needs = {**CERTIFICATE, "needs": "some.package"}
    text = card(run, BARE, needs, (4000, 3000), "small", tmp_path)
    assert "Expected quality" not in text and "base_model" not in text and "license" not in text
    assert "import some.package" in text and evaluation_results(run, BARE) == {}


def healing() -> Healing:
    fitted = PatchedSpan((1,), 0, ("layers.0.down.weight",), 0.1, 0.25, 64)
    nothing = PatchedSpan((3,), 2, ("layers.2.down.weight",), math.inf, 1.0, 64)
    quality = {
        **{"task": "text_vqa", "metric": "vqa_accuracy", "split": "validation", "num_samples": 40, "confidence": 0.95},
        "whole": {"quality": 0.9, "quality_ci": [0.8, 0.95]},
        "masked": {"quality": 0.6, "quality_ci": [0.5, 0.7]},
        "healed": {"quality": 0.8, "quality_ci": [0.7, 0.9], "drop": 0.1, "drop_ci": [0.0, 0.2]},
        "regained": 0.2,
        "regained_ci": [0.1, 0.3],
    }
    bits = torch.tensor([True, False, True, False])
    return Healing(Patch(torch.nn.Identity(), bits, {}, (fitted, nothing)), "text_vqa", 99, 7, quality)


def test_a_healed_card_tells_how_and_claims_only_the_healed_models_quality(run, tmp_path):
    run.datamodule.calibration_samples = 100  # one could not be read
    mended = healing()
    choice = KNOWN._replace(expected=mended.expected())
    text = card(run, choice, CERTIFICATE, (4000, 3000), "small", tmp_path, (), mended)
    for told in (
        "All other weights but those below are unchanged",
        "Patched in closed form on 99 questions of the calibration split of text_vqa, with their answers",
        "- skipped 1: `layers.0.down.weight` (names of the whole model); 25% of the effect of skipping is left",
        "- skipped 3: nothing was better than no change, nothing changed",
        "vqa_accuracy on 40 questions of text_vqa: 0.800 (95% interval 0.700 to 0.900)",
        "without healing: 0.600 (95% interval 0.500 to 0.700); healing gave back +0.200 (paired 95% interval 0.100 to",
        "held it to the healed model in memory with these blocks masked",
        "There are no files for mergekit",
        "--mask 1011 --heal patch --data.task text_vqa --data.calibration_samples 100 --data.seed 7 --out DIR",
    ):
        assert told in text, told
    # nothing that the run knew of the unhealed mask
    assert "0.500 (95% interval 0.440" not in text and "Nothing was trained" not in text and "handoff" not in text
    ((_, entry),) = evaluation_results(run, choice).items()
    assert yaml.safe_load(entry)[0]["value"] == 0.8


FULL = Training("full", 150, 4800, 1e-3, None, (0.9, 0.98), 0.01, 0.01, COLLATOR)
LORA = FULL._replace(method="lora", num_steps=20, num_images=640, lora_rank=16, weight_decay=0.1)


@pytest.mark.parametrize(
    ("training", "patched", "told"),
    [
        (
            FULL,
            True,
            (
                "The other weights were trained; blocks are numbered anew",
                "Patched on 99 questions of the calibration split, then trained (all weights) for 150 steps on 4,800 "
                "images of the train split of text_vqa with all their questions (learning rate 0.001, seed 7)",
                "--heal full --heal_steps 150 --heal_learning_rate 0.001 --data.task text_vqa "
                "--data.calibration_samples 100 --data.seed 7 --data.train_batch_size 32 --out DIR",
            ),
        ),
        (
            LORA,
            False,
            (
                "All other weights but linear layers and experts of the other blocks are unchanged",
                "Trained (low-rank adapters of rank 16, merged) for 20 steps on 640 images of the train split",
                "--heal lora --heal_steps 20 --heal_learning_rate 0.001 --lora_rank 16 --data.task text_vqa "
                "--data.seed 7 --data.train_batch_size 32 --model.weight_decay '0.1' --out DIR",
            ),
        ),
    ],
)
def test_a_trained_card_tells_how_it_was_trained(run, tmp_path, training, patched, told):
    run.datamodule.calibration_samples = 100
    mended = healing()._replace(training=training)
    if not patched:
        mended = mended._replace(patch=None, num_questions=0)
    text = card(
        run, KNOWN._replace(expected=mended.expected()), CERTIFICATE, (4000, 3000), "small", tmp_path, (), mended
    )
    for each in (*told, "healing gave back +0.200", "held it to the healed model in memory"):
        assert each in text, each
    assert "Nothing was trained" not in text
    entry = mended.entry()
    assert entry["method"] == training.method and (entry["patch"] is not None) == patched
    assert entry["split"] == "train" and entry["num_steps"] == training.num_steps and entry["seed"] == 7


def test_what_is_known_of_a_patch_has_the_same_entries_as_ever():
    assert list(healing().entry()) == ["method", "task", "split", "num_questions", "seed", "spans", "quality"]


def test_questions_of_a_file_are_told_without_its_place(run, tmp_path):
    run.datamodule.calibration_samples, run.datamodule.path = None, str(tmp_path / "mine.jsonl")
    mended = healing()
    text = card(run, BARE._replace(expected=mended.expected()), CERTIFICATE, (4, 3), "small", tmp_path, (), mended)
    assert "--heal patch --data.path QUESTIONS --data.calibration_samples 99" in text and str(tmp_path) not in text


def test_results_are_in_the_hubs_format(run):
    ((name, text),) = evaluation_results(run, KNOWN).items()
    assert name == ".eval_results/text_vqa.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == (get_task("text_vqa").repository, "text_vqa", 0.5)
    assert entry.notes == "vqa_accuracy, 256 questions, interval 0.440 to 0.560" and entry.dataset_revision is None


@pytest.mark.parametrize("change", [{"path": "mine.jsonl"}, {"task": get_task("shapes_vqa")}])
def test_results_on_no_dataset_of_the_hub_are_not_claimed_there(run, change):
    vars(run.datamodule).update(change)
    assert evaluation_results(run, KNOWN) == {}
