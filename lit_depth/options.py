"""How the command line reads options: text as it stands, types in plain words, YAML within limits.

jsonargparse reads every value as YAML first, so that ``--prompt null`` would be no prompt at all, and neither would
``--prompt "# a"``; and it says what it expected in the terms of Python's ``typing``.
"""

import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import lightning
import yaml
from jsonargparse import ActionConfigFile, get_loader, set_loader
from jsonargparse._typehints import ActionTypeHint  # it has no public name
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_depth import interrupts
from lit_depth.functional.arguments import members, plain_type, shorten
from lit_depth.option_names import current_keys
from lit_depth.results.reading import check_yaml

_LONGEST_MESSAGE = 600
# where a logger writes that was given none: the folder of the run, which is known once all options are read
RUN_FOLDER = "<folder of the run>"
_WRITES_FILES = ("CSVLogger", "TensorBoardLogger")
_LOADER = "yaml within limits"


def _load(text: str) -> Any:
    check_yaml(text)
    return get_loader("yaml")(text)


set_loader(_LOADER, _load, (yaml.YAMLError,))


# options that are being read, or made a class of: a class's own arguments have a parser of their own
_outer: list[str] = []


class Option(ActionTypeHint):
    """An option with a type, which reads a text as text and says in plain words what it expected."""

    def _check_type_(self, value: Any, **kwargs: Any) -> Any:
        with self._named():
            return self._read(value, **kwargs)

    @contextmanager
    def _named(self) -> Iterator[None]:
        _outer.append(self.dest)
        try:
            yield
        finally:
            _outer.pop()

    def instantiate_classes(self, value: Any) -> Any:
        """The base's; what a class says of its arguments is about this option."""
        with self._named():
            try:
                return super().instantiate_classes(value)
            except (TypeError, ValueError, MisconfigurationException) as error:
                # of the types of a union, those that the value was not meant as
                tried = re.findall(r"^\s*- (?!Expected a )(.+)", str(error), flags=re.MULTILINE)
                # a class of a union says its cause on the next line: such as a package that is not installed
                cause = re.search(r"- Problem with given class_path '([^']+)':\s+(.+)", str(error))
                message = one_line(": ".join(cause.groups()) if cause else "; ".join(tried) or error)
                named = len(_outer) > 1 or message.startswith("--")
                raise ValueError(message if named else f"--{self.dest}: {message}") from error

    def _read(self, value: Any, **kwargs: Any) -> Any:
        # in a YAML file null and true have been read by now: what is still a text was meant as one
        if isinstance(value, str) and takes_text(self._typehint):
            return value
        argument = getattr(value, "key", None)  # of a class, given behind the class: --data.task.parity molmo
        try:
            read = super()._check_type_(value, **kwargs)
        except (TypeError, OverflowError, RecursionError) as error:
            option, given = f"--{self.dest}", shorten(value if argument is None else value.val)
            if argument in (None, "class_path"):
                cause = re.search(r"given class_path '[^']*':\s*(.+)", str(error))  # such as a missing module
                given += f" ({cause[1]})" if cause else ""
                raise TypeError(
                    f"{option}: expected {plain_type(self._typehint, in_yaml=True)}, got {given}"
                ) from error
            raise TypeError(
                f"{option}.{argument}: expected a class before its arguments, as in {option} package.module.Class "
                f"{option}.{argument} {given}"
            ) from error
        for number in _numbers(read):
            if not (abs(number) < 2**63 if isinstance(number, int) else math.isfinite(number)):
                raise TypeError(f"--{self.dest}: expected a finite number of at most 64 bits, got {shorten(number)}")
        return read


class OptionParser(LightningArgumentParser):
    """A parser of `Option` that says what is wrong in two lines; its base prints the usage of all options first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": _LOADER, **kwargs})

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        names = self._as_options(super().add_class_arguments(theclass, *args, **kwargs))
        if theclass.__name__ in _WRITES_FILES:
            for action in (each for each in self._actions if each.dest == "save_dir" and each.required):
                action.required, action.default = False, RUN_FOLDER
        return names

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        return self._as_options(super().add_method_arguments(*args, **kwargs))

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """The base's, of options under the names of earlier versions too."""
        return super().parse_string(current_keys(content), *args, **kwargs)

    def _as_options(self, names: list[str]) -> list[str]:
        for action in self._actions:
            if type(action) is ActionTypeHint:
                action.__class__ = Option
        return names

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = re.sub(r"\s*- Parser key.*", "", message, flags=re.DOTALL)  # says it again
        message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
        if message.startswith("Unexpected config: "):
            given = shorten(message.removeprefix("Unexpected config: "))
            message = f"--config: expected options and their values, as in 'name: value', got {given}"
        if not self.exit_on_error:  # the parser of a class's own arguments
            message = re.sub("^--", "argument ", message)
            message = f"--{_outer[0]}: {message}" if _outer else message
        interrupts.stop(f"error: {one_line(message)}{self._meant(message)}\nsee lit-depth <command> --help")

    def _meant(self, message: str) -> str:
        """What an unknown option may have been meant as, as a question; nothing where no name is near."""
        unknown = re.search(r"unrecognized arguments: (--[\w.]+)|does not accept option '([\w.]+)'", message)
        if unknown is None:
            return ""
        dashes = "--" if unknown[1] else ""
        near = nearest((unknown[1] or unknown[2]).removeprefix("--"), self._names())
        return f"; did you mean {dashes}{near}?" if near else ""

    def _names(self) -> list[str]:
        """Of all options, those of the subcommands included."""
        below = [
            each for action in self._actions if isinstance(action.choices, dict) for each in action.choices.values()
        ]
        actions = [*self._actions, *(action for each in below for action in each._actions)]
        names = [name for action in actions for name in action.option_strings if name.startswith("--")]
        return [name.removeprefix("--") for name in names if not name.endswith((".help", "+"))]


def new_parser(**kwargs: Any) -> LightningArgumentParser:
    """What ``LightningCLI.init_parser`` makes, but of our own class (an argument from Lightning 2.6 on only)."""
    kwargs.setdefault("dump_header", [f"lightning.pytorch=={lightning.__version__}"])
    parser = OptionParser(**kwargs)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML or JSON file of options")
    return parser


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The name that a misspelt one was most likely meant as: with a letter or two changed, or a group in front.

    >>> nearest("num_smaples", ["name", "data.num_samples"]), nearest("polices", ["policies"]), nearest("x", ["name"])
    ('data.num_samples', 'policies', None)
    """
    by_end = {each.rpartition(".")[2]: each for each in reversed(names)} | {each: each for each in names}
    near = difflib.get_close_matches(name, list(by_end), n=1, cutoff=0.75)
    return by_end[near[0]] if near else None


def list_options(functions: Mapping[str, Callable[..., Any]]) -> tuple[list[str], list[str]]:
    """Options that take lists, by the signatures of functions: of values, and of lists of numbers.

    Args:
        functions: By what stands in front of their options, as in ``data.``.

    >>> def function(keep: list[int] | None, indices: list[list[int]], name: str): ...
    >>> list_options({"": function})
    (['--keep'], ['--indices'])
    """
    flat: list[str] = []
    repeated: list[str] = []
    for prefix, function in functions.items():
        for name, hint in get_type_hints(inspect.unwrap(function)).items():
            for kind in (kind for kind in members(hint) if get_origin(kind) is list):
                of_lists = any(get_origin(each) is list for each in get_args(kind))
                (repeated if of_lists else flat).append(f"--{prefix}{name}")
    return flat, repeated


def set_flags(arguments: Sequence[str], function: Callable[..., Any] | None) -> list[str]:
    """Give ``true`` to options of a function that are true or false and stand alone.

    >>> def function(plan: bool, name: str): ...
    >>> set_flags(["latency", "--plan", "--name", "x"], function)
    ['latency', '--plan=true', '--name', 'x']
    """
    hints = {} if function is None else get_type_hints(inspect.unwrap(function))
    flags = {f"--{name}" for name, hint in hints.items() if hint is bool}
    behind = [*arguments[1:], "--"]
    return [
        f"{argument}=true" if argument in flags and after.startswith("--") else argument
        for argument, after in zip(arguments, behind)
    ]


def join_lists(arguments: Sequence[str], flat: Sequence[str], repeated_lists: Sequence[str]) -> list[str]:
    """Rewrite space-separated lists in the form that LightningCLI reads.

    Args:
        arguments: Of the command line.
        flat: Options that take a list of values.
        repeated_lists: Options that may be repeated, one list of numbers each.

    >>> join_lists(["compare", "--keep", "4", "8", "--name", "x"], ["--keep"], [])
    ['compare', '--keep', '["4", "8"]', '--name', 'x']
    >>> join_lists(["--indices", "0", "5", "--indices", "1"], [], ["--indices"])
    ['--indices', '[[0, 5], [1]]']
    >>> join_lists(["--skip", "0", "--skip=3"], ["--skip"], [])
    ['--skip', '["0", "3"]']
    """
    result: list[str] = []
    lists: dict[str, list[Any]] = {}
    for option, values in _with_values(arguments, {*flat, *repeated_lists}):
        # already in LightningCLI's form: in brackets, or a word instead of a list
        whole = ["null"], *([["all"]] if option == "--data.tasks" else [])
        if not values or values in whole or values[0].startswith("["):
            result += [option, " ".join(values)] if values else [option]
            continue
        if option not in lists:
            result += [option, option]  # its place; the second is replaced below
        found = lists.setdefault(option, [])
        found += [[_index(option, value) for value in values]] if option in repeated_lists else values
    for option, found in lists.items():
        result[result.index(option) + 1] = json.dumps(found)
    return result


def _with_values(arguments: Sequence[str], listed: Container[str]) -> Iterator[tuple[str, list[str]]]:
    """Each argument in turn; an option that takes a list with the values behind it, up to the next option."""
    position = 0
    while position < len(arguments):
        option, sign, value = arguments[position].partition("=")
        position += 1
        if option not in listed:
            yield arguments[position - 1], []
            continue
        behind = takewhile(lambda argument: not argument.startswith("--"), arguments[position:])
        values = [value] * bool(sign) + list(behind)
        position += len(values) - bool(sign)
        yield option, values


def _index(option: str, value: str) -> int:
    if not re.fullmatch("-?[0-9]{1,18}", value):
        interrupts.stop(f"error: {option}: expected block indices such as 0 5 10, got {shorten(value)}")
    return int(value)


def takes_text(hint: Any) -> bool:
    """Whether an option takes any text (a path is one) and nothing else, null aside.

    >>> takes_text(str | None), takes_text(str | int)
    (True, False)
    """
    kinds = members(hint)
    paths = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, os.PathLike)]
    return str in kinds and all(kind in (str, type(None), *paths) for kind in kinds)


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)):
        yield value


def one_line(message: object) -> str:
    """A message without line breaks, cut where it is endless.

    >>> one_line("one\\n  two")
    'one two'
    """
    text = " ".join(str(message).split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
