"""The validation of `train.py` with four callbacks of lit_depth in the list, and nothing else changed."""

import lightning.pytorch as pl
from train import ColorReader, build_loader, build_trainer, train

from lit_depth.callbacks import AccuracyDropImportance, LatencyTimer, ProxyImportance, TokenMaskImpact


def depth_callbacks() -> list[pl.Callback]:
    return [
        AccuracyDropImportance(),
        ProxyImportance(["block_influence", "taylor"]),
        TokenMaskImpact(num_samples=2),
        LatencyTimer(warmup_batches=1),
    ]


def evaluate(module: ColorReader, callbacks: list[pl.Callback]) -> dict[str, float]:
    """Everything that is logged in one pass over the validation pictures."""
    pl.seed_everything(7, verbose=False)
    trainer = build_trainer(callbacks)
    trainer.validate(module, build_loader(seed=2), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    logged = evaluate(train(), depth_callbacks())
    for name in sorted(logged):
        if name.startswith(("val/", "importance/block_0", "tokens/")) or name.endswith("P50_ms"):
            print(f"{name:36} {logged[name]:8.4f}")
