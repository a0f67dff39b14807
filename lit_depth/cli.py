"""The command line: LightningCLI over `DepthTrainer`, with errors a user can read."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tqdm.auto import tqdm

from lit_depth import interrupts
from lit_depth.data import DepthDataModule
from lit_depth.functional.checks import shorten
from lit_depth.module import DepthModule
from lit_depth.options import new_parser, one_line
from lit_depth.results.store import check_name
from lit_depth.studies.processes import lost_connection
from lit_depth.trainer import DepthTrainer

USER_ERROR = interrupts.USER_ERROR
STUDIES = interrupts.STUDIES
# existing scripts give these as `--option 4 8 12`; the second kind may be repeated, one list each
FLAT_LISTS = ("--num_active_blocks", "--policies", "--keep", "--skip", "--splits", "--methods", "--data.tasks")
REPEATED_LISTS = ("--active_block_indices",)

# what Lightning raises because of its options
_OF_OPTIONS = (
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    OverflowError,
    MisconfigurationException,
)


class OwnSignals(Callback):
    """Take SIGTERM back: Lightning's handler sets a flag that no evaluation reads, and may wait for other processes."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interrupts.retake()

    on_train_start = on_sanity_check_start = on_validation_start = on_test_start = on_predict_start


class DepthCLI(LightningCLI):
    """``lit-depth <command>``: builds model, data and trainer from flags and YAML, then calls the trainer's method.

    Args:
        command: The only command whose options are made, which saves the third of a second that the others' take;
            None or none of ours = all.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        self.command = command
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # the base's is static
        every = {**LightningCLI.subcommands(), **dict.fromkeys(STUDIES, {"model", "datamodule"})}
        return {name: names for name, names in every.items() if name == self.command} or every

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return new_parser(**kwargs)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise ValueError(f"--seed_everything: {one_line(error)}") from error

    def before_instantiate_classes(self) -> None:
        """Refuse a name that is none and a GPU that is not there, before the model is loaded."""
        options = self.config[self.config["subcommand"]]
        check_name(options.get("name", "default"))
        accelerator = options["trainer"]["accelerator"]
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        found["gpu"] = any(found.values())
        if not found.get(accelerator, True):
            raise ValueError(
                f"--trainer.accelerator {accelerator}: expected such a device, none was found on this machine: "
                "leave it out, or give cpu"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The base's; whatever Lightning raises is about the options that it was given."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except _OF_OPTIONS as error:
            raise ValueError(f"--trainer: no Trainer can be made of these options: {one_line(error)}") from error
        launched = lambda: getattr(trainer.strategy.launcher, "procs", ())  # noqa: E731
        interrupts.end_with_us(launched, resumable=self.subcommand in STUDIES)
        return trainer


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; see ``lit-depth --help``. User mistakes end with exit code 2 and no traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with interrupts.guarded(resumable=interrupts.continues(arguments)):
        _run(arguments)


def _run(arguments: list[str]) -> None:
    debug = "--debug" in arguments
    arguments = join_lists([underscored(argument) for argument in arguments if argument != "--debug"])
    _quiet()
    try:
        DepthCLI(
            DepthModule,
            DepthDataModule,
            trainer_class=DepthTrainer,
            trainer_defaults={
                "logger": False,
                "enable_checkpointing": False,
                "enable_model_summary": False,
                "callbacks": OwnSignals(),
            },
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={
                "description": "Which transformer blocks can be skipped, and at what cost? (--debug: tracebacks)"
            },
            args=arguments,
            command=arguments[0] if arguments else None,
        )
    except torch.OutOfMemoryError as error:
        if debug:
            raise
        _stop(f"error: out of memory: give a smaller --data.batch_size or --model.max_rows ({error})", error)
    except (ValueError, OSError, NotImplementedError, ImportError, MisconfigurationException) as error:
        if debug:
            raise
        _stop(f"error: {one_line(error)}", error)
    except Exception as error:
        if debug:
            raise
        if lost_connection(error):
            _stop("error: another process of this run has ended; its own message says why")
        _stop(f"internal error: {type(error).__name__}: {one_line(error)}; run again with --debug", error, code=1)


def underscored(argument: str) -> str:
    """An option with dashes inside its name as LightningCLI knows it.

    >>> underscored("--budget-ms=20"), underscored("--name"), underscored("my-run")
    ('--budget_ms=20', '--name', 'my-run')
    """
    name, sign, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{sign}{value}" if name.startswith("--") else argument


def join_lists(arguments: Sequence[str]) -> list[str]:
    """Rewrite space-separated lists in the form that LightningCLI reads.

    >>> join_lists(["compare", "--num_active_blocks", "4", "8", "--name", "x"])
    ['compare', '--num_active_blocks', '["4", "8"]', '--name', 'x']
    >>> join_lists(["--active_block_indices", "0", "5", "--active_block_indices", "1"])
    ['--active_block_indices', '[[0, 5], [1]]']
    >>> join_lists(["--skip", "0", "--skip=3"])
    ['--skip', '["0", "3"]']
    """
    lists_with_sign = tuple(f"{option}=" for option in (*FLAT_LISTS, *REPEATED_LISTS))
    arguments = [
        part
        for argument in arguments
        for part in (argument.split("=", 1) if argument.startswith(lists_with_sign) else [argument])
    ]
    result: list[str] = []
    repeated: dict[str, list[Any]] = {}
    position = 0
    while position < len(arguments):
        option = arguments[position]
        position += 1
        start = position
        if option in (*FLAT_LISTS, *REPEATED_LISTS):
            while position < len(arguments) and not arguments[position].startswith("--"):
                position += 1
        values = list(arguments[start:position])
        # already in LightningCLI's form: in brackets, or a word instead of a list
        whole = ["null"], *([["all"]] if option == "--data.tasks" else [])
        if not values or values in whole or values[0].startswith("["):
            result += [option, " ".join(values)] if values else [option]
        else:
            if option not in repeated:
                result += [option, option]  # its place; the second is replaced below
            lists = repeated.setdefault(option, [])
            lists += [[_index(option, value) for value in values]] if option in REPEATED_LISTS else values
    for option, lists in repeated.items():
        result[result.index(option) + 1] = json.dumps(lists)
    return result


def _index(option: str, value: str) -> int:
    if not re.fullmatch("-?[0-9]{1,18}", value):
        _stop(f"error: {option}: expected block indices such as 0 5 10, got {shorten(value)}")
    return int(value)


def _quiet() -> None:
    """Keep the terminal for progress and results: no advertising, no loading bars for small files."""
    tqdm.monitor_interval = 0  # its thread starts with the first bar: one more place for Ctrl-C to fall into
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # not where in the code
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")


def _stop(message: str, error: Exception | None = None, code: int = USER_ERROR) -> NoReturn:
    interrupts.stop(message, code, getattr(error, "process", 0))
