"""The datamodule: which questions a run sees, in which order, in which batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from lit_depth.data.collate import EvalCollator
from lit_depth.data.eval_dataset import BatchShards, EvalDataset, choose_rows
from lit_depth.data.images import ImageFolder
from lit_depth.data.lengths import PromptLimit
from lit_depth.data.rows import QuestionRows
from lit_depth.data.task import AnswerBy, Nouns, Task, check_split
from lit_depth.data.task_choice import choose_tasks
from lit_depth.data.tasks.next_token import LONGEST_WINDOW, NextToken
from lit_depth.functional.arguments import check_least, check_range, checked
from lit_depth.functional.class_paths import object_at
from lit_depth.functional.masking.blocks import context_length

if TYPE_CHECKING:
    import datasets

_WORKER_TIMEOUT_SECONDS = 600
_MAX_WORKERS = 256


class DepthDataModule(LightningDataModule):
    """Batches of one task: the calibration split to select on, the validation split to report on.

    Which samples are taken depends on `seed` and the counts only, never on the process or the batch size, and fewer
    samples are a subset of more.

    Args:
        prompter: Turns samples into the model's inputs, see `lit_depth.models.prompting`; by default that of the module
            that the trainer runs.
        task: Name of a built-in task, the class path of one (``package.module.Class``), a harness's own
            (``lm_eval:arc_easy``, ``lmms_eval:pope``), or a `Task`; null = your own questions in ``path``, or without
            it shapes_vqa.
        tasks: Several tasks for one run, instead of `task`; ``all`` = every built-in one, or with ``path`` every one
            that has a folder there.
        path: Your own questions: a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow), a folder of them, or a hub id,
            see `lit_depth.data.tasks.own_files.OwnFiles`; or plain texts (.txt), whose tokens are to be predicted, see
            `lit_depth.data.tasks.next_token.NextToken`. With a task: local folder of parquet files
            (``train*.parquet``, ``validation*.parquet``, ...) to read instead of the task's own source; with several
            tasks a folder of such folders, each called as its task.
        columns: With ``path`` and no task: meaning and name of columns that are not called as usual: question, answer,
            image, options, id, image_id, split; of image and options perhaps several names, separated by commas; a
            name of null = there is none.
        allow_outside: With ``path`` and no task: read images from outside of that folder too.
        answer_by: How options are chosen from: ``generation`` = by the letter that the model writes; ``likelihood`` =
            by the log-probability of each option's text behind the question, which does not list them: metric ``acc``
            takes the sum over its tokens, ``acc_norm`` divides it by its characters. null = as the task has it.
        metric: What the answers are scored by, in place of the task's own: a name in `lit_depth.metrics`, or the class
            path of a :class:`torchmetrics.Metric` of your own (see `lit_depth.metrics.base.resolve`).
        batch_size: Questions per evaluation batch; ``auto`` = as many as fit in memory, up to 64 (see
            `lit_depth.studies.shared.batch_size.find_batch_size`).
        train_batch_size: Images per training batch and process; each comes with all its questions.
        num_samples: Questions taken from the validation split (and any but calibration); null = all.
        calibration_samples: Questions taken from the calibration split; null = all.
        max_prompt_tokens: Longest prompt, image tokens included; a longer one costs its sample. null = what the
            longest answer leaves of the model's context.
        train_images: Images per training epoch.
        train_collator: Class path of what makes a training batch of `TrainingItem`, called with the prompter.
        num_workers: Worker processes per loader; 0 = load in the main process.
        seed: Chooses the samples, and the training images and their order.
        drop_images: Ask without the images: what a text model answers is what the questions give away.
    """

    @checked
    def __init__(
        self,
        prompter: Any = None,
        task: str | Task | None = None,
        tasks: list[str | Task] | Literal["all"] | None = None,
        path: str | None = None,
        columns: dict[str, str | None] | None = None,
        allow_outside: bool = False,
        answer_by: AnswerBy | None = None,
        metric: str | None = None,
        batch_size: int | Literal["auto"] = 32,
        train_batch_size: int = 32,
        num_samples: int | None = 256,
        calibration_samples: int | None = 256,
        max_prompt_tokens: int | None = None,
        train_images: int = 50_000,
        train_collator: str = "lit_depth.recipes.packing.PackedCollator",
        num_workers: int = 0,
        seed: int = 0,
        drop_images: bool = False,
    ) -> None:
        super().__init__()
        check_least(
            1,
            batch_size=None if batch_size == "auto" else batch_size,
            train_batch_size=train_batch_size,
            num_samples=num_samples,
            calibration_samples=calibration_samples,
            max_prompt_tokens=max_prompt_tokens,
            train_images=train_images,
        )
        check_range(0, _MAX_WORKERS, num_workers=num_workers)
        check_range(-(2**63), 2**63 - 1, seed=seed)
        if prompter is not None and not hasattr(prompter, "encode"):
            raise ValueError(
                f"expected a prompter, got a {type(prompter).__name__}: for a model and its processor, "
                "lit_depth.models.prompting.prompter_for makes one"
            )
        self.prompter = prompter
        self.tasks = choose_tasks(task, tasks, path, columns, allow_outside, answer_by, metric)
        self.task = self.tasks[0]
        self.path = path
        self.batch_size = batch_size
        self.train_batch_size = train_batch_size
        self.num_samples = num_samples
        self.calibration_samples = calibration_samples
        self.max_prompt_tokens = max_prompt_tokens
        self.train_images = train_images
        self.train_collator = train_collator
        self.num_workers = num_workers
        self.seed = seed
        self.drop_images = drop_images
        # of the module that the batches are for, see `attach`
        self.context: int | None = None
        self.max_new_tokens: int | None = None
        # what was said already, and rows by task, split and number of streamed rows; shared by `for_each_task`
        self._told: set[tuple[str, str]] = set()
        self._rows: dict[tuple[str, str, int | None], datasets.Dataset | QuestionRows] = {}

    def train_dataloader(self) -> DataLoader:
        """Batches of images with all their questions, as ``train_collator`` makes them, shuffled if the task allows."""
        self._refuse_several_tasks()
        images = self.task.training_set(self.train_images, self.seed)
        collator = object_at(self.train_collator, "a collator")(self._attached().prompter)
        return self._loader(images, self.train_batch_size, collator, shuffle=not self.task.train_in_order)

    def val_dataloader(self) -> DataLoader:
        """The validation split in evaluation batches; `test_dataloader` and `predict_dataloader` are the same."""
        self._refuse_several_tasks()
        return self.eval_dataloader("validation")

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def _refuse_several_tasks(self) -> None:
        if len(self.tasks) > 1:
            raise ValueError(f"this command takes one task at a time, got {[task.name for task in self.tasks]}")

    def for_each_task(self) -> list[DepthDataModule]:
        """One datamodule per task with otherwise the same settings; ``[self]`` where there is only one task."""
        if len(self.tasks) == 1:
            return [self]
        each = [copy.copy(self) for _ in self.tasks]
        for datamodule, task in zip(each, self.tasks):
            datamodule.task, datamodule.tasks = task, [task]
        return each

    def without_answers(self) -> DepthDataModule:
        """A datamodule of the same questions that looks at no answers, which need not be there: nothing is scored."""
        taken = copy.copy(self)
        taken.tasks = list(map(copy.copy, self.tasks))
        for task in taken.tasks:
            task.read_by = task.metric
            task.without_answers, task.answer_by, task.metric = True, "generation", "agreement"
        taken.task, taken._rows = taken.tasks[0], {}
        return taken

    def take(self, split: str, num_samples: int) -> DepthDataModule:
        """A datamodule that takes so many questions from a split; one number holds for all splits but calibration."""
        check_least(1, num_samples=num_samples)
        taken = copy.copy(self)
        name = "calibration_samples" if check_split(split) == "calibration" else "num_samples"
        setattr(taken, name, num_samples)
        return taken

    def eval_dataloader(
        self,
        split: str = "validation",
        num_samples: int | None = None,
        shard: tuple[int, int] | None = None,
        positions: Sequence[int] | None = None,
    ) -> DataLoader:
        """Batches of a split in a fixed order, see `EvalCollator`.

        Args:
            split: "train", "calibration" or "validation".
            num_samples: Questions to take; None = as many as the datamodule was made with.
            positions: Of these questions only some, by their position in `eval_dataset`; None = all.
            shard: (rank, number of processes): the process gets every so-manieth batch. Batches are the same whatever
                the number of processes, so padding and results are too, and no sample is repeated; a process for which
                no batch is left gets an empty one. None = all batches, which a trainer may deal out, unless the
                processes hold one model together.
        """
        attached = self._attached()
        collator = EvalCollator(attached.prompter, attached.prompt_limit())
        dataset = self.eval_dataset(split, num_samples)
        dataset.check_seen_by(attached.prompter)
        dataset.check_options()
        # without a study that measures what fits, such as under `lit-depth validate`
        batch_size = 32 if self.batch_size == "auto" else self.batch_size
        if positions is not None:
            dataset = dataset.take(positions)
        if shard is None and getattr(getattr(self.trainer, "lightning_module", None), "is_split", False):
            shard = (0, 1)
        sampler = BatchShards(dataset, batch_size, *shard) if shard is not None else None
        return self._loader(dataset, batch_size, collator, sampler=sampler)

    def eval_dataset(self, split: str = "validation", num_samples: int | None = None) -> EvalDataset:
        """The samples that `eval_dataloader` batches."""
        if num_samples is None:
            num_samples = self.calibration_samples if split == "calibration" else self.num_samples
        rows = self._load(split, num_samples)
        if num_samples is not None and num_samples > len(rows) and (self.task.name, split) not in self._told:
            self._told.add((self.task.name, split))
            noun = Nouns.of(self.task).sample
            rank_zero_warn(
                f"{self.task.name} has {len(rows):,} {noun}s in its {split} split, fewer than the {num_samples:,} "
                "asked for: all are taken"
            )
        folder = None if self.path is None else ImageFolder(self.path, (self.path,))
        chosen = choose_rows(len(rows), num_samples, f"{self.seed}/{split}")
        return EvalDataset(rows, self.task, split, chosen, folder, self.drop_images)

    def check_disjoint(self, split_a: str, split_b: str) -> None:
        """Refuse two splits whose chosen samples overlap: what selects masks must not also report on them.

        Raises:
            ValueError: If they share a sample, or an image.
        """
        one, other = self.eval_dataset(split_a), self.eval_dataset(split_b)
        ids_a, ids_b = one.ids(), other.ids()
        for kind, index in (("samples", 0), (f"{Nouns.of(self.task).cluster}s", 1)):
            shared = {ids[index] for ids in ids_a} & {ids[index] for ids in ids_b}
            if shared:
                raise ValueError(
                    f"splits {split_a!r} and {split_b!r} of task {self.task.name!r} must not overlap, "
                    f"but share {len(shared)} {kind}, for example {min(shared)!r}"
                )
        files_a, files_b = one.image_files(), other.image_files()
        copies = sorted((files_a[digest], files_b[digest]) for digest in files_a.keys() & files_b.keys())
        if copies:
            raise ValueError(
                f"splits {split_a!r} and {split_b!r} of task {self.task.name!r} must not overlap, but share "
                f"{len(copies)} images under two names, for example {' and '.join(copies[0])}: leave one out, or name "
                "what is the same image in a column image_id"
            )

    def check_asked(self, splits: Sequence[str]) -> None:
        """Refuse tasks whose questions are about images for a model that sees none, or have no options to choose from.

        Raises:
            ValueError: Naming the task.
        """
        for each in self.for_each_task():
            for split in splits:
                dataset = each.eval_dataset(split)
                dataset.check_seen_by(self._attached().prompter)
                dataset.check_options()

    def _load(self, split: str, num_samples: int | None) -> datasets.Dataset | QuestionRows:
        task = self.task
        if task.streaming and num_samples is None:
            raise ValueError(
                f"{task.name} is streamed: expected a number of samples, got all (--data.num_samples, "
                "--data.calibration_samples)"
            )
        needed = num_samples if task.streaming else None
        key = (task.name, check_split(split), needed)
        if key not in self._rows:
            self._rows[key] = task.load(split, self.path) if needed is None else task.stream(split, needed, self.path)
        if self.prompter is None or not isinstance(task, NextToken):
            return self._rows[key]
        longest = min(self.context or LONGEST_WINDOW, self.max_prompt_tokens or LONGEST_WINDOW, LONGEST_WINDOW) - 1
        windows = (*key[:2], longest)
        if windows not in self._rows:
            self._rows[windows] = task.windows(self._rows[key], self.prompter, longest)
        return self._rows[windows]

    def attach(self, module: Any) -> None:
        """Prepare batches for a module: by its prompter unless there is one already, and within its model's context.

        Args:
            module: A `lit_depth.DepthModule`, or any module with a ``prompter`` and a ``model``.
        """
        self.prompter = getattr(module, "prompter", None) if self.prompter is None else self.prompter
        self.context = context_length(getattr(module, "model", module))
        self.max_new_tokens = getattr(module, "hparams", {}).get("max_new_tokens")

    def prompt_limit(self) -> PromptLimit | None:
        """How long a prompt may be for the module that the batches are for; None = of any length.

        Raises:
            ValueError: If the longest answer leaves no room for a prompt.
        """
        if self.max_prompt_tokens is not None:
            return PromptLimit(self.max_prompt_tokens, "--data.max_prompt_tokens")
        if self.context is None:
            return None
        answer = self.max_new_tokens or self.task.max_new_tokens
        if answer >= self.context:
            raise ValueError(
                f"expected answers that leave room for a prompt in the model's context of {self.context} tokens, got "
                f"{answer} new tokens"
            )
        origin = f"the model's context of {self.context:,} less {answer:,} new tokens; --data.max_prompt_tokens"
        return PromptLimit(self.context - answer, origin, self.context)

    def _attached(self) -> DepthDataModule:
        """What `attach` makes of this datamodule for the module that the trainer runs, if it was attached to none."""
        module, attached = getattr(self.trainer, "lightning_module", None), self
        if module is not None and self.context is None:
            attached = copy.copy(self)
            attached.attach(module)
        if attached.prompter is None:
            raise ValueError(
                "DepthDataModule needs a prompter, expected one as its argument or in the module that the trainer runs"
            )
        return attached

    def _loader(
        self, dataset: Dataset, batch_size: int, collator: Any, shuffle: bool = False, sampler: Any = None
    ) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=sampler,
            # Its own generator: the order must not depend on what else drew random numbers before.
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=collator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # a worker that hangs ends the run with an error, instead of holding it up for ever
            timeout=_WORKER_TIMEOUT_SECONDS if self.num_workers > 0 else 0,
        )
