"""Under SLURM Lightning replaces a model by what lies in the working folder; with our trainer nothing does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from lit_depth.data import DepthDataModule
from lit_depth.functional.fingerprints import weights_digest
from lit_depth.module import DepthModule
from lit_depth.trainer import DepthTrainer
from tests.helpers.commands import run

SLURM = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_NAME": "j",
    "SLURM_JOB_ID": "17",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
    "SLURM_NNODES": "1",
    "SLURM_NTASKS_PER_NODE": "1",
}
OPTIONS: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}


@pytest.fixture
def module() -> DepthModule:
    return DepthModule()


def data() -> DepthDataModule:
    return DepthDataModule(num_samples=8, calibration_samples=8, batch_size=4, train_images=2, train_batch_size=2)


@pytest.fixture
def slurm(module, tmp_path, monkeypatch) -> Path:
    """A SLURM job whose working folder holds the checkpoint of another model."""
    for key, value in SLURM.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    weights = {name: value + 1 if value.is_floating_point() else value for name, value in module.state_dict().items()}
    content = {"state_dict": weights, "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0}
    content |= {"callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "loops": {}}
    torch.save(content, tmp_path / "hpc_ckpt_3.ckpt")
    return tmp_path


class Watch(Callback):
    """What Lightning has done by the time that a loop runs."""

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights = weights_digest(pl_module)
        self.handler = signal.getsignal(signal.SIGUSR1)

    on_validation_start = on_test_start = on_predict_start


@pytest.mark.parametrize("command", ["predict", "validate", "test"])
def test_no_loop_of_lightning_loads_a_foreign_checkpoint(module, slurm, command):
    before, watch = weights_digest(module), Watch()
    trainer = DepthTrainer(
        callbacks=[watch], limit_predict_batches=1, limit_val_batches=1, limit_test_batches=1, **OPTIONS
    )
    getattr(trainer, command)(module, datamodule=data())
    assert watch.weights == before == weights_digest(module)
    # nor would its signal have written one
    assert watch.handler is signal.SIG_DFL and os.listdir(slurm) == ["hpc_ckpt_3.ckpt"]


def test_no_study_does(module, slurm):
    before, watch = weights_digest(module), Watch()
    trainer = DepthTrainer(callbacks=[watch], **OPTIONS)
    result = trainer.importance(module, data(), skip=list(range(2, 16)))
    assert watch.weights == before and result["tasks"][0]["full"]["quality"] > 0.5  # that of the trained model


def test_lightnings_own_trainer_is_refused_instead(module, slurm):
    with pytest.raises(ValueError, match=r"expected no .*hpc_ckpt_3.ckpt, which would replace the model: move it away"):
        Trainer(limit_predict_batches=1, **OPTIONS).predict(module, datamodule=data())


def test_training_continues_only_from_what_is_named(module, slurm):
    options = {"max_steps": 1, "limit_val_batches": 0, **OPTIONS}
    with pytest.raises(
        ValueError, match=r"expected no hpc_ckpt_3.ckpt in .*give --ckpt_path hpc if it is this training's"
    ):
        DepthTrainer(**options).fit(module, datamodule=data())
    (slurm / "hpc_ckpt_3.ckpt").unlink()
    trainer = DepthTrainer(**options)
    trainer.fit(module, datamodule=data())
    assert trainer.global_step == 1 and trainer.default_root_dir == str(slurm)


def test_outside_of_slurm_nothing_is_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = DepthTrainer(**OPTIONS)
    assert trainer.default_root_dir == str(tmp_path) and trainer.resume_versions == "same"
    own = LightningEnvironment()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # an interactive session
    assert not SLURMEnvironment.detect()
    trainer = DepthTrainer(strategy="ddp", devices=1, plugins=own, **OPTIONS)
    assert trainer.strategy.cluster_environment is own


def test_an_environment_that_was_chosen_is_kept(slurm):
    own = SLURMEnvironment(auto_requeue=False)
    trainer = DepthTrainer(strategy="ddp", devices=1, plugins=[own], **OPTIONS)
    assert trainer.strategy.cluster_environment is own
    trainer = DepthTrainer(strategy="ddp", devices=1, **OPTIONS)
    assert isinstance(trainer.strategy.cluster_environment, SLURMEnvironment)
    assert not trainer.strategy.cluster_environment.auto_requeue


# --- whatever changes the weights


class Change(Callback):
    """Changes the model in one hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.change)

    def change(self, trainer: Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            pl_module.model.lm_head.weight.mul_(1.5)


@pytest.mark.parametrize("hook", ["setup", "on_predict_batch_end"])
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_weights_that_change_are_an_error_and_leave_no_record(module, tmp_path, monkeypatch, hook, strategy):
    trainer = DepthTrainer(callbacks=[Change(hook)], strategy=strategy, devices=1, **OPTIONS)
    with pytest.raises(ValueError, match="the weights of bundled changed after the run had begun"):
        trainer.importance(module, data(), skip=list(range(2, 16)), output_dir=str(tmp_path))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    records = [path.read_text().splitlines() for path in tmp_path.rglob("rank*.jsonl")]
    assert all(len(lines) == 1 for lines in records) and not list(tmp_path.rglob("importance.json"))
    # the same run goes on with the right weights
    result = DepthTrainer(**OPTIONS).importance(
        DepthModule(), data(), skip=list(range(2, 16)), output_dir=str(tmp_path)
    )
    assert result["tasks"][0]["num_samples"] == 8


# --- a requeued job


@pytest.mark.slow
def test_a_requeued_job_continues_from_the_records(tmp_path):
    """SLURM's signal in the loop: the job is requeued and ends, and the next one ends as if nothing had been."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    environ = {**os.environ, **SLURM, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    common = ["importance", "--output_dir", str(tmp_path / "out"), "--skip", *map(str, range(6, 16))]
    common += ["--num_samples", "64", "--data.batch_size", "2", "--name"]
    assert run([*common, "whole"]) == 0
    command = [sys.executable, "-m", "lit_depth", *common, "job"]
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(command, env=environ, cwd=tmp_path / "work", stderr=subprocess.PIPE, text=True)
    records = tmp_path / "out" / "importance" / "job" / "records" / "shapes_vqa" / "calibration" / "rank0.jsonl"
    while process.poll() is None and not (records.is_file() and records.read_text().count("\n") > 20):
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 143 and err.endswith("(SLURM job 17 was requeued)\n"), err
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert list((tmp_path / "work").iterdir()) == []  # no checkpoint of Lightning's
    assert 20 < records.read_text().count("\n") < 64 * 7
    subprocess.run(command, env=environ, cwd=tmp_path / "work", check=True, capture_output=True)
    results = [(tmp_path / "out" / "importance" / name / "importance.json").read_bytes() for name in ("whole", "job")]
    assert results[0] == results[1]
