"""Every value of a nested object replaced, one at a time, by what a damaged or foreign file may hold there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

JUNK: tuple[Any, ...] = (None, [], {}, "x", -3, [["x"]], {"x": None}, True)


def with_junk(content: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Where something was replaced, and the whole object with it."""
    for path in _paths(content, depth):
        for junk in JUNK:
            changed = copy.deepcopy(content)
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = junk
            yield f"{'.'.join(map(str, path))} = {junk!r}", changed


def _paths(content: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    if not depth or not isinstance(content, (dict, list)):
        return
    for key, value in content.items() if isinstance(content, dict) else enumerate(content[:2]):
        yield (key,)
        yield from ((key, *rest) for rest in _paths(value, depth - 1))
