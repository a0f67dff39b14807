"""TokenMaskImpact in loops of modules that know nothing of it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lit_depth import DepthModule
from lit_depth.callbacks import BlockMask, TokenMaskImpact
from lit_depth.data import DepthDataModule
from lit_depth.functional import run_token_masking, token_masking
from lit_depth.models.loading import BUNDLED
from tests.helpers.tiny_models import tiny_batch, tiny_model

NUM_ROWS, BATCH = 8, 3


class Plain(pl.LightningModule):
    """Somebody else's module."""

    def __init__(self, family: str = "llama", **overrides) -> None:
        super().__init__()
        self.language = tiny_model(family, num_blocks=2, **overrides)
        self.dropout = torch.nn.Dropout(0.5)
        self.seen: list[tuple[bool, bool]] = []

    @property
    def norm(self) -> torch.nn.Module:
        return [module for module in self.language.modules() if "Norm" in type(module).__name__][-1]

    def training_step(self, batch, batch_idx):
        loss = self.language(**batch).logits.square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.norm.train()  # a mode of its own
        self.seen.append((self.training, self.norm.training))
        self.log("val_loss", self.language(**batch).logits.mean())
        self.log("val_noise", torch.rand(()))  # would change if the callback drew random numbers

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.language(**batch).logits.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def rows(family: str = "llama") -> list[dict[str, torch.Tensor]]:
    """Rows of different lengths, padded on the left to the same one."""
    batch = tiny_batch(tiny_model(family, num_blocks=1), rows=NUM_ROWS)
    return [{name: value[row] for name, value in batch.items()} for row in range(NUM_ROWS)]


def loader(family: str = "llama") -> DataLoader:
    return DataLoader(rows(family), batch_size=BATCH)


def trainer(*callbacks, logger=False, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def expected_table(model, samples: list[dict[str, torch.Tensor]], steps: int = 1) -> pd.DataFrame:
    """Every row cut free of its padding by hand, and analysed alone."""
    frames = []
    for index, sample in enumerate(samples):
        padding = int((sample["attention_mask"] == 0).sum())
        inputs = {name: sample[name][None, padding:] for name in ("input_ids", "attention_mask")}
        inputs |= {name: sample[name][None] for name in sample.keys() - inputs.keys()}
        frame = token_masking(model, inputs, steps)
        frame.insert(0, "sample", index)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def by_hand(frame: pd.DataFrame) -> dict[str, float]:
    """Mean over tokens, then over samples, in plain Python."""
    found = {}
    for layer in range(2):
        means = []
        for sample in frame["sample"].unique():
            values = [
                float(row.l2_distance)
                for row in frame.itertuples()
                if (row.layer, row.sample, row.variant) == (layer, sample, "Full")
            ]
            means.append(sum(values) / len(values))
        found[f"tokens/block_0{layer}_l2"] = sum(means) / len(means)
    return found


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
@pytest.mark.parametrize(("family", "num_samples", "steps"), [("llama", 5, 2), ("llama", 100, 1), ("llava", 2, 1)])
def test_rows_are_analysed_without_their_padding(tmp_path, loop, family, num_samples, steps):
    module, callback = Plain(family), TokenMaskImpact(num_samples, steps)
    logger = CSVLogger(tmp_path)
    getattr(trainer(callback, logger=logger), loop)(module, loader(family))
    expected = expected_table(module.language.eval(), rows(family)[:num_samples], steps)
    pd.testing.assert_frame_equal(callback.results, expected)
    assert callback.summary == pytest.approx(by_hand(callback.results), rel=1e-12)
    logger.finalize("success")
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        table = list(csv.DictReader(file))
    logged = {name: float(value) for row in table for name, value in row.items() if "tokens/" in name and value}
    assert logged == pytest.approx(callback.summary, rel=1e-6)


def test_the_module_notices_nothing():
    results = []
    for callbacks in ([], [TokenMaskImpact(num_samples=7)]):
        module = Plain()
        for attention in (layer.self_attn for layer in module.language.model.layers):
            attention.attention_dropout = 0.3
        module.train()  # a model comes in evaluation mode
        pl.seed_everything(7, verbose=False)
        engine = trainer(*callbacks, max_epochs=2)
        engine.fit(module, loader(), loader())
        weights = [parameter.detach().clone() for parameter in module.parameters()]
        results.append((dict(engine.callback_metrics), weights, module.seen, torch.rand(1)))
    (metrics, weights, seen, drawn), (other_metrics, other_weights, other_seen, other_drawn) = results
    assert set(metrics) == {"train_loss", "val_loss", "val_noise"}
    assert {name: other_metrics.pop(name) for name in metrics} == metrics
    assert {name: float(value) for name, value in other_metrics.items()} == pytest.approx(callbacks[0].summary)
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights)) and torch.equal(drawn, other_drawn)
    assert seen == other_seen and set(seen) == {(False, True)}
    (callback,) = callbacks
    assert callback.results["sample"].nunique() == 7  # of the last epoch: neither of the first nor of the sanity check
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in module.modules())


def test_weights_of_16_bits_under_inference_mode():
    module, callback = Plain(), TokenMaskImpact(3)
    module.language = module.language.to(torch.bfloat16)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer(callback, inference_mode=True).predict(module, loader())
    pd.testing.assert_frame_equal(callback.results, expected_table(module.language, rows()[:3]))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(before, module.parameters()))
    module.language(**tiny_batch(module.language)).logits.mean().backward()  # still ordinary parameters


def test_a_mask_around_the_loop_is_replaced_not_combined_with():
    callback = TokenMaskImpact(2)
    module = Plain()
    plain = trainer().validate(module, loader(), verbose=False)
    masked = trainer(BlockMask(skipped_block_indices=[1]), callback).validate(module, loader(), verbose=False)
    assert plain[0]["val_loss"] != masked[0]["val_loss"]
    pd.testing.assert_frame_equal(callback.results, expected_table(module.language.eval(), rows()[:2]))


@pytest.mark.skipif(not (BUNDLED / "model.safetensors").exists(), reason="no bundled checkpoint")
def test_batches_of_this_package_with_images_and_a_bad_sample():
    module, callback = DepthModule(), TokenMaskImpact(num_samples=3)
    data = DepthDataModule(module.prompter, num_samples=4, batch_size=2)
    dataset = data.eval_dataset("validation")
    questions = [(dataset[i].image, module.prompter.text(dataset[i])) for i in range(4)]
    batches = list(data.eval_dataloader("validation"))
    empty = {"samples": [], "sample_ids": [], "bad_samples": ["unreadable"]}
    trainer(callback).validate(module, DataLoader([empty, *batches], batch_size=None), verbose=False)
    assert callback.results["sample"].unique().tolist() == [0, 1, 2]
    for sample, (image, text) in enumerate(questions[:3]):
        alone = run_token_masking(module.model.eval(), module.processor, text, image=image)
        found = callback.results[callback.results["sample"] == sample].reset_index(drop=True)
        pd.testing.assert_frame_equal(found[alone.columns.drop("token_masked")], alone.drop(columns="token_masked"))
    assert list(callback.summary) == [f"tokens/block_{block_idx:02d}_l2" for block_idx in range(16)]


def test_rows_end_with_the_end_token_of_the_model_or_the_module():
    module = Plain()
    free = expected_table(module.language.eval(), rows()[:2], steps=3)
    end = token_masking(module.language, {name: value[None] for name, value in rows()[0].items()}).attrs["next_id"]
    steps = []
    for owner, after_end in (("nobody", False), ("model", False), ("module", False), ("model", True)):
        module.language.generation_config.eos_token_id = end if owner == "model" else None
        module.end_token_ids = [end] if owner == "module" else None
        callback = TokenMaskImpact(2, num_output_tokens=3, after_end=after_end)
        trainer(callback).validate(module, loader(), verbose=False)
        steps.append(callback.results.groupby("sample")["generation_step"].max()[0])
        if owner == "nobody" or after_end:
            pd.testing.assert_frame_equal(callback.results, free)
    assert steps == [2, 0, 0, 2]


def test_one_token_rows_have_no_mean():
    module, callback = Plain(), TokenMaskImpact()
    short = [{"input_ids": torch.tensor([5]), "attention_mask": torch.tensor([1])}] * 2
    trainer(callback).predict(module, DataLoader(short))
    assert callback.results["l2_distance"].isna().all() and callback.summary == {}
    longer = [*short, {"input_ids": torch.tensor([5, 6]), "attention_mask": torch.tensor([1, 1])}]
    trainer(callback).predict(module, DataLoader(longer))
    assert callback.summary == pytest.approx(by_hand(callback.results.query("sample == 2")), rel=1e-12)


def test_bad_arguments_and_batches_are_named():
    for options in ({"num_samples": 0}, {"num_output_tokens": 0}):
        with pytest.raises(ValueError, match=f"expected {next(iter(options))} of at least 1, got 0"):
            TokenMaskImpact(**options)

    class Silent(Plain):
        def predict_step(self, batch, batch_idx):
            return None

    with pytest.raises(ValueError, match="mappings with input_ids, got Tensor"):
        trainer(TokenMaskImpact()).predict(Silent(), DataLoader(torch.zeros(2, 1)))
    with pytest.raises(ValueError, match=r"input_ids \[batch, seq\], got the entries \['x'\]"):
        trainer(TokenMaskImpact()).predict(Silent(), DataLoader([{"x": torch.zeros(1)}]))
    with pytest.raises(ValueError, match="no module at 'language.model.layer'"):
        trainer(TokenMaskImpact(blocks="language.model.layer")).predict(Silent(), loader())
    path = TokenMaskImpact(num_samples=1, blocks="language.model.layers")
    trainer(path).predict(Plain(), loader())
    assert len(path.summary) == 2


TWO_PROCESSES = """
import json
import sys
import torch
from tests.callbacks.test_token_mask_impact import Plain, rows, trainer
from torch.utils.data import DataLoader
from lit_depth.callbacks import TokenMaskImpact

callback = TokenMaskImpact()
# 5 rows for the first process, 3 for the second
class Uneven(Plain):
    def val_dataloader(self):
        mine = rows()[:5] if self.global_rank == 0 else rows()[5:]
        return DataLoader(mine, batch_size=2)
    def validation_step(self, batch, batch_idx):
        pass
trainer(callback, devices=2, strategy="ddp", use_distributed_sampler=False).validate(Uneven(), verbose=False)
rank = torch.distributed.get_rank()
callback.results.to_parquet(f"{sys.argv[1]}/{rank}.parquet")
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(callback.summary, file)
"""


@pytest.mark.slow
def test_two_processes_log_the_mean_over_the_rows_of_both(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    callback = TokenMaskImpact()
    trainer(callback).validate(Plain(), loader(), verbose=False)
    tables = [pd.read_parquet(tmp_path / f"{rank}.parquet") for rank in range(2)]
    assert [table["sample"].nunique() for table in tables] == [5, 3]
    tables[1]["sample"] += 5
    pd.testing.assert_frame_equal(pd.concat(tables, ignore_index=True), callback.results)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(callback.summary, rel=1e-6)
