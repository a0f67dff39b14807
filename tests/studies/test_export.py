"""``lit-depth export``: the folder answers as the masked model, says so, and mistakes leave nothing behind."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, masked, patch
from lit_depth.functional.healing.answers import with_answers
from lit_depth.functional.masks import MaskSet
from lit_depth.models.loading import load_checkpoint
from lit_depth.module import model_inputs
from lit_depth.studies.export import writing
from lit_depth.studies.export.arguments import choose, given_mask, mask_of_run, result_file, whole_blocks
from lit_depth.studies.export.certificate import NotCertifiedError
from lit_depth.studies.export.report import report
from lit_depth.studies.shared.publish import as_text
from tests.helpers.commands import run
from tests.helpers.folder_hub import folder_hub

FEW = ["--num_questions", "3", "--data.num_samples", "8", "--data.calibration_samples", "8"]


@pytest.fixture
def command(small_checkpoint, tmp_path) -> list[str]:
    output = ["--output_dir", str(tmp_path / "results"), "--out", str(tmp_path / "small")]
    return ["export", "--model.checkpoint", str(small_checkpoint), *FEW, *output]


def left(tmp_path) -> set[str]:
    """What stands beside the runs, hidden folders too."""
    return {path.name for path in tmp_path.iterdir()} - {"results"}


@pytest.mark.slow
def test_the_folder_is_the_masked_model_and_says_so(small_checkpoint, command, tmp_path, capsys):
    assert run([*command, "--skip", "1", "4"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'small'} is {small_checkpoint} without blocks 1 4 of 6" in said
    result = json.loads((tmp_path / "results/export/small/export.json").read_text())
    certificate = json.loads((tmp_path / "small/certificate.json").read_text())
    assert result["mask_id"] == certificate["mask_id"] == "101101" and result["skipped"] == [1, 4]
    assert certificate["passed"] and [case["rows"] for case in certificate["cases"]] == [3, 1, 1, 1]
    assert certificate["cases"][0]["padded_positions"] > 0 and certificate["blocks"] == {"source": 6, "export": 4}
    assert all(case["ratio"] <= 1e-6 and case["tokens_differ"] == 0 for case in certificate["cases"])
    for side, folder in (("source", small_checkpoint), ("export", tmp_path / "small")):
        for name, digest in certificate["sha256"][side].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert set(result["files"]) == {
        p.relative_to(tmp_path / "small").as_posix() for p in (tmp_path / "small").rglob("*") if p.is_file()
    }
    whole, exported = (load_checkpoint(str(folder))[0] for folder in (small_checkpoint, tmp_path / "small"))
    ids = torch.arange(2, 14)[None]
    with masked(whole, MaskSet.of("101101")[0]), torch.no_grad():
        assert torch.equal(whole(ids).logits, exported(ids).logits)
    counted = [sum(weight.numel() for weight in model.parameters()) for model in (whole, exported)]
    assert result["num_parameters"] == {"source": counted[0], "export": counted[1]}
    assert left(tmp_path) == {"small"}
    # a second run overwrites nothing
    before = (tmp_path / "small/certificate.json").read_bytes()
    assert run([*command, "--skip", "1", "4"]) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert (tmp_path / "small/certificate.json").read_bytes() == before


@pytest.mark.slow
def test_the_exported_folder_is_a_checkpoint_like_any_other(command, tmp_path):
    assert run([*command, "--mask", "110111"]) == 0
    again = ["--model.checkpoint", tmp_path / "small", "--output_dir", tmp_path / "results"]
    assert (
        run(
            [
                "compare",
                *again,
                *FEW[2:],
                "--policies",
                "prefix",
                "--num_active_blocks",
                "2",
                "5",
                "--num_requests",
                "0",
            ]
        )
        == 0
    )
    assert run(["export", *again, *FEW, "--skip", "0", "--out", tmp_path / "smaller"]) == 0
    model, _ = load_checkpoint(str(tmp_path / "smaller"))
    assert model.config.text_config.num_hidden_layers == 4


@pytest.mark.slow
def test_another_number_format_is_held_to_its_own_rounding(command, tmp_path):
    assert run([*command, "--skip", "2", "--model.dtype", "bfloat16"]) == 0
    certificate = json.loads((tmp_path / "small/certificate.json").read_text())
    assert certificate["tolerance"] == 2**-7 and certificate["held_to"]["dtype"] == "bfloat16"
    assert load_checkpoint(str(tmp_path / "small"))[0].dtype == torch.bfloat16


@pytest.mark.slow
def test_a_broken_export_leaves_nothing_and_ends_with_code_1(command, tmp_path, monkeypatch, capsys):
    real = writing.prune_checkpoint

    def broken(source, mask, out, weights=None):
        return real(source, MaskSet.of("110110"), out, weights)  # as many blocks, but others

    monkeypatch.setattr(writing, "prune_checkpoint", broken)
    assert run([*command, "--mask", "101101"]) == 1
    said = capsys.readouterr().err
    assert "error: the exported checkpoint is not the masked model, nothing of it is left: ValueError: expected" in said
    assert left(tmp_path) == set() and not (tmp_path / "results/export/small/export.json").exists()


@pytest.mark.slow
def test_a_model_that_was_changed_in_memory_is_written_as_it_is(small_checkpoint, tmp_path):
    module, trainer = (
        DepthModule(str(small_checkpoint)),
        DepthTrainer(**QUIET),
    )
    with torch.no_grad():
        module.model.lm_head.weight.mul_(1.5)
    data = DepthDataModule(num_samples=8, calibration_samples=8)
    common = {"skip": [3], "num_questions": 2, "output_dir": str(tmp_path / "results"), "out": str(tmp_path / "small")}
    with pytest.raises(NotCertifiedError, match="changed since it was loaded needs --in_memory true"):
        trainer.export(module, data, **common, name="first")
    assert left(tmp_path) == set()
    trainer.export(module, data, **common, in_memory=True, name="second")
    found, _ = load_checkpoint(str(tmp_path / "small"))
    assert torch.equal(found.lm_head.weight, module.model.lm_head.weight)


def healed_by_hand(checkpoint: Path, mask: str) -> tuple[DepthModule, dict[str, torch.Tensor]]:
    """A model, and its weights without the skipped blocks, patched on eight calibration questions; nothing shared."""
    module, data = DepthModule(str(checkpoint)), DepthDataModule(num_samples=8, calibration_samples=8)
    data.attach(module)
    batches = [
        with_answers(model_inputs(batch), batch["answer_ids"], module.pad_token_id)
        for batch in data.eval_dataloader("calibration")
    ]
    patch(module.model, mask, batches).apply()
    kept = [block for block, bit in enumerate(mask) if bit == "1"]
    path = next(name for name, each in module.model.named_modules() if each is find_blocks(module.model))
    state = {}
    for name, value in module.model.state_dict().items():
        head, inside, rest = name.partition(f"{path}.")
        number, _, tail = rest.partition(".")
        if not inside:
            state[name] = value
        elif int(number) in kept:
            state[f"{head}{inside}{kept.index(int(number))}.{tail}"] = value
    return module, state


def exported_again(tmp_path: Path, export: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of a run that is started over without its folder: the same weights, and no question is asked again."""

    def records() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("rank*.jsonl")}

    weights, before = (tmp_path / "small/model.safetensors").read_bytes(), records()
    shutil.rmtree(tmp_path / "small")
    found = export()
    assert (tmp_path / "small/model.safetensors").read_bytes() == weights and records() == before
    return found


QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}


@pytest.mark.slow
def test_a_healed_folder_is_the_patched_and_masked_model(small_checkpoint, tmp_path, capsys):
    mask = "101101"
    module, trainer = DepthModule(str(small_checkpoint)), DepthTrainer(**QUIET)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    data = DepthDataModule(num_samples=8, calibration_samples=8)
    common = {"mask": mask, "heal": "patch", "num_questions": 2, "output_dir": str(tmp_path / "results")}
    common["out"] = str(tmp_path / "small")
    result = trainer.export(module, data, **common)
    # the caller's model is what it was
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert result["certificate"]["passed"]
    manifest = json.loads((tmp_path / "results/export/small/manifest.json").read_text())
    assert manifest["arguments"]["heal"] == "patch" and "training" not in manifest["arguments"]

    by_hand, expected = healed_by_hand(small_checkpoint, mask)
    written, _ = load_checkpoint(str(tmp_path / "small"))
    found = written.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(before[name], value) for name, value in by_hand.model.state_dict().items())
    ids = torch.arange(2, 14)[None]
    with masked(by_hand.model, MaskSet.of(mask)[0]), torch.no_grad():
        torch.testing.assert_close(written(ids).logits, by_hand.model(ids).logits, rtol=0, atol=1e-6)

    healing = result["healing"]
    assert (healing["split"], healing["num_questions"], healing["task"]) == ("calibration", 8, "shapes_vqa")
    assert [span["skipped"] for span in healing["spans"]] == [(1, 4)] and healing["quality"]["num_samples"] == 8
    assert result["expected"]["quality"] == healing["quality"]["healed"]["quality"]
    assert not (tmp_path / "small/handoff").exists()
    text = (tmp_path / "small/README.md").read_text()
    assert "Patched in closed form on 8 questions of the calibration split of shapes_vqa" in text
    assert "Nothing was trained" not in text and str(tmp_path / "results") not in text
    certificate = json.loads((tmp_path / "small/certificate.json").read_text())
    assert certificate["healing"]["split"] == "calibration" and certificate["questions"]["split"] == "validation"
    assert "Healing gave back" in capsys.readouterr().out

    # a second run overwrites nothing; started over, it writes the same and asks no question again
    with pytest.raises(ValueError, match="expected a new folder"):
        trainer.export(module, data, **common)
    assert exported_again(tmp_path, lambda: trainer.export(module, data, **common))["healing"] == healing
    assert len(list((tmp_path / "results").rglob("rank*.jsonl"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("heal", "mask"), [("full", "101101"), ("lora", "011101")])
def test_a_trained_folder_is_the_trained_and_masked_model(small_checkpoint, tmp_path, heal, mask):
    if heal == "lora":
        pytest.importorskip("peft", reason="needs the package peft")
    module, trainer = DepthModule(str(small_checkpoint)), DepthTrainer(**QUIET)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    data = DepthDataModule(num_samples=8, calibration_samples=8, train_batch_size=2)
    common = {"mask": mask, "heal": heal, "heal_steps": 2, "num_questions": 2, "out": str(tmp_path / "small")}
    common["output_dir"] = str(tmp_path / "results")
    result = trainer.export(module, data, **common)
    # the caller's objects are what they were
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in module.model.parameters())
    assert data.train_images == 50_000 and data.prompter is None
    assert result["certificate"]["passed"] and module.trainer is trainer
    written, _ = load_checkpoint(str(tmp_path / "small"))
    ids = torch.arange(2, 14)[None]
    with masked(module.model, MaskSet.of(mask)[0]), torch.no_grad():
        assert not torch.allclose(written(ids).logits, module.model(ids).logits, atol=1e-4)

    healing = result["healing"]
    assert (healing["method"], healing["split"], healing["num_steps"], healing["num_images"]) == (heal, "train", 2, 4)
    assert (healing["patch"] is None) == (mask[0] == "0")
    told = json.loads((tmp_path / "small/certificate.json").read_text())["healing"]
    assert told["learning_rate"] == 1e-3 and "quality" not in told
    # started over, it trains to the same weights and asks no question again; other steps are another run
    assert exported_again(tmp_path, lambda: trainer.export(module, data, **common))["healing"] == healing
    shutil.rmtree(tmp_path / "small")
    with pytest.raises(ValueError, match="holds a run with another training"):
        trainer.export(module, data, **common | {"heal_steps": 3})


@pytest.mark.slow
def test_an_unhealed_folder_is_no_healed_one_and_the_model_is_given_back(small_checkpoint, tmp_path, monkeypatch):
    real = writing.prune_checkpoint
    monkeypatch.setattr(writing, "prune_checkpoint", lambda source, mask, out, weights=None: real(source, mask, out))
    module = DepthModule(str(small_checkpoint))
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    data = DepthDataModule(num_samples=8, calibration_samples=8)
    with pytest.raises(NotCertifiedError, match="expected the weights of the masked model"):
        DepthTrainer(**QUIET).export(
            module,
            data,
            skip=[3],
            heal="patch",
            num_questions=1,
            output_dir=str(tmp_path / "results"),
            out=str(tmp_path / "small"),
        )
    assert left(tmp_path) == set()
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())


SPLITS = [
    (("calibration", "validation"), "must not overlap, but share 4 images"),
    # then one of the questions is for calibration
    (("validation",), "expected at least 4 questions of the calibration split, got "),
]


@pytest.mark.parametrize(("splits", "message"), SPLITS, ids=["shared", "too few"])
def test_it_is_healed_by_other_questions_than_it_is_reported_on(command, tmp_path, capsys, splits, message):
    rows = [
        {"id": f"{split}{n}", "question": f"Is {n} odd?", "answer": "yes", "image_id": str(n), "split": split}
        for split in splits
        for n in range(4)
    ]
    (tmp_path / "results").mkdir()
    (tmp_path / "results/mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--data.path", tmp_path / "results/mine.jsonl", "--skip", "1", "--heal", "patch"]
    assert run([*command, *asked]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said, said
    assert left(tmp_path) == set()


@pytest.mark.parametrize(("options", "private"), [([], True), (["--public", "true"], False)])
def test_a_certified_folder_is_uploaded_privately_unless_told_otherwise(
    command, tmp_path, monkeypatch, options, private
):
    case = {"name": "one", "rows": 1, "padded_positions": 0, "ratio": 0.0, "num_tokens": 1, "tokens_differ": 0}
    verdict = {"passed": True, "tolerance": 1e-6, "cases": [case], "needs": None, "versions": {}}
    monkeypatch.setattr(writing, "hold", lambda evidence: [verdict] * len(evidence))  # other tests hold it
    hub = folder_hub(tmp_path / "results/hub", monkeypatch)
    assert run([*command, "--skip", "1", "--push_to_hub", "me/small", *options]) == 0
    assert hub.private == {"me/small": private}
    there = {path.relative_to(hub.root / "me/small") for path in (hub.root / "me/small").rglob("*")}
    assert there == {path.relative_to(tmp_path / "small") for path in (tmp_path / "small").rglob("*")}
    result = json.loads((tmp_path / "results/export/small/export.json").read_text())
    assert result["pushed"] == "https://huggingface.co/me/small"


WRONG = [
    ([], "expected exactly one of --skip, --mask, --from_run, got none"),
    (["--skip", "1", "--mask", "110111"], "exactly one .* got --skip and --mask"),
    (["--skip", "6"], r"--skip: expected blocks from 0 to 5, got \[6\]"),
    (["--skip", "0", "1", "2", "3", "4", "5"], "expected at least one active block, got a mask that skips all 6"),
    (["--mask", "1101"], "expected a mask of 6 blocks, got 4"),
    (["--mask", "11x111"], "characters 0 and 1"),
    (["--from", "/no/run"], "--from_run: expected the folder of a run of select, search, compare, /no/run has no"),
    (["--skip", "1", "--policy", "prefix"], "go with --from_run: leave them out with --skip"),
    (["--skip", "1", "--heal", "lora", "--lora_rank", "0"], "expected lora_rank of at least 1"),
    (["--skip", "1", "--heal", "full", "--heal_steps", "0"], "expected heal_steps of at least 1"),
    (["--skip", "1", "--heal", "full", "--heal_learning_rate", "-1"], "expected heal_learning_rate of at least 0"),
    (
        ["--skip", "1", "--heal", "full", "--data.task", "text_vqa"],
        "--heal full trains on the train split: .*text_vqa is for evaluation only; --heal patch needs no such split",
    ),
    (["--skip", "0", "--heal", "patch"], "cannot patch a mask that skips block 0"),
    (["--skip", "1", "--heal", "patch", "--weights", "false"], "leave out --weights false"),
    (["--skip", "1", "--heal", "glue"], "heal"),
    (
        ["--skip", "1", "--heal", "patch", "--heal_steps", "9"],
        "--heal_steps goes with --heal lora or full: leave it out",
    ),
    (["--skip", "1", "--heal_learning_rate", "0.1"], "--heal_learning_rate goes with --heal lora or full"),
    (["--skip", "1", "--heal", "full", "--lora_rank", "4"], "--lora_rank goes with --heal lora: leave it out"),
    (["--skip", "1", "--num_questions", "0"], "expected num_questions of at least 1"),
    (["--skip", "1", "--model.phase", "decode"], "expected --model.phase both, got decode"),
    (["--skip", "1", "--trainer.precision", "bf16-mixed"], "expected --trainer.precision 32-true"),
    (["--skip", "1", "--push_to_hub", "me/small"], "switched off by HF_HUB_OFFLINE"),
    (["--skip", "1", "--model.granularity", "sublayer"], "no place for half of a block.*--weights false"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(pair[0]) for pair in WRONG])
def test_mistakes_are_named_before_anything_is_written(command, tmp_path, capsys, arguments, message):
    assert run([*command, *arguments]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said, said
    assert left(tmp_path) == set()


def test_halves_of_blocks_are_handed_to_engines_that_know_them(command, tmp_path, capsys):
    halves = [*command, "--model.granularity", "sublayer", "--skip", "2", "7", "--weights", "false"]
    assert run(halves) == 0
    files = {
        path.relative_to(tmp_path / "small").as_posix() for path in (tmp_path / "small").rglob("*") if path.is_file()
    }
    assert files == {"handoff/block_configs.json"}
    configs = json.loads((tmp_path / "small/handoff/block_configs.json").read_text())["block_configs"]
    idle = [(number, half) for number, each in enumerate(configs) for half in each if each[half]["no_op"]]
    assert idle == [(1, "attention"), (3, "ffn")]
    assert "Nothing is certified" in capsys.readouterr().out


def test_masks_of_whole_blocks_are_known_as_such():
    assert whole_blocks(MaskSet.of("1011")).ids == ("1011",)
    assert whole_blocks(MaskSet.of("110011", granularity="sublayer")).ids == ("101",)
    assert whole_blocks(MaskSet.of("110111", granularity="sublayer")) is None
    assert given_mask([2, 2, 0], None, 4, "block").masks.ids == ("0101",)


NUMBERS = {"quality": 0.7, "quality_ci": [0.6, 0.8], "drop": 0.1, "drop_ci": [0.0, 0.2]}
SELECTION = {
    "command": "select",
    "task": "shapes_vqa",
    "metric": "exact",
    "budget_ms": 20,
    "device": "a CPU",
    "selected": {
        "mask_id": "1101",
        "latency_ms": {"P50": 12.5},
        "chosen_by": NUMBERS,
        "expected": {**NUMBERS, "quality": 0.65},
    },
}
SEARCH = {
    "command": "search",
    "task": "shapes_vqa",
    "metric": "exact",
    "confidence": 0.95,
    "report": {"num_samples": 32},
    "ablations": [
        {"mask_id": "1011", "found_by": ["search"], **NUMBERS},
        {"mask_id": "1001", "found_by": ["search", "greedy"], **NUMBERS},
        {"mask_id": "0001", "found_by": ["greedy"], **NUMBERS},
    ],
}


def written(tmp_path: Path, name: str, result: object) -> Path:
    (tmp_path / name).write_text(json.dumps(result))
    return tmp_path / name


def test_what_select_chose_is_taken_with_what_it_reported(tmp_path):
    path = written(tmp_path, "selection.json", SELECTION)
    assert result_file(str(tmp_path)) == result_file(str(path)) == path
    choice = mask_of_run(path, None, None, 4, "block")
    assert choice.masks.ids == ("1101",) and choice.origin == "select, selected under a budget of 20 ms"
    assert choice.expected["quality"] == 0.65  # on other questions than those it was chosen by
    assert choice.latency == {"request_ms": 12.5, "full_request_ms": None, "device": "a CPU"}


def test_a_search_gives_its_best_of_a_size(tmp_path):
    path = written(tmp_path, "search.json", SEARCH)
    assert mask_of_run(path, None, None, 4, "block").masks.ids == ("1001",)
    choice = mask_of_run(path, 3, None, 4, "block")
    assert choice.masks.ids == ("1011",) and choice.expected["num_samples"] == 32 and choice.latency is None


HEALED = SEARCH | {
    "healing": {
        "masks": [{"removed": [unit], "mask_id": name} for unit, name in ((1, "1011"), (3, "1110"))]
        + [{"removed": [1, 2], "mask_id": "1001"}, {"removed": [1, 3], "mask_id": "1010"}],
        "levels": [
            {"best_before": [1], "best_after": [3]},
            {"best_before": [1, 2], "best_after": [1, 3]},
        ],
    }
}


@pytest.mark.parametrize(
    ("healed", "masks", "when"), [(True, ("1110", "1010"), "after"), (False, ("1011", "1001"), "before")]
)
def test_a_search_that_patched_gives_its_best_after_patching_to_a_mask_that_is_healed(tmp_path, healed, masks, when):
    path = written(tmp_path, "search.json", HEALED)
    for active, mask in zip((3, None), masks):
        choice = mask_of_run(path, active, None, 4, "block", healed)
        assert choice.masks.ids == (mask,)
        assert choice.origin == f"search, the best {active or 2} of 4 that it found, ranked {when} patching"
        # another patch has another quality
        assert (choice.expected is None) == healed
    # a search that patched nothing knows of no other order
    plain = written(tmp_path, "plain.json", SEARCH)
    choice = mask_of_run(plain, 3, None, 4, "block", healed)
    assert (choice.masks.ids, choice.origin) == (("1011",), "search, the best 3 of 4 that it found")


REFUSED = [
    (SELECTION | {"selected": None}, {}, "shows the frontier alone: give it --budget_ms"),
    (SELECTION, {"policy": "prefix"}, "select has chosen one mask"),
    (SELECTION, {"num_units": 5}, "expected a mask of 5 blocks, got 4"),
    (SEARCH, {"num_active": 1}, r"of a mask that it found \(2, 3\), got 1"),
    (HEALED, {"num_active": 1, "healed": True}, r"of a mask that it found \(2, 3\), got 1"),
    (SEARCH | {"healing": {"masks": []}}, {"healed": True}, "is damaged: KeyError\\('levels'\\) is missing"),
    (SEARCH | {"ablations": [{}]}, {}, "is damaged: KeyError\\('found_by'\\) is missing"),
    ({"command": "latency"}, {}, "expected a result of select, search, compare, .* is one of latency"),
    ([], {}, "expected a JSON object"),
]


@pytest.mark.parametrize(("result", "given", "message"), REFUSED, ids=[pair[2][:40] for pair in REFUSED])
def test_a_run_without_such_a_mask_is_refused(tmp_path, result, given, message):
    given = {"num_active": None, "policy": None, "num_units": 4, **given}
    with pytest.raises(ValueError, match=message):
        mask_of_run(written(tmp_path, "run.json", result), **given, granularity="block")


def test_a_run_of_another_model_is_refused(checkpoint, small_checkpoint, tmp_path):
    few = [*FEW[2:], "--output_dir", tmp_path, "--policies", "prefix", "--num_requests", "0"]
    assert run(["compare", "--model.checkpoint", small_checkpoint, "--num_active_blocks", "4", *few]) == 0
    module = DepthModule(str(small_checkpoint))
    folder = str(tmp_path / "compare/default")
    choice = choose(module, None, None, folder, 4, "prefix")
    assert choice.masks.ids == ("111100",) and choice.origin == "run default of compare, policy prefix at 4 blocks"
    assert choice.expected["drop"] is not None and choice.expected["num_samples"] == 8
    with pytest.raises(ValueError, match="many masks: give --num_active_blocks and --policy"):
        choose(module, None, None, folder, None, None)
    with pytest.raises(ValueError, match="expected --policy of prefix and --num_active_blocks of 4, got suffix and 4"):
        choose(module, None, None, folder, 4, "suffix")
    with torch.no_grad():
        module.model.lm_head.weight.mul_(2)
    with pytest.raises(ValueError, match="was made with another model.weights"):
        choose(module, None, None, folder, 4, "prefix")
    with pytest.raises(ValueError, match="expected a mask of 16 blocks, got 6"):
        choose(DepthModule(str(checkpoint)), None, None, folder, 4, "prefix")


def test_the_report_says_what_is_proven():
    case = {
        "name": "left-padded batch of 2",
        "rows": 2,
        "padded_positions": 3,
        "ratio": 0.0,
        "num_tokens": 8,
        "tokens_differ": 0,
    }
    result = {
        "checkpoint": "a/b",
        "out": "out",
        "mask_id": "101",
        "granularity": "block",
        "skipped": [1],
        "origin": "--skip 1",
        "healing": None,
        "num_parameters": {"source": 3000, "export": 2000},
        "weight_bytes": 8_000_000,
        "certificate": {"tolerance": 1e-6, "cases": [case]},
        "files": ["config.json"],
        "pushed": "https://hub/a/c",
    }
    text = as_text(report(result))
    assert "out is a/b without blocks 1 of 3: 2,000 of 3,000 parameters, 8.0 MB. Chosen by --skip 1." in text
    assert "Uploaded to https://hub/a/c." in text and "left-padded batch of 2" in text
    interval = {"drop_ci": [0.0, 0.2], "drop_simultaneous_ci": [-0.05, 0.25]}
    quality = {"task": "t", "metric": "ExactMatch", "split": "validation", "num_samples": 40, "confidence": 0.95}
    quality |= {"whole": {"quality": 0.9, "quality_ci": [0.8, 0.95]}, "regained": 0.2, "regained_p_holm": 0.01}
    quality |= {"masked": {"quality": 0.6, "quality_ci": [0.5, 0.7], "drop": 0.3, **interval}}
    quality |= {"healed": {"quality": 0.8, "quality_ci": [0.7, 0.9], "drop": 0.1, **interval}}
    quality |= {"regained_simultaneous_ci": [0.1, 0.3]}
    asked = {"num_questions": 8, "split": "calibration"}
    result["healing"] = {"method": "patch", **asked, "task": "t", "quality": quality}
    told = report(result)
    text = as_text(told)
    assert "out is a/b without blocks 1 of 3, healed by a patch: " in text
    assert "Patched on 8 questions of the calibration split of t, measured on 40 of the validation split" in text
    assert "gave back +0.200 [+0.100, +0.300], p = 0.010 (Holm)" in text and "no files for mergekit" in text
    assert re.search(r"healed +0.800 +\[0.700, 0.900\] +\+0.100 +\[-0.050, \+0.250\]", text), text
    assert told.scalars["export/quality_healed"] == 0.8
    rates = {"num_steps": 9, "num_images": 1200, "learning_rate": 0.001, "seed": 3, "split": "train", "task": "t"}
    result["healing"] = {"method": "lora", "lora_rank": 4, **rates, "patch": asked, "quality": quality}
    text = " ".join(as_text(report(result)).split())
    assert "healed by low-rank adapters" in text and "Patched on 8 questions of the calibration split, then" in text
    assert "trained (low-rank adapters of rank 4, merged) for 9 steps on 1,200 images of the train split of t" in text
