"""How a chunk of masks is answered: prefill through the trie, then all (mask, sample) rows decoded together.

The steps below `lit_depth.functional.sweep`, and its bookkeeping: chunks that fit the memory, block calls of a width
that suits the machine, and one mask after another for models that the engine cannot drive.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from lit_depth.functional.compatibility import CACHE_NAME
from lit_depth.functional.engine import CannotDriveError, RowCache, RowDriver, TrieDriver, driven
from lit_depth.functional.masking import Granularity, masked
from lit_depth.functional.scoring import answer_logprob, reference_logprob, with_answers, with_positions
from lit_depth.functional.trie import MaskTrie, chunk_masks

# needed with the prompt only; a later pass over the same batch reuses the embeddings that they went into
IMAGE_INPUTS = (
    "images",
    "image_masks",
    "image_input_idx",
    "pixel_values",
    "pixel_attention_mask",
    "image_sizes",
    "image_grid_thw",
)
# hidden states of one block call on a CPU
_CALL_BYTES = 2**21
# how many masks fitted the memory of a GPU, for as long as the model lives
_MASKS_THAT_FIT: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def answer_in_chunks(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    max_rows: int | None,
    blocks: nn.ModuleList,
    options: dict[str, Any],
    on_mask: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    """`lit_depth.functional.sweep.answer_masks` for a model that the engine can drive."""
    batch, answer_ids = len(inputs["input_ids"]), options["answer_ids"]
    tokens = torch.full((len(masks), batch, options["max_new_tokens"]), options["pad"])
    logprobs = torch.zeros(len(masks), 0 if answer_ids is None else batch)
    embeddings: Tensor | None = None
    fitted = _MASKS_THAT_FIT.get(model, len(masks))
    if max_rows is not None:
        waiting = list(chunk_masks(masks, max(1, max_rows // batch)))
    else:
        new_tokens = options["max_new_tokens"]
        costs = [batch * bytes_per_row(model, inputs, new_tokens, answer_ids, int(n)) for n in masks.sum(1)]
        waiting = list(chunk_masks(masks, max(1, affordable_bytes(model, max(costs))), costs))
    waiting = _shorten(waiting, fitted)
    while waiting:
        chunk = waiting.pop(0)
        try:
            chunk_tokens, chunk_logprobs, embeddings = _answer_chunk(
                model, inputs, masks[chunk], blocks, embeddings, options
            )
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            _MASKS_THAT_FIT[model] = fitted = max(1, len(chunk) // 2)
            waiting = _shorten([chunk, *waiting], fitted)
            continue
        tokens[chunk] = chunk_tokens
        logprobs[chunk] = chunk_logprobs
        for _ in chunk:
            on_mask()
    return tokens, logprobs


def _shorten(chunks: Sequence[list[int]], longest: int) -> list[list[int]]:
    return [chunk[start : start + longest] for chunk in chunks for start in range(0, len(chunk), longest)]


def _answer_chunk(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    blocks: nn.ModuleList,
    embeddings: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor | None]:
    prompt, answer_ids = inputs["input_ids"], options["answer_ids"]
    batch, length = prompt.shape
    new_tokens = options["max_new_tokens"]
    answer_length = 0 if answer_ids is None else answer_ids.shape[1]
    trie = MaskTrie(masks)
    # scores alone need no keys and values afterwards
    cache = RowCache(len(blocks), length + max(new_tokens, answer_length)) if new_tokens else None
    extended = inputs if answer_ids is None else with_answers(inputs, answer_ids, options["pad"])
    if embeddings is not None:
        extended = {name: value for name, value in extended.items() if name not in IMAGE_INPUTS}
    driver = TrieDriver(trie, call_width(model, inputs), cache, keep=answer_length + 1, embeddings=embeddings)
    with driven(blocks, driver.make_forward):
        logits = model(**with_positions(model, extended), **{CACHE_NAME: cache}, use_cache=cache is not None).logits
    scored = torch.zeros(len(masks), 0)
    answers = None if answer_ids is None else answer_ids.repeat(len(masks), 1)
    if answers is not None:
        scored = answer_logprob(logits, answers).unflatten(0, (len(masks), batch))
    if cache is None:
        return torch.zeros(len(masks), batch, 0, dtype=torch.long), scored, driver.embeddings
    for block_idx, (layer, level) in enumerate(zip(cache.layers, trie.levels)):
        if level.run and not layer.parts:  # type: ignore[union-attr]
            raise CannotDriveError(f"block {block_idx} keeps its state elsewhere than in keys and values")
    first, tokens, open_rows = _read_off(logits, answers, new_tokens, options["eos"], options["pad"])
    del logits
    if len(open_rows):
        cache.extent.length = length
        of_mask, of_sample = open_rows // batch, open_rows % batch
        for block_idx, layer in enumerate(cache.layers):
            places = trie.places[of_mask, block_idx]
            layer.assign((places * batch + of_sample)[places >= 0])  # type: ignore[union-attr]
        rows = RowDriver(masks[of_mask].to(prompt.device))
        attention = inputs["attention_mask"][of_sample.to(prompt.device)]
        tokens[open_rows] = decode(
            model, blocks, rows, cache, first[open_rows.to(prompt.device)], attention, new_tokens, options["eos"],
            options["pad"],
        )  # fmt: skip
    return tokens.unflatten(0, (len(masks), batch)), scored, driver.embeddings


def _read_off(
    logits: Tensor, answers: Tensor | None, max_new_tokens: int, eos: Tensor, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the prompt's own forward already says of the greedy answers, with the reference answers as a draft of them.

    As long as a row's greedy tokens are those of its reference answer, the next greedy token is known without decoding
    (as in speculative decoding, Leviathan et al. 2023, with a draft that costs nothing): a right answer is whole.

    Args:
        logits: ``[rows, answer + 1, vocabulary]``, the first at the prompt's last token.
        answers: ``[rows, answer]``, padded on the right with -100; None = no draft, one position of logits.

    Returns:
        First tokens long ``[rows]``; tokens long ``[rows, max_new_tokens]``, true of all rows but those still open; and
        the indices of these, long ``[open]``. The last two are on the CPU.
    """
    greedy = logits.argmax(-1)
    known = torch.ones_like(greedy, dtype=torch.bool)
    if answers is not None:
        known[:, 1:] = (greedy[:, :-1] == answers).cumprod(1).bool()
    first, greedy, known = greedy[:, 0], greedy[:, :max_new_tokens].cpu(), known[:, :max_new_tokens].cpu()
    ends = torch.isin(greedy, eos) & known
    ended = ends.cumsum(1) - ends.long() > 0
    tokens = torch.full((len(greedy), max_new_tokens), pad)
    tokens[:, : greedy.shape[1]] = greedy.masked_fill(~known | ended, pad)
    return first, tokens, (~ends.any(1) & (known.sum(1) < max_new_tokens)).nonzero().flatten()


def decode(
    model: nn.Module,
    blocks: nn.ModuleList,
    driver: RowDriver,
    cache: RowCache,
    token: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos: Tensor,
    pad: int,
) -> Tensor:
    """Decode greedily from each row's first token; rows that ended leave the batch. Long ``[rows, max_new_tokens]``."""
    device = token.device
    tokens = torch.full((len(token), max_new_tokens), pad)
    present = torch.arange(len(token))
    alive = torch.ones(len(token), dtype=torch.bool)
    with driven(blocks, driver.make_forward):
        for step in range(max_new_tokens):
            tokens[present[alive], step] = token.cpu()[alive]
            alive &= ~torch.isin(token.cpu(), eos)
            if step == max_new_tokens - 1 or not alive.any():
                break
            # a row that ended is carried along until dropping pays for the copy of the others' keys and values
            if alive.float().mean() <= 0.75:
                kept = alive.nonzero().flatten().to(device)
                driver.keep_rows(kept, cache)
                token, attention_mask = token[kept], attention_mask[kept]
                present, alive = present[alive], alive[alive]
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(token), 1)], dim=1)
            inputs = with_positions(model, {"input_ids": token[:, None], "attention_mask": attention_mask})
            logits = model(**inputs, **{CACHE_NAME: cache}, use_cache=True).logits
            cache.extent.length += 1
            token = logits[:, -1].argmax(-1)
            del logits  # not kept beside those of the next step
    return tokens


def answer_one_by_one(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    blocks: str | None,
    options: dict[str, Any],
    on_mask: Callable[[], Any],
    granularity: Granularity = "block",
    **phases: Any,
) -> tuple[Tensor, Tensor]:
    """`lit_depth.functional.sweep.answer_masks` by `masked` and ``generate``; ``phases`` are arguments of `masked`."""
    batch, length = inputs["input_ids"].shape
    answer_ids, eos = options["answer_ids"], options["eos"].tolist()
    tokens = torch.full((len(masks), batch, options["max_new_tokens"]), options["pad"])
    logprobs = torch.zeros(len(masks), 0 if answer_ids is None else batch)
    for index, mask in enumerate(masks):
        with masked(model, mask, blocks=blocks, granularity=granularity, **phases):
            if answer_ids is not None:
                logprobs[index] = reference_logprob(
                    model, inputs, answer_ids, pad_token_id=options["pad"], in_phases=bool(phases)
                )
            if not options["max_new_tokens"]:
                on_mask()
                continue
            generated = model.generate(  # type: ignore[operator]
                **inputs,
                generation_config=GenerationConfig(
                    max_new_tokens=options["max_new_tokens"],
                    do_sample=False,
                    num_beams=1,
                    eos_token_id=eos or [-1],  # None would be filled in from the model's own configuration
                    pad_token_id=options["pad"],
                ),
            )[:, length:]
        tokens[index, :, : generated.shape[1]] = generated.cpu()
        on_mask()
    return tokens, logprobs


def call_width(model: nn.Module, inputs: Mapping[str, Tensor]) -> int | None:
    """How many groups of masks share a block call; None = all.

    On a CPU a call whose states leave the caches loses what sharing wins, while at batch 1 wide calls are what wins;
    the best width was between 1 and 4 MiB of hidden states wherever it was measured. It follows from shapes alone,
    because kernels round differently at other widths, and no result may depend on the clock. On a GPU wider is never
    slower.
    """
    ids = inputs["input_ids"]
    if ids.device.type != "cpu":
        return None
    hidden_size = model.config.get_text_config(decoder=True).hidden_size  # type: ignore[operator,union-attr]
    return max(1, _CALL_BYTES // (ids.numel() * hidden_size * next(model.parameters()).element_size()))


def bytes_per_row(
    model: nn.Module, inputs: Mapping[str, Tensor], max_new_tokens: int, answer_ids: Tensor | None, num_active: int
) -> int:
    """Memory of one (mask, sample) row: keys and values of its active blocks, hidden states, logits.

    Where all masks share a block call, also what an MLP holds at its widest: for every expert of a token (one in a
    dense block) the input and output, and the gate, the up-projection and their product.
    """
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    answer_length = 0 if answer_ids is None else answer_ids.shape[1]
    length = inputs["input_ids"].shape[1] + max(max_new_tokens, answer_length)
    size = next(model.parameters()).element_size()
    width = 4 * config.hidden_size
    if max_new_tokens:
        width += num_active * 2 * heads * head_dim
    if call_width(model, inputs) is None:
        inner = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None)
        experts = getattr(config, "num_experts_per_tok", None) or 1
        width += experts * (2 * config.hidden_size + 3 * (inner or 4 * config.hidden_size))
    return length * width * size + (answer_length + 1) * config.vocab_size * 4


def affordable_bytes(model: nn.Module, one_mask: int = 0) -> int:
    """What the rows of one chunk may take, so that a sweep takes at most three times what one mask after another does.

    On a GPU half of the free memory, and twice what one mask takes with the model. On a CPU a third of what is free,
    and not much more than the model: block calls are narrow there, and larger chunks gain little.

    Args:
        one_mask: Bytes of the rows of one mask.
    """
    parameter = next(model.parameters())
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    if parameter.device.type == "cuda":
        free = torch.cuda.mem_get_info(parameter.device)[0]
        # what torch holds for reuse is free for us
        free += torch.cuda.memory_reserved(parameter.device) - torch.cuda.memory_allocated(parameter.device)
        return min(free // 2, max(2**29, 2 * (weights + one_mask)))
    return min(_available_host_memory() // 3, max(2**29, weights * 3 // 2))


def _available_host_memory() -> int:
    """Free memory with what the page cache would give back; 4 GiB where the system does not say."""
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return 4 * 2**30
