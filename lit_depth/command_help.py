"""What ``lit-depth <command> --help`` prints: the command's own options in full, of all others those that most need.

It is read from the sources, as `lit_depth.commands` is: help comes at once, and imports neither torch nor Lightning.
"""

import ast
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docstring_parser import parse

from lit_depth.commands import studies
from lit_depth.option_names import SHORT

_HERE = Path(__file__).parent
_GIVEN = ("self", "trainer", "model", "datamodule")
_WIDEST = 110
_TEXT_AT = 26
# prefix of a group's options: where its class stands, and those of its options that most runs need
_GROUPS = {
    "model": ("module.py", "DepthModule", ("checkpoint", "dtype", "granularity")),
    "data": (
        "data/datamodule.py",
        "DepthDataModule",
        ("path", "task", "num_samples", "calibration_samples", "batch_size"),
    ),
}
_LIGHTNINGS = {
    "--trainer.accelerator": "cpu, gpu, cuda or mps. [auto]",
    "--trainer.devices": "Number of processes, each with its device. [auto]",
    "--trainer.logger": "A logger of Lightning's, such as WandbLogger. [none]",
}
_FLAGS = {
    "-c, --config FILE": "YAML or JSON file of options.",
    "--quiet": "No progress, no table: only what went wrong.",
    "--json": "No progress; the result as JSON instead of the table.",
    "--debug": "Show tracebacks.",
}


class Option(NamedTuple):
    """One option as its function's source tells it.

    Args:
        name: Without dashes and group.
        kind: What is to be given, such as ``N``.
        default: As it is written on the command line.
        text: From the docstring.
    """

    name: str
    kind: str
    default: str
    text: str


def short_help(command: str) -> str:
    """The help of a measuring command, in about a screen or two.

    >>> short_help("consistency").splitlines()[0]
    'usage: lit-depth consistency [options]'
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    lines = [f"usage: lit-depth {command} [options]", "", studies()[command], "", f"options of {command}:"]
    for option in own_options(command):
        text = f"{option.text} [{option.default}]"
        lines += _entry(f"--{option.name} {option.kind}", text, width)
    lines += ["", "options of every command, the most used:"]
    for name, text in {**_FLAGS, **dict(_common(command)), **_LIGHTNINGS}.items():
        lines += _entry(name, text, width)
    return "\n".join([*lines, "", f"lit-depth {command} --help-all lists every option, Lightning's too."])


def own_options(command: str) -> list[Option]:
    """The options of a measuring command that are its own.

    >>> [option for option in own_options("tokens") if option.name == "num_output_tokens"][0].kind
    'N'
    """
    path = _HERE / "studies" / command / "command.py"
    return _options(path, _named(_tree(path), command))


def group_options(group: str) -> list[Option]:
    """The options of ``model`` or ``data``."""
    file, name, _ = _GROUPS[group]
    tree = _tree(_HERE / file)
    (of_class,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return _options(_HERE / file, _named(of_class, "__init__"), ast.get_docstring(of_class))


def _common(command: str) -> Iterator[tuple[str, str]]:
    own = {option.name for option in own_options(command)}
    for group, (_, _, shown) in _GROUPS.items():
        options = {option.name: option for option in group_options(group)}
        for name in shown:
            option = options[name]
            first = re.sub(r",? \(?see `[\w.]+`\)?", "", option.text).partition(". ")[0].rstrip(".")
            shortest = name if group == "data" and name in SHORT and name not in own else f"{group}.{name}"
            yield f"--{shortest} {option.kind}", f"{first}. [{option.default}]"


def _options(path: Path, function: ast.FunctionDef, docstring: str | None = None) -> list[Option]:
    parsed = parse(ast.get_docstring(function) or docstring or "")
    texts = {each.arg_name: " ".join((each.description or "").split()).replace("``", "") for each in parsed.params}
    arguments = [*function.args.args, *function.args.kwonlyargs]
    defaults = [*function.args.defaults, *function.args.kw_defaults]
    missing: list[ast.expr | None] = [None] * (len(arguments) - len(defaults))
    return [
        Option(each.arg, _kind(path, each.annotation), _default(default), texts.get(each.arg, ""))
        for each, default in zip(arguments, missing + defaults)
        if each.arg not in _GIVEN
    ]


def _kind(path: Path, hint: ast.expr | None) -> str:
    """What is to be given, by an annotation.

    >>> kinds = [ast.parse(hint, mode="eval").body for hint in ("list[int] | None", "bool", "Literal['a', 'b']")]
    >>> [_kind(Path("x.py"), kind) for kind in kinds]
    ['N...', '{true,false}', '{a,b}']
    """
    match hint:
        case ast.BinOp(left=left, right=right):
            kinds = [_kind(path, each) for each in (left, right)]
            return "|".join(dict.fromkeys(kind for kind in kinds if kind))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = [ast.literal_eval(each) for each in getattr(choices, "elts", [choices])]
            return "{" + ",".join(map(str, values)) + "}"
        case ast.Subscript(value=ast.Name(id="list"), slice=element):
            return f"{_kind(path, element).removesuffix('...')}..."
        case ast.Constant(value=None):
            return ""
        case ast.Name(id=name) if name in (plain := {"int": "N", "float": "X", "bool": "{true,false}", "str": "TEXT"}):
            return plain[name]
        case ast.Name(id=name):
            return _alias(path, name)
    return "YAML"


def _alias(path: Path, name: str) -> str:
    """What a name stands for that a module gives itself or takes from another one of ours."""
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _kind(path, node.value)
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names):
            home = _HERE.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            return _alias(home, name) if home.is_file() else "CLASS"
    return "CLASS"


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    found = ast.literal_eval(value)
    if isinstance(found, list | tuple):
        return " ".join(map(str, found))
    return "null" if found is None else str(found).lower() if isinstance(found, bool) else str(found)


def _entry(name: str, text: str, width: int) -> list[str]:
    """An option and its text beside it, or below where its name is long."""
    wrapped = textwrap.wrap(text, max(width - _TEXT_AT, 30))
    head = f"  {name}"
    first = [head] if len(head) > _TEXT_AT - 2 else [head.ljust(_TEXT_AT) + wrapped.pop(0)]
    return [*first, *(" " * _TEXT_AT + line for line in wrapped)]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _named(tree: ast.Module | ast.ClassDef, name: str) -> ast.FunctionDef:
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
