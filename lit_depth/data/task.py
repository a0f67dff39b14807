"""What a task is: rows of a dataset turned into questions about images. How they are put is the model family's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch.utils.data import Dataset

from lit_depth.functional.choices import option_letters

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from lit_depth.data.rows import QuestionRows

SPLITS = ("train", "calibration", "validation")
AnswerKind = Literal["short", "choice", "number", "caption", "free"]
AnswerBy = Literal["generation", "likelihood"]


class Nouns(NamedTuple):
    """What a task's samples are called, and what intervals are clustered by."""

    sample: str = "question"
    cluster: str = "image"

    @classmethod
    def of(cls, task: Any) -> Nouns:
        """Those of a task; one of a user's own need not say any."""
        return getattr(task, "nouns", cls())


class _HostOnly:
    # Lightning moves batches to the device by walking through them, and refuses frozen dataclasses on the way unless
    # they say themselves how they move.
    def to(self, device: Any, **kwargs: Any) -> Any:
        """Return the object itself: it holds nothing that lives on a device."""
        return self


@dataclass(frozen=True)
class Sample(_HostOnly):
    """One question about an image, about several, or about none.

    Args:
        id: Unique among all samples of the task, whatever the split.
        image_id: Shared by the questions about one image; intervals are clustered by it.
        image: The picture, upright and RGB, or None for a text-only question. `Task.sample` may leave it as the row
            has it, see `lit_depth.data.images.load_image`.
        question: The question alone, without options; empty where the kind of answer says it all (a caption).
        references: Accepted answers, at least one; the first one is scored by log-probability. None where they are
            withheld.
        options: Texts of a multiple-choice question, in the order of their letters.
        meta: What a metric or a table may want to know besides, for example ``question_type``.
        task: Name of the task; empty = that of the task which gave the sample.
        answer_kind: A word or phrase (``short``), a letter of `options` (``choice``), a ``number``, a ``caption``, or
            anything (``free``); empty = the task's. A sample with options is always answered by a letter.
        more_images: Further pictures of the question in their order, as `image`.
        continuations: Texts whose log-probability behind the prompt is measured; nothing is generated then. Of a
            question with options there is one for each, and the prompt does not list these.
        target: Which of the continuations is the reference.
        prompt: The whole prompt as plain text, which no template frames; None = `question`, as the model's family asks.
        prompts: Plain prompts, one for each continuation, where these stand behind different ones.
        until: Texts of which each ends an answer that is generated: what is behind it need not be.
        tokens: Of a plain prompt with one continuation the tokens of both, where they are known.
    """

    id: str
    image_id: str
    image: Image.Image | None
    question: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    answer_kind: AnswerKind | Literal[""] = ""
    more_images: tuple[Any, ...] = ()
    continuations: tuple[str, ...] = ()
    target: int = 0
    prompt: str | None = None
    prompts: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    tokens: tuple[Sequence[int], Sequence[int]] | None = None

    @property
    def images(self) -> tuple[Any, ...]:
        """All pictures of the question, in order."""
        return (() if self.image is None else (self.image,)) + self.more_images

    def pieces(self) -> list[Sample]:
        """The sample once for each run of equal `prompts`, with that prompt and the continuations behind it."""
        if not self.prompts:
            return [self]
        pairs = groupby(zip(self.prompts, self.continuations, strict=True), key=lambda pair: pair[0])
        return [
            replace(self, prompt=prompt, prompts=(), continuations=tuple(text for _, text in those), target=0)
            for prompt, those in pairs
        ]


def by_likelihood(sample: Sample) -> Sample:
    """The sample with its options as continuations of the question, which does not list them.

    >>> sample = Sample("1", "1", None, "Which one barks?", ("B",), options=("cat", "dog"))
    >>> found = by_likelihood(sample)
    >>> found.continuations, found.target
    (('cat', 'dog'), 1)

    Raises:
        ValueError: If it has no options, or one without a text.
    """
    if not sample.options or not all(option.strip() for option in sample.options):
        raise ValueError("expected options with a text each to choose from by log-likelihood, got none or an empty one")
    target = option_letters(sample.options).index(sample.references[0]) if sample.references else 0
    return replace(sample, continuations=sample.options, target=target)


@dataclass(frozen=True)
class BadSample(_HostOnly):
    """A row that could not be turned into a `Sample`: which one, and why. It is counted, never scored."""

    id: str
    reason: str


@dataclass(frozen=True)
class TrainingItem(_HostOnly):
    """One image with all its questions, for training.

    Args:
        image: The picture.
        questions: All that is asked about it.
        answers: One answer per question.
        grid: Rows and columns of the labelled grid of equal cells that covers the image; (0, 0) without labels.
        cell_shapes: Shape class of every cell in row-major order.
        cell_colors: Colour class of every cell in row-major order.
    """

    image: Image.Image
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    grid: tuple[int, int] = (0, 0)
    cell_shapes: tuple[int, ...] = ()
    cell_colors: tuple[int, ...] = ()


class Task:
    """A dataset, what is asked of it, and the metric that scores the answers. Subclasses override the methods.

    Attributes:
        name: The name that the command line knows it by, and by which a model family may know it from its training.
        answer_kind: See `Sample`.
        metric: Name in `lit_depth.metrics`, or class path of a :class:`torchmetrics.Metric`.
        max_new_tokens: Longest answer, in tokens.
        answer_by: How options are chosen from: by a generated letter, or by the log-probability of each one's text.
        without_answers: Whether questions are asked whose answers are withheld; nothing is scored then.
        nouns: What its samples are called, and what they are clustered by.
        read_by: The metric that would score them; empty = none is known.
        needs_image: Whether a sample without image is a bad one.
        in_training_mixture: Whether released checkpoints were trained on the very rows that are evaluated.
        streaming: Whether rows come from `stream`, as many as are needed, instead of `load`.
        train_in_order: Whether training items come in their own order instead of a shuffled one.
    """

    name: str
    answer_kind: AnswerKind = "short"
    answer_by: AnswerBy = "generation"
    metric: str
    max_new_tokens: int
    without_answers: bool = False
    nouns: Nouns = Nouns()
    read_by: str = ""
    needs_image: bool = False
    in_training_mixture: bool = False
    streaming: bool = False
    train_in_order: bool = False

    def load(self, split: str, path: str | None = None) -> datasets.Dataset | QuestionRows:
        """Return the rows of a split, one row per question.

        Args:
            split: The role of the data: "train", "calibration" or "validation".
            path: A local folder with parquet files of the same columns, instead of the task's own source.

        Raises:
            ValueError: If the split is unknown or a column is missing.
        """
        raise NotImplementedError

    def stream(self, split: str, num_samples: int, path: str | None = None) -> QuestionRows:
        """Return some rows of a split without reading the rest; fewer rows are a subset of more.

        Args:
            split: As for `load`.
            num_samples: How many rows.
            path: As for `load`.

        Raises:
            ValueError: As `load`, and if the task cannot be streamed, which is the default.
        """
        raise ValueError(f"{self.name} cannot be streamed")

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        """Turn one row into a `Sample`; an exception costs this sample only.

        The image is handed on as it stands in the row, not converted: ids are also read from rows whose images were
        left undecoded or unread.
        """
        raise NotImplementedError

    def training_set(self, num_images: int, seed: int) -> Dataset[TrainingItem]:
        """Return `num_images` training items.

        Raises:
            ValueError: If the task is for evaluation only, which is the default.
        """
        raise ValueError(
            f"expected a task that can be trained on, such as shapes_vqa; {self.name} is for evaluation only"
        )


def task_names() -> set[str]:
    """Names of all tasks that there are, a user's own included: each may have a folder beside the others'."""
    kinds = [Task]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.name for kind in kinds if hasattr(kind, "name")}


def check_split(split: str) -> str:
    """Return `split` if it is one of the three roles.

    >>> check_split("validation")
    'validation'

    Raises:
        ValueError: If it is not.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return split
