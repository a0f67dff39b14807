"""How much of what skipped blocks cost a closed-form patch gives back, and what the patch costs.

- ``bundled``: 10 masks of 4 skipped blocks, drawn with seed 0 (block 0 kept) among those that lose at least 5 points on
  the calibration questions. Fitted on calibration questions with their answers, reported on the validation split: the
  share of the lost accuracy that is regained, of each mask and as the mean of all, images resampled together.
- ``smollm2``: 10 masks of 6 skipped blocks of SmolLM2-135M, drawn with seed 0 (block 0 kept). Fitted on half of the
  topics of `pydoc_data.topics`, reported on the others: the perplexity ratio (masked over whole model), and
  the share of its excess over 1 that is gone; topics are resampled together.

- ``smollm2_numpy``: the same, fitted on as much text of other kind, numpy's docstrings.
- ``full``: the masks of ``bundled``, trained as ``configs/heal.yaml`` says, from the patch, with fewer images
  (``--train_images``).

The file is written after every mask, and holds what each one scored in every unit of resampling: a run that was stopped
goes on behind the masks that were measured with the same settings.

    python benchmarks/heal.py [bundled|smollm2|full ...] [--masks 10] [--threads 2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from environment import RESULTS, SEED, environment
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional import MaskSet, find_blocks, mask_id, masked, patch
from lit_depth.functional.healing.patch import Patch
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.real import smollm2
from lit_depth.module import labelled
from lit_depth.recipes.heal import Heal

REPOSITORY = Path(__file__).resolve().parents[1]
# the text is that of the tests
sys.path.insert(0, str(REPOSITORY))
from tests.helpers.real_weights import Windows, halves, windows  # noqa: E402

OUTPUT = RESULTS / "heal.json"
RESAMPLES = 4000
LEAST_LOSS = 0.05

# of the whole, the masked and the healed model, one value per unit of resampling: [3, units]
Measured = np.ndarray


def random_masks(num_blocks: int, num_skipped: int) -> Iterator[Tensor]:
    """Different masks that keep block 0, without end."""
    draw, seen = random.Random(SEED), set()
    while True:
        mask = torch.ones(num_blocks, dtype=torch.bool)
        mask[draw.sample(range(1, num_blocks), num_skipped)] = False
        if mask_id(mask) not in seen:
            seen.add(mask_id(mask))
            yield mask


def regained(
    sums: Sequence[Measured], weights: np.ndarray, share: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """The mean share over masks, and its 95% bootstrap interval; masks are the given ones, units are resampled.

    Args:
        sums: Of each mask ``[3, units]``, sums of scores in a unit.
        weights: ``[units]``, number of scores in a unit.
        share: The share regained from means ``[..., 3]``.
    """
    draws = np.random.default_rng(SEED).multinomial(len(weights), np.full(len(weights), 1 / len(weights)), RESAMPLES)
    means = [(draws @ each.T) / (draws @ weights)[:, None] for each in sums]
    resampled = np.mean([share(each) for each in means], axis=0)
    point = float(np.mean([share(each.sum(1) / weights.sum()) for each in sums]))
    return {"share": round(point, 4), "ci": [round(float(each), 4) for each in np.quantile(resampled, (0.025, 0.975))]}


def share_of_accuracy(means: np.ndarray) -> np.ndarray:
    """Of accuracies (whole, masked, healed) ``[..., 3]``."""
    whole, lost, healed = np.moveaxis(means, -1, 0)
    return (healed - lost) / (whole - lost)


def share_of_perplexity(means: np.ndarray) -> np.ndarray:
    """Of losses in nats (whole, masked, healed) ``[..., 3]``: what is gone of the ratio's excess over 1."""
    whole, lost, healed = np.moveaxis(means, -1, 0)
    return 1 - np.expm1(healed - whole) / np.expm1(lost - whole)


def timed_patch(model: torch.nn.Module, mask: Tensor, batches: list[dict[str, Tensor]]) -> tuple[Patch, dict[str, Any]]:
    """A patch, and what it took; CPU seconds do not count other processes."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = patch(model, mask, batches)
    took = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    spans = [
        {"skipped": list(span.skipped), "ridge": span.ridge, "unexplained": round(span.unexplained, 4)}
        for span in found.spans
    ]
    return found, {**took, "spans": spans}


class Bundled:
    """The bundled model and its questions."""

    share = staticmethod(share_of_accuracy)

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.settings = {"calibration": arguments.calibration, "report": arguments.samples}
        self.module = DepthModule("bundled").eval()
        self.model = self.module.model
        data = DepthDataModule(
            self.module.prompter,
            batch_size=64,
            num_samples=arguments.samples,
            calibration_samples=arguments.calibration,
        )
        self.task = data.task
        self.calibration, self.report = (list(data.eval_dataloader(split)) for split in ("calibration", "validation"))
        samples = [sample for batch in self.report for sample in batch["samples"]]
        self.units = {name: row for row, name in enumerate(dict.fromkeys(sample.image_id for sample in samples))}
        self.places = np.array([self.units[sample.image_id] for sample in samples])
        self.weights = np.bincount(self.places)
        self.batches = labelled(self.module, self.calibration)
        self.whole = torch.ones(self.module.num_blocks, dtype=torch.bool)
        self.right_whole = self.right(self.report, self.whole)
        self.full = np.bincount(self.places, self.right_whole)

    def right(self, batches: list[dict[str, Any]], mask: Tensor) -> np.ndarray:
        """Whether each question's generated answer is its reference."""
        scores: list[float] = []
        for batch in batches:
            with torch.no_grad():
                tokens, _ = self.module.answer(batch, MaskSet.of([mask]), self.task.max_new_tokens)
            texts = self.module.prompter.decode(tokens[0], None, self.module.end_token_ids)
            scores += [
                float(text.strip().lower() == one.references[0].lower()) for text, one in zip(texts, batch["samples"])
            ]
        return np.array(scores)

    def draw(self) -> Iterator[Tensor]:
        """Masks that lose enough on the calibration questions."""
        full = self.right(self.calibration, self.whole).mean()
        for mask in random_masks(len(self.whole), 4):
            if full - self.right(self.calibration, mask).mean() >= LEAST_LOSS:
                yield mask

    def measure(self, mask: Tensor) -> tuple[Measured, dict[str, Any]]:
        lost = self.right(self.report, mask)
        found, entry = timed_patch(self.model, mask, self.batches)
        with found.applied():
            healed = self.right(self.report, mask)
        return self.entry(lost, healed, entry)

    def entry(self, lost: np.ndarray, healed: np.ndarray, about: dict[str, Any]) -> tuple[Measured, dict[str, Any]]:
        scores = (self.right_whole, lost, healed)
        rows = np.stack([np.bincount(self.places, each) for each in scores])
        names = ("accuracy", "accuracy_masked", "accuracy_healed")
        return rows, {**dict(zip(names, (round(float(each.mean()), 4) for each in scores))), **about}


class Full(Bundled):
    """The bundled model, trained without the blocks."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self.settings |= {"train_images": arguments.train_images}
        self.config = yaml.safe_load((REPOSITORY / "configs" / "heal.yaml").read_text())
        self.config["data"]["train_images"] = arguments.train_images

    def measure(self, mask: Tensor) -> tuple[Measured, dict[str, Any]]:
        lost = self.right(self.report, mask)
        whole = self.module
        wall, cpu = time.perf_counter(), time.process_time()
        seed_everything(self.config["seed_everything"], verbose=False)
        self.module = DepthModule(**self.config["model"])
        options = self.config["trainer"] | {"callbacks": [Heal((~mask).nonzero().flatten().tolist())]}
        options |= {"enable_progress_bar": False, "enable_model_summary": False}
        Trainer(**options).fit(self.module, datamodule=DepthDataModule(**self.config["data"]))
        took = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        self.module.eval()
        healed = self.right(self.report, mask)
        self.module = whole
        return self.entry(lost, healed, took)


class SmolLM2:
    """SmolLM2-135M and the language reference."""

    share = staticmethod(share_of_perplexity)

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.settings = {"windows_per_topic": arguments.windows, "window_tokens": arguments.length}
        self.model, tokenizer = load_checkpoint(str(smollm2()))
        self.model.eval()
        calibration = self.text(tokenizer, arguments)
        _, self.report = halves(windows(tokenizer, arguments.length, 1))
        order = torch.randperm(len(calibration.ids), generator=torch.Generator().manual_seed(SEED))
        self.batches = [{"input_ids": each} for each in calibration.ids[order].split(16)]
        self.weights = np.full(len(self.report.ids), arguments.length - 1)
        self.whole = torch.ones(len(find_blocks(self.model)), dtype=torch.bool)
        self.full = self.losses(self.report, self.whole)

    def text(self, tokenizer: Any, arguments: argparse.Namespace) -> Windows:
        """What is fitted to."""
        return halves(windows(tokenizer, arguments.length, arguments.windows))[0]

    @torch.no_grad()
    def losses(self, text: Windows, mask: Tensor) -> np.ndarray:
        """Sum of the losses in each window, in nats."""
        found = []
        with masked(self.model, mask):
            for ids in text.ids.split(8):
                logits = self.model(ids, use_cache=False).logits[:, :-1].float().transpose(1, 2)
                found.append(torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none").sum(1))
        return torch.cat(found).double().numpy()

    def draw(self) -> Iterator[Tensor]:
        yield from random_masks(len(self.whole), 6)

    def measure(self, mask: Tensor) -> tuple[Measured, dict[str, Any]]:
        lost = self.losses(self.report, mask)
        found, entry = timed_patch(self.model, mask, self.batches)
        with found.applied():
            healed = self.losses(self.report, mask)
        rows = np.stack([self.full, lost, healed])
        nats = rows.sum(1) / self.weights.sum()
        ratios = {
            "perplexity": round(math.exp(nats[0]), 3),
            "ratio_masked": round(math.exp(nats[1] - nats[0]), 4),
            "ratio_healed": round(math.exp(nats[2] - nats[0]), 4),
        }
        return rows, {**ratios, **entry}


class SmolLM2OtherText(SmolLM2):
    """As much other text to fit to: how much of the gain is that the model learns the text of the report?"""

    def text(self, tokenizer: Any, arguments: argparse.Namespace) -> Windows:
        found = Windows(torch.empty(0, arguments.length, dtype=torch.long), [])
        wanted = len(super().text(tokenizer, arguments).ids)
        for name in sorted(np.__all__):
            tokens = tokenizer(getattr(np, name).__doc__ or "")["input_ids"]
            pieces = torch.tensor(tokens[: len(tokens) // arguments.length * arguments.length], dtype=torch.long)
            pieces = pieces.view(-1, arguments.length)[: arguments.windows]
            found = Windows(torch.cat([found.ids, pieces]), [*found.topics, *[name] * len(pieces)])
        return found.take(range(wanted))


KINDS: dict[str, Any] = {"bundled": Bundled, "smollm2": SmolLM2, "smollm2_numpy": SmolLM2OtherText, "full": Full}


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="What patching gives back, and what it costs (CPU).")
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="bundled, smollm2, smollm2_numpy, full (default: all)"
    )
    parser.add_argument("--masks", type=int, default=10, help="masks of each model (default 10)")
    parser.add_argument("--calibration", type=int, default=512, help="bundled: questions to fit on (default 512)")
    parser.add_argument("--samples", type=int, default=1000, help="bundled: questions to report on (default 1000)")
    parser.add_argument("--windows", type=int, default=8, help="smollm2: windows of each topic to fit on (default 8)")
    parser.add_argument("--length", type=int, default=64, help="smollm2: tokens of a window (default 64)")
    parser.add_argument("--train_images", type=int, default=1600, help="full: images to train on (default 1600)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.models) - set(KINDS))
    if unknown:
        parser.error(f"expected models among {', '.join(KINDS)}, got {', '.join(unknown)}")
    torch.set_num_threads(arguments.threads)
    result = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for name in arguments.models or KINDS:
        kind = KINDS[name](arguments)
        entries = _measured_before(result.get(name), kind)
        for mask in itertools.islice(kind.draw(), arguments.masks):
            skipped = (~mask).nonzero().flatten().tolist()
            if skipped in [entry["skipped"] for entry in entries]:
                continue
            row, entry = kind.measure(mask)
            row = row.round(3)
            entry = {"skipped": skipped, **regained([row], kind.weights, kind.share), **entry}
            print(name, {key: value for key, value in entry.items() if key != "spans"}, flush=True)
            entries.append({**entry, "sums": [_packed(each) for each in row[1:]]})
            rows = [np.array([kind.full.round(3), *map(_unpacked, entry["sums"])]) for entry in entries]
            result[name] = {
                "environment": environment(arguments.threads),
                **kind.settings,
                "regained": regained(rows, kind.weights, kind.share),
                "masks": entries,
            }
            arguments.output.write_text(json.dumps(result, indent=2) + "\n")
        print(name, "mean share regained", result[name]["regained"], flush=True)


def _measured_before(found: dict[str, Any] | None, kind: Any) -> list[dict[str, Any]]:
    """Entries of the masks that a run with these settings measured."""
    if found is None or any(found.get(name) != value for name, value in kind.settings.items()):
        return []
    return [entry for entry in found["masks"] if "sums" in entry]


def _packed(values: np.ndarray) -> str:
    """Numbers in one line of the file."""
    return " ".join(f"{value:g}" if value == int(value) else f"{value:.3f}" for value in values)


def _unpacked(line: str) -> np.ndarray:
    return np.array(line.split(), dtype=float)


if __name__ == "__main__":
    main()
