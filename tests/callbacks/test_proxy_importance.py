"""ProxyImportance in a plain Lightning repository: a Llama from a config, its own steps and logged values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_depth.callbacks import AccuracyDropImportance, BlockMask, ProxyImportance
from lit_depth.functional import proxy_importance
from lit_depth.functional.importance.proxies import METHODS

NUM_BLOCKS = 3


class PlainModule(pl.LightningModule):
    """Somebody else's module: nothing in it knows of this package."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = dict(vocab_size=24, hidden_size=16, intermediate_size=32, num_attention_heads=2)
        self.model = LlamaForCausalLM(
            LlamaConfig(**sizes, num_hidden_layers=NUM_BLOCKS, initializer_range=0.5, attention_dropout=0.3)
        )
        self.steps = 0

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.steps += 1
        self.log("val_loss", self.model(**batch).loss)
        self.log("val_noise", torch.rand(()))  # would change if the callback drew random numbers

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader(batch_size: int = 6) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 24, (20, 8), generator=generator)
    labels = ids.clone()
    labels[:, :3] = -100
    rows = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y} for i, y in zip(ids, labels)]
    return DataLoader(rows, batch_size=batch_size)


def trainer(callbacks=(), **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return pl.Trainer(callbacks=list(callbacks), enable_model_summary=False, **quiet, **options)


def run(loop: str, callbacks=(), batch_size: int = 6, **options) -> tuple[dict[str, float], PlainModule]:
    module = PlainModule()
    pl.seed_everything(7, verbose=False)
    engine = trainer(callbacks, max_epochs=2, **options)
    if loop == "fit":
        engine.fit(module, loader(), loader(batch_size))
    else:
        getattr(engine, loop)(module, loader(batch_size), verbose=False)
    return {name: float(value) for name, value in engine.callback_metrics.items()}, module


@pytest.mark.parametrize("loop", ["fit", "validate", "test"])
def test_the_modules_own_values_and_weights_are_unchanged(loop):
    plain, module_without = run(loop)
    watched, module_with = run(loop, [ProxyImportance()])
    assert {name: watched[name] for name in plain} == plain
    added = {f"importance/{method}/block_{i:02d}" for method in METHODS for i in range(NUM_BLOCKS)}
    assert watched.keys() - plain.keys() == added
    states = zip(module_without.state_dict().values(), module_with.state_dict().values())
    assert all(torch.equal(a, b) for a, b in states)
    assert module_with.steps == module_without.steps
    assert all(weight.requires_grad for weight in module_with.parameters())
    assert module_with.model.config._attn_implementation == module_without.model.config._attn_implementation


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("batch_size", [6, 20])
def test_scores_are_those_of_the_function(inference_mode, batch_size):
    callback = ProxyImportance()
    logged, module = run("validate", [callback], batch_size, inference_mode=inference_mode)
    expected = proxy_importance(PlainModule().model, loader(batch_size=1))
    assert tuple(callback.importance) == METHODS
    for method, values in callback.importance.items():
        assert values.dtype == torch.float64 and not values.is_inference()
        torch.testing.assert_close(values, expected[method], rtol=1e-4, atol=1e-5)
        for block_idx, value in enumerate(values.tolist()):
            assert logged[f"importance/{method}/block_{block_idx:02d}"] == pytest.approx(value, rel=1e-6)


def test_a_limit_of_batches_and_a_choice_of_methods():
    callback = ProxyImportance(["gradient"], max_batches=2)
    run("test", [callback])
    expected = proxy_importance(PlainModule().model, list(loader())[:2], ["gradient"])
    assert list(callback.importance) == ["gradient"]
    torch.testing.assert_close(callback.importance["gradient"], expected["gradient"])


def test_every_loop_starts_anew():
    callback = ProxyImportance(["taylor"])
    _, module = run("fit", [callback])
    last = callback.importance["taylor"]
    trainer([callback]).validate(module, loader(), verbose=False)
    torch.testing.assert_close(callback.importance["taylor"], last)


def test_a_mask_around_the_loop_is_lifted():
    plain, skipping = ProxyImportance(), ProxyImportance()
    without, _ = run("validate", [plain])
    within, _ = run("validate", [BlockMask(skipped_block_indices=[1]), skipping])
    assert all(torch.equal(plain.importance[method], skipping.importance[method]) for method in METHODS)
    assert without["val_loss"] != within["val_loss"]


def test_it_stands_beside_accuracy_drop_importance():
    logged, _ = run("validate", [AccuracyDropImportance(), ProxyImportance()])
    assert {"importance/block_00", "importance/taylor/block_00"} <= logged.keys()


def test_mixed_precision_is_that_of_the_loop():
    exact, mixed = ProxyImportance(), ProxyImportance()
    run("validate", [exact])
    run("validate", [mixed], precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16):
        expected = proxy_importance(PlainModule().model, loader())
    for method in METHODS:
        assert torch.equal(mixed.importance[method], expected[method])
        if method != "taylor_signed":  # cancels
            torch.testing.assert_close(mixed.importance[method], exact.importance[method], rtol=0.05, atol=0.01)
            # weights stay in float32
            assert torch.equal(mixed.importance[method], exact.importance[method]) == (method == "weight_magnitude")


def test_a_quantised_model_is_refused_before_the_loop():
    module = PlainModule()
    module.model.is_quantized = True
    with pytest.raises(ValueError, match="quantised"):
        trainer([ProxyImportance()]).validate(module, loader(), verbose=False)
    assert module.steps == 0
    callback = ProxyImportance(["block_influence", "attention_entropy"])
    trainer([callback]).validate(module, loader(), verbose=False)
    assert len(callback.importance) == 2


def test_the_model_may_be_wrapped_in_a_class_of_ones_own():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask, labels):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    module = PlainModule()
    expected = proxy_importance(module.model, loader())
    module.model = Wrapper(module.model)
    callback = ProxyImportance()
    trainer([callback]).validate(module, loader(), verbose=False)
    for method in METHODS:
        torch.testing.assert_close(callback.importance[method], expected[method])


def test_other_batches_are_read_by_overriding_one_method():
    class Pairs(ProxyImportance):
        def inputs_of(self, pl_module, batch):
            return {"input_ids": batch[0]}, batch[1]

    class PairModule(PlainModule):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.model(batch[0], labels=batch[1]).loss)

    pairs = DataLoader([(row["input_ids"], row["labels"]) for row in loader().dataset], batch_size=6)
    with pytest.raises(ValueError, match="got list; override inputs_of"):
        trainer([ProxyImportance()]).validate(PairModule(), pairs, verbose=False)
    callback, expected = Pairs(), ProxyImportance()
    trainer([callback]).validate(PairModule(), pairs, verbose=False)
    run("validate", [expected])
    assert all(torch.equal(callback.importance[method], expected.importance[method]) for method in METHODS)


def test_reference_answers_are_what_is_labelled():
    """Evaluation batches of this package: a left-padded prompt, the answer apart and padded on the right."""
    prompts = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [0, 0, 11, 12]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
    }
    batch = prompts | {"answer_ids": torch.tensor([[9, 10], [13, -100]]), "sample_ids": ["a", "b"]}
    module = PlainModule()
    inputs, labels = ProxyImportance().inputs_of(module, batch)
    alone = [
        {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]]), "labels": torch.tensor([[-100, -100, -100, -100, 9, 10]])},
        {"input_ids": torch.tensor([[11, 12, 13]]), "labels": torch.tensor([[-100, -100, 13]])},
    ]
    found = proxy_importance(module.model, [inputs | {"labels": labels}])
    expected = proxy_importance(module.model, alone)
    for method in METHODS:
        torch.testing.assert_close(found[method], expected[method], rtol=1e-4, atol=1e-5)


def test_a_batch_of_bad_samples_alone_is_passed_over():
    class Collator:
        def __call__(self, rows):
            batch = {"sample_ids": [], "bad_samples": rows}
            return batch if rows[0]["input_ids"][0] % 2 else torch.utils.data.default_collate(rows)

    class Tolerant(PlainModule):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", 0.0, batch_size=1)

    rows = loader().dataset
    callback = ProxyImportance(["gradient"])
    trainer([callback]).validate(Tolerant(), DataLoader(rows, batch_size=1, collate_fn=Collator()), verbose=False)
    good = [row for row in rows if row["input_ids"][0] % 2 == 0]
    assert 0 < len(good) < len(rows)
    expected = proxy_importance(PlainModule().model, DataLoader(good, batch_size=1), ["gradient"])
    torch.testing.assert_close(callback.importance["gradient"], expected["gradient"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"methods": ["tailor"]}, "tailor"), ({"max_batches": 0}, "max_batches of at least 1, got 0")],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProxyImportance(**arguments)


TWO_PROCESSES = """
import sys
import torch
from tests.callbacks.test_proxy_importance import PlainModule, loader, trainer
from torch.utils.data import DataLoader, Subset
from lit_depth.callbacks import ProxyImportance

callback = ProxyImportance()
# 14 samples for the first process, 6 for the second: 3 batches and 1
class Uneven(PlainModule):
    def val_dataloader(self):
        rows = range(14) if self.global_rank == 0 else range(14, 20)
        return DataLoader(Subset(loader().dataset, rows), batch_size=6)
trainer([callback], devices=2, strategy="ddp", use_distributed_sampler=False).validate(Uneven(), verbose=False)
torch.save(callback.importance, f"{sys.argv[1]}/{torch.distributed.get_rank()}.pt")
"""


@pytest.mark.slow
def test_two_processes_with_uneven_numbers_of_batches_give_the_scores_of_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    callback = ProxyImportance()
    run("validate", [callback])
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == 2
    for file in files:
        importance = torch.load(file, weights_only=True)
        for method in METHODS:
            torch.testing.assert_close(importance[method], callback.importance[method], rtol=1e-4, atol=1e-5)
