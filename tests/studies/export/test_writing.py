"""The questions of the proof, and where files lie."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional.masks import MaskSet
from lit_depth.models.loading import BUNDLED
from lit_depth.studies.export.writing import (
    check_beside,
    check_exportable,
    count_parameters,
    questions,
    source_folder,
    write_handoff,
)
from tests.helpers.tiny_models import tiny_model


@pytest.fixture(scope="module")
def module() -> DepthModule:
    return DepthModule()


def test_questions_are_asked_together_and_one_by_one(module):
    data = DepthDataModule(num_samples=8)
    data.attach(module)
    before = data.batch_size
    found = questions(SimpleNamespace(datamodule=data), 3)
    assert [name for name, _, _ in found][0] == "left-padded batch of 3" and data.batch_size == before
    together, *alone = found
    assert [ids for _, ids, _ in alone] == [[each] for each in together[1]]
    padding = together[2]["attention_mask"] == 0
    assert padding.any() and not padding[:, -1].any()  # on the left
    for row, (_, _, inputs) in enumerate(alone):
        assert together[2]["input_ids"][row][~padding[row]].tolist() == inputs["input_ids"][0].tolist()
    assert len(questions(SimpleNamespace(datamodule=data), 100)) == 9  # as many as there are


def test_files_are_found_and_written_for_tools_that_know_them(module, tmp_path):
    assert source_folder(module) == BUNDLED
    write_handoff(module, MaskSet.of("1" * 15 + "0"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["block_configs.json"]


@pytest.mark.parametrize(
    ("options", "precision", "message"),
    [
        ({"phase": "prefill"}, "32-true", "expected --model.phase both, got prefill"),
        ({"experts_per_token": 1}, "32-true", r"expected no --model\.experts_per_token, got 1; write it into"),
        ({"max_crops": 2}, "32-true", r"expected no --model\.max_crops, got 2"),
        ({"trust_remote_code": True}, "32-true", "runs no code that comes with a checkpoint"),
        ({}, "16-mixed", "expected --trainer.precision 32-true, got 16-mixed"),
    ],
)
def test_what_no_plain_checkpoint_holds_is_refused(module, options, precision, message):
    model = SimpleNamespace(hparams={**module.hparams, **options}, model=module.model)
    with pytest.raises(ValueError, match=message):
        check_exportable(SimpleNamespace(precision=precision), model, MaskSet.of("1" * 15 + "0"), True)


def test_a_tied_head_is_counted_once(tmp_path):
    model = tiny_model("llama", num_blocks=4)
    tied = type(model)(type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": True}))
    smaller = type(model)(type(model.config)(**{**tied.config.to_dict(), "num_hidden_layers": 3}))
    module = SimpleNamespace(model=tied, hparams={"blocks": None})
    counts = [sum(weight.numel() for weight in each.parameters()) for each in (tied, smaller)]
    assert list(count_parameters(module, MaskSet.of("1011"))) == counts
    assert counts[0] < sum(value.numel() for value in tied.state_dict().values())


@pytest.mark.parametrize("out", ["small", "results/export/a/checkpoint", "results/b"])
def test_a_checkpoint_lies_beside_or_inside_the_folder_of_its_report(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_beside(Path(out), Path("results/export/a"))


@pytest.mark.parametrize("out", ["results/export/a", "results/export", "results", "."])
def test_a_checkpoint_cannot_be_the_folder_of_its_report_or_hold_it(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected another folder than that of the run's report, results/export/a"):
        check_beside(Path(out).absolute(), Path("results/export/a"))
