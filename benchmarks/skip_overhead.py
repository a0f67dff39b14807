"""What skipping costs: a masked forward against that of a model from which the same blocks were physically removed.

Three comparisons, each for a prefill (the decoder makes and fills its cache) and for one decode step on a filled cache,
the first also for a forward without cache:

- ``masked / pruned``: 8 of 16 blocks run, block 0 is skipped. The claim is a ratio of at most 1.01 for the wide model.
- ``restored / full``: a model that was masked and given back, against one that never was. The claim is 1.
- ``pruned / pruned``: two equal copies, the control: what it is away from 1 is the error of this measurement.

``masked / pruned`` once more under ``torch.compile`` (prefill and decode step on static caches of the same length),
with its control. Compilation is not timed. Which of two models is compiled first changes their ratio by some 4%, so
each is in half of the rounds.

What the ratios consist of: transformers' loop lists and calls every block, the skipped ones too, at some five
microseconds each, and a decoder that makes its own cache makes a layer for every block, at some eight. None of it grows
with the model: it shows in the two models whose blocks take a millisecond or less, most in their prefill, and is below
the resolution in the wide one.

Forwards alternate as ABBA or BAAB, by seeded coin toss; each such quadruple gives one ratio (A1 + A2) / (B1 + B2), so
that drift of the machine cancels. The models share one set of weights, because where weights lie in memory changes
their speed for good; they are copied and compiled anew in every round. Reported are the mean ratio of the rounds and
its 95% interval (`mean_ratio`); run it on an otherwise idle machine.

    python benchmarks/skip_overhead.py [--quadruples 100] [--rounds 10] [--eager] [--threads 1]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from environment import RESULTS, SEED, environment
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache

from lit_depth.functional import find_blocks, from_indices, masked
from lit_depth.models.loading import load_bundled

REPOSITORY = Path(__file__).resolve().parents[1]
# the reference for masks is that of the tests: a second version of it could disagree
sys.path.insert(0, str(REPOSITORY))
from tests.helpers.pruning import pruned_copy  # noqa: E402

OUTPUT = RESULTS / "skip_overhead.json"
PROMPT_TOKENS = 64
WARM_UP = 5
MAX_STEPS = 960

Forward = Callable[[], Any]


def random_llama(width: int = 256) -> PreTrainedModel:
    """A random Llama of 16 blocks, float32; at width 256 its blocks are so short that any overhead shows."""
    torch.manual_seed(SEED)
    sizes = dict(hidden_size=width, intermediate_size=width * 43 // 16, num_hidden_layers=16, vocab_size=512)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=width // 64)).eval()


def forward(model: PreTrainedModel, tokens: Tensor) -> Forward:
    """A forward over the whole prompt without a cache."""
    return lambda: model(tokens, use_cache=False, logits_to_keep=1).logits


def prefill(model: PreTrainedModel, tokens: Tensor) -> Forward:
    """A forward over the whole prompt that fills a new cache."""
    return lambda: model(tokens, use_cache=True, logits_to_keep=1).logits


def decode_step(model: PreTrainedModel, tokens: Tensor) -> Forward:
    """A forward of one token on a cache of the prompt, which is cut back to the prompt after each call."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    model(tokens, use_cache=True, cache=cache)
    next_token = tokens[:, :1]

    def step() -> Tensor:
        logits = model(next_token, use_cache=True, cache=cache).logits
        cache.crop(-1)
        return logits

    return step


def compiled_prefill(model: PreTrainedModel, tokens: Tensor) -> Forward:
    """A compiled forward over the whole prompt into an emptied static cache."""
    run, cache = _compiled(model), _static_cache(model, tokens)

    def fill() -> Tensor:
        cache.reset()
        return run(tokens, cache)

    return fill


def compiled_decode_step(model: PreTrainedModel, tokens: Tensor) -> Forward:
    """A compiled forward of one token behind the prompt; the static cache is as long for every call."""
    run, cache = _compiled(model), _static_cache(model, tokens)
    model(tokens, use_cache=True, cache=cache)
    next_token = tokens[:, :1]
    return lambda: run(next_token, cache)


def _compiled(model: PreTrainedModel) -> Callable[[Tensor, StaticCache], Tensor]:
    """The compiled model, in a function with code of its own.

    torch.compile keeps its results with the code object, which is one for all models of a class: every call would also
    check, in vain, whether the other model's result fits, which took a sixth of the time.
    """

    def run(tokens: Tensor, cache: StaticCache) -> Tensor:
        return model(tokens, use_cache=True, cache=cache, logits_to_keep=1).logits

    own = types.FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)
    return torch.compile(own)


def _static_cache(model: PreTrainedModel, tokens: Tensor) -> StaticCache:
    # room for every timed step
    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=tokens.shape[1] + MAX_STEPS)


STAGES = {"forward": forward, "prefill": prefill, "decode step": decode_step}
COMPILED = {"compiled prefill": compiled_prefill, "compiled decode step": compiled_decode_step}


def quadruples(a: Forward, b: Forward, count: int, coin: random.Random) -> list[tuple[float, float]]:
    """Seconds of two runs of ``a`` and of two runs of ``b``, ``count`` times, run as ABBA or BAAB."""
    for _ in range(WARM_UP):
        a(), b()
    found = []
    for _ in range(count):
        order = (a, b, b, a) if coin.random() < 0.5 else (b, a, a, b)
        seconds = {a: 0.0, b: 0.0}
        for run in order:
            start = time.perf_counter()
            run()
            seconds[run] += time.perf_counter() - start
        found.append((seconds[a], seconds[b]))
    return found


def mean_ratio(rounds: list[list[tuple[float, float]]]) -> dict[str, Any]:
    """Mean of a / b with its 95% interval, and the median milliseconds of one forward each.

    Within a round, forwards differ by noise, and its median is taken; but one round differs from the next by more
    (where things lie in memory), and by which side was compiled first. So a pair of rounds, one of either order, gives
    one value (geometric mean of both medians), and the interval is Student's over these values.
    """
    logs = np.array([np.log(np.median([a / b for a, b in pairs])) for pairs in rounds])
    values = logs.reshape(-1, 2).mean(axis=1)
    half_width = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    low, ratio, high = np.exp(values.mean() + half_width * np.array([-1.0, 0.0, 1.0])).tolist()
    a_ms, b_ms = np.median([pair for pairs in rounds for pair in pairs], axis=0) * 500.0  # two forwards each
    return {
        "ratio": round(ratio, 5),
        "interval": [round(low, 5), round(high, 5)],
        "numerator_ms": round(float(a_ms), 4),
        "denominator_ms": round(float(b_ms), 4),
        "rounds": len(rounds),
        "quadruples": sum(map(len, rounds)),
    }


@torch.inference_mode()
def measure(
    original: PreTrainedModel, count: int, rounds: int, coin: random.Random, compiled: bool = False
) -> list[dict[str, Any]]:
    """The comparisons for each stage, ``count`` quadruples each, spread over ``rounds`` fresh copies."""
    num_blocks = len(find_blocks(original))
    mask = from_indices(num_blocks, range(1, num_blocks, 2))
    tokens = torch.arange(PROMPT_TOKENS).remainder(100).add(1).unsqueeze(0)
    found: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
    for round_idx in range(rounds):
        everything = torch.ones_like(mask)
        model, full = (pruned_copy(original, everything, share_weights=True) for _ in range(2))
        pruned, control = (pruned_copy(original, mask, share_weights=True) for _ in range(2))
        torch.compiler.reset()
        for stage, forward_of in (COMPILED if compiled else STAGES).items():

            def compare(name: str, a: Forward, b: Forward, stage: str = stage, swap: bool = round_idx % 2 == 1) -> None:
                if swap:
                    b(), a()
                torch.testing.assert_close(a(), b(), atol=1e-4, rtol=1e-4)  # the same work, or the ratio means nothing
                found.setdefault((name, stage), []).append(quadruples(a, b, max(1, count // rounds), coin))

            with masked(model, mask):
                compare("masked / pruned", forward_of(model, tokens), forward_of(pruned, tokens))
            if stage == "forward":  # it is the longest, and the other two show nothing in it that a prefill does not
                continue
            if not compiled:
                compare("restored / full", forward_of(model, tokens), forward_of(full, tokens))
            compare("pruned / pruned", forward_of(control, tokens), forward_of(pruned, tokens))
    return [{"comparison": name, "stage": stage, **mean_ratio(of)} for (name, stage), of in sorted(found.items())]


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time masked against physically pruned models (CPU).")
    parser.add_argument("--quadruples", type=int, default=100, help="ABBA quadruples per ratio (default 100)")
    parser.add_argument("--rounds", type=int, default=10, help="fresh copies of the models, even (default 10)")
    parser.add_argument("--eager", action="store_true", help="leave out torch.compile, which takes most of the time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.rounds < 4 or arguments.rounds % 2:
        parser.error(f"rounds must be even and at least 4, got {arguments.rounds}")
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"environment": environment(arguments.threads), "prompt_tokens": PROMPT_TOKENS}
    models: dict[str, Callable[[], PreTrainedModel]] = {
        "random Llama": random_llama,
        "bundled MolmoE": lambda: load_bundled()[0],
        "wide Llama": lambda: random_llama(768),
    }
    result["models"] = {}
    print(f"{'model':<16}{'comparison':<18}{'stage':<22}{'ratio':>8}  {'95% interval':<18}{'ms':>8} / ms")
    for name, build in models.items():
        gc.disable()
        # its forwards take ten times as long, and vary less
        count = arguments.quadruples // 3 if name == "wide Llama" else arguments.quadruples
        rows = measure(build(), count, arguments.rounds, random.Random(SEED))
        if not arguments.eager:
            rows += measure(build(), count, arguments.rounds, random.Random(SEED), compiled=True)
        gc.enable()
        result["models"][name] = rows
        for row in rows:
            interval = "[{:.4f}, {:.4f}]".format(*row["interval"])
            print(
                f"{name:<16}{row['comparison']:<18}{row['stage']:<22}{row['ratio']:>8.4f}  {interval:<18}"
                f"{row['numerator_ms']:>8.3f} / {row['denominator_ms']:.3f}"
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
