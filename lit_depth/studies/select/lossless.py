"""Which mask drafts best for the full model: by measured acceptance and costs, then measured on other requests."""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lit_depth.functional import from_mask_id, speculative_generate
from lit_depth.functional.engine.acceptance import draft_acceptance
from lit_depth.functional.engine.decoding_configuration import CannotDriveError
from lit_depth.functional.engine.two_depths import DraftPhase
from lit_depth.functional.latency.drafting import DraftChoice, DraftCosts, best_draft, time_steps
from lit_depth.functional.masks import MaskSet
from lit_depth.functional.statistics import mean_intervals
from lit_depth.module import model_inputs
from lit_depth.results.reading import read_object
from lit_depth.results.store import prepare_folder, write_json
from lit_depth.studies.shared.run_folder import Run

_COST_REQUESTS = 12  # on which the steps are timed; their medians count


@dataclass(frozen=True)
class Lossless:
    """What is measured for ``select --lossless true``; what the run's folder holds already is not measured again.

    Args:
        run: The run.
        new_tokens: Longest answer; it ends at end tokens before.
        threads: Of torch.
        num_requests: Calibration requests that acceptance is counted on.
        num_checks: Other requests that the choice is measured on.
        max_draft: Longest draft; the last two tokens of an answer need none.
        confidence: Of the interval of the speed-up.
    """

    run: Run
    new_tokens: int
    threads: int
    num_requests: int
    num_checks: int
    max_draft: int
    confidence: float

    def measure(self, masks: Sequence[str]) -> dict[str, Any]:
        """The result's ``lossless`` entry: candidates, the most promising one as measured, and whether it is chosen.

        Args:
            masks: Those that may draft.
        """
        settings = {"new_tokens": self.new_tokens, "threads": self.threads, "max_draft": self.max_draft}
        drafting = [mask for mask in masks if "0" in mask]
        entry: dict[str, Any] = {**settings, "candidates": [], "best": None, "measured": None, "chosen": None}
        if not drafting:
            return entry | {"reason": "no mask but the full one is among the candidates"}
        if self.max_draft < 1:
            return entry | {"reason": f"answers of at most {self.new_tokens} tokens leave nothing to draft"}
        counted = self._kept(
            "acceptance", {"masks": drafting, "num_requests": self.num_requests}, lambda: self._count(drafting)
        )
        if not sum(counted["num_tokens"]):
            return entry | {"reason": "no answer is longer than one token, so there is nothing to draft"}
        shares = {mask: sum(agreed) / sum(counted["num_tokens"]) for mask, agreed in counted["num_agreed"].items()}
        shortlist = best_of_each_depth(shares)
        try:
            costs = self._kept("costs", {"masks": shortlist}, lambda: self._time_steps(shortlist))
        except CannotDriveError as error:
            return entry | {"reason": f"the model cannot check drafts: {error}"}
        of_steps = DraftCosts(**costs)
        choices = [
            best_draft(mask, shares[mask], of_steps, counted["num_tokens"], self.max_draft) for mask in shortlist
        ]
        best = max(choices, key=lambda choice: choice.speedup)
        measured = self._kept("checks", {**best._asdict(), "num_checks": self.num_checks}, lambda: self._check(best))
        found = summarize_checks(measured["checks"], self.confidence)
        chosen = {"mask_id": best.mask_id, "num_draft": best.num_draft} if found["speedup_ci"][0] > 1 else None
        return entry | {
            "num_requests": len(counted["num_tokens"]),
            "mean_tokens": float(np.mean(counted["num_tokens"])),
            "costs_ms": costs,
            "candidates": [describe_choice(choice, of_steps) for choice in choices],
            "best": describe_choice(best, of_steps),
            "measured": found,
            "chosen": chosen,
            "reason": None if chosen else "no mask is surely faster than plain decoding",
        }

    @property
    def _phase(self) -> DraftPhase:
        # a block that skips the prompt skips what follows too
        return "decode" if self.run.model.hparams["phase"] == "decode" else "both"

    def _kept(self, name: str, what: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the folder holds of a stage that was measured for the same thing, else what is measured now."""
        path = self.run.folder / "lossless" / f"{name}.json"
        settings = {"new_tokens": self.new_tokens, "threads": self.threads, "max_draft": self.max_draft, **what}
        if path.is_file():
            content = read_object(path)
            if content.get("settings") == settings:
                self.run.effort.read(path, True)
                return content["found"]
        found = measure()
        prepare_folder(path.parent)
        write_json(path, {"settings": settings, "found": found})
        return found

    def _count(self, masks: Sequence[str]) -> dict[str, Any]:
        """Of each request the tokens behind the first of its answer, and of each mask how many it says too."""
        model, agreed, lengths = self.run.model, [], []
        bits = MaskSet.of([from_mask_id(mask) for mask in masks])
        options = {"max_rows": model.hparams["max_rows"], "blocks": model.hparams["blocks"]}
        with self._at_work():
            size = self.run.datamodule.batch_size
            for inputs, _ in self._requests("calibration", self.num_requests, size if isinstance(size, int) else 8):
                found = draft_acceptance(
                    model.model,
                    inputs,
                    bits,
                    self.new_tokens,
                    eos_token_id=model.end_token_ids,
                    pad_token_id=model.pad_token_id,
                    phase=self._phase,
                    **options,
                )
                agreed.append(found.num_agreed)
                lengths += found.num_tokens.tolist()
        rows = torch.cat(agreed, dim=1)[:, : self.num_requests].tolist() if agreed else [[] for _ in masks]
        return {"num_agreed": dict(zip(masks, rows)), "num_tokens": lengths[: self.num_requests]}

    def _time_steps(self, masks: Sequence[str]) -> dict[str, Any]:
        """Medians over requests, of one at a time."""
        model, found = self.run.model, []
        bits = MaskSet.of([from_mask_id(mask) for mask in masks])
        with self._at_work():
            for inputs, _ in self._requests("calibration", min(_COST_REQUESTS, self.num_requests), 1):
                found.append(
                    time_steps(
                        model.model,
                        inputs,
                        bits,
                        self.max_draft,
                        max_new_tokens=self.new_tokens,
                        blocks=model.hparams["blocks"],
                        pad_token_id=model.pad_token_id,
                        phase=self._phase,
                    )
                )
        return {
            "prompt": float(np.median([each.prompt for each in found])),
            "both": {mask: float(np.median([each.both[mask] for each in found])) for mask in masks},
            "draft": {mask: float(np.median([each.draft[mask] for each in found])) for mask in masks},
            "verify": np.median([each.verify for each in found], axis=0).tolist(),
        }

    def _check(self, choice: DraftChoice) -> dict[str, Any]:
        """The same requests with drafts and without, by turns; the first one is answered both ways before it counts."""
        mask, checks = from_mask_id(choice.mask_id), []
        with self._at_work():
            for index, (inputs, images) in enumerate(self._requests("validation", self.num_checks, 1)):
                turns = (0, choice.num_draft) if index % 2 else (choice.num_draft, 0)
                for _ in range(1 if index else 2):
                    times = {num_draft: self._answer(inputs, mask, num_draft) for num_draft in turns}
                (plain_ms, plain), (ms, found) = times[0], times[choice.num_draft]
                counts = {name: int(value) for name, value in found._asdict().items() if name != "tokens"}
                is_same = torch.equal(found.tokens, plain.tokens)
                checks.append({"image": images[0], "plain_ms": plain_ms, "ms": ms, "is_same": is_same, **counts})
        return {"checks": checks}

    def _answer(self, inputs: Mapping[str, Tensor], mask: Tensor, num_draft: int) -> tuple[float, Any]:
        model = self.run.model
        begun = time.perf_counter()
        found = speculative_generate(
            model.model,
            inputs,
            mask,
            num_draft,
            self.new_tokens,
            eos_token_id=model.end_token_ids,
            pad_token_id=model.pad_token_id,
            blocks=model.hparams["blocks"],
            phase=self._phase,
        )
        return (time.perf_counter() - begun) * 1000, found

    def _requests(self, split: str, count: int, batch_size: int) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
        """Inputs of batches on the device, and the images of their samples; at least ``count`` if there are as many."""
        each = copy.copy(self.run.datamodule.for_each_task()[0])
        each.batch_size, each.max_new_tokens = min(batch_size, count), self.new_tokens
        model, left = self.run.model, count
        with tqdm(total=count, desc=f"drafts, {split}", unit="request", file=sys.stderr) as progress:
            for batch in each.eval_dataloader(split):
                if left <= 0:
                    return
                if batch["sample_ids"]:
                    on_device = model.transfer_batch_to_device(batch, self.run.trainer.strategy.root_device, 0)
                    yield model_inputs(on_device), [sample.image_id for sample in batch["samples"]]
                left -= len(batch["sample_ids"])
                progress.update(len(batch["sample_ids"]))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The model on the trainer's device, in its precision, with the run's threads."""
        trainer, model, before = self.run.trainer, self.run.model, torch.get_num_threads()
        device = trainer.strategy.root_device
        model.to(device)
        torch.set_num_threads(self.threads)
        try:
            with (
                torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
                trainer.precision_plugin.forward_context(),
            ):
                yield
        finally:
            torch.set_num_threads(before)
            model.cpu()


def best_of_each_depth(shares: Mapping[str, float]) -> list[str]:
    """Of equally many blocks the mask whose drafts are accepted most: which of them run hardly matters to the clock.

    >>> best_of_each_depth({"110": 0.5, "011": 0.7, "100": 0.2})
    ['100', '011']
    """
    best: dict[int, str] = {}
    for mask, share in shares.items():
        count = mask.count("1")
        if count not in best or share > shares[best[count]]:
            best[count] = mask
    return [best[count] for count in sorted(best)]


def describe_choice(choice: DraftChoice, costs: DraftCosts) -> dict[str, Any]:
    """A mask and what is expected of it, for the result."""
    return {
        **choice._asdict(),
        "num_active_blocks": choice.mask_id.count("1"),
        "draft_ms": costs.draft[choice.mask_id],
        "verify_ms": costs.verify[choice.num_draft],
    }


def summarize_checks(checks: Sequence[Mapping[str, Any]], confidence: float) -> dict[str, Any]:
    """Speed-up of whole requests, with the interval of its geometric mean, clustered by image; and equal answers.

    >>> one = {"image": "a", "plain_ms": 20.0, "ms": 10.0, "is_same": True, "num_drafted": 4, "num_accepted": 3}
    >>> found = summarize_checks([one, {**one, "image": "b"}], 0.95)
    >>> found["speedup"], found["num_same"], found["share_accepted"]
    (2.0, 2, 0.75)
    """
    ratios = [math.log(each["plain_ms"] / each["ms"]) for each in checks]
    (interval,) = mean_intervals([ratios], [each["image"] for each in checks], confidence, score_range=None)
    drafted, accepted = (sum(each[name] for each in checks) for name in ("num_drafted", "num_accepted"))
    return {
        "num_requests": len(checks),
        "num_same": sum(each["is_same"] for each in checks),
        "plain_ms": float(np.median([each["plain_ms"] for each in checks])),
        "ms": float(np.median([each["ms"] for each in checks])),
        "speedup": round(math.exp(interval.estimate), 12),
        "speedup_ci": [math.exp(interval.low), math.exp(interval.high)],
        "num_drafted": drafted,
        "num_accepted": accepted,
        "share_accepted": accepted / drafted if drafted else None,
    }
