"""The fourteen datasets, read from parquet files in their documented columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

import lit_depth.metrics
from lit_depth.data import DepthDataModule, Sample, get_task
from lit_depth.data.datamodule import EvalDataset
from lit_depth.data.rows import PLACE, Place
from lit_depth.data.sources import canonical_split
from lit_depth.data.tasks import TASKS
from lit_depth.data.tasks.mmmu import MMMU, SUBJECTS
from lit_depth.data.tasks.science_qa_img import ScienceQAImage
from lit_depth.metrics import clean_prediction
from tests.helpers.hub_fixtures import DATASETS, write_dataset, write_rows

SOFT = ("red", "Red", "dark red", "red", "blue", "red", "red", "red", "maroon", "red")
# what the first question of the report split looks like: prompt, references, metric, longest answer
EXPECTED = {
    "coco_2014_vqa": ("vqa2: What color is shape {}?", SOFT, "VQAAccuracy", 16),
    "text_vqa": ("text_vqa: what is written on sign {}?", SOFT, "VQAAccuracy", 64),
    "okvqa": ("okvqa: What sport is {}?", SOFT, "VQAAccuracy", 16),
    "science_qa_img": (None, None, "MultipleChoiceAccuracy", 16),
    "doc_qa": ("doc_qa: What is the date on page {}?", ("May 3", "3 May"), "ANLS", 64),
    "info_qa": ("info_qa: How many in {}?", ("10%",), "ANLS", 32),
    "chart_qa": ("chart_qa: What is bar {}?", ("14.5",), "RelaxedAccuracy", 16),
    "plot_qa": ("plot_qa: What is value {}?", ("12.4",), "RelaxedAccuracy", 16),
    "figure_qa": ("figure_qa: Is Red the minimum?", ("1", "yes"), "ExactMatch", 16),
    "dv_qa": ("dv_qa: How many bars?", ("5",), "ExactMatch", 16),
    "mmmu": (None, None, "MMMUAccuracy", 32),
    "coco_caption": ("coco_captioning:", None, "CIDErD", 64),
    "tally_qa": ("tally_qa: How many dogs?", ("2",), "ExactMatch", 16),
    "st_qa": ("st_qa: What does the sign say?", ("Stop", "stop sign"), "ANLS", 32),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    for name in DATASETS:
        write_dataset(name, root / name)
    return root


def data(name, path, **kwargs) -> DepthDataModule:
    defaults = {"num_samples": None, "calibration_samples": None, "batch_size": 4}
    return DepthDataModule(task=name, path=str(path), **{**defaults, **kwargs})


def index_of(name: str, sample: Sample) -> int:
    """Number that the fixture gave the sample's row: the splits of a dataset start at 0, 1000, 2000."""
    names = [canonical_split(split) for split in DATASETS[name][1]]
    split, row = sample.id.split("/")[:2]
    return 1000 * names.index(split) + int(row)


def test_every_dataset_has_a_task_and_a_fixture():
    assert {task.name for task in TASKS} - {"shapes_vqa"} == set(DATASETS) == set(EXPECTED)


@pytest.mark.parametrize("name", DATASETS)
def test_calibration_and_validation_are_whole_and_disjoint(folders, name):
    module = data(name, folders / name)
    module.check_disjoint("calibration", "validation")
    roles = {role: list(module.eval_dataset(role)) for role in ("calibration", "validation")}
    for samples in roles.values():
        assert len(samples) > 4 and all(isinstance(sample, Sample) for sample in samples)
        assert all(sample.image.mode == "RGB" and sample.image.size == (48, 32) for sample in samples)
        assert all(sample.references and all(sample.references) for sample in samples)
    task, everything = module.task, [*roles["calibration"], *roles["validation"]]
    assert len({sample.id for sample in everything}) == len(everything)
    if task.splits["calibration"] == task.splits["validation"]:
        # nothing is lost where one split is divided
        questions = 2 if name in ("figure_qa", "dv_qa", "tally_qa", "st_qa") else 1
        assert len(everything) == 24 * questions
    else:
        assert len(roles["calibration"]) == len(roles["validation"]) == 24


@pytest.mark.parametrize("name", DATASETS)
def test_questions_are_asked_and_scored_as_specified(folders, name):
    module = data(name, folders / name)
    sample = module.eval_dataset("validation")[0]
    prompt, references, metric, max_new_tokens = EXPECTED[name]
    if prompt is not None:
        assert module.task.prompt(sample) == prompt.format(index_of(name, sample))
    if references is not None:
        assert sample.references == references
    assert (module.task.metric, module.task.max_new_tokens) == (metric, max_new_tokens)
    assert module.task.in_training_mixture == (name in ("figure_qa", "dv_qa", "st_qa"))


@pytest.mark.parametrize("name", [name for name, (_, splits) in DATASETS.items() if "train" in splits])
def test_the_train_role_shares_nothing_with_validation(folders, name):
    module = data(name, folders / name)
    module.check_disjoint("train", "validation")
    samples = list(module.eval_dataset("train"))
    assert samples and all(isinstance(sample, Sample) for sample in samples)
    assert {sample.meta["dataset_split"] for sample in samples} == {"train"}


@pytest.mark.parametrize("name", ["coco_2014_vqa", "info_qa", "mmmu", "coco_caption"])
def test_a_dataset_without_train_split_says_so(folders, name):
    with pytest.raises(ValueError, match=rf"{name}: the role train needs train\*.parquet .* there are"):
        data(name, folders / name).eval_dataset("train")
    with pytest.raises(ValueError, match="has no split for the role train; there are calibration = "):
        get_task(name).load("train")


@pytest.mark.parametrize("name", ["plot_qa", "tally_qa"])
def test_conversations_written_for_training_become_plain_questions(folders, name):
    samples = list(data(name, folders / name).eval_dataset("train"))
    assert len(samples) == 48 and len({sample.image_id for sample in samples}) == 24
    assert samples[0].question in ("What is the value in 0.0?", "How many cups are in 0.0?")
    assert samples[0].references == (("0.5", "0.5.") if name == "plot_qa" else ("3",))


@pytest.mark.parametrize("name", ["figure_qa", "dv_qa", "tally_qa", "plot_qa", "chart_qa", "doc_qa", "coco_2014_vqa"])
@pytest.mark.parametrize("answer", ["U.S.", "Soil.", "New  York", "3.", "St. Louis, Mo.", "No."])
def test_what_the_dataset_answers_is_right(name, answer):
    """Whatever is done to references is done to predictions too, or to neither."""
    task = get_task(name)
    if name == "figure_qa":
        answer = "No."
    layout = task.layouts[0]
    stored = [answer] * 10 if name == "coco_2014_vqa" else answer
    entry = {layout.question: "What?", layout.answer: stored}
    row = {"image": b"x", layout.question: "What?", layout.answer: stored, layout.questions: [entry]}
    sample = task.sample(
        {**row, PLACE: Place("test", 0, 0, "image", replace(layout, question_id=None))}, "validation", 0
    )
    metric = getattr(lit_depth.metrics, task.metric)
    assert metric.score(clean_prediction(answer), sample.references, ()) == 1.0
    assert metric.score("something else", sample.references, ()) == 0.0


@pytest.mark.parametrize("options", [["a", "", "c"], ["", "b"], ["a", "b", "", "", "e"]])
def test_prompt_and_metric_give_an_option_the_same_letter(options):
    """The dataset's letter counts empty options, so the prompt and the metric do."""
    task = get_task("mmmu")
    for index, letter in enumerate("ABCDE"[: len(options)]):
        row = {"image_1": b"x", "question": "Which?", "options": str(options), "question_type": "multiple-choice"}
        place = Place("validation", 0, 0, "image", replace(task.layouts[0], question_id=None))
        sample = task.sample({**row, "answer": letter, PLACE: place}, "validation", 0)
        assert f"\n{letter}: {options[index]}\n" in task.prompt(sample)
        for other in "ABCDE"[: len(options)]:
            score = lit_depth.metrics.MMMUAccuracy.score(other, sample.references, sample.options)
            assert score == float(other == letter)


@pytest.mark.parametrize("name", ["figure_qa", "dv_qa", "tally_qa", "st_qa"])
def test_questions_about_one_image_stay_together(folders, name):
    for role in ("calibration", "validation"):
        samples = list(data(name, folders / name).eval_dataset(role))
        by_image: dict[str, list[Sample]] = {}
        for sample in samples:
            by_image.setdefault(sample.image_id, []).append(sample)
        assert {len(group) for group in by_image.values()} == {2}
        for first, second in by_image.values():
            assert first.question != second.question and first.image.tobytes() == second.image.tobytes()


@pytest.mark.parametrize("name", ["coco_2014_vqa", "okvqa", "doc_qa", "info_qa"])
def test_rows_that_repeat_an_image_have_its_id(folders, name):
    samples = list(data(name, folders / name).eval_dataset("validation"))
    pictures: dict[str, set[bytes]] = {}
    for sample in samples:
        pictures.setdefault(sample.image_id, set()).add(sample.image.tobytes())
    assert 2 * len(pictures) == len(samples) and all(len(group) == 1 for group in pictures.values())


def test_figure_qa_is_answered_with_a_digit(folders):
    samples = list(data("figure_qa", folders / "figure_qa").eval_dataset("validation"))
    assert {sample.references for sample in samples} == {("1", "yes"), ("0", "no")}


def test_tally_qa_keeps_what_is_simple(folders):
    samples = list(data("tally_qa", folders / "tally_qa").eval_dataset("validation"))
    assert {(sample.references[0], sample.meta["is_simple"]) for sample in samples} == {("2", True), ("1", False)}


def test_science_qa_gives_hint_question_and_lettered_choices(folders):
    folder = folders / "science_qa_img"
    task = ScienceQAImage()
    hinted = EvalDataset(task.load("validation", str(folder)), task, "validation", [1])[0]
    choices = "A: a cat\nB: a cow\nC: a mouse\n"
    assert task.prompt(hinted) == f"science_qa: Look at the scale.\nWhich is larger in 2001?\n{choices}"
    assert hinted.options == ("a cat", "a cow", "a mouse") and hinted.references == ("ABC"[2001 % 3],)
    plain = EvalDataset(task.load("validation", str(folder)), task, "validation", [0])[0]
    assert task.prompt(plain) == f"science_qa: Which is larger in 2000?\n{choices}"
    molmo = ScienceQAImage(parity="molmo")
    hinted = EvalDataset(molmo.load("validation", str(folder)), molmo, "validation", [1])[0]
    assert molmo.prompt(hinted) == f"science_qa: Look at the scale.\nLook at the scale.\n{choices}"
    assert (molmo.max_new_tokens, task.max_new_tokens) == (12, 16)


def test_science_qa_leaves_out_rows_without_image(tmp_path):
    build, _ = DATASETS["science_qa_img"]
    rows, features = build("test", 0, 6)
    for row in rows[::2]:
        row["image"] = None
    write_rows(tmp_path / "test.parquet", rows, features)
    write_rows(tmp_path / "validation.parquet", build("validation", 100, 2)[0], features)
    assert [sample.question[-2] for sample in data("science_qa_img", tmp_path).eval_dataset("validation")] == [*"135"]


def test_an_image_in_two_splits_belongs_to_validation(tmp_path):
    build, _ = DATASETS["chart_qa"]
    for split, start in (("val", 0), ("test", 4)):  # rows 4 to 7 of each other show the same charts
        write_rows(tmp_path / f"{split}.parquet", *build(split, start, 8))
    module = data("chart_qa", tmp_path)
    assert len(module.eval_dataset("validation")) == 8 and len(module.eval_dataset("calibration")) == 4
    module.check_disjoint("calibration", "validation")


def test_mmmu_has_choices_and_open_questions(folders):
    task = get_task("mmmu")
    samples = list(data("mmmu", folders / "mmmu").eval_dataset("validation"))
    closed, opened = (
        next(s for s in samples if s.meta["question_type"] == kind) for kind in ("multiple-choice", "open")
    )
    assert task.prompt(closed).startswith("a_okvqa_mc: <image 1> What is")
    assert task.prompt(closed).endswith("?\nA: 1/3\nB: a cat's tail\nC: <image 2>\n")
    assert closed.options == ("1/3", "a cat's tail", "<image 2>") and closed.references == ("B",)
    assert task.prompt(opened).startswith("vqa2: <image 1>") and not task.prompt(opened).endswith("\n")
    assert opened.options == () and opened.references == ("1/3", "0.33")


def test_mmmu_reads_all_subjects_of_the_other_repository():
    assert MMMU(repository="MMMU/MMMU").config == SUBJECTS and len(SUBJECTS) == 30
    assert MMMU(repository="MMMU/MMMU", config="Art").config == "Art"
    assert MMMU().config is None


def test_coco_captions_are_all_references(folders):
    sample = data("coco_caption", folders / "coco_caption").eval_dataset("validation")[0]
    assert len(sample.references) == 5 and sample.question == "" and sample.image_id.startswith("COCO_val2014_")


def test_the_most_frequent_of_ten_answers_comes_first(tmp_path):
    build, _ = DATASETS["text_vqa"]
    rows, features = build("validation", 0, 8)
    for row in rows:
        row["answers"] = ["nous les gosses", "", *["stop"] * 8]
    write_rows(tmp_path / "validation.parquet", rows, features)
    sample = data("text_vqa", tmp_path).eval_dataset("validation")[0]
    assert sample.references == ("stop", "nous les gosses", "", *["stop"] * 7)


def test_several_tasks_read_their_own_folders(folders):
    module = DepthDataModule(tasks="all", path=str(folders), num_samples=3, calibration_samples=3)
    assert {task.name for task in module.tasks} == set(DATASETS)
    for each in module.for_each_task():
        assert len(each.eval_dataset("validation")) == 3
    with pytest.raises(ValueError, match="expected folders called as the tasks"):
        DepthDataModule(tasks="all", path=str(folders / "mmmu"))
    assert len(DepthDataModule(tasks="all").tasks) == 15


@pytest.mark.parametrize("name", DATASETS)
def test_every_required_column_is_missed_by_name(folders, tmp_path, name):
    build, splits = DATASETS[name]
    rows, features = build(splits[-1], 0, 4)
    required = get_task(name).layouts[0].required
    for column in required:
        top, _, key = column.partition(".")
        if features is None or key:
            continue
        smaller = [{key_: value for key_, value in row.items() if key_ != top} for row in rows]
        left = features.copy()
        del left[top]
        folder = tmp_path / column.replace("/", "_")
        write_rows(folder / f"{splits[-1]}.parquet", smaller, left)
        with pytest.raises(ValueError) as caught:
            data(name, folder).eval_dataset("validation")
        message = str(caught.value)
        assert message.startswith(f"{name}: column '{top}'") and str(folder) in message and "\n" not in message
        assert all(other in message.partition("it has")[2] for other in left)


def test_a_key_missing_in_a_list_is_named(tmp_path):
    rows = [{"image": {"bytes": b"x", "path": None}, "qa": [{"question": "Is it?", "reply": "Yes."}]}]
    write_rows(tmp_path / "train.parquet", rows)
    with pytest.raises(ValueError, match=r"column 'qa.answer' is missing .* it has image, .*qa, qa.question, qa.reply"):
        data("figure_qa", tmp_path).eval_dataset("validation")
