"""Arguments that several commands take, checked."""

from collections.abc import Sequence

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.data.task import Sample
from lit_depth.functional.arguments import check_range
from lit_depth.functional.engine.greedy_tokens import check_without_penalties
from lit_depth.functional.engine.static_support import check_serves_static
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.module import DepthModule

_FEW = 8  # questions that tell whether there are images


def check_whole_blocks(model: DepthModule, command: str) -> None:
    """Raise ValueError for a model whose masks switch sublayers."""
    if model.hparams["granularity"] != "block":
        raise ValueError(
            f"{command} takes whole blocks only: leave out --model.granularity, which importance, consistency, "
            "interactions and search know"
        )


def check_all_tokens(model: DepthModule, what: str) -> None:
    """Raise ValueError for a model whose masks are of image tokens alone."""
    given = model.hparams["skip_tokens"]
    if given != "all":
        raise ValueError(
            f"{what} takes blocks that all tokens skip: leave out --model.skip_tokens {given}, which compare, "
            "importance, consistency, interactions, search, select, latency and answers know"
        )


def check_has_images(model: DepthModule, datamodule: DepthDataModule, splits: Sequence[str]) -> None:
    """Raise ValueError for questions without images (the first few tell) where image tokens alone skip blocks."""
    given = model.hparams["skip_tokens"]
    if given == "all":
        return
    expected = f"expected questions about images for --model.skip_tokens {given}, got"
    if datamodule.drop_images:
        raise ValueError(f"{expected} --data.drop_images true; leave one of them out")
    for each in datamodule.for_each_task():
        for split in splits:
            dataset = each.eval_dataset(split)
            first = (dataset[position] for position in range(min(_FEW, len(dataset))))
            readable = [sample for sample in first if isinstance(sample, Sample)]
            if readable and not any(sample.images for sample in readable):
                raise ValueError(
                    f"{expected} {each.task.name}, whose {split} split has none: no block would be skipped. Leave out "
                    "--model.skip_tokens, or give another --data.tasks"
                )


def check_one_task(datamodule: DepthDataModule, rule: str) -> None:
    """Raise ValueError, which begins with the rule, for data of several tasks."""
    if len(datamodule.tasks) > 1:
        raise ValueError(f"{rule}, got {[task.name for task in datamodule.tasks]}")


def check_asks(datamodule: DepthDataModule, command: str) -> None:
    """Raise ValueError for tasks that score given texts: there is no prompt to answer."""
    for task in datamodule.tasks:
        if not task.max_new_tokens:
            raise ValueError(f"{command} needs prompts that are answered; {task.name} scores the texts themselves")


def check_one_process(trainer: Trainer, rule: str) -> None:
    """Raise ValueError, which begins with the rule, for several processes."""
    if trainer.world_size > 1:
        raise ValueError(f"{rule}, got {trainer.world_size}: give --trainer.devices 1, without torchrun")


def check_times_alone(model: DepthModule, instead: str) -> None:
    """Raise ValueError, which ends with what to give instead, for a model that one process cannot time."""
    if model.is_split:
        raise ValueError(
            f"latencies are measured by one process, and with --model.tp_plan none holds the whole model: {instead}"
        )


def check_static(model: DepthModule, trainer: Trainer) -> None:
    """Raise ValueError where ``--decoding static`` does not serve the masks, the precision or the model."""
    check_all_tokens(model, "--decoding static")
    if model.hparams["phase"] != "both":
        raise ValueError(
            f"--decoding static takes masks of the prompt and of decoding alike: leave out --model.phase "
            f"{model.hparams['phase']}"
        )
    if "mixed" in str(trainer.precision):
        raise ValueError(
            f"--decoding static takes weights in the number format of the computation, got --trainer.precision "
            f"{trainer.precision}: give --model.dtype bfloat16 or float16 instead"
        )
    try:
        check_serves_static(model.model, find_blocks(model.model, model.hparams["blocks"]))
    except ValueError as error:
        raise ValueError(f"{error}: leave out --decoding static") from error


def check_shares(confidence: float, max_bad_samples: float) -> None:
    """Raise ValueError for shares that are none, or a confidence that no interval is told with."""
    check_range(0.5, 0.9999, confidence=confidence)
    check_range(0, 1, max_bad_samples=max_bad_samples)


def check_acceptance(acceptance: bool, model: DepthModule, datamodule: DepthDataModule) -> None:
    """Raise ValueError where ``--acceptance true`` has no answers to read, or none of most likely tokens."""
    if not acceptance:
        return
    for task in datamodule.tasks:
        if not task.max_new_tokens or task.answer_by == "likelihood":
            raise ValueError(
                f"expected tasks whose answers the model writes, got {task.name}, which scores given texts: leave out "
                "--acceptance"
            )
    check_without_penalties(model.model)
