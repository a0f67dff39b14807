"""The table of cheap scores of block importance, and functions of one's own beside it.

A method is a function, and what it is a function of (its kind); see :data:`SIGNATURES`. Formulas, units and sources
stand in `lit_depth.functional.importance.proxies`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_depth.functional.arguments import checked
from lit_depth.functional.class_paths import object_at, signature_of, taken_by

Kind = Literal["states", "last_state", "attention", "gradient", "weight"]
Direction = Literal["higher", "lower", "higher (a convention: none is agreed)"]

# kind -> parameters of a method's function, which is called by their names
SIGNATURES: dict[Kind, tuple[str, ...]] = {
    # float64 [tokens, hidden] that enter and leave a block -> [tokens]; the score is the mean over tokens
    "states": ("before", "after"),
    # the same; the mean is over the last token of each row
    "last_state": ("before", "after"),
    # attention weights [batch, heads, queries, keys] -> [batch, heads, queries]; the mean is over heads and queries
    "attention": ("weights",),
    # pieces [n] of one weight tensor and of the gradient of the loss summed over labels -> []; the score is the sum
    # over a block's pieces, divided by the number of labels
    "gradient": ("gradient", "weight"),
    # pieces [n] of one weight tensor -> []; the score is the sum over a block's pieces, whatever the samples
    "weight": ("weight",),
}


@checked
@dataclass(frozen=True)
class Method:
    """One way to score a block without skipping it.

    Args:
        name: As it is asked for.
        kind: What ``function`` takes and gives, and how that becomes a score: a key of :data:`SIGNATURES`.
        direction: Which scores count as more important.
        function: Takes the tensors that :data:`SIGNATURES` names, by these names.

    Raises:
        ValueError: A kind or a direction that there is not.
    """

    name: str
    kind: Kind
    direction: Direction
    function: Callable[..., Tensor]


def activation_magnitude(before: Tensor, after: Tensor) -> Tensor:
    """Norm of what leaves the block.

    >>> activation_magnitude(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    tensor([4.])
    """
    return after.norm(dim=-1)


def relative_magnitude(before: Tensor, after: Tensor) -> Tensor:
    """Norm of the change over that of what leaves the block; 1 where something becomes zero.

    >>> relative_magnitude(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    tensor([1.2500])
    """
    norm, change = after.norm(dim=-1), (after - before).norm(dim=-1)
    return (change / norm).where(norm != 0, (change != 0).to(norm))


def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """1 - cosine of what enters and what leaves the block.

    A vector of zeros, such as the embedding of a padding token, has no direction: a block that leaves it as it is
    changes nothing; for one that makes something of it, or makes it of something, the cosine is 0 (as of
    `torch.nn.functional.cosine_similarity`).

    >>> zero, x = torch.zeros(1, 2), torch.tensor([[3.0, 0.0]])
    >>> [block_influence(*states).item() for states in ((zero, zero), (zero, x), (x, zero), (x, -x))]
    [0.0, 1.0, 1.0, 2.0]
    """
    return 1.0 - _cosine(before, after)


def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """Angle between what enters and what leaves the block, in units of 180 degrees; of zeros as `block_influence`.

    >>> angular_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    tensor([0.5000])
    """
    return _cosine(before, after).clamp(-1.0, 1.0).arccos() / math.pi


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    norms = before.norm(dim=-1) * after.norm(dim=-1)
    unchanged = ((after - before).norm(dim=-1) == 0).to(norms)
    return ((before * after).sum(-1) / norms).where(norms != 0, unchanged)


def gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Sum of the gradient's absolute values."""
    return gradient.abs().sum()


def taylor(gradient: Tensor, weight: Tensor) -> Tensor:
    """Sum of the absolute products of weight and gradient."""
    return (gradient * weight).abs().sum()


def taylor_signed(gradient: Tensor, weight: Tensor) -> Tensor:
    """Sum of the products of weight and gradient: the loss is expected to grow by minus that without the weights."""
    return (gradient * weight).sum()


def weight_magnitude(weight: Tensor) -> Tensor:
    """Sum of the weights' absolute values."""
    return at_least_float32(weight).abs().sum()


def attention_entropy(weights: Tensor) -> Tensor:
    """Entropy of attention weights over their last dimension, in nats.

    Args:
        weights: ``[..., keys]``, from 0 and summing to 1, or to less where the rest goes to no key (an attention sink),
            down to the zeros of a query that sees no key: its entropy is 0.

    Returns:
        Float64 ``[...]``.

    >>> attention_entropy(torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]))
    tensor([0.6931, 1.0397], dtype=torch.float64)
    """
    # the smallest normal number stands in for 0, whose product with its logarithm is 0
    weights = at_least_float32(weights)
    logarithms = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
    return -double(logarithms.mul_(weights)).sum(-1)


TABLE: dict[str, Method] = {
    method.name: method
    for method in (
        Method("activation_magnitude", "states", "higher", activation_magnitude),
        Method("relative_magnitude", "states", "higher", relative_magnitude),
        Method("block_influence", "states", "higher", block_influence),
        Method("angular_distance", "states", "higher", angular_distance),
        Method("angular_distance_last_token", "last_state", "higher", angular_distance),
        Method("gradient", "gradient", "higher", gradient),
        Method("taylor", "gradient", "higher", taylor),
        Method("taylor_signed", "gradient", "lower", taylor_signed),
        Method("weight_magnitude", "weight", "higher", weight_magnitude),
        Method("attention_entropy", "attention", "higher (a convention: none is agreed)", attention_entropy),
    )
}
METHODS = tuple(TABLE)
GRADIENT_METHODS = tuple(name for name, method in TABLE.items() if method.kind == "gradient")


def find_method(name: str) -> Method:
    """A method of the table by its name, or one of one's own by its dotted path.

    A function is of the kind whose parameters it has, in any order, and its higher scores count as more important; a
    `Method` says both itself.

    >>> find_method("taylor").kind, find_method("lit_depth.functional.importance.methods.taylor").kind
    ('gradient', 'gradient')

    Raises:
        ValueError: If there is none, or its parameters are of no kind, or not of the kind that a `Method` says.
    """
    if name in TABLE:
        return TABLE[name]
    if "." not in name:
        raise ValueError(f"expected methods among {', '.join(METHODS)}, or the path of a function, got {name!r}")
    found = object_at(name, "an importance method")
    function = found.function if isinstance(found, Method) else found
    signatures = {found.kind: SIGNATURES[found.kind]} if isinstance(found, Method) else SIGNATURES
    for kind, names in signatures.items():
        if taken_by(function, names) == list(names):
            return Method(name, kind, found.direction if isinstance(found, Method) else "higher", function)
    known = " or ".join(f"({', '.join(names)})" for names in dict.fromkeys(signatures.values()))
    raise ValueError(f"methods: expected a function of {known}, got {name}{signature_of(function) or ''}")


@checked
def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Return ``methods`` as a tuple without repetitions.

    Raises:
        ValueError: If one is unknown or none is given.

    >>> check_methods(["taylor"])
    ('taylor',)
    """
    if not len(methods):
        raise ValueError(f"expected methods among {', '.join(METHODS)}, as a list with at least one, got {methods!r}")
    return tuple(find_method(name).name for name in dict.fromkeys(methods))


def at_least_float32(values: Tensor, copy: bool = False) -> Tensor:
    """Bfloat16 has too few digits for sums of many values."""
    return values.to(torch.promote_types(values.dtype, torch.float32), copy=copy)


def double(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device is one of Apple's, which know none."""
    return (values.cpu() if values.device.type == "mps" else values).double()
