"""Arguments of public functions, checked at the door: a wrong one is named with what was expected, as a ValueError.

`checked` compares arguments with the function's own annotations; what these do not say (ranges, shapes, ids within the
vocabulary) is for the other functions here, one for each kind.
"""

import collections.abc
import functools
import inspect
import math
import numbers
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

MAX_UNITS = 10_000  # of a model; more than any has
MAX_TOKENS = 2**20  # of an answer
P = ParamSpec("P")
R = TypeVar("R")
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", Any: "anything"}
_PLURALS = {int: "integers", float: "numbers", str: "texts", bool: "bools"}
_MOST_CHECKED = 10_000  # elements of a list


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of every call against the annotations of ``function``; a decorator, of a dataclass too.

    What only type checkers can resolve is let through, and so are the elements of mappings and of long lists.

    >>> @checked
    ... def repeat(text: str, times: int = 2) -> str:
    ...     return text * times
    >>> repeat("ab", True)
    Traceback (most recent call last):
    ...
    ValueError: expected times as an integer, got True
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:
        return {
            each.name: _resolve(each.annotation, function)
            for each in signature.parameters.values()
            if each.annotation is not each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        }

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says which name is missing or unknown
        for name, hint in hints().items():
            if name in given and not fits(given[name], hint):
                raise ValueError(f"expected {name} as {plain_type(hint)}, got {shorten(given[name])}")
        return function(*args, **kwargs)

    return call


def _resolve(hint: Any, function: Callable[..., Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, inspect.unwrap(function).__globals__)
    except (NameError, TypeError):  # imported for type checkers only, or a name in quotes within a union
        return Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: integers and numbers of numpy and torch count as such, bools as neither.

    >>> fits(np.int64(3), int), fits(True, int), fits([1, 2], tuple[int, int]), fits("ab", list[str])
    (True, False, True, False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if origin is None:
        return _SIMPLE[hint](value) if hint in _SIMPLE else not isinstance(hint, type) or isinstance(value, hint)
    if origin is collections.abc.Callable:
        return callable(value)
    if not issubclass(origin, collections.abc.Collection):  # read once, perhaps endless
        return _is_list(value) or isinstance(value, Iterable) and not hasattr(value, "__getitem__")
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    return _is_list(value) and _elements_fit(value, origin, arguments)


def _elements_fit(values: Any, kind: type, hints: tuple[Any, ...]) -> bool:
    if len(values) > _MOST_CHECKED:
        return True
    if kind is tuple and hints[-1] is not ...:
        return len(values) == len(hints) and all(map(fits, values, hints))
    return all(fits(value, hints[0]) for value in values)


def _is_list(value: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) == 0:  # without axes there is no length
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_integer(value: Any) -> bool:
    if _is_bool(value) or getattr(value, "dtype", None) is torch.bool:
        return False
    try:
        return -(2**63) <= operator.index(value) < 2**64
    except TypeError:
        return False


def _is_number(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0 and isinstance(value.item(), (int, float)) and not isinstance(value.item(), bool)
    if isinstance(value, int):
        return _is_integer(value)
    return isinstance(value, numbers.Real) and not _is_bool(value)


_SIMPLE: dict[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    None: lambda value: value is None,
    type(None): lambda value: value is None,
    int: _is_integer,
    float: _is_number,
    bool: _is_bool,
    str: lambda value: isinstance(value, str),
}


def plain_type(hint: Any, *, in_yaml: bool = False) -> str:
    """A type in words, as Python has it or as YAML and the command line do.

    >>> plain_type(int | None), plain_type(list[list[int]]), plain_type(tuple[float, float])
    ('an integer or None', 'a list of lists of integers', 'a list of 2 numbers')
    >>> plain_type(int | Literal["auto", "all"] | None, in_yaml=True)
    'an integer, auto, all or null'
    """
    words = list(dict.fromkeys(word for kind in members(hint) for word in _words(kind, in_yaml)))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _words(kind: Any, in_yaml: bool) -> list[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (None, type(None)):
        return ["null" if in_yaml else "None"]
    if origin is Literal:
        return [str(value) if in_yaml else repr(value) for value in arguments]
    if origin is collections.abc.Callable:
        return ["a function"]
    if origin is not None and issubclass(origin, Mapping):
        return ["a mapping"]
    if origin is tuple and arguments[-1] is not ...:
        return [f"a list of {len(arguments)} {_plural(arguments[0])}"]
    if origin is not None:
        return [f"a list of {_plural(arguments[0])}"]
    name = getattr(kind, "__name__", str(kind))
    return [_WORDS.get(kind) or f"a {name}" + (" class" if in_yaml else "")]


def _plural(kind: Any) -> str:
    if len(members(kind)) > 1:
        return " or ".join(_plural(each) for each in members(kind))
    if get_origin(kind) is not None and get_args(kind):
        return f"lists of {_plural(get_args(kind)[0])}"
    return _PLURALS.get(kind) or f"{getattr(kind, '__name__', kind)} objects"


def members(hint: Any) -> tuple[Any, ...]:
    """Types of a union, or the only type."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for kind in get_args(hint) for member in members(kind))
    return (hint,)


def shorten(value: Any, length: int = 60) -> str:
    """A value in at most so many characters: its ``repr``, or its type where that would be long to make.

    >>> shorten("a" * 100, 12), shorten(torch.zeros(2, 3)), shorten(nn.Linear(2, 2))
    ("'aaaaaaaa...", 'a Tensor of shape [2, 3]', 'a Linear')
    """
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {list(value.shape)}"
    if not isinstance(value, (str, bytes, int, float, complex, list, tuple, dict, set, type, type(None))):
        return f"a {type(value).__name__}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a {type(value).__name__} too large to be printed"
    return text if len(text) <= length else text[: length - 3] + "..."


def check_least(least: float, **values: float | None) -> None:
    """Raise ValueError for a value below ``least``, or one that is no finite number; None stands for a default.

    >>> check_least(1, max_rows=0)
    Traceback (most recent call last):
    ...
    ValueError: expected max_rows of at least 1, got 0
    """
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            kind = "a finite " if value == math.inf else ""
            raise ValueError(f"expected {kind}{name} of at least {least}, got {shorten(value)}")


def check_range(low: float, high: float, **values: float | None) -> None:
    """Raise ValueError for a value outside ``low`` to ``high``, both included; None stands for a default."""
    for name, value in values.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"expected {name} from {low} to {high}, got {shorten(value)}")


def check_share(**values: float) -> None:
    """Raise ValueError for a value that does not lie between 0 and 1, both excluded."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"expected {name} between 0 and 1, got {shorten(value)}")


def check_token_ids(model: nn.Module, **ids: Tensor | int | None) -> None:
    """Raise ValueError for ids that the model has no embedding of: on a GPU they would end the process.

    Args:
        model: A Hugging Face model; one that does not say how many embeddings it has is believed.
        ids: Token ids by the name of the argument, long tensors of any shape or integers.
    """
    size = num_embeddings(model)
    for name, value in ids.items():
        if value is None or isinstance(value, Tensor) and not value.numel():
            continue
        low, high = (int(value.min()), int(value.max())) if isinstance(value, Tensor) else (value, value)
        if low < 0 or (size is not None and high >= size):
            last = "the last one" if size is None else size - 1
            raise ValueError(f"expected {name} from 0 to {last}, got {low if low < 0 else high}")


def num_embeddings(model: nn.Module) -> int | None:
    """Number of token ids that a model reads; None where it does not say."""
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    size = getattr(embeddings, "num_embeddings", None)
    return size if isinstance(size, int) else None


def prompt_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inputs of a model for a batch of prompts, checked; without an attention mask, every token counts.

    Raises:
        ValueError: No ``input_ids``, integers ``[batch, seq]`` of at least one token; ids that the model does not know;
            an ``attention_mask`` of another shape; anything that is no tensor.
    """
    wrong = next((name for name, value in inputs.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise ValueError(f"expected inputs that are tensors, got {shorten(inputs[wrong])} as {wrong}")
    ids = inputs.get("input_ids")
    if ids is None or ids.ndim != 2 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
        given = ", ".join(inputs) or "nothing" if ids is None else f"{ids.dtype} {list(ids.shape)}"
        raise ValueError(f"expected inputs with input_ids, integers [batch, seq] of at least one token, got {given}")
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"expected an attention_mask of the shape of input_ids {list(ids.shape)}, got {list(mask.shape)}"
        )
    check_token_ids(model, input_ids=ids)
    return {**inputs, "attention_mask": torch.ones_like(ids) if mask is None else mask}


def check_goes_on(inputs: Mapping[str, Tensor], max_new_tokens: int = 0, context: int | None = None) -> None:
    """Check that tokens can follow every prompt: they are padded on the left, and within the model's context.

    Args:
        inputs: As `prompt_inputs` returns them.
        max_new_tokens: How many tokens are to follow.
        context: Tokens that the model was made for; None = any number.

    Raises:
        ValueError: Padding on the right or between tokens, a row without a token, or too long a sequence.
    """
    real = inputs["attention_mask"] != 0
    wrong = ~real[:, -1] | (real[:, :-1] & ~real[:, 1:]).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        what = "a hole" if real[row, -1] else "padding on the right" if real[row].any() else "no token"
        raise ValueError(f"expected prompts padded on the left alone, got {what} in row {row} of the attention_mask")
    longest = int(real.sum(1).max())
    if context is not None and max_new_tokens and longest + max_new_tokens > context:
        raise ValueError(
            f"expected at most {context} tokens (the model's context), got a prompt of {longest} and "
            f"{max_new_tokens} to generate"
        )
