"""What each token does for the final position of every block: its key and value hidden, the residual update compared.

Exact, and linear in the number of tokens. Hiding key j from a head with attention a, values v and output o changes the
output at the final query to ``(o - a_j v_j) / (1 - a_j)``, for all j at once. Only the final position is asked for,
so the rest of the block (output projection, norms, MLP with its experts routed anew) runs on one row per hidden token.

The blocks' own code does the computing: a recorder stands in for transformers' attention function. During the unmasked
forward it notes what the final query sees; then each block is called again with its own input at the final position,
one row per hidden token, and the recorder answers with the heads' changed outputs. Nothing is assumed about where a
block has its norms and residuals, and a block whose unmasked row does not come out as in the real forward is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_depth.functional.blocks import find_blocks, find_decoder
from lit_depth.functional.scoring import keep_last, with_answers

if TYPE_CHECKING:
    import pandas as pd

# bounds the memory of the MLP's inner activations: rows that run through a block together
CHUNK_ROWS = 512
# above this share of a head's attention on one key the closed form loses precision (2e-2 at 0.99998 in float32)
SHARP = 0.5
# how far a rebuilt row may be from the real one: rounding stays far below, another computation far above
UPDATE_TOLERANCE, RESIDUAL_TOLERANCE = 1e-4, 1e-6

# (logits [heads, keys], values [heads, keys, head_dim]) -> head outputs [hidden sets, heads, head_dim]
Hide = Callable[[Tensor, Tensor], Tensor]


def token_masking(
    model: nn.Module, inputs: Mapping[str, Any], num_output_tokens: int = 1, *, blocks: str | None = None
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
        num_output_tokens: 1 analyses the prompt; N analyses it again after each of N - 1 further tokens, which the
            unmasked model chooses greedily (an end token does not stop it).
        blocks: Dotted path of the decoder blocks, where they cannot be found.

    Returns:
        One row per generation step, block, token and variant, in this order, with the columns ``generation_step``,
        ``layer`` (index of the block), ``token_id`` and ``token_position`` (of the hidden token), ``variant``,
        ``l2_distance`` and ``cosine_distance`` (1 - cos, 0 to 2). Both distances are NaN where the hidden token is the
        only one that the final position sees; the cosine distance is also NaN where one of the vectors is zero.
        ``frame.attrs["generated_ids"]`` lists the N - 1 generated tokens; ``frame.attrs["next_id"]`` is the one that
        the model chooses after them (None for a model without logits).

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
    import pandas as pd

    effects, ids, next_id = _measure(model, inputs, num_output_tokens, blocks, _hide_each)
    frames = []
    for effect in effects:
        num_tokens, num_variants = effect.distances.shape[:2]
        tokens = {
            "token_id": np.repeat(ids[:num_tokens], num_variants),
            "token_position": np.repeat(np.arange(num_tokens), num_variants),
        }
        frames.append(_frame(effect, tokens))
    return _joined(pd.concat(frames, ignore_index=True), ids, next_id, num_output_tokens)


def span_masking(
    model: nn.Module,
    inputs: Mapping[str, Any],
    spans: Mapping[str, Sequence[int]],
    num_output_tokens: int = 1,
    *,
    blocks: str | None = None,
) -> pd.DataFrame:
    """Like `token_masking`, but hide all tokens of a span together: the image as a whole, the question as a whole.

    Args:
        model: See `token_masking`.
        inputs: See `token_masking`.
        spans: Name of each span -> its positions in the prompt; spans may overlap.
        num_output_tokens: See `token_masking`. Generated tokens belong to no span.
        blocks: See `token_masking`.

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
    import pandas as pd

    length = _prompt(inputs).shape[1]
    positions = [_check_span(name, span, length) for name, span in spans.items()]
    if not positions:
        raise ValueError("expected at least one span {name: positions}, given none")

    def hide(logits: Tensor, values: Tensor) -> Tensor:
        hidden = (logits.index_fill(1, span.to(logits.device), -torch.inf) for span in positions)
        return torch.stack([_mix(rest, values) for rest in hidden])

    effects, ids, next_id = _measure(model, inputs, num_output_tokens, blocks, hide)
    frames = []
    for effect in effects:
        num_variants = effect.distances.shape[1]
        columns = {
            "span": np.repeat(np.array(list(spans), dtype=object), num_variants),
            "num_tokens": np.repeat([len(span) for span in positions], num_variants),
        }
        frames.append(_frame(effect, columns))
    return _joined(pd.concat(frames, ignore_index=True), ids, next_id, num_output_tokens)


class _Effect(NamedTuple):
    """Distances of one block in one generation step: ``[hidden sets, variants, 2]`` (L2 and cosine)."""

    generation_step: int
    block_idx: int
    distances: Tensor


def _frame(effect: _Effect, hidden: dict[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    distances = effect.distances.float().cpu().numpy()
    num_sets, num_variants = distances.shape[:2]
    variants = np.array(["Full", "Attn", *(f"Head_{head}" for head in range(num_variants - 2))], dtype=object)
    return pd.DataFrame(
        {
            "generation_step": effect.generation_step,
            "layer": effect.block_idx,
            **hidden,
            "variant": np.tile(variants, num_sets),
            "l2_distance": distances[..., 0].ravel(),
            "cosine_distance": distances[..., 1].ravel(),
        }
    )


def _joined(frame: pd.DataFrame, ids: list[int], next_id: int | None, num_output_tokens: int) -> pd.DataFrame:
    frame.attrs["generated_ids"] = ids[len(ids) - num_output_tokens + 1 :]
    frame.attrs["next_id"] = next_id
    return frame


# ---- one prompt, all steps and blocks


@torch.no_grad()
def _measure(
    model: nn.Module, inputs: Mapping[str, Any], num_output_tokens: int, path: str | None, hide: Hide
) -> tuple[list[_Effect], list[int], int | None]:
    """Effects for every step and block, the prompt with the tokens generated behind it, and the one that follows."""
    blocks = find_blocks(model, path)
    config = getattr(find_decoder(model, blocks), "config", None)
    current = _check_inputs(model, inputs, num_output_tokens, config)
    effects = []
    with _recording(blocks, config) as recorder, _full_precision(current["input_ids"].device):
        for step in range(num_output_tokens):
            calls, outputs = _forward(model, current, blocks, recorder)
            length = current["input_ids"].shape[1]
            for block_idx, block in enumerate(blocks):
                name = f"block {block_idx} ({type(block).__name__})"
                if block_idx not in calls:
                    raise ValueError(f"expected the model to run every block, but {name} did not run")
                distances = _block_effects(block, name, calls.pop(block_idx), recorder, length, hide)
                effects.append(_Effect(step, block_idx, distances))
            logits = getattr(outputs, "logits", None)
            token = None if logits is None else logits[:, -1:].argmax(-1)
            if step + 1 < num_output_tokens:
                if token is None:
                    raise ValueError(f"expected a model with logits to generate, given {type(model).__name__}")
                current = _with_token(current, token)
    return effects, current["input_ids"][0].tolist(), None if token is None else int(token)


class _Call(NamedTuple):
    """One block's call: hidden states ``[1, seq, hidden]`` that go in, all other arguments, hidden states out."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def _forward(
    model: nn.Module, inputs: dict[str, Any], blocks: nn.ModuleList, recorder: _Recorder
) -> tuple[dict[int, _Call], Any]:
    """Run the unmasked model; how each block was called (by index), and the model's outputs."""
    calls: dict[int, _Call] = {}

    def note(block_idx: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls[block_idx] = _Call(hidden, args[1:], others, _first(output))

        return hook

    hooks = [block.register_forward_hook(note(i), with_kwargs=True) for i, block in enumerate(blocks)]
    recorder.attentions.clear()
    try:
        outputs = model(**inputs, use_cache=False, **keep_last(model, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return calls, outputs


def _with_token(inputs: dict[str, Any], token: Tensor) -> dict[str, Any]:
    """The inputs with one more token ``[1, 1]``, as text, behind them."""
    extended = with_answers(inputs, token, pad=0)
    positions = inputs.get("position_ids")
    if positions is not None:
        extended["position_ids"] = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
    return extended


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 or bfloat16 inside float32 products: small distances would be lost in them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


# ---- one block


def _block_effects(block: nn.Module, name: str, call: _Call, recorder: _Recorder, length: int, hide: Hide) -> Tensor:
    """Distances ``[hidden sets, variants, 2]`` of one block."""
    with _weights_in_float32(block) as raised:
        if raised:
            recorder.attentions.pop(block, None)
            call = _Call(*(_in_float32(part) for part in call))
            call = call._replace(output=_first(block.forward(call.hidden, *call.args, **call.kwargs)))
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
            attn, full = _replay(block, name, call, attention.module, recorder, heads)
            _check_rebuilt(name, call, full[0])
            parts.append(torch.cat([_distances(rows) for rows in (full.unsqueeze(1), attn.unsqueeze(1), heads)], dim=1))
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


def _replay(
    block: nn.Module, name: str, call: _Call, attention: nn.Module, recorder: _Recorder, heads: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the block at the final position with given head outputs ``[rows, heads, head_dim]``.

    Returns:
        The attention module's output and the residual update, ``[rows, hidden]`` each.
    """
    length = call.hidden.shape[1]
    hidden = call.hidden[:, -1:].repeat(len(heads), 1, 1)
    args = [_at_last("", value, length) for value in call.args]
    kwargs = {key: _at_last(key, value, length) for key, value in call.kwargs.items()}
    seen: list[Tensor] = []
    hook = attention.register_forward_hook(lambda module, args, output: seen.append(_first(output)))
    recorder.replay = heads.unsqueeze(1)
    try:
        output = _first(block.forward(hidden, *args, **kwargs))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # shapes that do not fit
        raise ValueError(f"expected blocks that run on single positions, given {name}: {error}") from error
    finally:
        recorder.replay = None
        hook.remove()
    if [part.shape for part in (output, *seen)] != [hidden.shape] * 2:
        raise ValueError(
            f"expected an attention and a block that give {list(hidden.shape)} each, but those of {name} give "
            f"{[list(part.shape) for part in (*seen, output)]}"
        )
    return seen[0].squeeze(1), (output - hidden).squeeze(1)


def _at_last(name: str, value: Any, length: int) -> Any:
    """An argument of a block of ``length`` tokens, for the final position alone."""
    if name == "attention_mask":
        return None  # the recorder has applied it
    if isinstance(value, tuple):
        return tuple(_at_last(name, part, length) for part in value)
    if isinstance(value, Tensor):
        if name == "position_embeddings":  # [..., seq, head_dim], on some models with axes in front
            return value[..., -1:, :]
        if value.ndim >= 2 and value.shape[1] == length:
            return value[:, -1:]
    return value


def _check_rebuilt(name: str, call: _Call, update: Tensor) -> None:
    """Refuse a block whose unmasked row, put together from its pieces, is not the one that the model computed."""
    real = call.output[0, -1]
    if not real.isfinite().all():
        raise ValueError(f"expected finite hidden states, but {name} gives NaN or infinity at the final position")
    expected = real - call.hidden[0, -1]
    error, size = (update - expected).norm(), expected.norm()
    if not error <= UPDATE_TOLERANCE * size + RESIDUAL_TOLERANCE * real.norm():
        raise ValueError(
            f"expected blocks whose output at one position follows from their input there and the heads' outputs "
            f"softmax(q k) v; rebuilt like this, the update of {name} is off by {error / size:.1e} of its norm"
        )


def _distances(rows: Tensor) -> Tensor:
    """L2 and cosine distance of every other row from the first: ``[rows, ..., width]`` -> ``[rows - 1, ..., 2]``.

    >>> _distances(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    tensor([[1.0000, 0.0000],
            [1.4142, 1.0000],
            [2.0000, 2.0000]])
    """
    l2 = (rows[1:] - rows[:1]).norm(dim=-1)
    unit = rows / rows.norm(dim=-1, keepdim=True)
    # equals 1 - cos, without its cancellation
    cosine = (unit[1:] - unit[:1]).square().sum(-1) / 2
    return torch.stack([l2, cosine], dim=-1)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# ---- 16-bit weights


@contextmanager
def _weights_in_float32(block: nn.Module) -> Iterator[bool]:
    """Raise the block's weights to float32 where they have fewer bits, and put the very same ones back."""
    low = [t for t in (*block.parameters(), *block.buffers()) if t.dtype in (torch.bfloat16, torch.float16)]
    stored = [tensor.data for tensor in low]
    try:
        for tensor in low:
            tensor.data = tensor.data.float()
        yield bool(low)
    finally:
        for tensor, data in zip(low, stored):
            tensor.data = data


def _in_float32(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_in_float32(part) for part in value)
    if isinstance(value, dict):
        return {name: _in_float32(part) for name, part in value.items()}
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        # additive masks hide keys by the least number of their own dtype, which is not that of float32
        return value.float().masked_fill(value == torch.finfo(value.dtype).min, -torch.inf)
    return value


# ---- the attention function


class _Attention(NamedTuple):
    """What the final query of an attention module sees."""

    module: nn.Module
    logits: Tensor  # [heads, keys], -inf where a key is not visible
    values: Tensor  # [key-value heads, keys, head_dim]


class _Recorder:
    """Stands in for the attention function: notes what the blocks' final query sees, or answers in its place."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.home = {module: block for block in blocks for module in block.modules()}
        self.attentions: dict[nn.Module, list[_Attention]] = {}
        self.replay: Tensor | None = None  # head outputs [rows, 1, heads, head_dim]

    def __call__(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> Any:
        block = self.home.get(module)  # None in a vision tower, or in another model
        if block is not None and self.replay is not None:
            return self.replay, None
        if block is not None:
            logits = _final_logits(query, key, attention_mask, kwargs.get("scaling"), kwargs.get("softcap"))
            self.attentions.setdefault(block, []).append(_Attention(module, logits, value[0]))
        return original(module, query, key, value, attention_mask, **kwargs)


def _final_logits(query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> Tensor:
    """Logits ``[heads, keys]`` of the final query; query and key ``[1, heads or key-value heads, seq, head_dim]``."""
    grouped = query[0, :, -1].unflatten(0, (key.shape[1], -1))  # [key-value heads, queries of each, head_dim]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (grouped @ key[0].mT).flatten(0, 1) * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is None:  # causal: the final query sees every key
        return logits
    row = mask[0, :, -1, : key.shape[2]]
    if row.dtype == torch.bool:
        return logits.masked_fill(~row, -torch.inf)
    return (logits + row).masked_fill(row <= torch.finfo(row.dtype).min, -torch.inf)


@contextmanager
def _recording(blocks: nn.ModuleList, config: Any) -> Iterator[_Recorder]:
    """Hand a recorder to every attention module that asks for its attention function."""
    name = getattr(config, "_attn_implementation", None)
    if name not in ("sdpa", "eager"):  # others have masks of their own kinds, or no float32
        raise ValueError(
            f"expected a model with attn_implementation 'sdpa' or 'eager', given {name!r}; "
            "model.set_attn_implementation('sdpa') changes it"
        )
    recorder = _Recorder(blocks)
    own = vars(ALL_ATTENTION_FUNCTIONS)  # an instance attribute hides the method
    found, get_interface = own.get("get_interface"), ALL_ATTENTION_FUNCTIONS.get_interface
    own["get_interface"] = lambda name, default: partial(recorder, get_interface(name, default))
    try:
        yield recorder
    finally:
        del own["get_interface"]
        if found is not None:
            own["get_interface"] = found


# ---- checks


def _prompt(inputs: Mapping[str, Any]) -> Tensor:
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 1:
        given = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"expected input_ids [1, seq] of one prompt, given {given}")
    if ids.shape[1] == 0:
        raise ValueError("expected a prompt of at least one token, given an empty one")
    return ids


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
        raise ValueError("expected a model in evaluation mode, given one in training mode; call model.eval()")
    if num_output_tokens < 1:
        raise ValueError(f"expected num_output_tokens of at least 1, given {num_output_tokens}")
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones_like(ids)
    if attention_mask.shape != ids.shape or not bool((attention_mask == 1).all()):
        raise ValueError(
            f"expected an attention_mask [1, {ids.shape[1]}] of ones (one prompt without padding), "
            f"given {list(attention_mask.shape)} with {int((attention_mask != 1).sum())} other entries"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and ids.shape[1] + num_output_tokens - 1 > limit:
        raise ValueError(
            f"expected at most {limit} tokens (the model's context), given a prompt of {ids.shape[1]}"
            + (f" and {num_output_tokens - 1} to generate" if num_output_tokens > 1 else "")
        )
    return {**inputs, "attention_mask": attention_mask}


def _check_span(name: str, span: Sequence[int], length: int) -> Tensor:
    positions = sorted(int(position) for position in span)
    if not positions or len(set(positions)) != len(positions) or not 0 <= positions[0] <= positions[-1] < length:
        raise ValueError(
            f"expected span {name!r} to hold distinct positions from 0 to {length - 1}, given {list(span)}"
        )
    return torch.tensor(positions)
