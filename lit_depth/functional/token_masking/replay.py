"""Run blocks again at the final position alone, with other heads' outputs than the model's own.

One forward of the model notes how every block was called; `replay` then calls a block with its own input at the final
position, one row per set of head outputs. Nothing is assumed about where a block has its norms and residuals, and
`check_rebuilt` refuses one whose unmasked row does not come out as in the real forward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lit_depth.functional.token_masking.capture import Recorder

T = TypeVar("T")
# how far a rebuilt row may be from the real one: rounding stays far below, another computation far above
UPDATE_TOLERANCE, RESIDUAL_TOLERANCE = 1e-4, 1e-6


class Call(NamedTuple):
    """One block's call: hidden states ``[1, seq, hidden]`` that go in, all other arguments, hidden states out."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def note_calls(forward: Callable[[], T], blocks: nn.ModuleList, recorder: Recorder) -> tuple[dict[int, Call], T]:
    """Run the unmasked model; how each block was called (by index), and the model's outputs."""
    calls: dict[int, Call] = {}

    def note(block_idx: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls[block_idx] = Call(hidden, args[1:], others, first_output(output))

        return hook

    hooks = [block.register_forward_hook(note(i), with_kwargs=True) for i, block in enumerate(blocks)]
    recorder.attentions.clear()
    try:
        outputs = forward()
    finally:
        for hook in hooks:
            hook.remove()
    return calls, outputs


def replay(
    block: nn.Module, name: str, call: Call, attention: nn.Module, recorder: Recorder, heads: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the block at the final position with given head outputs ``[rows, heads, head_dim]``.

    Gives the attention module's output and the residual update, ``[rows, hidden]`` each.
    """
    if call.hidden.ndim != 3:
        raise ValueError(f"expected hidden states [1, seq, hidden], but those of {name} are {list(call.hidden.shape)}")
    length = call.hidden.shape[1]
    hidden = call.hidden[:, -1:].repeat(len(heads), 1, 1)
    args = [_at_last("", value, length) for value in call.args]
    kwargs = {key: _at_last(key, value, length) for key, value in call.kwargs.items()}
    seen: list[Tensor] = []
    hook = attention.register_forward_hook(lambda module, args, output: seen.append(first_output(output)))
    recorder.replay = heads.unsqueeze(1)
    try:
        output = first_output(block.forward(hidden, *args, **kwargs))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:  # shapes that do not fit, or an attention that reads the mask itself
        raise ValueError(f"expected blocks that run on single positions, got {name}: {error}") from error
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


def check_rebuilt(name: str, call: Call, update: Tensor) -> None:
    """Refuse a block whose unmasked update ``[hidden]``, put together from its pieces, is not that of the model."""
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


def first_output(output: Any) -> Tensor:
    """Hidden states among what a block or an attention module returned."""
    return output[0] if isinstance(output, tuple) else output


# ---- precision


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 or bfloat16 inside float32 products: small distances would be lost in them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def weights_in_float32(block: nn.Module) -> Iterator[bool]:
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


def in_float32(value: Any) -> Any:
    """A block's argument with its tensors of 16 bits in float32, inside tuples and dicts too."""
    if isinstance(value, tuple):
        return tuple(in_float32(part) for part in value)
    if isinstance(value, dict):
        return {name: in_float32(part) for name, part in value.items()}
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        # additive masks hide keys by the least number of their own dtype, which is not that of float32
        return value.float().masked_fill(value == torch.finfo(value.dtype).min, -torch.inf)
    return value
