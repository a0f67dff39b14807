from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from lightning import LightningModule, Trainer

from lit_depth.data.datamodule import DepthDataModule
from lit_depth.data.task import Sample
from lit_depth.data.tasks import TASKS, get_task
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from tests.helpers.hub_datasets import DATASETS, write_dataset
from tests.helpers.own_tasks import Pairs, RepeatedTask


class Echo(LightningModule):
    """Hands each batch on as prediction."""

    def __init__(self, prompter=None) -> None:
        super().__init__()
        self.prompter = prompter

    def predict_step(self, batch, batch_idx):
        return batch


class Nothing:
    """A prompter that is never asked."""

    encode = None


def small(prompter=None, **kwargs) -> DepthDataModule:
    return DepthDataModule(prompter, **{"task": ShapesVQA(num_images=20), "batch_size": 8, "num_samples": 20} | kwargs)


def quiet_trainer(tmp_path) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


def test_every_listed_task_is_found_by_its_name():
    for task in TASKS:
        assert type(get_task(task.name)) is task


@pytest.mark.parametrize("argument", ["batch_size", "train_batch_size", "num_samples", "train_images"])
def test_counts_must_be_positive(argument):
    with pytest.raises(ValueError, match=f"expected {argument} of at least 1, got 0"):
        DepthDataModule(**{argument: 0})


def test_the_counts_belong_to_their_split():
    data = small(num_samples=7, calibration_samples=5)
    assert len(data.eval_dataset("validation")) == 7
    assert len(data.eval_dataset("calibration")) == 5
    assert len(data.eval_dataset("validation", 9)) == 9
    assert len(small(num_samples=None).eval_dataset("validation")) == 80
    with pytest.raises(ValueError, match="split must be one of"):
        data.eval_dataset("test")


@pytest.mark.slow
def test_importing_the_package_does_not_import_datasets():
    code = "import lit_depth.data, sys; print(sorted({'datasets', 'wandb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_splits_of_the_built_in_task_are_disjoint():
    data = small(num_samples=None, calibration_samples=None)
    data.check_disjoint("calibration", "validation")
    with pytest.raises(ValueError, match="must not overlap, but share 80 samples, for example 'validation-0-000000-0'"):
        data.check_disjoint("validation", "validation")


@pytest.mark.parametrize(("task", "kind"), [(RepeatedTask(), "samples"), (RepeatedTask("{split}-{}"), "images")])
def test_overlapping_splits_are_refused(task, kind):
    with pytest.raises(ValueError, match=f"share 3 {kind}"):
        DepthDataModule(task=task).check_disjoint("calibration", "validation")


def test_different_ids_are_disjoint():
    task = RepeatedTask("{split}-{}", "{split}-{}")
    DepthDataModule(task=task).check_disjoint("calibration", "validation")


def test_a_task_for_evaluation_only_cannot_be_trained_on(prompter):
    with pytest.raises(ValueError, match="repeated is for evaluation only"):
        DepthDataModule(prompter, task=RepeatedTask()).train_dataloader()


def test_a_prompter_is_needed():
    with pytest.raises(ValueError, match="needs a prompter"):
        small().predict_dataloader()
    with pytest.raises(ValueError, match="expected a prompter, got a dict: .*prompter_for makes one"):
        small({})


@pytest.mark.parametrize("owner", ["datamodule", "module"])
def test_predict_loop_hands_batches_on_untouched(prompter, tmp_path, owner):
    data = small(prompter if owner == "datamodule" else None)
    module = Echo(prompter if owner == "module" else None)
    batches = quiet_trainer(tmp_path).predict(module, data)
    expected = list(data.eval_dataset("validation"))
    assert [len(batch["sample_ids"]) for batch in batches] == [8, 8, 4]
    assert [sample_id for batch in batches for sample_id in batch["sample_ids"]] == [sample.id for sample in expected]
    samples = [sample for batch in batches for sample in batch["samples"]]
    assert all(isinstance(sample, Sample) for sample in samples)
    assert [sample.question for sample in samples] == [sample.question for sample in expected]


def test_a_bad_sample_passes_the_predict_loop(prompter, tmp_path):
    (batch,) = quiet_trainer(tmp_path).predict(Echo(), DepthDataModule(prompter, task=RepeatedTask()))
    assert batch["sample_ids"] == ["0"] and len(batch["bad_samples"]) == 2
    assert batch["input_ids"].shape[0] == batch["images"].shape[0] == 1


def test_training_batches_follow_the_seed(prompter):
    def first(seed):
        torch.manual_seed(torch.randint(1000, ()).item())  # what was drawn elsewhere does not matter
        return next(iter(small(prompter, train_batch_size=3, train_images=10, seed=seed).train_dataloader()))

    assert torch.equal(first(0)["input_ids"], first(0)["input_ids"])
    assert not torch.equal(first(0)["images"], first(1)["images"])
    assert len(small(prompter, train_batch_size=3, train_images=10).train_dataloader()) == 4


@pytest.mark.slow
def test_worker_processes_change_nothing(prompter):
    alone, workers = (
        [batch["input_ids"] for batch in small(prompter, num_workers=n).predict_dataloader()] for n in (0, 2)
    )
    assert len(alone) == len(workers) and all(map(torch.equal, alone, workers))


def test_command_line_arguments_are_documented_and_parsed():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(DepthDataModule, "data")
    help_text = parser.format_help()
    for argument in ("task", "path", "batch_size", "num_samples", "calibration_samples", "num_workers", "seed"):
        assert f"--data.{argument}" in help_text
    parsed = parser.parse_args(["--data.task=shapes_vqa", "--data.num_samples=null", "--data.batch_size=4"])
    data = parser.instantiate_classes(parsed).data
    assert (data.task.name, data.num_samples, data.batch_size) == ("shapes_vqa", None, 4)
    custom = '{"class_path": "lit_depth.data.ShapesVQA", "init_args": {"num_images": 3}}'
    assert parser.instantiate_classes(parser.parse_args([f"--data.task={custom}"])).data.task.num_images == 3


def test_some_positions_in_their_order_in_the_batches_of_one_process():
    data = small(Nothing())
    ids = [sample for sample, _ in data.eval_dataset("validation").recorded_ids()]
    positions = [7, 0, 19, 4, 11]
    data.batch_size = 2
    for world in range(1, 6):
        loaders = [
            data.eval_dataloader("validation", shard=(rank, world), positions=positions) for rank in range(world)
        ]
        places = [[list(places) for places in loader.batch_sampler] for loader in loaders]
        found = [
            [[loader.dataset[place].id for place in batch if place is not None] for batch in shard]
            for loader, shard in zip(loaders, places)
        ]
        batches = [batch for shard in found for batch in shard if batch]
        assert sorted(batches) == sorted([[ids[7], ids[0]], [ids[19], ids[4]], [ids[11]]])
        # every process has a batch, even if nothing is in it
        assert all(found) and sum(batch == [] for shard in found for batch in shard) == max(0, world - 3)


def test_a_process_without_a_batch_gets_an_empty_one(prompter):
    batches = list(small(prompter).eval_dataloader("validation", shard=(7, 8), positions=[3, 4]))
    assert batches == [{"samples": [], "sample_ids": [], "bad_samples": []}]


class Unseeing(Nothing):
    sees_images = False

    def why_unseen(self) -> str:
        return "expected eyes"


@pytest.mark.parametrize("task", [ShapesVQA(num_images=2), Pairs()])
def test_a_model_that_sees_no_images_is_not_asked_about_any(task):
    data = DepthDataModule(Unseeing(), task, num_samples=2, calibration_samples=2)
    for refused in (data.eval_dataloader, lambda: data.check_asked(["calibration", "validation"])):
        with pytest.raises(ValueError, match=f"task {task.name}: expected eyes"):
            refused()
    for kept in (
        DepthDataModule(Unseeing(), task, num_samples=2, calibration_samples=2, drop_images=True),
        DepthDataModule(Nothing(), task, num_samples=2, calibration_samples=2),
    ):
        kept.eval_dataloader()
        kept.check_asked(["calibration", "validation"])


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_options_are_chosen_by_likelihood_or_the_task_is_refused_by_name(name, tmp_path):
    folder = write_dataset(name, tmp_path / name, 24)
    data = DepthDataModule(task=name, path=str(folder), answer_by="likelihood", num_samples=None)
    if name not in ("science_qa_img", "mmmu"):
        with pytest.raises(ValueError, match=f"chooses among options, and the questions of {name} have none"):
            data.eval_dataset("validation").check_options()
        return
    data.eval_dataset("validation").check_options()
    samples = [data.eval_dataset("validation")[place] for place in range(len(data.eval_dataset("validation")))]
    everything = DepthDataModule(task=name, path=str(folder), num_samples=None).eval_dataset("validation")
    closed = {sample.id for sample in everything.without_images() if sample.options}
    # open questions are left out, nothing is bad
    assert {sample.id for sample in samples} == closed and 0 < len(closed) <= len(everything)
    assert all(sample.continuations == sample.options for sample in samples)
    assert (name == "mmmu") == (len(closed) < len(everything))
