"""Read files that users give, JSON and YAML: whatever is in them costs a readable error, never a traceback or the day.

What is nested too deeply overflows the stack of every reader, and a few lines of YAML whose aliases refer to aliases
(*billion laughs*) stand for more values than fit in memory. Both are refused before anything is built.
"""

import json
from pathlib import Path
from typing import Any

import yaml

MAX_DEPTH = 100
MAX_VALUES = 100_000
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: If it cannot be read, is no JSON, or is nested too deeply; the message says which, not the path.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise ValueError("it is no JSON that can be read: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error


def read_object(path: str | Path) -> dict[str, Any]:
    """`read_json` of a file that holds an object.

    Raises:
        ValueError: As `read_json`, and if it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        # imported here: who only draws a result need not load torch
        from lit_depth.functional.arguments import shorten

        raise ValueError(f"expected a JSON object {{...}} in it, got {shorten(content)}")
    return content


def load_yaml(text: str) -> Any:
    """The values of a YAML document (safe tags only).

    >>> load_yaml("a: &x [1, 2]\\nb: *x")
    {'a': [1, 2], 'b': [1, 2]}

    Raises:
        yaml.YAMLError: If it is no YAML, nested more than 100 deep, or stands for more than 100,000 values;
            if a number or date in it is none.
    """
    check_yaml(text)
    try:
        return yaml.load(text, Loader=LOADER)
    except ValueError as error:  # 2020-13-45, or an integer of thousands of digits
        raise yaml.YAMLError(str(error)) from error


def check_yaml(text: str) -> None:
    """Refuse YAML that would overflow the stack or the memory, by its events alone, before anything is built.

    Raises:
        yaml.YAMLError: See `load_yaml`.
    """
    # of every open collection: its anchor, and the values in it with what their aliases stand for
    open_collections: list[tuple[str | None, int]] = [(None, 0)]
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=LOADER):
        size, anchor = 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((anchor, 1))
            if len(open_collections) > MAX_DEPTH:
                raise yaml.YAMLError(f"expected values at most {MAX_DEPTH} deep, got deeper ones")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_collections.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"expected the alias *{event.anchor} of a value before it, got none")
            size = sizes[event.anchor]
        if size:
            if anchor is not None:
                sizes[anchor] = size
            outer, total = open_collections[-1]
            open_collections[-1] = outer, total + size
            if total + size > MAX_VALUES:
                raise yaml.YAMLError(f"expected at most {MAX_VALUES:,} values, aliases counted in full, got more")
