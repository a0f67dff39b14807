"""The built-in task ``shapes_vqa``: coloured shapes on a small grid, and questions with one-word answers.

Nothing is stored: an image and its questions follow from (seed, split, index) alone, and are the same bytes on every
machine. Scenes are dealt to the splits by a hash of their content, so two splits never show the same scene.
"""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from lit_depth.data.task import Sample, Task, TrainingItem, check_split

if TYPE_CHECKING:
    import datasets

SHAPES = ("circle", "square", "triangle", "cross", "star", "diamond")
COLORS = {
    "red": (214, 30, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 215, 10),
    "purple": (150, 40, 175),
    "orange": (255, 128, 0),
    "black": (20, 20, 20),
}
NUMBERS = ("zero", "one", "two", "three", "four")
# Per axis of the grid, rows first: the words of a question and the answers "first is before" and "first is after".
RELATIONS = (("above or below", "above", "below"), ("left or right of", "left", "right"))
# What "above the red circle" means: words, and the step in rows and columns.
DIRECTIONS = (("above", (-1, 0)), ("below", (1, 0)), ("left of", (0, -1)), ("right of", (0, 1)))
# Per axis of the grid, rows first: its name, and where its lines are, of two and of three.
PLACES = (
    ("row", {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}),
    ("column", {2: ("left", "right"), 3: ("left", "middle", "right")}),
)
# Yes/no questions are 15%, so that no constant answer scores more than about 8%.
TYPE_WEIGHTS = {"color": 0.25, "shape": 0.25, "count": 0.20, "existence": 0.15, "relation": 0.15}
# Steps on the way to relations, for training alone: where one object is, and what stands beside it.
TRAINING_TYPES = (*TYPE_WEIGHTS, "place", "hop")
QUESTIONS_PER_IMAGE = {"train": 6, "calibration": 4, "validation": 4}
GRIDS = ((2, 2), (2, 3), (3, 2))  # rows, columns
CELL_PIXELS = 28
# Class ids of a cell without an object, after the ids of the shapes and of the colours.
EMPTY_SHAPE, EMPTY_COLOR = len(SHAPES), len(COLORS)

_COLOR_NAMES = tuple(COLORS)
_ALL_OBJECTS = tuple((shape, color) for shape in range(len(SHAPES)) for color in range(len(COLORS)))
# Large counts are rarer among the scenes than small ones; these weights make up for it.
_COUNT_WEIGHTS = (2, 2, 3, 6, 12)
# Unit vectors to the tips of a five-pointed star, in thousandths; y points down.
_STAR_TIPS = ((0, -1000), (951, -309), (588, 809), (-588, 809), (-951, -309))
_T = TypeVar("_T")


class Draws:
    """Random choices that are the same on every machine and with every version of numpy.

    numpy guarantees the stream of a bit generator, but not that of `numpy.random.Generator`'s methods, so integers are
    taken from the raw stream.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))
        self._raw = _integers(bits)

    def below(self, stop: int) -> int:
        """Return an integer from 0 to `stop` - 1."""
        return next(self._raw) % stop

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[_T], weights: Sequence[int] | None = None) -> _T:
        """Return one of the items, with integer weights if given."""
        if weights is None:
            return items[self.below(len(items))]
        point = self.below(sum(weights))
        for item, weight in zip(items, weights):
            point -= weight
            if point < 0:
                return item
        raise AssertionError("weights must be non-negative")

    def subset(self, size: int, stop: int) -> list[int]:
        """Return `size` distinct integers below `stop`, in random order."""
        pool = list(range(stop))
        return [pool.pop(self.below(len(pool))) for _ in range(size)]


def _integers(bits: np.random.PCG64) -> Iterator[int]:
    """The raw stream, taken many at a time: numpy's call for one integer takes longer than all that is done with it."""
    while True:
        yield from bits.random_raw(256).tolist()


@dataclass(frozen=True)
class Scene:
    """What an image shows: per cell, in row-major order, a (shape id, colour id) pair, or None where it is empty."""

    rows: int
    columns: int
    cells: tuple[tuple[int, int] | None, ...]

    @property
    def objects(self) -> list[tuple[int, int]]:
        return [cell for cell in self.cells if cell is not None]

    def split(self) -> str:
        """Return the only split that may show this scene: 80% train, 10% calibration, 10% validation."""
        digest = hashlib.sha256(repr((self.rows, self.columns, self.cells)).encode()).digest()
        tenth = int.from_bytes(digest[:8], "big") % 10
        return "calibration" if tenth == 0 else "validation" if tenth == 1 else "train"


@dataclass(frozen=True)
class Question:
    """A question with its one-word answer; `type` is one of `TRAINING_TYPES`."""

    text: str
    answer: str
    type: str


@dataclass(frozen=True)
class ShapesImage:
    """A scene, its picture and its questions."""

    image_id: str
    image: Image.Image
    scene: Scene
    questions: tuple[Question, ...]


def draw_shapes_image(
    seed: int, split: str, index: int, type_weights: Mapping[str, float] = TYPE_WEIGHTS
) -> ShapesImage:
    """Return image number `index` of a split; the arguments determine every pixel and every word.

    >>> shapes = draw_shapes_image(seed=0, split="validation", index=0)
    >>> shapes.image.size, shapes.questions[0].text, shapes.questions[0].answer
    ((84, 56), 'What color is the diamond?', 'green')
    """
    draws = Draws("shapes_vqa", seed, check_split(split), index)
    types = _draw_types(draws, QUESTIONS_PER_IMAGE[split], type_weights)
    # A tenth of all scenes belongs to an evaluation split, and not all allow the questions: the bound is far away.
    for _ in range(100_000):
        scene = _draw_scene(draws)
        if scene.split() != split:
            continue
        questions = _draw_questions(draws, scene, types)
        if questions is not None:
            return ShapesImage(f"{split}-{seed}-{index:06d}", _paint(draws, scene), scene, questions)
    raise AssertionError(f"no scene found for seed {seed}, split {split}, index {index}")


def _draw_types(draws: Draws, count: int, weights: Mapping[str, float]) -> list[str]:
    # Systematic sampling: equally spaced points with one random offset give every type its share on average, and
    # each image the share rounded up or down.
    offset = draws.below(1 << 20) / (1 << 20)
    edges = np.cumsum(list(weights.values()))
    return [tuple(weights)[int(np.searchsorted(edges, (i + offset) / count, side="right"))] for i in range(count)]


def _draw_scene(draws: Draws) -> Scene:
    rows, columns = draws.choice(GRIDS)
    # Few shapes and colours per scene, so that counts above one happen.
    shapes = draws.subset(draws.between(2, 5), len(SHAPES))
    colors = draws.subset(draws.between(2, 5), len(COLORS))
    cells: list[tuple[int, int] | None] = [None] * (rows * columns)
    for cell in draws.subset(draws.between(2, rows * columns), rows * columns):
        cells[cell] = (draws.choice(shapes), draws.choice(colors))
    return Scene(rows, columns, tuple(cells))


def _draw_questions(draws: Draws, scene: Scene, types: list[str]) -> tuple[Question, ...] | None:
    # None when the scene does not allow as many different questions of the types.
    questions: dict[str, Question] = {}
    for type_ in types:
        for _ in range(6):
            question = _ASK[type_](draws, scene)
            if question is None:
                return None
            if question.text not in questions:
                questions[question.text] = question
                break
        else:
            return None
    return tuple(questions.values())


def _unique(values: Sequence[_T]) -> list[_T]:
    return [value for value in values if values.count(value) == 1]


def _name(item: tuple[int, int]) -> str:
    return f"{_COLOR_NAMES[item[1]]} {SHAPES[item[0]]}"


def plural(shape: str) -> str:
    """Return the plural of a shape's name.

    >>> plural("cross"), plural("star")
    ('crosses', 'stars')
    """
    return shape + ("es" if shape.endswith("ss") else "s")


def _draw_known_by(draws: Draws, scene: Scene, part: int) -> tuple[int, int] | None:
    # An object whose shape (part 0) or colour (part 1) no other one has.
    unique = _unique([item[part] for item in scene.objects])
    known = draws.choice(unique) if unique else None
    return next((item for item in scene.objects if item[part] == known), None)


def _ask_color(draws: Draws, scene: Scene) -> Question | None:
    item = _draw_known_by(draws, scene, 0)
    return item and Question(f"What color is the {SHAPES[item[0]]}?", _COLOR_NAMES[item[1]], "color")


def _ask_shape(draws: Draws, scene: Scene) -> Question | None:
    item = _draw_known_by(draws, scene, 1)
    return item and Question(f"What shape is the {_COLOR_NAMES[item[1]]} object?", SHAPES[item[0]], "shape")


def _ask_count(draws: Draws, scene: Scene) -> Question:
    shapes, colors = zip(*scene.objects)
    counts = {plural(name): shapes.count(i) for i, name in enumerate(SHAPES)}
    counts |= {f"{name} objects": colors.count(i) for i, name in enumerate(COLORS)}
    # First the answer, then what to count: otherwise nearly all answers are zero or one.
    values = sorted({count for count in counts.values() if count < len(NUMBERS)})
    value = draws.choice(values, [_COUNT_WEIGHTS[v] for v in values])
    things = draws.choice([thing for thing, count in counts.items() if count == value])
    return Question(f"How many {things} are there?", NUMBERS[value], "count")


def _ask_existence(draws: Draws, scene: Scene) -> Question:
    present = scene.objects
    if draws.below(2):
        item, answer = draws.choice(present), "yes"
    else:
        absent = [item for item in _ALL_OBJECTS if item not in present]
        shapes, colors = {s for s, _ in present}, {c for _, c in present}
        # Half of them name a colour and a shape that are both there, only not together.
        mixed = [(s, c) for s, c in absent if s in shapes and c in colors]
        item, answer = draws.choice(mixed if mixed and draws.below(2) else absent), "no"
    article = "an" if _name(item)[0] in "aeiou" else "a"
    return Question(f"Is there {article} {_name(item)}?", answer, "existence")


def _unique_places(scene: Scene) -> dict[tuple[int, int], tuple[int, int]]:
    """Row and column of every object that has no twin."""
    return {item: divmod(scene.cells.index(item), scene.columns) for item in _unique(scene.objects)}


def _ask_relation(draws: Draws, scene: Scene) -> Question | None:
    place = _unique_places(scene)
    axis = draws.below(2)  # 0: rows, 1: columns
    # two objects of one row are neither above nor below each other
    pairs = [(a, b) for a in place for b in place if place[a][axis] != place[b][axis]]
    if not pairs:
        return None
    first, second = draws.choice(pairs)
    words, before, after = RELATIONS[axis]
    answer = before if place[first][axis] < place[second][axis] else after
    return Question(f"Is the {_name(first)} {words} the {_name(second)}?", answer, "relation")


def _ask_place(draws: Draws, scene: Scene) -> Question | None:
    place = _unique_places(scene)
    if not place:
        return None
    item = draws.choice(list(place))
    axis = draws.below(2)
    line, words = PLACES[axis]
    answer = words[(scene.rows, scene.columns)[axis]][place[item][axis]]
    return Question(f"Which {line} is the {_name(item)} in?", answer, "place")


def _ask_hop(draws: Draws, scene: Scene) -> Question | None:
    hops = []
    for item, (row, column) in _unique_places(scene).items():
        for words, (down, right) in DIRECTIONS:
            y, x = row + down, column + right
            if 0 <= y < scene.rows and 0 <= x < scene.columns and (cell := scene.cells[y * scene.columns + x]):
                hops.append((item, words, cell))
    if not hops:
        return None
    item, words, (shape, color) = draws.choice(hops)
    kind, answer = ("color", _COLOR_NAMES[color]) if draws.below(2) else ("shape", SHAPES[shape])
    return Question(f"What {kind} is the object {words} the {_name(item)}?", answer, "hop")


_ASK = {
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "existence": _ask_existence,
    "relation": _ask_relation,
    "place": _ask_place,
    "hop": _ask_hop,
}


@cache
def _shape_mask(shape: str, radius: int, dx: int, dy: int) -> np.ndarray:
    # Bool [28, 28]. Integer arithmetic only: drawing libraries change their outlines between versions.
    y, x = np.mgrid[0:CELL_PIXELS, 0:CELL_PIXELS] - CELL_PIXELS // 2
    x, y = x - dx, y - dy
    box = np.maximum(abs(x), abs(y))
    if shape == "circle":
        return 4 * (x * x + y * y) <= (2 * radius - 1) ** 2  # half a pixel less: no lone pixels at the poles
    if shape == "square":
        return 8 * box <= 7 * radius
    if shape == "triangle":
        return (2 * abs(x) <= y + radius) & (y <= radius)
    if shape == "cross":
        return (3 * np.minimum(abs(x), abs(y)) <= radius) & (box <= radius)
    if shape == "diamond":
        return abs(x) + abs(y) <= radius
    # A star is what lies inside at least four of the five lines through every second tip.
    return sum(1000 * (x * a + y * b) <= 309_000 * radius for a, b in _STAR_TIPS) >= 4


def _paint(draws: Draws, scene: Scene) -> Image.Image:
    base = draws.between(205, 235)
    background = [base + draws.between(-8, 8) for _ in range(3)]
    pixels = np.empty((scene.rows * CELL_PIXELS, scene.columns * CELL_PIXELS, 3), dtype=np.int64)
    pixels[:] = background
    for index, cell in enumerate(scene.cells):
        if cell is None:
            continue
        row, column = divmod(index, scene.columns)
        mask = _shape_mask(SHAPES[cell[0]], draws.between(9, 11), draws.between(-2, 2), draws.between(-2, 2))
        color = [channel + draws.between(-10, 10) for channel in COLORS[_COLOR_NAMES[cell[1]]]]
        y, x = row * CELL_PIXELS, column * CELL_PIXELS
        pixels[y : y + CELL_PIXELS, x : x + CELL_PIXELS][mask] = color
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def check_type_weights(weights: Mapping[str, float]) -> None:
    """Raise ValueError unless these are shares of question types, see `TRAINING_TYPES`, that sum to 1."""
    known = set(weights) <= set(TRAINING_TYPES) and all(0 <= weight <= 1 for weight in weights.values())
    if not known or abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(f"expected shares of {', '.join(TRAINING_TYPES)} that sum to 1, got {dict(weights)}")


class ShapesVQA(Task):
    """Questions about coloured shapes on a grid; the task that the bundled checkpoint was trained on.

    Args:
        num_images: Images per split that `load` draws; 4 questions each (6 in the train split).
        seed: Another seed gives other images of the same kind.
        train_type_weights: Share of each question type in the training set, summing to 1, to dwell on the hard ones;
            ``place`` (which row or column is it in) and ``hop`` (what is above it) are asked in training alone. null =
            the shares of the evaluation splits.
    """

    name = "shapes_vqa"
    metric = "ExactMatch"
    max_new_tokens = 4

    def __init__(
        self, num_images: int = 500, seed: int = 0, train_type_weights: dict[str, float] | None = None
    ) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        check_type_weights(train_type_weights or TYPE_WEIGHTS)
        self.num_images = num_images
        self.seed = seed
        self.train_type_weights = train_type_weights

    def load(self, split: str, path: str | None = None) -> datasets.Dataset:
        """Draw the first `num_images` images of a split, in memory, once per process.

        Columns: image, image_id, question_id, question, answer, question_type, and the labels of the grid: rows,
        columns, cell_shapes, cell_colors (class ids in row-major order).
        """
        if path is not None:
            raise ValueError(f"shapes_vqa is drawn, not read: expected no path, got {path!r}")
        # a copy, as the format of a dataset can be set in place
        return copy.copy(_draw_split(self.seed, check_split(split), self.num_images))

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        return Sample(
            id=row["question_id"],
            image_id=row["image_id"],
            image=row["image"],
            question=row["question"],
            references=(row["answer"],),
            meta={"question_type": row["question_type"]},
        )

    def training_set(self, num_images: int, seed: int) -> Dataset[TrainingItem]:
        return ShapesTrainingSet(num_images, seed, self.train_type_weights or TYPE_WEIGHTS)


@dataclass(eq=False)
class ShapesTrainingSet(Dataset[TrainingItem]):
    """Images of the train split with their six questions and cell labels, drawn on access.

    ``type_weights`` are the share of each question type, summing to 1; by default those of the task.
    """

    num_images: int = 50_000
    seed: int = 0
    type_weights: Mapping[str, float] = field(default_factory=TYPE_WEIGHTS.copy)

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> TrainingItem:
        if not 0 <= index < self.num_images:
            raise IndexError(f"index {index} is outside of 0..{self.num_images - 1}")
        shapes = draw_shapes_image(self.seed, "train", index, self.type_weights)
        cell_shapes, cell_colors = _cell_labels(shapes.scene)
        return TrainingItem(
            image=shapes.image,
            questions=tuple(question.text for question in shapes.questions),
            answers=tuple(question.answer for question in shapes.questions),
            grid=(shapes.scene.rows, shapes.scene.columns),
            cell_shapes=cell_shapes,
            cell_colors=cell_colors,
        )


@lru_cache(maxsize=4, typed=True)  # several commands of one process, and the tasks of one, ask for the same images
def _draw_split(seed: int, split: str, num_images: int) -> datasets.Dataset:
    import datasets

    rows: list[dict[str, Any]] = []
    for index in range(num_images):
        shapes = draw_shapes_image(seed, split, index)
        buffer = io.BytesIO()
        shapes.image.save(buffer, format="png")
        cell_shapes, cell_colors = _cell_labels(shapes.scene)
        for number, question in enumerate(shapes.questions):
            rows.append(
                {
                    "image": {"bytes": buffer.getvalue(), "path": None},
                    "image_id": shapes.image_id,
                    "question_id": f"{shapes.image_id}-{number}",
                    "question": question.text,
                    "answer": question.answer,
                    "question_type": question.type,
                    "rows": shapes.scene.rows,
                    "columns": shapes.scene.columns,
                    "cell_shapes": cell_shapes,
                    "cell_colors": cell_colors,
                }
            )
    text, number_ = datasets.Value("string"), datasets.Value("int64")
    features = {"image": datasets.Image()}
    features |= dict.fromkeys(("image_id", "question_id", "question", "answer", "question_type"), text)
    features |= dict.fromkeys(("rows", "columns"), number_)
    features |= dict.fromkeys(("cell_shapes", "cell_colors"), datasets.List(number_))
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def _cell_labels(scene: Scene) -> tuple[tuple[int, ...], tuple[int, ...]]:
    cells = [(EMPTY_SHAPE, EMPTY_COLOR) if cell is None else cell for cell in scene.cells]
    shapes, colors = zip(*cells)
    return shapes, colors
