"""``lit-depth`` and ``python -m lit_depth``."""

import difflib
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from lit_depth import __version__, commands, interrupts


def main() -> None:
    """Run one command. Signals are taken care of first: importing the rest takes seconds."""
    arguments = sys.argv[1:]
    answer = at_once(arguments)
    if answer is not None:
        print(answer)
        return
    if {"--quiet", "--json"} & set(arguments):
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported; processes that are launched read it too
    with interrupts.guarded(interrupts.continues(arguments), exits=True, anew=interrupts.begins_anew(arguments)):
        if arguments[0] in commands.LIGHT:
            run_light(arguments)
            return
        with interrupts.loading(), uncollected():
            from lit_depth.cli import main as run

        run()


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from what is imported inside the ``with`` statement, also after it.

    Modules, classes and functions stay until the process ends. The collector would search all of them many times while
    they are made. That takes a sixth of the time until a command's first progress bar.
    """
    # a second command of a process freezes nothing: what is garbage by then would stay for ever
    is_first, was_enabled = "lit_depth.cli" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
        if was_enabled:
            gc.enable()


def at_once(arguments: list[str]) -> str | None:
    """What can be answered without importing anything of a command: None = it has to be run.

    A command that does not exist ends here, with the name of the nearest one, and so does a misspelt ``--help`` or
    ``--version``.

    >>> at_once(["--version"])
    'lit-depth 0.1.0'
    """
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        return commands.overview()
    if command == "--version":
        return f"lit-depth {__version__}"
    if command in commands.studies() and {"-h", "--help"} & set(arguments):
        from lit_depth.command_help import short_help

        return short_help(command)
    if command in commands.tools().keys() - commands.LIGHT:
        _read_options(command, arguments[1:])
    if command.startswith("--") and (near := difflib.get_close_matches(command, ("--help", "--version"), n=1)):
        interrupts.stop(f"error: there is no option {command!r} without a command; did you mean {near[0]}?")
    if not command.startswith("-") and command not in commands.every():
        near = difflib.get_close_matches(command, list(commands.every()), n=1)
        meant = f"did you mean {near[0]}?" if near else "lit-depth --help lists them"
        interrupts.stop(f"error: there is no command {command!r}; {meant}")
    return None


def _read_options(tool: str, arguments: list[str]) -> None:
    """End with help where it is asked for, or with what is wrong with an option; else the tool reads them again."""
    from lit_depth.results.terminal import FLAGS
    from lit_depth.tool_options import parser_of

    parser_of(tool).parse_args(_spelt([argument for argument in arguments if argument not in (*FLAGS, "--debug")]))


def _spelt(arguments: list[str]) -> list[str]:
    """Arguments as the parsers know them."""
    from lit_depth.option_names import underscored

    return ["--help" if argument == "--help-all" else underscored(argument) for argument in arguments]


def run_light(arguments: list[str]) -> None:
    """Run a command that needs no model, as `lit_depth.cli` runs the others."""
    from lit_depth.results.terminal import mode_of, printing

    words = _spelt([argument for argument in arguments if argument != "--debug"])
    try:
        mode, (tool, *own) = mode_of(words)
        with printing(mode):
            import_module(f"lit_depth.tools.{tool}").main(own)
    except ValueError as error:
        if "--debug" in arguments:
            raise
        interrupts.stop(f"error: {error}")


if __name__ == "__main__":
    main()
