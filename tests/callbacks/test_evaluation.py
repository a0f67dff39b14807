"""The hooks that all measuring callbacks share: which batches count, and where the values go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader

from lit_depth.callbacks import LatencyTimer, TokenMaskImpact
from lit_depth.callbacks.evaluation import AnyLoopCallback, EvaluationCallback
from tests.helpers.plain_repository import NUM_BLOCKS, PlainModule, loader, trainer


class Counts(EvaluationCallback):
    """Notes what it is called with; a batch counts where the subclass or the test says so."""

    def __init__(self, useless: tuple[int, ...] = (), **options: Any) -> None:
        super().__init__(**options)
        self.useless = useless
        self.steps: list[str] = []
        self.measured: list[tuple[int, int]] = []

    def start(self, pl_module, model, path) -> None:
        self.measured, self.found = [], (model, path)

    def before_batch(self) -> None:
        self.steps.append("before")

    def after_batch(self) -> None:
        self.steps.append("after")

    def measure(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int):
        self.measured.append((dataloader_idx, batch_idx))
        return batch_idx not in self.useless

    def finish(self, trainer, pl_module) -> dict[str, float]:
        return {"count/batches": float(len(self.measured))}


class CountsAnywhere(Counts, AnyLoopCallback):
    pass


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, float] = {}

    def log_metrics(self, metrics, step=None):
        self.logged |= metrics

    def log_hyperparams(self, *args, **kwargs): ...


class Predicts(PlainModule):
    def predict_step(self, batch, batch_idx):
        return self.model(**batch).logits


@pytest.mark.parametrize("loop", ["validate", "test"])
@pytest.mark.parametrize(
    ("options", "measured"),
    [({}, [0, 1, 2, 3]), ({"max_batches": 2}, [0, 1]), ({"max_batches": 2, "useless": (0, 1)}, [0, 1, 2, 3])],
)
def test_so_many_batches_count(loop, options, measured):
    module, callback = PlainModule(), Counts(**options)
    engine = trainer([callback])
    for _ in range(2):  # a second loop counts anew
        getattr(engine, loop)(module, loader(), verbose=False)
        assert callback.measured == [(0, index) for index in measured]
        assert float(engine.callback_metrics["count/batches"]) == len(measured)
    assert callback.steps == ["before", "after"] * 8 and callback.num_blocks == NUM_BLOCKS
    assert callback.found == (module.model, "model.layers")


def test_a_sanity_check_and_batches_without_a_readable_sample_are_not_measured():
    class Tolerant(PlainModule):
        def validation_step(self, batch, batch_idx): ...

    batches: list[dict[str, Any]] = [*loader(), {"sample_ids": [], "bad_samples": ["torn"]}, {"bad_samples": []}]
    callback = Counts(max_batches=5)
    engine = trainer([callback], max_epochs=1)
    engine.fit(Tolerant(), loader(), DataLoader(batches, batch_size=None))
    assert callback.measured == [(0, 0), (0, 1), (0, 2), (0, 3)]
    # the loop of the sanity check has two steps
    assert callback.steps == ["before", "after"] * (2 + 6)
    assert float(engine.callback_metrics["count/batches"]) == 4


def test_prediction_is_for_those_that_need_no_labels():
    callbacks = [Counts(), CountsAnywhere(max_batches=3)]
    engine = trainer(callbacks)
    engine.predict(Predicts(), loader())
    assert callbacks[0].steps == [] and callbacks[1].measured == [(0, 0), (0, 1), (0, 2)]
    assert {name: float(value) for name, value in engine.callback_metrics.items()} == {"count/batches": 3.0}


@pytest.mark.parametrize("loop", ["fit", "validate", "test", "predict"])
def test_latency_and_token_impact_stand_where_all_values_do(loop):
    """In the trainer's metrics and in its loggers, in every loop."""
    timer, impact, recorder = LatencyTimer(warmup_batches=0), TokenMaskImpact(num_samples=2), Recorder()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    engine = Trainer(accelerator="cpu", callbacks=[impact, timer], logger=recorder, max_epochs=1, **quiet)
    loaders = (loader(), loader()) if loop == "fit" else (loader(),)
    getattr(engine, loop)(Predicts(), *loaders)
    expected = {**impact.summary, "latency/total_P50_ms": timer.summary["total"]["P50"]}
    assert len(expected) == 1 + NUM_BLOCKS
    for found in (engine.callback_metrics, recorder.logged):
        values = {name: float(value) for name, value in found.items() if name in expected}
        assert values == pytest.approx(expected, rel=1e-6)
    tokens_per_second = float(engine.callback_metrics["latency/output_tokens_per_second"])
    assert tokens_per_second == pytest.approx(timer.summary["output_tokens_per_second"], rel=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="expected max_batches of at least 1, given 0"):
        Counts(max_batches=0)

    class Nothing(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def validation_step(self, batch, batch_idx): ...

    with pytest.raises(ValueError, match="decoder"):
        trainer([Counts()]).validate(Nothing(), DataLoader(torch.zeros(1, 1)), verbose=False)
