"""The datamodule: which questions a run sees, in which order, in which batches."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lit_depth.data.collate import EvalCollator
from lit_depth.data.columns import BY_LIKELIHOOD
from lit_depth.data.images import ImageFolder, image_digest, load_image, stored_path
from lit_depth.data.lengths import PromptLimit
from lit_depth.data.rows import QuestionRows
from lit_depth.data.task import AnswerBy, BadSample, Sample, Task, by_likelihood, check_split
from lit_depth.data.tasks import TASKS, get_task
from lit_depth.data.tasks.next_token import LONGEST_WINDOW, NextToken, is_text
from lit_depth.data.tasks.own_files import OwnFiles, say
from lit_depth.functional.arguments import check_least, check_range, checked
from lit_depth.functional.class_paths import object_at
from lit_depth.functional.masking.blocks import context_length

if TYPE_CHECKING:
    import datasets

_WORKER_TIMEOUT_SECONDS = 600
NO_SAMPLE: Any = None  # position of no sample
# of a sample
_ASKED = ("id", "image_id", "task", "answer_kind", "question", "options", "references")
_SCORED = ("continuations", "target", "prompt", "prompts", "tokens")
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
        is_own = path is not None and task is None and tasks is None
        if path is not None and (task == NextToken.name or (is_own and is_text(path))):
            is_own, columns, task = False, None, _next_token(path, columns)
        if (columns or allow_outside) and not is_own:
            raise ValueError("expected columns and allow_outside with a path and no task: a task knows its own columns")
        if is_own:
            task = OwnFiles(str(path), columns, allow_outside)
            task.answer_by = answer_by or task.answer_by  # before it guesses its metric
            if metric is not None:
                task.metric = metric
            task.tell()
        names = _all_tasks(path) if tasks == "all" else ([task or "shapes_vqa"] if tasks is None else tasks)
        self.tasks = [get_task(entry) if isinstance(entry, str) else entry for entry in names]
        for entry in self.tasks:
            lacking = [name for name in ("name", "metric", "max_new_tokens") if not hasattr(entry, name)]
            if lacking:
                raise ValueError(f"expected a task with {', '.join(lacking)}, got a {type(entry).__name__} without")
        known = [entry.name for entry in self.tasks]
        if not known or len(set(known)) < len(known):
            raise ValueError(f"expected at least one of tasks, each with a name of its own, got {known}")
        if answer_by is not None or metric is not None:
            self.tasks = list(map(copy.copy, self.tasks))  # a task that was given stays as it is
        for entry in self.tasks:
            if answer_by is not None:
                entry.answer_by = answer_by
            if metric is not None:
                entry.metric = metric
            elif answer_by == "likelihood" and not is_own:  # which guess theirs, and say so
                entry.metric = BY_LIKELIHOOD
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
        shard: tuple[int, int] = (0, 1),
        positions: Sequence[int] | None = None,
    ) -> DataLoader:
        """Batches of a split in a fixed order, see `EvalCollator`.

        Args:
            split: "train", "calibration" or "validation".
            num_samples: Questions to take; None = as many as the datamodule was made with.
            positions: Of these questions only some, by their position in `eval_dataset`; None = all.
            shard: (rank, number of processes): the process gets every so-manieth batch. Batches are the same whatever
                the number of processes, so padding and results are too, and no sample is repeated; a process for which
                no batch is left gets an empty one.
        """
        attached = self._attached()
        collator = EvalCollator(attached.prompter, attached.prompt_limit())
        dataset = self.eval_dataset(split, num_samples)
        dataset.check_seen_by(attached.prompter)
        # without a study that measures what fits, such as under `lit-depth validate`
        batch_size = 32 if self.batch_size == "auto" else self.batch_size
        if positions is not None:
            dataset = dataset.take(positions)
        sampler = BatchShards(dataset, batch_size, *shard) if shard[1] > 1 else None
        return self._loader(dataset, batch_size, collator, sampler=sampler)

    def eval_dataset(self, split: str = "validation", num_samples: int | None = None) -> EvalDataset:
        """The samples that `eval_dataloader` batches."""
        if num_samples is None:
            num_samples = self.calibration_samples if split == "calibration" else self.num_samples
        rows = self._load(split, num_samples)
        if num_samples is not None and num_samples > len(rows) and (self.task.name, split) not in self._told:
            self._told.add((self.task.name, split))
            rank_zero_warn(
                f"{self.task.name} has {len(rows):,} questions in its {split} split, fewer than the {num_samples:,} "
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
        for kind, index in (("samples", 0), ("images", 1)):
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

    def check_seen(self, splits: Sequence[str]) -> None:
        """Refuse tasks whose questions are about images for a model that sees none.

        Raises:
            ValueError: Naming the task.
        """
        for each in self.for_each_task():
            for split in splits:
                each.eval_dataset(split).check_seen_by(self._attached().prompter)

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


class BatchShards(DistributedSampler):
    """Every ``num_replicas``-th whole batch, none repeated; a `DistributedSampler` only so that Lightning keeps it.

    A process without a batch gets `NO_SAMPLE`: a batch of nothing, because Lightning calls no hook for an empty loader.

    >>> [list(BatchShards(range(10), 3, rank, 2)) for rank in (0, 1)]
    [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9]]
    >>> list(BatchShards(range(10), 3, 4, 5))
    [None]
    """

    def __init__(self, dataset: Sequence[Any] | Dataset, batch_size: int, rank: int, num_replicas: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)  # type: ignore[arg-type]
        size = len(dataset)  # type: ignore[arg-type]
        starts = range(0, size, batch_size)[rank::num_replicas]
        positions = [position for start in starts for position in range(start, min(start + batch_size, size))]
        self._positions = positions or [NO_SAMPLE]

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


@dataclass(eq=False)
class EvalDataset(Dataset):
    """Chosen rows of a split as samples; a row that cannot be read becomes a `BadSample` instead of an error.

    Args:
        rows: What `Task.load` returned.
        task: The task of these rows.
        split: Their split.
        indices: The chosen rows.
        folder: Where rows may name images by path, if they do not say so themselves; None = anywhere.
        drop_images: Leave all images out, unread.
    """

    rows: datasets.Dataset | QuestionRows
    task: Task
    split: str
    indices: list[int]
    folder: ImageFolder | None = None
    drop_images: bool = False

    def __post_init__(self) -> None:
        self.folder = getattr(self.rows, "folder", None) or self.folder
        self.rows = _undecoded_rows(self.rows) if self.drop_images else self.rows

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample | BadSample:
        if position is NO_SAMPLE:
            return None  # type: ignore[return-value]  # which `EvalCollator` leaves out
        index = self.indices[position]
        name = self._place(index)
        try:
            sample = self._sample(self.rows[index], index)
            name = sample.id
            sample = self._without(sample) if self.drop_images else self._with_images(sample)
            if getattr(self.task, "without_answers", False):
                sample = replace(sample, references=())
            elif not sample.references:
                raise ValueError("no reference answer")
        # Whatever a broken file or row raises costs this sample, never the run.
        except Exception as error:
            return BadSample(name, f"{type(error).__name__}: {error}")
        return sample

    def _with_images(self, sample: Sample) -> Sample:
        more = tuple(load_image(image, self.folder) for image in sample.more_images)
        if sample.image is None and not self.task.needs_image:
            return replace(sample, more_images=more)
        return replace(sample, image=load_image(sample.image, self.folder), more_images=more)

    @staticmethod
    def _without(sample: Sample) -> Sample:
        return replace(sample, image=None, more_images=())

    def check_seen_by(self, prompter: Any) -> None:
        """Refuse questions about images for a prompter whose model sees none; the first readable one tells.

        Raises:
            ValueError: As the prompter says.
        """
        if getattr(prompter, "sees_images", True):
            return
        first = next((sample for sample in map(self.__getitem__, range(len(self))) if isinstance(sample, Sample)), None)
        if first is not None and first.images:
            raise ValueError(f"task {self.task.name}: {prompter.why_unseen()}")

    def _sample(self, row: dict[str, Any], index: int) -> Sample:
        sample, task = self.task.sample(row, self.split, index), self.task
        sample = replace(sample, task=sample.task or task.name, answer_kind=sample.answer_kind or task.answer_kind)
        is_asked = getattr(task, "answer_by", "generation") == "likelihood" and not sample.continuations
        return by_likelihood(sample) if is_asked else sample

    def take(self, positions: Sequence[int]) -> EvalDataset:
        """The same rows, fewer of them chosen: those at these positions."""
        return replace(self, indices=[self.indices[position] for position in positions])

    def ids(self) -> list[tuple[str, str]]:
        """Return (sample id, image id) of every readable sample, without decoding the images.

        Raises:
            ValueError: If two samples have the same id: results are stored and compared by it.
        """
        ids = [(sample.id, sample.image_id) for sample in self._undecoded() if sample is not None]
        distinct = len({sample_id for sample_id, _ in ids})
        if distinct < len(ids):
            raise ValueError(
                f"expected distinct sample ids, but task {self.task.name!r} gives only {distinct} to the {len(ids)} "
                f"chosen samples of split {self.split!r}"
            )
        return ids

    def recorded_ids(self) -> list[tuple[str, str]]:
        """(sample id, image id) of every sample, in order; an unreadable one goes by the name of its `BadSample`."""
        names = [self._place(index) for index in self.indices]
        return [
            (name, name) if sample is None else (sample.id, sample.image_id)
            for name, sample in zip(names, self._undecoded())
        ]

    def without_images(self) -> list[Sample]:
        """The readable samples that have a reference answer, in order, their images as they are stored, or none.

        No image is decoded, and none is read where rows are read by columns. Without answers, no reference is needed.
        """
        is_open = getattr(self.task, "without_answers", False)
        return [sample for sample in self._undecoded() if sample is not None and (sample.references or is_open)]

    def fingerprint(self) -> str:
        """Hash of all that the chosen samples are asked and scored by, images as they are stored: see `image_digest`.

        Images are read one after another, and none is kept or decoded.
        """
        digest, images = hashlib.sha256(), []
        for place, sample in zip(map(self._place, self.indices), self._undecoded()):
            asked: Any = place
            if sample is not None:
                is_scored = bool(sample.continuations) or sample.prompt is not None
                asked = [getattr(sample, name) for name in (*_ASKED, *(_SCORED if is_scored else ()))]
            digest.update(repr(asked).encode(errors="surrogatepass"))
            if sample is not None and not self.drop_images:
                # those of a table's own column are read below, each once
                first = [] if isinstance(self.rows, QuestionRows) else [sample.image]
                images += [image_digest(image, self.folder) for image in (*first, *sample.more_images)]
        if isinstance(self.rows, QuestionRows) and not self.drop_images:
            images += [image_digest(image, self.folder) for image in self.rows.images(self.indices)]
        digest.update(repr(images).encode())
        return f"{len(self)} samples, {digest.hexdigest()[:16]}"

    def image_files(self) -> dict[str, str]:
        """Paths of images that nothing else tells apart, by `image_digest`: copies have different names."""
        rows = self.rows
        if not isinstance(rows, QuestionRows) or not rows.layout.by_content or self.drop_images:
            return {}
        paths = filter(None, map(stored_path, rows.images(self.indices)))
        return {image_digest(path, self.folder): path for path in paths}

    def _place(self, index: int) -> str:
        return f"{self.task.name}/{self.split}/{index}"

    def _undecoded(self) -> Iterator[Sample | None]:
        """The samples in order, without decoding their images; None where the text is not readable."""
        rows = _undecoded_rows(self.rows)
        for index in self.indices:
            sample = None
            # A bad row is reported where it is evaluated.
            with contextlib.suppress(Exception):
                sample = self._sample(rows[index], index)
            yield sample


def _undecoded_rows(rows: datasets.Dataset | QuestionRows) -> Any:
    """The same rows, their images as they are stored, or left out where rows are read by columns."""
    if isinstance(rows, QuestionRows):
        return rows.without_images()
    import datasets

    for column, feature in getattr(rows, "features", {}).items():  # a task may return a list
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def choose_rows(num_rows: int, num_samples: int | None, key: str) -> list[int]:
    """Choose rows pseudo-randomly: ascending, the same everywhere, and fewer rows are a subset of more.

    >>> choose_rows(1000, 4, "0/validation")
    [105, 183, 186, 436]

    Args:
        num_rows: Rows to choose from.
        num_samples: How many; None or more than there are = all.
        key: Another key gives another choice.
    """
    if num_samples is None or num_samples >= num_rows:
        return list(range(num_rows))
    return list(_lowest_ranks(num_rows, num_samples, key))


# A dataset of millions of questions takes seconds to rank, and a run asks several times.
@lru_cache(maxsize=64)
def _lowest_ranks(num_rows: int, num_samples: int, key: str) -> tuple[int, ...]:
    # Ranks by hash do not depend on any library's random stream, so resumed runs see the same samples years later.
    ranks = heapq.nsmallest(
        num_samples, range(num_rows), key=lambda row: hashlib.blake2b(f"{key}/{row}".encode()).digest()
    )
    return tuple(sorted(ranks))


def _next_token(path: str, columns: dict[str, str | None] | None) -> NextToken:
    unknown = sorted(set(columns or {}) - {"text"})
    if unknown:
        raise ValueError(f"--data.columns: expected text, the column of the texts, got {', '.join(unknown)}")
    say(f"{path}: texts, so every token is to be predicted (task next_token, metric {NextToken.metric})")
    return NextToken((columns or {}).get("text"))


def _all_tasks(path: str | None) -> list[str | Task]:
    """Names of all built-in tasks; where a folder is given, of those that have one in it."""
    names: list[str | Task] = [kind.name for kind in TASKS if path is None or Path(path, kind.name).is_dir()]
    if not names:
        raise ValueError(f"expected folders called as the tasks in {path}, such as {TASKS[1].name}; there are none")
    return names
