"""The engine beside what people use today for the same numbers: nnsight, TransformerLens, and two published loops.

Sweeps (the full model and every single skip; the mean log-probability of each reference answer under each mask):

- ``nnsight``: one trace per mask, the block's `skip` given its own input.
- ``nnsight, batched``: all masks as invokes of one trace. Its ``skip`` has to cover every row of a trace, so each
  invoke overwrites the block's output with its input: blocks run for rows that do not need them.
- ``TransformerLens``: the bridge, one run with hooks per mask. It has no skip: a hook overwrites the block's output.
- ``plain forward``: one forward of transformers per mask under `masked`, with nothing around it.

Greedy loops, which remove the unit whose removal raises perplexity least, score all others again, and so on:

- ``SLEB`` (arXiv 2402.09025): blocks. ``BlockPruner`` (arXiv 2406.10594): attentions and MLPs. Both are written here
  from their papers: one forward for each candidate, which costs what a pruned copy does. Ours is `beam_search` of
  width 1 on the same perplexity, whose candidates are one pass of the engine.

Models: the bundled one with its images, and its text decoder alone (its weights in transformers' ``Olmoe``, prompts of
equal length): the bridge and batched traces take no images of ours. On the text decoder the engine saves no vision.

Each tool has a copy of the model of its own. First both sides have to give equal numbers, and loops equal choices. Then
pairs of runs alternate; a pair gives one ratio, theirs over ours, reported are medians with their 95% intervals (of
fewer than 6 pairs the least and the greatest, which hold it less often: ``pairs`` tells). Tools come from
``.bench/site``, which ``make bench`` fills; of one that is absent or fails, the file holds the error.

    python benchmarks/other_tools.py [--repeats 6] [--removed 2] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from environment import RESULTS, environment, interval_text, median_ratio
from sweep import batches, bundled
from torch import Tensor, nn
from transformers import OlmoeForCausalLM

from lit_depth import DepthModule
from lit_depth.functional import MaskScores, beam_search, find_blocks, leave_one_out, masked
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.inputs import answer_logprob, with_answers, with_positions
from lit_depth.functional.masks import Granularity
from lit_depth.module import model_inputs

REPOSITORY = Path(__file__).resolve().parents[1]
SITE = REPOSITORY / ".bench" / "site"
OUTPUT = RESULTS / "other_tools.json"
BATCH_SIZES = (1, 8)
TOLERANCE = 1e-3  # nats; the bridge reads with eager attention, others do not
LOOPS: dict[str, Granularity] = {"SLEB": "block", "BlockPruner": "sublayer"}


class Case(NamedTuple):
    """One batch of a model.

    Attributes:
        prompt: Inputs of the engine, which reads the answers behind them.
        whole: Inputs of one forward over prompts and answers.
        answers: Long ``[batch, answer]``, padded on the right with -100.
    """

    model: nn.Module
    prompt: dict[str, Tensor]
    whole: dict[str, Tensor]
    answers: Tensor
    pad: int
    tokenizer: Any

    @property
    def num_blocks(self) -> int:
        return len(find_blocks(self.model))

    def score(self, logits: Tensor) -> Tensor:
        """Log-probability of the answers ``[batch]`` from the logits of the whole."""
        return answer_logprob(logits[:, -self.answers.shape[1] - 1 :], self.answers)


# masks [masks, num_blocks] -> mean log-probability of each answer [masks, batch]
Scores = Callable[[Tensor], Tensor]


def with_images(module: DepthModule, batch_size: int) -> Case:
    (batch,) = batches(module, batch_size)
    inputs, pad = model_inputs(batch), module.pad_token_id
    whole = with_positions(module.model, with_answers(module.model, inputs, batch["answer_ids"], pad))
    return Case(module.model, inputs, whole, batch["answer_ids"], pad, module.tokenizer)


def text_alone(module: DepthModule, batch_size: int) -> Case:
    """The text decoder on the ends of the same prompts, as long as the shortest one of them."""
    (batch,) = batches(module, batch_size)
    model, inputs = text_decoder(module.model), model_inputs(batch)
    length = int(inputs["attention_mask"].sum(1).min())
    ids = inputs["input_ids"][:, -length:].clamp(max=model.config.vocab_size - 1)  # image tokens lie behind the words
    prompt, pad = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, module.pad_token_id
    # what stands behind a shorter answer changes nothing that is read
    whole = {"input_ids": torch.cat([ids, batch["answer_ids"].clamp(min=0)], dim=1)}
    return Case(model, prompt, whole, batch["answer_ids"], pad, module.tokenizer)


def text_decoder(model: Any) -> OlmoeForCausalLM:
    """Transformers' own Olmoe with the weights of Molmo's text model."""
    source = model.model.language_model
    config = copy.deepcopy(source.config)
    config.architectures = [OlmoeForCausalLM.__name__]
    text = OlmoeForCausalLM(config).eval()
    weights = {f"model.{name}": weight for name, weight in source.state_dict().items()}
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][: config.vocab_size]
    text.load_state_dict({**weights, "lm_head.weight": model.lm_head.weight})
    return text


CASES = {"bundled, with images": with_images, "bundled, text decoder alone": text_alone}


def engine(case: Case, granularity: Granularity = "block") -> Scores:
    def scores(masks: Tensor) -> Tensor:
        return answer_masks(
            case.model,
            case.prompt,
            masks,
            max_new_tokens=0,
            eos_token_id=case.tokenizer.eos_token_id,
            pad_token_id=case.pad,
            answer_ids=case.answers,
            granularity=granularity,
        )[1]

    return scores


def plain_forward(case: Case, granularity: Granularity = "block") -> Scores:
    @torch.no_grad()
    def scores(masks: Tensor) -> Tensor:
        found = []
        for mask in masks:
            with masked(case.model, mask, granularity=granularity):
                found.append(case.score(case.model(**case.whole, use_cache=False).logits))
        return torch.stack(found)

    return scores


def nnsight_skip(case: Case) -> Scores:
    from nnsight import NNsight

    model = NNsight(copy.deepcopy(case.model))
    language_model = getattr(model.model, "language_model", model.model)

    @torch.no_grad()
    def scores(masks: Tensor) -> Tensor:
        found = []
        for mask in masks:
            with model.trace(**case.whole, use_cache=False):
                for block_idx in skipped(mask):
                    block = language_model.layers[block_idx]
                    block.skip(block.input)
                logits = model.output.logits.save()
            found.append(case.score(logits))
        return torch.stack(found)

    return scores


def nnsight_batched(case: Case) -> Scores:
    from nnsight import TransformersModel

    model = TransformersModel(copy.deepcopy(case.model), tokenizer=case.tokenizer)
    inputs = {**case.whole, "attention_mask": torch.ones_like(case.whole["input_ids"])}

    @torch.no_grad()
    def scores(masks: Tensor) -> Tensor:
        with model.trace(use_cache=False) as tracer:
            found = [].save()  # type: ignore[attr-defined]
            for mask in masks:
                with tracer.invoke(inputs):
                    for block_idx in skipped(mask):
                        block = model.model.layers[block_idx]
                        block.output = block.input
                    found.append(model.output.logits)
        return torch.stack([case.score(logits) for logits in found])

    return scores


def transformer_lens_bridge(case: Case) -> Scores:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        "local", hf_model=copy.deepcopy(case.model), tokenizer=case.tokenizer, device="cpu"
    )
    held: dict[str, Tensor] = {}

    def keep(state: Tensor, hook: Any) -> None:
        held["state"] = state

    def put(state: Tensor, hook: Any) -> Tensor:
        return held.pop("state")

    @torch.no_grad()
    def scores(masks: Tensor) -> Tensor:
        found = []
        for mask in masks:
            names = [f"blocks.{block_idx}" for block_idx in skipped(mask)]
            hooks = [(f"{name}.{end}", do) for name in names for end, do in (("hook_in", keep), ("hook_out", put))]
            logits = bridge.run_with_hooks(case.whole["input_ids"], fwd_hooks=hooks, return_type="logits")
            found.append(case.score(logits))
        return torch.stack(found)

    return scores


def skipped(mask: Tensor) -> list[int]:
    return (~mask).nonzero().flatten().tolist()


TOOLS: dict[str, Callable[[Case], Scores]] = {
    "plain forward": plain_forward,
    "nnsight": nnsight_skip,
    "nnsight, batched": nnsight_batched,
    "TransformerLens": transformer_lens_bridge,
}
TEXT_ONLY = ("nnsight, batched", "TransformerLens")


def perplexities(case: Case, scores: Tensor) -> Tensor:
    """Perplexity of all answer tokens together under each mask, from mean log-probabilities ``[masks, batch]``."""
    counts = (case.answers >= 0).sum(1)
    return (-(scores.double() * counts).sum(1) / counts.sum()).exp()


def greedy_loop(case: Case, scores: Scores, num_units: int, removed: int) -> list[int]:
    """Units in the order of their removal: always the one that raises perplexity least, one forward per candidate."""
    chosen: list[int] = []
    for _ in range(removed):
        candidates = [unit for unit in range(num_units) if unit not in chosen]
        found = {}
        for unit in candidates:
            mask = torch.ones(1, num_units, dtype=torch.bool)
            mask[0, [*chosen, unit]] = False
            found[unit] = perplexities(case, scores(mask)).item()
        chosen.append(min(candidates, key=found.__getitem__))
    return chosen


def beam_of_one(case: Case, scores: Scores, num_units: int, removed: int) -> list[int]:
    """The same by `beam_search`, whose score of a mask is one over its perplexity."""
    num_samples = len(case.answers)

    def evaluate(masks: Tensor, positions: Sequence[int]) -> MaskScores:
        worth = 1 / perplexities(case, scores(masks))
        return MaskScores(np.repeat(worth.numpy()[:, None], len(positions), axis=1))

    search = beam_search(evaluate, num_units, num_samples, beam_width=1, max_removed=removed, racing=False)
    sets = [(), *(level.best.removed for level in search.levels)]
    return [next(iter(set(after) - set(before))) for before, after in zip(sets, sets[1:])]


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Medians of seconds, of CPU and of the clock, and of the pairs' ratios with their intervals."""
    rounds = []
    for repeat in range(repeats):
        sides = (ours, theirs) if repeat % 2 == 0 else (theirs, ours)
        taken = {side: seconds(side) for side in sides}
        rounds.append((taken[ours], taken[theirs]))
    row: dict[str, Any] = {}
    for index, clock in enumerate(("cpu", "wall")):
        pairs = [(mine[index], others[index]) for mine, others in rounds]
        ratios = [others / mine for mine, others in pairs]
        row[f"ours_{clock}_s"] = round(statistics.median(mine for mine, _ in pairs), 4)
        row[f"theirs_{clock}_s"] = round(statistics.median(others for _, others in pairs), 4)
        row |= median_ratio(ratios, f"{clock}_ratio")
    return row


def seconds(function: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def sweep_row(case: Case, tool: str, repeats: int) -> dict[str, Any]:
    """The full model and every single skip; of a tool that does not run, the first line of its error."""
    masks = torch.cat([torch.ones(1, case.num_blocks, dtype=torch.bool), leave_one_out(case.num_blocks)])
    ours = engine(case)
    try:
        theirs = TOOLS[tool](case)
        found = theirs(masks)
    except Exception as error:  # another's tool may fail in any way; the figures of the others do not depend on it
        return {"tool": tool, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    difference = (ours(masks) - found).abs().max().item()
    assert difference < TOLERANCE, f"{tool} differs by {difference} nats: its times mean nothing"
    row = {"tool": tool, "masks": len(masks), "largest_difference_nats": float(f"{difference:.1e}")}
    return row | paired(lambda: ours(masks), lambda: theirs(masks), repeats)


def loop_row(case: Case, loop: str, repeats: int, removed: int) -> dict[str, Any]:
    granularity = LOOPS[loop]
    num_units = case.num_blocks * (1 if granularity == "block" else 2)
    ours = lambda: beam_of_one(case, engine(case, granularity), num_units, removed)  # noqa: E731
    theirs = lambda: greedy_loop(case, plain_forward(case, granularity), num_units, removed)  # noqa: E731
    chosen, expected = ours(), theirs()
    assert chosen == expected, f"{loop} removes {expected}, the engine {chosen}: their times mean nothing"
    return {"tool": loop, "unit": granularity, "removed": chosen} | paired(ours, theirs, repeats)


def versions() -> dict[str, str | None]:
    installed = {each.metadata["Name"].lower().replace("-", "_"): each.version for each in metadata.distributions()}
    return {name: installed.get(name) for name in ("nnsight", "transformer_lens")}


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=6, help="pairs of runs per ratio; of fewer than 6 no interval has 95%% (6)"
    )
    parser.add_argument("--removed", type=int, default=2, help="units that the loops remove (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.append(str(SITE))
    result: dict[str, Any] = {"environment": environment(arguments.threads) | versions()}
    result |= {"repeats": arguments.repeats, "removed_by_loops": arguments.removed, "rows": []}
    module = bundled()
    module.model.eval()
    print(f"{'model':<29}{'batch':>5}  {'tool':<18}{'ours CPU s':>11}{'theirs':>9}{'ratio':>7}  95% interval")
    for name, make in CASES.items():
        for batch_size in BATCH_SIZES:
            case = make(module, batch_size)
            tools = [tool for tool in TOOLS if tool not in TEXT_ONLY or make is text_alone]
            for tool in (*tools, *LOOPS):
                row = {"model": name, "batch_size": batch_size}
                if tool in TOOLS:
                    row |= sweep_row(case, tool, arguments.repeats)
                else:
                    row |= loop_row(case, tool, arguments.repeats, arguments.removed)
                result["rows"].append(row)
                print(told(row), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


def told(row: dict[str, Any]) -> str:
    start = f"{row['model']:<29}{row['batch_size']:>5}  {row['tool']:<18}"
    if "error" in row:
        return start + row["error"]
    interval = interval_text(row["cpu_ratio_ci"])
    return f"{start}{row['ours_cpu_s']:>11.3f}{row['theirs_cpu_s']:>9.3f}{row['cpu_ratio']:>7.2f}  {interval}"


if __name__ == "__main__":
    main()
