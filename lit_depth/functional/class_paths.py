"""Objects by their class path, as YAML files name them."""

import importlib
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
