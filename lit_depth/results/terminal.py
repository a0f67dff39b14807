"""What a command prints at its end: its table, nothing (``--quiet``), or its result as JSON (``--json``)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

from lit_depth.results.store import to_plain

Mode = Literal["table", "quiet", "json"]
_mode: ContextVar[Mode] = ContextVar("terminal", default="table")
FLAGS: dict[str, Mode] = {f"--{mode}": mode for mode in get_args(Mode) if mode != "table"}


@contextmanager
def printing(mode: Mode) -> Iterator[None]:
    """Inside, results are printed in this way."""
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def mode_of(arguments: Sequence[str]) -> tuple[Mode, list[str]]:
    """The way to print that a command line asks for, and its other arguments.

    >>> mode_of(["report", "--json", "results"])
    ('json', ['report', 'results'])

    Raises:
        ValueError: If it asks for several.
    """
    modes = {FLAGS[argument] for argument in arguments if argument in FLAGS}
    if len(modes) > 1:
        raise ValueError(f"expected one of {' and '.join(FLAGS)}, got both")
    return modes.pop() if modes else "table", [argument for argument in arguments if argument not in FLAGS]


def terminal_mode() -> Mode:
    """In which way results are printed here."""
    return _mode.get()


def tell(text: str, result: Mapping[str, Any]) -> None:
    """Print the end of a command.

    >>> tell("a table", {"drop": 0.5})
    a table
    >>> with printing("json"):
    ...     tell("a table", {"drop": 0.5})
    {"drop": 0.5}
    >>> with printing("quiet"):
    ...     tell("a table", {"drop": 0.5})
    """
    mode = _mode.get()
    if mode == "table":
        print(text)
    elif mode == "json":
        print(json.dumps(to_plain(result), allow_nan=False, ensure_ascii=False))


def remark(text: str) -> None:
    """Print what stands beside a table, and beside nothing else."""
    if _mode.get() == "table":
        print(text)
