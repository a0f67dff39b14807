"""The datamodule: which questions a run sees, in which order, in which batches."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_depth.data.packing import EvalCollator, PackedCollator
from lit_depth.data.task import BadSample, Sample, Task, check_split
from lit_depth.data.tasks import get_task

if TYPE_CHECKING:
    import datasets


class DepthDataModule(LightningDataModule):
    """Batches of one task: the calibration split to select on, the validation split to report on.

    Which samples are taken depends on `seed` and the counts only, never on the process or the batch size, and fewer
    samples are a subset of more. Lightning shards the loaders over processes.

    Args:
        processor: Turns images and prompts into tensors; by default that of the module that the trainer runs.
        task: Name of a built-in task, or a `Task`.
        path: Local folder of parquet files to read instead of the task's own source.
        batch_size: Questions per evaluation batch and process.
        train_batch_size: Images per training batch and process; each comes with all its questions.
        num_samples: Questions taken from the validation split (and any but calibration); null = all.
        calibration_samples: Questions taken from the calibration split; null = all.
        max_prompt_tokens: Longest prompt, image tokens included; a longer one costs its sample. null = no limit.
        train_images: Images per training epoch.
        num_workers: Worker processes per loader; 0 = load in the main process.
        seed: Chooses the samples, and the training images and their order.
    """

    def __init__(
        self,
        processor: Any = None,
        task: str | Task = "shapes_vqa",
        path: str | None = None,
        batch_size: int = 32,
        train_batch_size: int = 32,
        num_samples: int | None = 256,
        calibration_samples: int | None = 256,
        max_prompt_tokens: int | None = None,
        train_images: int = 50_000,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {
            "batch_size": batch_size,
            "train_batch_size": train_batch_size,
            "num_samples": num_samples,
            "calibration_samples": calibration_samples,
            "max_prompt_tokens": max_prompt_tokens,
            "train_images": train_images,
        }
        for argument, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{argument} must be at least 1, got {count}")
        self.processor = processor
        self.task = get_task(task) if isinstance(task, str) else task
        self.path = path
        self.batch_size = batch_size
        self.train_batch_size = train_batch_size
        self.num_samples = num_samples
        self.calibration_samples = calibration_samples
        self.max_prompt_tokens = max_prompt_tokens
        self.train_images = train_images
        self.num_workers = num_workers
        self.seed = seed
        self._rows: dict[str, datasets.Dataset] = {}

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of packed images, see `PackedCollator`."""
        images = self.task.training_set(self.train_images, self.seed)
        return self._loader(images, self.train_batch_size, PackedCollator(self._find_processor()), shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """The validation split in evaluation batches; `test_dataloader` and `predict_dataloader` are the same."""
        return self.eval_dataloader("validation")

    def test_dataloader(self) -> DataLoader:
        return self.eval_dataloader("validation")

    def predict_dataloader(self) -> DataLoader:
        return self.eval_dataloader("validation")

    def eval_dataloader(self, split: str = "validation", num_samples: int | None = None) -> DataLoader:
        """Batches of a split in a fixed order, see `EvalCollator`.

        Args:
            split: "train", "calibration" or "validation".
            num_samples: Questions to take; None = as many as the datamodule was made with.
        """
        collator = EvalCollator(self._find_processor(), self.task, self.max_prompt_tokens)
        return self._loader(self.eval_dataset(split, num_samples), self.batch_size, collator)

    def eval_dataset(self, split: str = "validation", num_samples: int | None = None) -> EvalDataset:
        """The samples that `eval_dataloader` batches."""
        rows = self._load(split)
        if num_samples is None:
            num_samples = self.calibration_samples if split == "calibration" else self.num_samples
        return EvalDataset(rows, self.task, split, choose_rows(len(rows), num_samples, f"{self.seed}/{split}"))

    def check_disjoint(self, split_a: str, split_b: str) -> None:
        """Refuse two splits whose chosen samples overlap: what selects masks must not also report on them.

        Raises:
            ValueError: If they share a sample, or an image.
        """
        ids_a, ids_b = self.eval_dataset(split_a).ids(), self.eval_dataset(split_b).ids()
        for kind, index in (("samples", 0), ("images", 1)):
            shared = {ids[index] for ids in ids_a} & {ids[index] for ids in ids_b}
            if shared:
                raise ValueError(
                    f"splits {split_a!r} and {split_b!r} of task {self.task.name!r} must not overlap, "
                    f"but share {len(shared)} {kind}, for example {min(shared)!r}"
                )

    def _load(self, split: str) -> datasets.Dataset:
        if check_split(split) not in self._rows:
            self._rows[split] = self.task.load(split, self.path)
        return self._rows[split]

    def _find_processor(self) -> Any:
        module = getattr(self.trainer, "lightning_module", None)
        processor = self.processor if self.processor is not None else getattr(module, "processor", None)
        if processor is None:
            raise ValueError("DepthDataModule needs a processor: pass one, or run it with a module that has one")
        return processor

    def _loader(self, dataset: Dataset, batch_size: int, collator: Any, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            # Its own generator: the order must not depend on what else drew random numbers before.
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=collator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class EvalDataset(Dataset):
    """Chosen rows of a split as samples; a row that cannot be read becomes a `BadSample` instead of an error.

    Args:
        rows: What `Task.load` returned.
        task: The task of these rows.
        split: Their split.
        indices: The chosen rows.
    """

    def __init__(self, rows: datasets.Dataset, task: Task, split: str, indices: list[int]) -> None:
        self.rows = rows
        self.task = task
        self.split = split
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample | BadSample:
        index = self.indices[position]
        try:
            sample = self.task.sample(self.rows[index], self.split, index)
            if sample.image is not None:
                sample.image.load()
            if not sample.references:
                raise ValueError("no reference answer")
        # Whatever a broken file or row raises costs this sample, never the run.
        except Exception as error:
            return BadSample(f"{self.task.name}/{self.split}/{index}", f"{type(error).__name__}: {error}")
        return sample

    def ids(self) -> list[tuple[str, str]]:
        """Return (sample id, image id) of every readable sample, without decoding the images.

        Raises:
            ValueError: If two samples have the same id: results are stored and compared by it.
        """
        ids = [(sample.id, sample.image_id) for sample in self._undecoded()]
        distinct = len({sample_id for sample_id, _ in ids})
        if distinct < len(ids):
            raise ValueError(
                f"expected distinct sample ids, but task {self.task.name!r} gives only {distinct} to the {len(ids)} "
                f"chosen samples of split {self.split!r}"
            )
        return ids

    def fingerprint(self) -> str:
        """Hash of the chosen samples' ids, questions and references: other data give another one."""
        digest = hashlib.sha256()
        for sample in self._undecoded():
            digest.update(repr((sample.id, sample.image_id, sample.question, sample.references)).encode())
        return f"{len(self)} samples, {digest.hexdigest()[:16]}"

    def _undecoded(self) -> Iterator[Sample]:
        """The readable samples without decoding their images."""
        import datasets

        rows = self.rows
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        for index in self.indices:
            # A bad row is reported where it is evaluated.
            with contextlib.suppress(Exception):
                yield self.task.sample(rows[index], self.split, index)


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
    # Ranks by hash do not depend on any library's random stream, so resumed runs see the same samples years later.
    ranks = sorted(range(num_rows), key=lambda row: hashlib.blake2b(f"{key}/{row}".encode()).digest())
    return sorted(ranks[:num_samples])
