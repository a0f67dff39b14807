"""What each token does for the final position of every block: its key and value hidden, the residual update compared.

Exact, and linear in the number of tokens. Hiding key j from a head with attention a, values v and output o changes the
output at the last query to ``(o - a_j v_j) / (1 - a_j)``, for all j at once. Only the final position is asked for,
so the rest of the block (output projection, norms, MLP with its experts routed anew) runs on one row per hidden token.

The blocks' own code does the computing: a recorder stands in for transformers' attention function
(`lit_depth.functional.token_masking.capture`). During the unmasked forward it notes what the last query sees; then each
block is called again with its own input at the final position, one row per hidden token, and the recorder answers with
other head outputs (`lit_depth.functional.token_masking.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import check_least, check_token_ids, checked, fits, shorten
from lit_depth.functional.engine.decoding_configuration import (
    PreparedPrompt,
    end_token_ids,
    greedy_options,
    inside_generate,
)
from lit_depth.functional.engine.proof import same_logits
from lit_depth.functional.inputs import keep_last
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.token_masking.capture import Recorder, recording
from lit_depth.functional.token_masking.replay import (
    Call,
    check_rebuilt,
    first_output,
    full_precision,
    in_float32,
    note_calls,
    replay,
    weights_in_float32,
)

if TYPE_CHECKING:
    import pandas as pd

# bounds the memory of the MLP's inner activations: rows that run through a block together
CHUNK_ROWS = 512
# above this share of a head's attention on one key the closed form loses precision (2e-2 at 0.99998 in float32)
SHARP = 0.5

# (logits [heads, keys], values [heads, keys, head_dim]) -> head outputs [hidden sets, heads, head_dim]
Hide = Callable[[Tensor, Tensor], Tensor]


@checked
def token_masking(
    model: nn.Module,
    inputs: Mapping[str, Any],
    num_output_tokens: int = 1,
    *,
    after_end: bool = False,
    end_tokens: Sequence[int] | None = None,
    blocks: str | None = None,
) -> pd.DataFrame:
    """Hide one token at a time from the attention of one block, and measure how the block's residual update changes.

    A hidden token's logit is -inf before the softmax, for every head of this one block; the block's input is that of
    the unmasked model. What is compared is the vector at the final position, unmasked against masked:

    - ``Full``: the block's residual update, attention and MLP together (block output minus block input);
    - ``Attn``: the output of the attention module (after the output projection, before any norm that follows);
    - ``Head_N``: the output of one query head before the output projection.

    Distances are computed in float32. Blocks with weights of 16 bits are run once more with their weights raised to
    float32, on the block inputs of the model as it is, so that small distances do not drown in rounding.

    Args:
        model: A Hugging Face decoder (text or vision-language) in evaluation mode whose attention runs through
            transformers' attention interface, by ``"sdpa"`` or ``"eager"``.
        inputs: Inputs of the model for one prompt without padding: ``input_ids`` ``[1, seq]``, ``attention_mask`` and
            the image tensors where there are any.
        num_output_tokens: 1 analyses the prompt; N analyses it again after each of N - 1 further tokens, those that the
            unmasked model generates (greedily, with the penalties of its generation_config). Fewer where an end token
            comes earlier: it is the last that is generated.
        after_end: Go on after an end token.
        end_tokens: Tokens that end an answer; None = those of the model's generation_config.
        blocks: Dotted path of the decoder blocks, where they cannot be found.

    Returns:
        One row per generation step, block, token and variant, in this order, with the columns ``generation_step``,
        ``layer`` (index of the block), ``token_id`` and ``token_position`` (of the hidden token), ``variant``,
        ``l2_distance`` and ``cosine_distance`` (1 - cos, 0 to 2). Both distances are NaN where the hidden token is the
        only one that the final position sees; the cosine distance is also NaN where one of the vectors is zero.
        ``frame.attrs["generated_ids"]`` lists the tokens behind the prompt that were analysed, N - 1 at most;
        ``frame.attrs["next_id"]`` is the one that the model generates after them (None for a model without logits).

    Raises:
        ValueError: An empty prompt, more than one prompt, padding, or more tokens than the model's context; a model in
            training mode, or one whose blocks cannot be taken apart like this (the message names the block's class).

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        >>> frame = token_masking(model, {"input_ids": torch.tensor([[5, 6, 7]])})
        >>> len(frame), list(frame["variant"][:4])
        (36, ['Full', 'Attn', 'Head_0', 'Head_1'])
    """
    stop = _end_tokens(model, after_end, end_tokens)
    measured = _measure(model, inputs, num_output_tokens, blocks, _hide_each, stop)
    return _table(measured, inputs, lambda ids: {"token_id": ids, "token_position": np.arange(len(ids))})


@checked
def span_masking(
    model: nn.Module,
    inputs: Mapping[str, Any],
    spans: Mapping[str, Sequence[int]],
    num_output_tokens: int = 1,
    *,
    after_end: bool = False,
    end_tokens: Sequence[int] | None = None,
    blocks: str | None = None,
) -> pd.DataFrame:
    """Like `token_masking`, but hide all tokens of a span together: the image as a whole, the question as a whole.

    Args:
        model: This and all others not named here: see `token_masking`.
        spans: Name of each span -> its positions in the prompt; spans may overlap.
        num_output_tokens: See `token_masking`. Generated tokens belong to no span.

    Returns:
        One row per generation step, block, span and variant, in this order, with the columns ``generation_step``,
        ``layer``, ``span``, ``num_tokens`` (of the span), ``variant``, ``l2_distance`` and ``cosine_distance``; both
        are NaN where the span holds every token that the final position sees.

    Raises:
        ValueError: No spans, an empty span, a position twice or outside of the prompt, and as in `token_masking`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        >>> frame = span_masking(model, {"input_ids": torch.tensor([[5, 6, 7]])}, {"image": [0, 1], "all": range(3)})
        >>> frame["l2_distance"].isna().tolist()
        [False, False, False, False, True, True, True, True]
    """
    length = _prompt(inputs).shape[1]
    positions = [check_span(name, span, length) for name, span in spans.items()]
    if not positions:
        raise ValueError("expected at least one span {name: positions}, got none")

    def hide(logits: Tensor, values: Tensor) -> Tensor:
        hidden = (logits.index_fill(1, span.to(logits.device), -torch.inf) for span in positions)
        return torch.stack([_mix(rest, values) for rest in hidden])

    stop = _end_tokens(model, after_end, end_tokens)
    measured = _measure(model, inputs, num_output_tokens, blocks, hide, stop)
    names, sizes = np.array(list(spans), dtype=object), [len(span) for span in positions]
    return _table(measured, inputs, lambda _: {"span": names, "num_tokens": sizes})


class _Effect(NamedTuple):
    """Distances of one block in one generation step: ``[hidden sets, variants, 2]`` (L2 and cosine)."""

    generation_step: int
    block_idx: int
    distances: Tensor


class _Measured(NamedTuple):
    """Effects of every step and block, the prompt with the tokens generated behind it, and the one that follows."""

    effects: list[_Effect]
    ids: list[int]
    next_id: int | None


def _table(
    measured: _Measured, inputs: Mapping[str, Any], hidden: Callable[[list[int]], dict[str, Any]]
) -> pd.DataFrame:
    """One row per effect, hidden set and variant; ``hidden`` describes the sets of a step, given its tokens."""
    import pandas as pd

    frames = []
    for effect in measured.effects:
        distances = effect.distances.float().cpu().numpy()
        num_sets, num_variants = distances.shape[:2]
        # the hidden sets are the tokens of this step, or spans of them
        described = hidden(measured.ids[:num_sets])
        variants = np.array(["Full", "Attn", *(f"Head_{head}" for head in range(num_variants - 2))], dtype=object)
        columns = {
            "generation_step": effect.generation_step,
            "layer": effect.block_idx,
            **{name: np.repeat(values, num_variants) for name, values in described.items()},
            "variant": np.tile(variants, num_sets),
            "l2_distance": distances[..., 0].ravel(),
            "cosine_distance": distances[..., 1].ravel(),
        }
        frames.append(pd.DataFrame(columns))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs["generated_ids"] = measured.ids[inputs["input_ids"].shape[1] :]
    frame.attrs["next_id"] = measured.next_id
    return frame


def _end_tokens(model: nn.Module, after_end: bool, given: Sequence[int] | None) -> list[int]:
    if after_end:
        return []
    if given is None:
        return end_token_ids(model)
    for each in given:
        check_token_ids(model, end_tokens=each)
    return list(given)


# ---- one prompt, all steps and blocks


@torch.no_grad()
def _measure(
    model: nn.Module, inputs: Mapping[str, Any], num_output_tokens: int, path: str | None, hide: Hide, stop: list[int]
) -> _Measured:
    blocks = find_blocks(model, path)
    config = getattr(find_decoder(model, blocks), "config", None)
    current = _check_inputs(model, inputs, num_output_tokens, config)

    def measure(prompt: PreparedPrompt | None) -> _Measured:
        effects: list[_Effect] = []
        ids, token, decoded = current["input_ids"], None, None
        forward: Callable[[], Any]
        with recording(blocks, config) as recorder, full_precision(ids.device):
            for step in range(num_output_tokens):
                if prompt is None:
                    forward = partial(model, **current, use_cache=False, **keep_last(model, 1))
                else:
                    forward = prompt.with_cache(None).forward
                calls, outputs = note_calls(forward, blocks, recorder)
                effects += _effects(step, ids.shape[1], blocks, calls, recorder, hide)
                logits = getattr(outputs, "logits", None)
                if prompt is None or logits is None:
                    token = None if logits is None else logits[:, -1].argmax(-1)
                    break
                if num_output_tokens > 1:
                    decoded = prompt.forward(num_new=1 if step else None)
                    if not same_logits(model, logits[:, -1], decoded.logits[:, -1]):
                        raise ValueError(
                            f"expected a model that sees generated tokens behind their prompt as it does while it "
                            f"generates, got {type(model).__name__}; analyse the prompt alone (num_output_tokens 1)"
                        )
                    logits = decoded.logits
                token = prompt.next_tokens(logits[:, -1])
                if step + 1 == num_output_tokens or int(token) in stop:
                    break
                prompt = prompt.extended(token[:, None], decoded)
                ids = prompt.ids
        return _Measured(effects, ids[0].tolist(), None if token is None else int(token))

    if callable(getattr(model, "generate", None)):
        return inside_generate(model, current, greedy_options(num_output_tokens, stop, pad=0), measure)
    if num_output_tokens > 1:
        raise ValueError(f"expected a model with generate, to analyse what it generates, got {type(model).__name__}")
    return measure(None)


def _effects(
    step: int, length: int, blocks: nn.ModuleList, calls: dict[int, Call], recorder: Recorder, hide: Hide
) -> Iterator[_Effect]:
    for block_idx, block in enumerate(blocks):
        name = f"block {block_idx} ({type(block).__name__})"
        if block_idx not in calls:
            raise ValueError(f"expected the model to run every block, but {name} did not run")
        yield _Effect(step, block_idx, _block_effects(block, name, calls.pop(block_idx), recorder, length, hide))


# ---- one block


def _block_effects(block: nn.Module, name: str, call: Call, recorder: Recorder, length: int, hide: Hide) -> Tensor:
    """Distances ``[hidden sets, variants, 2]`` of one block."""
    with weights_in_float32(block) as raised:
        if raised:
            recorder.attentions.pop(block, None)
            call = Call(*(in_float32(part) for part in call))
            call = call._replace(output=first_output(block.forward(call.hidden, *call.args, **call.kwargs)))
        attentions = recorder.attentions.pop(block, [])
        if len(attentions) != 1 or attentions[0].logits.shape[1] != length:
            keys = [attention.logits.shape[1] for attention in attentions]
            raise ValueError(
                f"expected every block to attend once to the {length} tokens, through transformers' attention "
                f"interface; {name} made {len(keys)} such calls" + (f" over {keys} keys" if keys else "")
            )
        attention = attentions[0]
        values = attention.values.repeat_interleave(len(attention.logits) // len(attention.values), dim=0)
        baseline = _mix(attention.logits, values).unsqueeze(0)
        parts = []
        for masked in hide(attention.logits, values).split(CHUNK_ROWS):
            # the unmasked row comes along: rounding that all rows share drops out of the differences
            heads = torch.cat([baseline, masked])
            attn, full = replay(block, name, call, attention.module, recorder, heads)
            check_rebuilt(name, call, full[0])
            parts.append(
                torch.cat([distances_from_first(rows) for rows in (full.unsqueeze(1), attn.unsqueeze(1), heads)], dim=1)
            )
        return torch.cat(parts)


def _hide_each(logits: Tensor, values: Tensor) -> Tensor:
    """Head outputs ``[keys, heads, head_dim]`` without each single key.

    >>> logits = torch.tensor([[0.0, 0.0, 0.0]])
    >>> _hide_each(logits, torch.tensor([[[1.0], [2.0], [6.0]]])).flatten()
    tensor([4.0000, 3.5000, 1.5000])
    """
    attention = logits.softmax(-1)
    baseline = _mix(logits, values).unsqueeze(1)
    # (o - a v) / (1 - a), written as a change of o: what has no attention changes nothing, to the last bit
    odds = (attention / (1 - attention)).unsqueeze(-1)
    without = baseline + odds * (baseline - values)
    # at most one key of a head can have more than half of its attention; without the only key this is 0 / 0 = NaN
    share, top = attention.max(dim=-1)
    explicit = _mix(logits.scatter(1, top.unsqueeze(1), -torch.inf), values)
    heads = (share > SHARP).nonzero().flatten()
    without[heads, top[heads]] = explicit[heads]
    return without.transpose(0, 1)


def _mix(logits: Tensor, values: Tensor) -> Tensor:
    """Head outputs ``[heads, head_dim]`` of logits ``[heads, keys]`` and values ``[heads, keys, head_dim]``."""
    return (logits.softmax(-1).unsqueeze(1) @ values).squeeze(1)


def distances_from_first(rows: Tensor) -> Tensor:
    """L2 and cosine distance of every other row from the first: ``[rows, ..., width]`` -> ``[rows - 1, ..., 2]``.

    >>> distances_from_first(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    tensor([[1.0000, 0.0000],
            [1.4142, 1.0000],
            [2.0000, 2.0000]])
    """
    l2 = (rows[1:] - rows[:1]).norm(dim=-1)
    unit = rows / rows.norm(dim=-1, keepdim=True)
    # equals 1 - cos, without its cancellation
    cosine = (unit[1:] - unit[:1]).square().sum(-1) / 2
    return torch.stack([l2, cosine], dim=-1)


# ---- checks


def _prompt(inputs: Mapping[str, Any]) -> Tensor:
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 1:
        given = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"expected input_ids [1, seq] of one prompt, got {given}")
    if ids.shape[1] == 0:
        raise ValueError("expected a prompt of at least one token, got an empty one")
    return ids


@checked
def check_prompt(
    model: nn.Module, inputs: Mapping[str, Any], num_output_tokens: int = 1, *, blocks: str | None = None
) -> None:
    """Raise what `token_masking` would raise of the same inputs, without running the model."""
    module_list = find_blocks(model, blocks)
    _check_inputs(model, inputs, num_output_tokens, getattr(find_decoder(model, module_list), "config", None))


def _check_inputs(model: nn.Module, inputs: Mapping[str, Any], num_output_tokens: int, config: Any) -> dict[str, Any]:
    """The inputs with an attention mask."""
    ids = _prompt(inputs)
    if model.training:
        raise ValueError("expected a model in evaluation mode, got one in training mode; call model.eval()")
    check_token_ids(model, input_ids=ids)
    check_least(1, num_output_tokens=num_output_tokens)
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones_like(ids)
    if attention_mask.shape != ids.shape or not bool((attention_mask == 1).all()):
        raise ValueError(
            f"expected an attention_mask [1, {ids.shape[1]}] of ones (one prompt without padding), "
            f"got {list(attention_mask.shape)} with {int((attention_mask != 1).sum())} other entries"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and ids.shape[1] + num_output_tokens - 1 > limit:
        raise ValueError(
            f"expected at most {limit} tokens (the model's context), got a prompt of {ids.shape[1]}"
            + (f" and {num_output_tokens - 1} to generate" if num_output_tokens > 1 else "")
        )
    return {**inputs, "attention_mask": attention_mask}


def check_span(name: str, span: Sequence[int], length: int) -> Tensor:
    """The positions of a span, in order; raise ValueError unless they are distinct ones of so many tokens."""
    positions = sorted(int(position) for position in span) if fits(span, Sequence[int]) else []
    if not positions or len(set(positions)) != len(positions) or not 0 <= positions[0] <= positions[-1] < length:
        raise ValueError(
            f"expected span {name!r} to hold distinct positions from 0 to {length - 1}, got {shorten(span)}"
        )
    return torch.tensor(positions)
