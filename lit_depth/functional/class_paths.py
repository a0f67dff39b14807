"""Objects by their class path, as YAML files name them, and how functions among them are called."""

import importlib
import inspect
from collections.abc import Sequence
from typing import Any


def object_at(path: str, what: str) -> Any:
    """The object at ``package.module.Name``.

    >>> object_at("collections.Counter", "a counter")
    <class 'collections.Counter'>

    Args:
        path: Dotted path.
        what: What is expected there, for the message.

    Raises:
        ValueError: If there is none, or its module cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    # whatever a module raises when it is imported
    except Exception as error:
        raise ValueError(
            f"expected the class path of {what}, got {path!r}: {type(error).__name__}: {error}; modules of the working "
            "folder are found with PYTHONPATH=."
        ) from error


def signature_of(function: Any) -> inspect.Signature | None:
    """Parameters of a function; None of what is none, or does not tell them.

    >>> print(signature_of(lambda before, after: after), signature_of(3))
    (before, after) None
    """
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # nothing to call, or a function written in C
        return None


def taken_by(function: Any, names: Sequence[str]) -> list[str] | None:
    """Those of ``names`` that a function takes by name; None if it cannot be called with these alone.

    >>> taken_by(lambda k, seed=0: k, ["num_blocks", "k", "seed"]), taken_by(lambda k, q: k, ["num_blocks", "k"])
    (['k', 'seed'], None)
    """
    signature = signature_of(function)
    if signature is None:
        return None
    taken = [name for name in names if name in signature.parameters]
    try:
        signature.bind(**dict.fromkeys(taken))
    except TypeError:  # it needs more, or takes one of them by position only
        return None
    return taken
