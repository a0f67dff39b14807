"""Independent references for phase masks: a hand-written decoder loop, and whole-sequence forwards without a cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def decode_by_hand(
    model: PreTrainedModel,
    prompt: Tensor,
    num_new: int,
    skip_in_prefill: Collection[int] = (),
    skip_in_decode: Collection[int] = (),
    never: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Decode greedily, keys and values in plain lists: a block that is skipped in a step writes none and reads none.

    Takes the weights of a Llama, Qwen3 or Olmoe and nothing of their attention, positions, masks or caches.

    Args:
        prompt: token ids ``[seq]``, one request without padding.
        never: tokens that are not generated.

    Returns:
        Tokens ``[num_new]`` and their logits ``[num_new, vocabulary]``.
    """
    blocks = list(model.model.layers)
    stored: list[list[tuple[Tensor, Tensor]]] = [[] for _ in blocks]  # per block: (key, value) of each token it saw
    tokens: list[int] = []
    rows: list[Tensor] = []
    for step in range(num_new):
        fed = prompt.tolist() if step == 0 else tokens[-1:]
        skipped = skip_in_prefill if step == 0 else skip_in_decode
        for offset, token in enumerate(fed):
            # one token at a time, also in the prefill: causality needs no mask
            position = offset if step == 0 else len(prompt) + step - 1
            hidden = model.model.embed_tokens.weight[token]
            for block_idx, block in enumerate(blocks):
                if block_idx not in skipped:
                    hidden = _block(model, block, hidden, position, stored[block_idx])
        rows.append(model.lm_head(model.model.norm(hidden)))
        tokens.append(int(rows[-1].index_fill(0, torch.tensor(never, dtype=torch.long), -torch.inf).argmax()))
    return torch.tensor(tokens), torch.stack(rows)


def _block(
    model: PreTrainedModel, block: nn.Module, hidden: Tensor, position: int, stored: list[tuple[Tensor, Tensor]]
) -> Tensor:
    config, attention = model.config, block.self_attn
    normed = block.input_layernorm(hidden)
    query, key, value = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    if config.model_type == "olmoe":  # normalises all heads together, Qwen3 each alone
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (
        states.view(heads, -1)
        for states, heads in (
            (query, config.num_attention_heads),
            (key, config.num_key_value_heads),
            (value, config.num_key_value_heads),
        )
    )
    if config.model_type == "qwen3":
        query, key = attention.q_norm(query), attention.k_norm(key)
    base = config.rope_parameters["rope_theta"]
    query = _rotate(query, position, base)
    stored.append((_rotate(key, position, base), value))
    outputs = []
    for head in range(config.num_attention_heads):
        group = head * config.num_key_value_heads // config.num_attention_heads
        keys = torch.stack([key[group] for key, _ in stored])
        values = torch.stack([value[group] for _, value in stored])
        outputs.append(torch.softmax(keys @ query[head] / query.shape[-1] ** 0.5, dim=0) @ values)
    hidden = hidden + attention.o_proj(torch.cat(outputs))
    mixed = block.mlp(block.post_attention_layernorm(hidden)[None, None])
    return hidden + (mixed[0] if isinstance(mixed, tuple) else mixed)[0, 0]


def _rotate(states: Tensor, position: int, base: float) -> Tensor:
    """Rotary embedding (Su et al. 2021) of ``[heads, head_dim]``; dimension i is paired with i + head_dim / 2."""
    half = states.shape[-1] // 2
    angles = position * base ** (-torch.arange(half) / half)
    first, second = states[:, :half], states[:, half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=1
    )


@contextmanager
def split_at_prompt(blocks: nn.ModuleList, skipped: Collection[int], prompt_length: int, phase: str) -> Iterator[None]:
    """Inside, forwards over whole sequences without a cache treat prompt and decoded positions differently.

    ``phase="decode"``: a skipped block changes the positions of the prompt only. ``phase="prefill"``: it changes the
    decoded positions only, and sees nothing else. Both follow from causality, whatever the attention looks like.
    """

    def decode(real):
        def forward(hidden_states, *args, **kwargs):
            output = real(hidden_states, *args, **kwargs)
            states = output[0] if isinstance(output, tuple) else output
            states = torch.cat([states[:, :prompt_length], hidden_states[:, prompt_length:]], dim=1)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return forward

    def prefill(real):
        def cut(name, value):
            if name == "attention_mask" and value is not None:
                return value[..., prompt_length:, prompt_length:]
            if name == "position_embeddings":
                return tuple(part[:, prompt_length:] for part in value)
            return value[:, prompt_length:] if name == "position_ids" else value

        def forward(hidden_states, *args, **kwargs):
            if hidden_states.shape[1] == prompt_length:
                return (hidden_states, None) if returns_tuple else hidden_states
            output = real(
                hidden_states[:, prompt_length:], *args, **{name: cut(name, value) for name, value in kwargs.items()}
            )
            states = output[0] if isinstance(output, tuple) else output
            states = torch.cat([hidden_states[:, :prompt_length], states], dim=1)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        returns_tuple = "Falcon" in type(blocks[0]).__name__
        return forward

    for block_idx in skipped:
        blocks[block_idx].forward = (decode if phase == "decode" else prefill)(blocks[block_idx].forward)
    try:
        yield
    finally:
        for block_idx in skipped:
            del blocks[block_idx].forward
