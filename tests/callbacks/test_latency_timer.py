"""LatencyTimer in loops of modules that know nothing of it."""

from __future__ import annotations

import time

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lit_depth.callbacks import BlockMask, LatencyTimer
from lit_depth.functional.latency.stage_timer import StageTimer
from tests.helpers.tiny_models import tiny_batch, tiny_model

NEW_TOKENS = 3


class Generates(LightningModule):
    """Somebody's module: it only answers."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.language = tiny_model("llama")
        self.inputs = tiny_batch(self.language)
        self.fail_at = fail_at
        self.seconds: list[float] = []

    def predict_step(self, batch, batch_idx):
        start = time.perf_counter()
        if batch_idx == self.fail_at:
            raise RuntimeError("on purpose")
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
        tokens = self.language.generate(**self.inputs, **options)
        self.seconds.append(time.perf_counter() - start)
        return tokens

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.language(**self.inputs).logits.mean())


def trainer(*callbacks, logger=False) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


LOADER = DataLoader(torch.zeros(5, 1))


def test_every_batch_but_the_first_is_a_sample():
    module, timer = Generates(), LatencyTimer(warmup_batches=2)
    expected = trainer().predict(module, LOADER)
    module.seconds.clear()
    found = trainer(timer).predict(module, LOADER)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert [sample["batch"] for sample in timer.samples] == [2, 3, 4]
    rows = len(module.inputs["input_ids"])
    for sample, seconds in zip(timer.samples, module.seconds[2:]):
        assert sample["num_output_tokens"] == rows * NEW_TOKENS and len(sample["decode_steps"]) == NEW_TOKENS - 1
        assert 0 < sample["total"] < 1000 * seconds
    summary = timer.summary
    assert summary["num_requests"] == 3 and summary["total"]["P99"] is None
    assert summary["ttft"]["max"] <= summary["total"]["max"]
    seconds = sum(sample["total"] for sample in timer.samples) / 1000
    assert summary["output_tokens_per_second"] == pytest.approx(3 * rows * NEW_TOKENS / seconds)


def test_logged_values_of_the_module_do_not_change(tmp_path):
    module, timer = Generates(), LatencyTimer(warmup_batches=0)
    plain = trainer().validate(module, LOADER, verbose=False)
    logger = CSVLogger(tmp_path)
    timed = trainer(timer, BlockMask(skipped_block_indices=[1]), logger=logger).validate(module, LOADER, verbose=False)
    masked = trainer(BlockMask(skipped_block_indices=[1])).validate(module, LOADER, verbose=False)
    assert timed[0]["loss"] == masked[0]["loss"] != plain[0]["loss"]
    assert timed[0]["latency/total_P50_ms"] == pytest.approx(timer.summary["total"]["P50"])
    assert timer.summary["num_requests"] == 5 and timer.summary["decode_per_token"] is None
    logger.finalize("success")
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    # five forwards: no decode step after the first token, and too few for a P99
    expected = {
        f"latency/{stage}_{statistic}_ms"
        for stage in ("vision", "prefill", "decode", "ttft", "total")
        for statistic in ("P50", "P95", "mean", "std", "min", "max")
    }
    found = {key for key in header if key.startswith("latency/")}
    assert found == expected | {"latency/output_tokens_per_second"}


def test_the_model_is_looked_for_once_per_loop(monkeypatch):
    made = []

    def counted(*args):
        made.append(args)
        return StageTimer(*args)

    monkeypatch.setattr("lit_depth.callbacks.latency_timer.StageTimer", counted)
    timer = LatencyTimer(warmup_batches=0)
    for loops in (1, 2):
        trainer(timer).predict(Generates(), LOADER)
        assert len(made) == loops and timer.summary["num_requests"] == 5


def test_two_timers_do_not_disturb_each_other():
    module = Generates()
    first, second = LatencyTimer(warmup_batches=0), LatencyTimer(warmup_batches=2)
    trainer(first, second).predict(module, LOADER)
    assert [sample["batch"] for sample in first.samples] == [0, 1, 2, 3, 4]
    assert [sample["batch"] for sample in second.samples] == [2, 3, 4]
    for outer, inner in zip(first.samples[2:], second.samples):
        assert inner["num_output_tokens"] == outer["num_output_tokens"]
        assert len(inner["decode_steps"]) == len(outer["decode_steps"]) == NEW_TOKENS - 1
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())


def test_a_failing_step_leaves_no_hook_behind():
    module = Generates(fail_at=1)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(LatencyTimer()).predict(module, LOADER)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="expected warmup_batches of at least 0, got -1"):
        LatencyTimer(warmup_batches=-1)

    class Nothing(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def predict_step(self, batch):
            return self.layer(batch)

    with pytest.raises(ValueError, match="decoder"):
        trainer(LatencyTimer()).predict(Nothing(), LOADER)
    path = LatencyTimer(blocks="language.model.layers", warmup_batches=0)
    trainer(path).predict(Generates(), LOADER)
    assert path.summary["num_requests"] == 5
