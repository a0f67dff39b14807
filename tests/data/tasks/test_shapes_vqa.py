from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from lit_depth.data.task import SPLITS
from lit_depth.data.tasks.shapes_vqa import (
    CELL_PIXELS,
    COLORS,
    EMPTY_COLOR,
    EMPTY_SHAPE,
    NUMBERS,
    QUESTIONS_PER_IMAGE,
    SHAPES,
    TYPE_WEIGHTS,
    ShapesTrainingSet,
    ShapesVQA,
    draw_shapes_image,
)

COLOR_NAMES = list(COLORS)
PLURALS = {
    "circles": "circle",
    "squares": "square",
    "triangles": "triangle",
    "crosses": "cross",
    "stars": "star",
    "diamonds": "diamond",
}


@pytest.fixture(scope="module")
def drawn():
    return {split: [draw_shapes_image(0, split, index) for index in range(1000)] for split in SPLITS}


def digest(images) -> str:
    text = "".join(f"{i.image.size}{i.image.tobytes().hex()}{i.questions}" for i in images)
    return hashlib.sha256(text.encode()).hexdigest()


def answer_from_labels(question: str, rows: int, columns: int, shapes: list[int], colors: list[int]) -> str:
    """The meaning of the questions once more, from their words and the grid labels alone."""
    objects = [
        (SHAPES[s], COLOR_NAMES[c], index // columns, index % columns)
        for index, (s, c) in enumerate(zip(shapes, colors))
        if s != EMPTY_SHAPE
    ]
    assert len(shapes) == len(colors) == rows * columns

    def find(color=None, shape=None):
        return [o for o in objects if color in (None, o[1]) and shape in (None, o[0])]

    if match := re.fullmatch(r"What color is the (\w+)\?", question):
        (found,) = find(shape=match[1])
        return found[1]
    if match := re.fullmatch(r"What shape is the (\w+) object\?", question):
        (found,) = find(color=match[1])
        return found[0]
    if match := re.fullmatch(r"How many (\w+) objects are there\?", question):
        assert match[1] in COLORS
        return NUMBERS[len(find(color=match[1]))]
    if match := re.fullmatch(r"How many (\w+) are there\?", question):
        return NUMBERS[len(find(shape=PLURALS[match[1]]))]
    if match := re.fullmatch(r"Is there (an?) (\w+) (\w+)\?", question):
        assert (match[1] == "an") == (match[2][0] in "aeiou")
        assert match[2] in COLORS and match[3] in SHAPES
        return "yes" if find(match[2], match[3]) else "no"
    if match := re.fullmatch(r"Which (row|column) is the (\w+) (\w+) in\?", question):
        (found,) = find(match[2], match[3])
        at, lines = (found[2], rows) if match[1] == "row" else (found[3], columns)
        first, last = ("top", "bottom") if match[1] == "row" else ("left", "right")
        return first if at == 0 else last if at == lines - 1 else "middle"
    beside = r"What (color|shape) is the object (above|below|left of|right of) the (\w+) (\w+)\?"
    if match := re.fullmatch(beside, question):
        (found,) = find(match[3], match[4])
        down, right = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}[match[2]]
        (other,) = [o for o in objects if o[2:] == (found[2] + down, found[3] + right)]
        return other[1] if match[1] == "color" else other[0]
    match = re.fullmatch(r"Is the (\w+) (\w+) (above or below|left or right of) the (\w+) (\w+)\?", question)
    (first,), (second,) = find(match[1], match[2]), find(match[4], match[5])
    axis, before, after = (2, "above", "below") if match[3] == "above or below" else (3, "left", "right")
    assert first[axis] != second[axis], "a tie has no answer"
    return before if first[axis] < second[axis] else after


@pytest.mark.parametrize("split", SPLITS)
def test_answers_follow_from_the_grid_labels(split):
    dataset = ShapesVQA(num_images=300).load(split).remove_columns("image")
    for row in dataset:
        labels = (row["rows"], row["columns"], row["cell_shapes"], row["cell_colors"])
        assert row["answer"] == answer_from_labels(row["question"], *labels), row


def test_answers_of_training_alone_follow_from_the_grid_labels_too():
    seen = Counter()
    for index in range(300):
        shapes = draw_shapes_image(0, "train", index, {"place": 0.5, "hop": 0.5})
        item = ShapesTrainingSet(300, type_weights={"place": 0.5, "hop": 0.5})[index]
        for question in shapes.questions:
            labels = (*item.grid, item.cell_shapes, item.cell_colors)
            assert question.answer == answer_from_labels(question.text, *labels), question
            seen[question.type] += 1
            seen[question.answer] += 1
    assert seen["place"] == seen["hop"] == 900
    assert all(seen[word] > 20 for word in ("top", "bottom", "middle", "left", "right", *SHAPES, *COLORS))


def test_training_types_are_never_asked_in_evaluation(drawn):
    assert {question.type for images in drawn.values() for image in images for question in image.questions} == set(
        TYPE_WEIGHTS
    )


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_show_the_grid_labels(drawn, split):
    palette = np.array(list(COLORS.values()))
    areas = {shape: set() for shape in SHAPES}
    for shapes in drawn[split][:200]:
        scene, pixels = shapes.scene, np.asarray(shapes.image).astype(int)
        assert pixels.shape == (scene.rows * CELL_PIXELS, scene.columns * CELL_PIXELS, 3)
        for index, cell in enumerate(scene.cells):
            y, x = (CELL_PIXELS * i for i in divmod(index, scene.columns))
            patch = pixels[y : y + CELL_PIXELS, x : x + CELL_PIXELS].reshape(-1, 3)
            painted = patch[(patch != pixels[0, 0]).any(1)]
            assert (len(painted) == 0) == (cell is None)
            if cell is not None:
                # One flat colour, nearest to the one that the label names, on at least a tenth of the cell.
                assert len(np.unique(painted, axis=0)) == 1
                assert abs(palette - painted[0]).sum(1).argmin() == cell[1]
                areas[SHAPES[cell[0]]].add(len(painted))
    assert min(min(area) for area in areas.values()) > 0.1 * CELL_PIXELS**2


@pytest.mark.slow
def test_same_bytes_in_every_process(drawn):
    code = (
        "from lit_depth.data.tasks.shapes_vqa import draw_shapes_image;"
        "import hashlib;"
        "images = [draw_shapes_image(0, 'validation', i) for i in range(20)];"
        "text = ''.join(f'{i.image.size}{i.image.tobytes().hex()}{i.questions}' for i in images);"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest(drawn["validation"][:20])


def test_bytes_are_those_the_checkpoint_was_trained_on(drawn):
    # Recorded once; a change here makes the bundled checkpoint's published numbers those of another task.
    digests = {split: digest(images[:100])[:16] for split, images in drawn.items()}
    assert digests == {
        "train": "360a06e5b135c487",
        "calibration": "b97f2b5818e35979",
        "validation": "e48af9e596949170",
    }


def test_index_seed_and_split_matter(drawn):
    assert digest(drawn["train"][:5]) == digest([draw_shapes_image(0, "train", i) for i in range(5)])
    others = [
        draw_shapes_image(1, "train", 0),
        draw_shapes_image(0, "calibration", 0),
        draw_shapes_image(0, "train", 1),
    ]
    assert len({digest([image]) for image in [drawn["train"][0], *others]}) == 4


def test_splits_share_no_image_and_no_scene(drawn):
    for what in (lambda i: hashlib.sha256(i.image.tobytes()).digest(), lambda i: i.scene, lambda i: i.image_id):
        seen = [{what(image) for image in drawn[split]} for split in SPLITS]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert all(image.scene.split() == split for split in SPLITS for image in drawn[split])


@pytest.mark.parametrize("split", SPLITS)
def test_balance(drawn, split):
    questions = [question for image in drawn[split] for question in image.questions]
    types = Counter(question.type for question in questions)
    for name, weight in TYPE_WEIGHTS.items():
        assert types[name] / len(questions) == pytest.approx(weight, abs=0.01)
    answers = Counter(question.answer for question in questions)
    assert answers.most_common(1)[0][1] / len(questions) < 0.25
    assert set(answers) == {"yes", "no", *SHAPES, *COLORS, *NUMBERS, "above", "below", "left", "right"}
    assert answers["yes"] / types["existence"] == pytest.approx(0.5, abs=0.06)
    for before, after in (("above", "below"), ("left", "right")):
        # half as many questions as about existence: three standard errors are 0.09
        assert answers[before] / (answers[before] + answers[after]) == pytest.approx(0.5, abs=0.09)
    # Within a type, too, no answer is worth much more than the others.
    for name, limit in (("color", 0.25), ("shape", 0.25), ("count", 0.4), ("relation", 0.35)):
        within = Counter(question.answer for question in questions if question.type == name)
        assert within.most_common(1)[0][1] / types[name] < limit


@pytest.mark.parametrize("split", SPLITS)
def test_questions_of_an_image_differ_and_sizes_vary(drawn, split):
    assert all(
        len({q.text for q in i.questions}) == len(i.questions) == QUESTIONS_PER_IMAGE[split] for i in drawn[split]
    )
    assert {i.image.size for i in drawn[split]} == {(56, 56), (84, 56), (56, 84)}


def test_dataset_rows_become_samples(drawn):
    task = ShapesVQA(num_images=10)
    dataset = task.load("validation")
    assert len(dataset) == 40
    samples = [task.sample(row, "validation", index) for index, row in enumerate(dataset)]
    assert len({sample.id for sample in samples}) == 40
    assert len({sample.image_id for sample in samples}) == 10
    first = drawn["validation"][0]
    assert samples[0].image.tobytes() == first.image.tobytes()
    assert samples[0].references == (first.questions[0].answer,)
    assert samples[0].meta["question_type"] == first.questions[0].type
    assert samples[0].question == first.questions[0].text and task.answer_kind == "short"


def test_training_set_is_the_train_split(drawn):
    images = ShapesTrainingSet(num_images=4)
    assert len(images) == 4 == len(list(images))
    for item, shapes in zip(images, drawn["train"]):
        assert item.image.tobytes() == shapes.image.tobytes()
        assert item.questions == tuple(question.text for question in shapes.questions)
        assert item.answers == tuple(question.answer for question in shapes.questions)
        assert item.grid == (shapes.scene.rows, shapes.scene.columns)
        for cell, shape, color in zip(shapes.scene.cells, item.cell_shapes, item.cell_colors):
            assert (shape, color) == ((EMPTY_SHAPE, EMPTY_COLOR) if cell is None else cell)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ShapesVQA(num_images=0), "at least 1, got 0"),
        (lambda: ShapesVQA(train_type_weights={"place": 0.5}), "sum to 1, got {'place': 0.5}"),
        (lambda: ShapesVQA(train_type_weights={"size": 1.0}), "shares of color, .*, hop that"),
        (lambda: ShapesVQA(train_type_weights={"color": 2.0, "shape": -1.0}), "sum to 1"),
        (lambda: ShapesVQA().load("test"), "train, calibration, validation, got 'test'"),
        (lambda: ShapesVQA().load("train", path="folder"), "expected no path, got 'folder'"),
    ],
)
def test_mistakes_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
