"""The command line: LightningCLI over `DepthTrainer`, with errors a user can read."""

import inspect
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tqdm.auto import tqdm

from lit_depth import commands, interrupts
from lit_depth.callbacks import LoopAnswers
from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.option_names import current_name, underscored
from lit_depth.options import RUN_FOLDER, join_lists, list_options, new_parser, one_line, set_flags
from lit_depth.results.store import check_name
from lit_depth.results.terminal import mode_of, printing, tell
from lit_depth.studies.export.certificate import NotCertifiedError
from lit_depth.studies.shared.processes import lost_connection
from lit_depth.studies.shared.run_folder import AGREEMENT
from lit_depth.studies.shared.scores import Scores
from lit_depth.studies.tokens.settings import use_checkpoint
from lit_depth.trainer import DepthTrainer

USER_ERROR = interrupts.USER_ERROR

# what users do wrong, and what Lightning raises because of its options
_OF_USERS = (ValueError, OSError, NotImplementedError, ImportError, MisconfigurationException)
_OF_OPTIONS = (
    *(ValueError, TypeError, RuntimeError, LookupError, AttributeError, OverflowError),
    MisconfigurationException,
)
# Lightning's loops whose answers are kept
_ANSWERING = ("validate", "test", "predict")
# of the trainer, by default: results are logged and written by the commands
_OFF = ("logger", "enable_checkpointing", "enable_model_summary")


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
        every = {**LightningCLI.subcommands(), **dict.fromkeys(commands.studies(), {"model", "datamodule"})}
        return {name: names for name, names in every.items() if name == self.command} or every

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return new_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self.command in _ANSWERING:
            told = "Answers go to its folder of the command; null = results, in trainer.default_root_dir."
            parser.add_argument("--output_dir", type=str | None, default=None, help=told)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise ValueError(f"--seed_everything: {one_line(error)}") from error

    def before_instantiate_classes(self) -> None:
        """Refuse a name that is none and a GPU that is not there, before the model is loaded; a plan loads none."""
        options = self.config[self.config["subcommand"]]
        if options.get("name") is not None:
            check_name(options["name"])
        if options.get("plan"):
            options["model"]["meta"] = True  # a plan is made before anything is loaded
        if self.config["subcommand"] == "tokens":
            use_checkpoint(options)
        _place_loggers(options, self.config["subcommand"])
        accelerator = options["trainer"]["accelerator"]
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        found["gpu"] = any(found.values())
        if not found.get(accelerator, True):
            raise ValueError(
                f"--trainer.accelerator {accelerator}: expected such a device, none was found on this machine: "
                "leave it out, or give cpu"
            )

    def before_predict(self) -> None:
        """Keep the answers, and score them where there are right ones."""
        chosen = self.config[self.subcommand]["output_dir"]
        folder = Path(chosen or Path(self.trainer.default_root_dir) / "results") / str(self.subcommand)
        self.answers = LoopAnswers(folder, self.model.num_units, self.datamodule.task.metric)
        self.trainer.callbacks.append(self.answers)  # type: ignore[attr-defined]  # Lightning names it nowhere

    def after_predict(self) -> None:
        """Tell the mean score with its interval, and where the answers are."""
        if not self.trainer.is_global_zero:
            return
        records = self.answers.records
        assert records is not None
        told = {
            "metric": self.datamodule.task.metric,
            "num_samples": len(records),
            "num_bad_samples": len(self.answers.bad_samples),
            "answers": str(self.answers.path),
            **mean_score(records, self.datamodule.task.metric, self.answers.metric.max_score),
        }
        tell(describe_answers(told), told)

    before_validate = before_test = before_predict
    after_validate = after_test = after_predict

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The base's; whatever Lightning raises is about the options that it was given."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except _OF_OPTIONS as error:
            raise ValueError(f"--trainer: no Trainer can be made of these options: {one_line(error)}") from error
        launched = lambda: getattr(trainer.strategy.launcher, "procs", ())  # noqa: E731
        interrupts.end_with_us(
            launched, self.subcommand in commands.continued(), self.subcommand in commands.begun_anew()
        )
        return trainer


def _place_loggers(options: Any, command: str) -> None:
    """Let loggers that were given no folder write into that of the run, or where Lightning does if there is none."""
    trainer = options["trainer"]
    folder = trainer["default_root_dir"] or "."
    if command in commands.studies():
        # export's is called as the folder that it exports to
        name = options["name"] or Path(options["out"] or "default").resolve().name
        folder = str(Path(options["output_dir"]) / command / name)
    elif options.get("output_dir"):
        folder = str(Path(options["output_dir"]) / command)
    loggers = trainer["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = getattr(logger, "init_args", None)
        if arguments and arguments.get("save_dir") == RUN_FOLDER:
            arguments["save_dir"] = folder


def mean_score(records: Any, metric: str, most: float) -> dict[str, Any]:
    """Mean score of one mask's records with its 95% interval; nothing where no answer was scored, or of one image."""
    if metric == AGREEMENT or records["score"].isna().any() or records["image"].nunique() < 2:
        return {}
    scores = Scores.from_records(records, most)
    (found,) = scores.mean_intervals(scores.quality, 0.95)
    return {"score": found.estimate, "score_ci": [found.low, found.high]}


def describe_answers(told: Mapping[str, Any]) -> str:
    """What `DepthCLI` says of the answers of Lightning's own loops.

    >>> print(describe_answers({"metric": "anls", "num_samples": 8, "num_bad_samples": 0, "answers": "a.jsonl"}))
    anls: 8 samples (0 bad), not scored.
    written:
      a.jsonl
    """
    score = "not scored"
    if "score" in told:
        low, high = told["score_ci"]
        score = f"mean {told['score']:.3f} [{low:.3f}, {high:.3f}] (95% interval by image)"
    head = f"{told['metric']}: {told['num_samples']} samples ({told['num_bad_samples']} bad), {score}."
    return f"{head}\nwritten:\n  {told['answers']}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; see ``lit-depth --help``. User mistakes end with exit code 2 and no traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with interrupts.guarded(interrupts.continues(arguments), anew=interrupts.begins_anew(arguments)):
        _run(arguments)


def _run(arguments: list[str]) -> None:
    debug = "--debug" in arguments
    arguments = [underscored(argument) for argument in arguments if argument != "--debug"]
    # without it, help is short, and was printed before anything was imported
    arguments = ["--help" if argument == "--help_all" else argument for argument in arguments]
    _quiet()
    try:
        mode, arguments = mode_of(arguments)
        with printing(mode):
            command = arguments[0] if arguments else None
            if command in commands.tools():
                import_module(f"lit_depth.tools.{command}").main(arguments[1:])
            else:
                _measure(command, arguments)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, torch.OutOfMemoryError):
            _stop(f"error: out of memory: give a smaller --data.batch_size or --model.max_rows ({error})", error)
        if isinstance(error, _OF_USERS):
            _stop(f"error: {one_line(error)}", error)
        if isinstance(error, NotCertifiedError):
            _stop(f"error: {one_line(error)}", error, code=1)
        # no mistake of the user's: another process's, or ours
        if lost_connection(error):
            _stop("error: another process of this run has ended; its own message says why")
        _stop(f"internal error: {type(error).__name__}: {one_line(error)}; run again with --debug", error, code=1)


def _measure(command: str | None, arguments: list[str]) -> None:
    functions = {"": getattr(DepthTrainer, command)} if command in commands.studies() else {}
    own = [name for function in functions.values() for name in inspect.signature(function).parameters]
    arguments = [current_name(argument, command or "", own) for argument in arguments]
    DepthCLI(
        DepthModule,
        DepthDataModule,
        trainer_class=DepthTrainer,
        trainer_defaults={**dict.fromkeys(_OFF, False), "callbacks": OwnSignals()},
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"description": f"{commands.QUESTION} (--debug: tracebacks)"},
        args=join_lists(
            set_flags(arguments, functions.get("")), *list_options({**functions, "data.": DepthDataModule.__init__})
        ),
        command=command,
    )


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
