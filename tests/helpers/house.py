"""The rules of the house as functions over sources, and what lies outside its habits (``make house`` prints it)."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lit_depth"
# the fixed rooms of a command, of which every command has its own; they share its test
ROOMS = {"command", "analysis", "figures", "report", "arguments"}
# names that several folders may have: the rooms, and what a command measures before it is analysed
SHARED_STEMS = ROOMS | {"measurements"}
MOST_FILES, MOST_LINES, MOST_CODE_LINES, MOST_BRANCHES = 10, 300, 50, 12


def sources(folder: Path = PACKAGE) -> dict[str, str]:
    """Text of every module by its path within the repository."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))
    }


def module_name(path: str) -> str:
    """
    >>> module_name("lit_depth/functional/__init__.py"), module_name("lit_depth/cli.py")
    ('lit_depth.functional', 'lit_depth.cli')
    """
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(text: str, module: str, known: set[str], is_package: bool = False) -> set[str]:
    """Modules of the package that a source imports, wherever it does; a package's face counts as what it hands on."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != module:
                found.add(name)
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other in a loop (strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def code_words(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of names and strings of a source; docstrings and comments are left out, they may give examples."""
    tree = ast.parse(text)
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docs.add((first.value.lineno, first.value.col_offset))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME or (token.type == tokenize.STRING and token.start not in docs):
            yield token.start[0], token.string


def private_names(text: str, definitions: Mapping[str, int]) -> set[str]:
    """Private names of other libraries: imported, as text for ``getattr``, of a base class, or of other objects.

    Args:
        text: A source.
        definitions: How often the package itself defines a name. What ``super()`` is asked for is another library's if
            it is defined only once, by the class that asks.
    """
    own, found = set(definitions), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom):
            names = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            ours = node.level > 0 or (node.module or "").startswith("lit_depth")
            found |= names - (own if ours else set())
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1]
            found |= {str(name.value)} - own if isinstance(name, ast.Constant) else set()
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} - own
            if ast.unparse(node.value) == "super()" and definitions.get(node.attr) == 1:
                found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith(("__", "_lit_depth"))}


def _is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def two_signatures(commands: Mapping[str, str], trainer: str) -> list[str]:
    """Commands whose function is not ``<name>(trainer, model, datamodule, ...)``, or not the trainer's method itself.

    Args:
        commands: Name of each command, and the source of its ``command.py``.
        trainer: Source of ``trainer.py``.
    """
    (methods,) = (node.body for node in ast.parse(trainer).body if getattr(node, "name", "") == "DepthTrainer")
    taken = {ast.unparse(node) for node in methods if isinstance(node, ast.Assign)}
    found = []
    for name, text in commands.items():
        functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name]
        first = [each.arg for each in functions[0].args.args[:3]] if functions else []
        if first != ["trainer", "model", "datamodule"]:
            found.append(f"expected a function {name}(trainer, model, datamodule, ...), got {name}({', '.join(first)})")
        if f"{name} = {name}" not in taken:
            found.append(f"expected {name} = {name} in DepthTrainer")
    return found


def mask_checks(text: str) -> list[str]:
    """Lines that check a mask: calls of ``check_mask``, and comparisons of a mask's dtype."""
    found = []
    for node in ast.walk(ast.parse(text)):
        is_call = (
            isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "check_mask"
        )
        if is_call or (isinstance(node, ast.Compare) and "mask" in (words := ast.unparse(node)) and ".dtype" in words):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def defined_names(texts: Mapping[str, str]) -> Counter[str]:
    """How often the sources define each function, class and attribute of ``self``, and assign to each name."""
    found = Counter({"_replace": 2, "_asdict": 2, "_fields": 2, "_make": 2})  # named tuples of the standard library
    for text in texts.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[node.name] += 1
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found[node.id] += 1
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
                found[node.attr] += 1
    return found


def mirror(path: str) -> str | None:
    """Where a module's test stands; None for a package's face and for what holds types alone.

    >>> mirror("lit_depth/metrics/anls.py"), mirror("lit_depth/studies/compare/report.py")
    ('tests/metrics/test_anls.py', 'tests/studies/test_compare.py')
    >>> mirror("lit_depth/studies/compare/answers.py")
    'tests/studies/compare/test_answers.py'
    """
    parts = path.split("/")[1:]
    stem = parts[-1].removesuffix(".py")
    if stem.startswith("__"):
        return None
    if len(parts) == 3 and parts[0] == "studies" and stem in ROOMS:
        return f"tests/studies/test_{parts[1]}.py"
    return "/".join(["tests", *parts[:-1], f"test_{stem}.py"])


def code_lines(node: ast.AST, lines: list[str]) -> int:
    """Lines of a function without its docstring, comments and empty lines."""
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if not body:
        return 0
    inside = lines[body[0].lineno - 1 : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in inside)


def branches(node: ast.AST) -> int:
    """Cyclomatic complexity: one, and one for each point where the way parts."""
    parting = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.Assert)
    return (
        1
        + sum(isinstance(each, parting) for each in ast.walk(node))
        + sum(len(each.values) - 1 for each in ast.walk(node) if isinstance(each, ast.BoolOp))
    )


def outside_of_habits() -> list[str]:
    """What is larger than usual, or named like something else; habits, not rules."""
    found, texts = [], sources()
    folders: dict[str, int] = defaultdict(int)
    stems: dict[str, list[str]] = defaultdict(list)
    for path, text in texts.items():
        stem = Path(path).stem
        folders[str(Path(path).parent)] += stem != "__init__"
        if stem not in SHARED_STEMS and not stem.startswith("__"):
            stems[stem].append(path)
        lines = text.splitlines()
        if len(lines) > MOST_LINES:
            found.append(f"{path}: {len(lines)} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size, ways = code_lines(node, lines), branches(node)
                if size > MOST_CODE_LINES or ways > MOST_BRANCHES:
                    found.append(f"{path}:{node.lineno} {node.name}: {size} code lines, complexity {ways}")
    found += [f"{folder}: {number} modules" for folder, number in folders.items() if number > MOST_FILES]
    return found + [f"{stem}: {' and '.join(paths)}" for stem, paths in stems.items() if len(paths) > 1]


if __name__ == "__main__":
    print("\n".join(outside_of_habits()))
