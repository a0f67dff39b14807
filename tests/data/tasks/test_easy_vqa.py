"""easy-VQA, read from a tiny package of the same layout."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from PIL import Image, ImageOps

from lit_depth import load_bundled
from lit_depth.data import DepthDataModule, Sample, get_task
from lit_depth.data.tasks.easy_vqa import EasyVQA, EasyVQATrainingSet
from lit_depth.models.prompting import prompter_for
from tests.helpers.commands import run
from tests.helpers.family_commands import check

# What an image of the tiny package shows: a rectangle on the left; its number decides over colour and height.
COLORS = {"red": (255, 0, 0), "teal": (0, 128, 128)}
NUM_TRAIN, NUM_TEST = 40, 4


def color_of(number: int) -> str:
    return list(COLORS)[number % 2]


def picture(number: int) -> Image.Image:
    image = Image.new("RGB", (64, 64), (240, 245, 250))
    image.paste(COLORS[color_of(number)], (4, 2 + number, 24, 20 + number))
    return image


def questions_about(number: int) -> list[list]:
    color = color_of(number)
    asked = [
        ("what color is the shape?", color),
        ("what shape is present?", "rectangle"),
        ("is there a red shape?", "yes" if color == "red" else "no"),
        ("is there not a red shape in the image?", "no" if color == "red" else "yes"),
        ("is no circle present?", "yes"),
        ("does the image contain a rectangle?", "yes"),
        (f"what is the {color} shape?", "rectangle"),
    ]
    # as in the package, images differ in how many questions they have
    return [[question, answer, number] for question, answer in asked[: 5 + number % 3]]


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    root = tmp_path_factory.mktemp("site-packages")
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        folder = root / "easy_vqa" / "data" / split
        (folder / "images").mkdir(parents=True)
        for number in range(count):
            picture(number).save(folder / "images" / f"{number}.png")
        rows = [row for number in range(count) for row in questions_about(number)]
        (folder / "questions.json").write_text(json.dumps(rows))
    (root / "easy_vqa" / "__init__.py").write_text("raise ImportError('reading the data needs no import')\n")
    return root


@pytest.fixture
def installed(site_packages, monkeypatch):
    monkeypatch.syspath_prepend(str(site_packages))


def data(**kwargs) -> DepthDataModule:
    return DepthDataModule(task="easy_vqa", num_samples=None, calibration_samples=None, batch_size=8, **kwargs)


def samples_of(split: str, **kwargs) -> list[Sample]:
    return list(data(**kwargs).eval_dataset(split))


def test_the_report_split_is_the_packages_test_split_whole(installed):
    samples = samples_of("validation")
    expected = [row for number in range(NUM_TEST) for row in questions_about(number)]
    assert [[s.question, s.references[0], int(s.image_id.removeprefix("test-"))] for s in samples] == expected
    assert [list(s.image.getdata()) for s in samples] == [list(picture(row[2]).getdata()) for row in expected]
    assert all(len(sample.references) == 1 for sample in samples)
    assert [s.meta["question_type"] for s in samples[:5]] == ["color", "shape", "existence", "existence", "existence"]


def test_the_packages_train_split_is_dealt_out_by_image(installed):
    train, calibration = samples_of("train"), samples_of("calibration")
    images = [{sample.image_id for sample in samples} for samples in (train, calibration)]
    assert not images[0] & images[1]
    assert images[0] | images[1] == {f"train-{number:05d}" for number in range(NUM_TRAIN)}
    assert len(train) + len(calibration) == sum(len(questions_about(number)) for number in range(NUM_TRAIN))
    # a tenth of the images, and the same ones for ever: the bundled checkpoint never saw them
    assert images[1] == {"train-00000", "train-00015", "train-00039"}


def test_splits_share_no_sample_and_no_image(installed):
    module = data()
    for pair in (("calibration", "validation"), ("train", "validation"), ("train", "calibration")):
        module.check_disjoint(*pair)


def test_asks_and_scores_as_the_package_means_it(installed):
    task, sample = get_task("easy_vqa"), samples_of("validation")[0]
    assert prompter_for(*load_bundled()).text(sample) == "vqa2: what color is the shape?"
    assert (task.metric, task.max_new_tokens) == ("ExactMatch", 4)


def test_a_folder_of_the_same_layout_will_do(site_packages):
    folder = str(site_packages / "easy_vqa" / "data")
    assert [s.id for s in samples_of("validation", path=folder)][:2] == ["test-00000-00", "test-00000-01"]


def test_a_missing_package_and_a_wrong_folder_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("lit_depth.data.tasks.easy_vqa.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed; do: pip install --no-deps easy-vqa==1\.0"):
        EasyVQA().load("validation")
    with pytest.raises(ValueError, match="expected a folder with train/ and test/"):
        EasyVQA().load("train", str(tmp_path))


def test_a_lost_image_costs_its_samples_only(tmp_path):
    folder = tmp_path / "data"
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "questions.json").write_text(json.dumps(questions_about(0)))
    reasons = [sample.reason for sample in samples_of("validation", path=str(folder))]
    assert len(reasons) == len(questions_about(0)) and all("images/0.png" in reason for reason in reasons)


@pytest.fixture
def train_images(installed) -> dict[bytes, int]:
    """Number of an image of the train role by its pixels, as they are and mirrored."""
    numbers = {int(sample.image_id.removeprefix("train-")) for sample in samples_of("train")}
    views = {number: (picture(number), ImageOps.mirror(picture(number))) for number in numbers}
    return {view.tobytes(): number for number, both in views.items() for view in both}


def test_training_items_are_images_of_the_train_role_with_their_own_questions(train_images):
    items = EasyVQA().training_set(num_images=len(train_images), seed=3)
    mirrored = 0
    for item in (items[index] for index in range(len(items))):
        number = train_images[item.image.tobytes()]
        asked = {(question, answer) for question, answer, _ in questions_about(number)}
        pairs = set(zip(item.questions, item.answers))
        assert pairs <= asked and len(pairs) == len(item.questions) == min(6, len(asked))
        assert item.grid == (0, 0) and not item.cell_shapes
        mirrored += item.image.tobytes() != picture(number).tobytes()
    assert 0 < mirrored < len(items)


def test_every_image_comes_equally_often_and_the_seed_decides(train_images):
    count = len(set(train_images.values()))

    def contents(seed):
        items = EasyVQATrainingSet(num_images=3 * count, seed=seed)
        return [(item.image.tobytes(), item.questions) for item in (items[index] for index in range(len(items)))]

    first = contents(0)
    assert set(Counter(train_images[pixels] for pixels, _ in first).values()) == {3}
    assert first == contents(0) and first != contents(1)
    assert first[:count] != first[count : 2 * count]
    with pytest.raises(IndexError, match="index 4 is outside of 0..3"):
        EasyVQATrainingSet(num_images=4)[4]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("command", ["importance", "compare", "search", "consistency", "latency", "select", "tokens"])
def test_every_command_runs_on_the_installed_package(tmp_path, command):
    pytest.importorskip("easy_vqa", reason="no easy-vqa: make real installs it")
    options = {
        "compare": ("--policies", "prefix", "--num_active_blocks", 8, 16, "--num_requests", 1),
        "search": ("--max_blocks_to_remove", 1),
        "latency": ("--num_active_blocks", 2, 16, "--num_samples", 2, "--new_tokens", 2),
        "select": ("--policies", "prefix", "--num_requests", 2, "--num_checks", 2, "--budget_ms", 10_000),
    }
    few = ("--data.num_samples", 8, "--data.calibration_samples", 8, "--data.batch_size", 4)
    given = ("--data.task", "easy_vqa", "--output_dir", tmp_path, *(() if command == "tokens" else few))
    assert run([command, *options.get(command, ()), *given, "--trainer.accelerator", "cpu"]) == 0
    check(command, tmp_path / command / "default", num_blocks=16, num_samples=8)
