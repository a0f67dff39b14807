"""Which commands there are, read from their sources: listing them imports nothing of theirs."""

import ast
from functools import cache
from pathlib import Path

_STUDIES = Path(__file__).with_name("studies")
_TOOLS = Path(__file__).with_name("tools")
# what they do is one piece: interrupted, it is done again from the start
_ONE_PIECE = frozenset({"export"})
QUESTION = "Which transformer blocks can be skipped, and at what cost?"
# commands about files that need no model: they are run without importing Lightning
LIGHT = frozenset({"completion", "status"})
_LIGHTNING = {
    "fit": "Train.",
    "validate": "Evaluate on the validation split by Lightning's loop.",
    "test": "Evaluate on the test split by Lightning's loop.",
    "predict": "Answer questions by Lightning's loop.",
}


@cache
def studies() -> dict[str, str]:
    """Name of every measuring command, and the first line of what it says of itself.

    >>> studies()["latency"]
    'Measure vision, prefill and decode time for every number of active blocks.'
    """
    return {path.parent.name: _first_line(path, path.parent.name) for path in sorted(_STUDIES.glob("*/command.py"))}


def continued() -> frozenset[str]:
    """Measuring commands that continue where they were, when they were interrupted.

    >>> "search" in continued(), "export" in continued(), "fit" in continued()
    (True, False, False)
    """
    return frozenset(studies()) - _ONE_PIECE


def begun_anew() -> frozenset[str]:
    """Measuring commands that begin anew, when they were interrupted: nothing half-finished is in their way."""
    return _ONE_PIECE


@cache
def tools() -> dict[str, str]:
    """Name of every command about files, and the first line of what it says of itself."""
    return {path.stem: _first_line(path, "main") for path in sorted(_TOOLS.glob("[a-z]*.py"))}


@cache
def result_files() -> dict[str, str]:
    """File of the result of every command that has one, which is written last.

    >>> result_files()["search"]
    'search.json'
    """
    tree = ast.parse((_STUDIES / "overview" / "folders.py").read_text(encoding="utf-8"))
    tables = (node for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_COMMANDS")
    table = next(tables).value
    assert isinstance(table, ast.Dict)
    pairs = ((key, value.elts[0]) for key, value in zip(table.keys, table.values) if isinstance(value, ast.Tuple))
    return {ast.literal_eval(key): ast.literal_eval(file) for key, file in pairs if key is not None}


def _first_line(path: Path, name: str) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(function) or "").partition("\n")[0]


def every() -> dict[str, str]:
    """All commands, Lightning's last."""
    return {**studies(), **tools(), **_LIGHTNING}


def overview() -> str:
    """What ``lit-depth --help`` prints."""
    width = max(map(len, every()))
    lines = [f"  {name.ljust(width)}  {line}" for name, line in every().items()]
    head = f"usage: lit-depth <command> [options]\n\n{QUESTION}\n"
    tail = "lit-depth <command> --help lists the options of a command; --debug shows tracebacks."
    return "\n".join([head, "subcommands:", *lines, "", tail])
