"""Markdown files as the tests read them: blocks of code, headings, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>\S*)[^\n]*\n(?P<text>.*?)^ *(?P=marks) *$", re.M | re.S
)
_LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)|<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


class Block(NamedTuple):
    """A block of code between fences, ``line`` counted from 1."""

    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """Every page that people read in the repository or on its site."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(found)


def blocks(text: str) -> list[Block]:
    """All blocks of code.

    >>> blocks("# A\\n" + "`" * 3 + "python\\n1 + 1\\n" + "`" * 3 + "\\n")
    [Block(language='python', text='1 + 1\\n', line=2)]
    """
    return [
        Block(match["language"], match["text"], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """The text without blocks and pieces of code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of links and images, outside of code.

    >>> links("[a](b.md#c) and ![d](e.png), not `[f](g)`")
    ['b.md#c', 'e.png']
    """
    return [first or second for first, second in _LINK.findall(prose(text))]


def anchors(text: str) -> set[str]:
    """What headings are linked by, on the site and on GitHub alike.

    >>> sorted(anchors("# A `b`, c\\n## What is it?\\n"))
    ['a-b-c', 'what-is-it']
    """
    titles = [re.sub(r"[^\w\- ]", "", title.replace("`", "")) for title in _HEADING.findall(_FENCE.sub("", text))]
    return {title.strip().lower().replace(" ", "-") for title in titles}


def shell_lines(text: str) -> Iterator[list[str]]:
    """Words of each command of a block of bash: continued lines joined, comments and loops' own words left out.

    >>> list(shell_lines("# why\\nls \\\\\\n  a.csv   # b\\nfor x in 1 2; do\\n    ls $x\\ndone\\n"))
    [['ls', 'a.csv'], ['ls', '1']]
    """
    values: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["for"]:
            values[words[1]] = words[3].rstrip(";")
        elif words and words[0] not in ("done", "do"):
            yield [_filled(word, values) for word in words]


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(f"${name}", value)
    return word
