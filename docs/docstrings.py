"""Docstrings as Markdown shows them best: for the API reference alone (an extension of griffe, see ``mkdocs.yml``)."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Doctests become blocks of code, and roles of Sphinx the bare name."""
    text = re.sub(r":(?:attr|class|func|meth|mod):`~?", "`", text)
    paragraphs = re.split(r"\n[ \t]*\n", text)
    found = []
    for is_doctest, group in groupby(paragraphs, key=lambda paragraph: ">>>" in paragraph):
        for paragraph in group:
            found.append(_fenced(paragraph) if is_doctest else paragraph)
    return "\n\n".join(found)


def _fenced(paragraph: str) -> str:
    """The lines from the first prompt on, as a block of code at their indentation."""
    before, _, _ = paragraph.partition(">>>")
    indent = before.rpartition("\n")[2]
    head = before.removesuffix(indent)
    return f"{head}{indent}```python\n{indent}{paragraph[len(before) :]}\n{indent}```"
