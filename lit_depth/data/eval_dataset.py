"""Which rows of a split are evaluated, as samples, and which process gets which batch of them."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from lit_depth.data.images import ImageFolder, image_digest, load_image, stored_path
from lit_depth.data.rows import QuestionRows
from lit_depth.data.task import BadSample, Sample, Task, by_likelihood

if TYPE_CHECKING:
    import datasets

NO_SAMPLE: Any = None  # position of no sample
# of a sample
_ASKED = ("id", "image_id", "task", "answer_kind", "question", "options", "references")
_SCORED = ("continuations", "target", "prompt", "prompts", "until", "tokens")


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

    def check_options(self) -> None:
        """Refuse questions without options where one is to be chosen by log-likelihood.

        Raises:
            ValueError: If none of them can be asked so, naming the task.
        """
        is_asked = getattr(self.task, "answer_by", "generation") == "likelihood"
        if not is_asked or not len(self) or any(sample is not None for sample in self._undecoded()):
            return
        plain = copy.copy(self.task)
        plain.answer_by = "generation"
        if any(sample is not None and not sample.options for sample in replace(self, task=plain)._undecoded()):
            raise ValueError(
                f"--data.answer_by likelihood chooses among options, and the questions of {self.task.name} have none: "
                "leave it out, or take a task with options, such as science_qa_img or mmmu"
            )

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
