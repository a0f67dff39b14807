"""Where the rows of a task come from, and what happens to rows, splits and repositories that are not as they should."""

from __future__ import annotations

import os
import subprocess
import sys

import datasets
import pytest
from lightning import LightningModule, Trainer
from PIL import Image

from lit_depth.data import BadSample, DepthDataModule, Sample
from lit_depth.data.rows import QuestionRows
from lit_depth.data.tasks.chart_qa import ChartQA
from lit_depth.data.tasks.doc_qa import DocVQA
from lit_depth.data.tasks.figure_qa import FigureQA
from lit_depth.data.tasks.mmmu import MMMU
from lit_depth.data.tasks.okvqa import OKVQA
from lit_depth.data.tasks.plot_qa import PlotQA
from lit_depth.data.tasks.science_qa_img import ScienceQAImage
from lit_depth.data.tasks.st_qa import SceneTextVQA
from lit_depth.data.tasks.text_vqa import TextVQA
from tests.helpers.hub_datasets import DATASETS, write_dataset
from tests.helpers.hub_fixtures import draw, encode, png_of_size, write_rows

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def data(task, path=None, **kwargs) -> DepthDataModule:
    defaults = {"num_samples": None, "calibration_samples": None, "batch_size": 4}
    return DepthDataModule(task=task, path=None if path is None else str(path), **{**defaults, **kwargs})


def ids(samples) -> list[str]:
    return [sample.id for sample in samples]


@pytest.fixture(scope="module")
def text_vqa(tmp_path_factory):
    return write_dataset("text_vqa", tmp_path_factory.mktemp("text_vqa"), num_rows=40)


@pytest.fixture(scope="module")
def st_qa(tmp_path_factory):
    return write_dataset("st_qa", tmp_path_factory.mktemp("st_qa"), num_rows=40)


# the laws of the choice


def test_fewer_samples_are_a_subset_of_more(st_qa):
    chosen = [set(ids(data("st_qa", st_qa, num_samples=n).eval_dataset("validation"))) for n in (3, 8, 20, None)]
    assert all(fewer < more for fewer, more in zip(chosen, chosen[1:]))
    other = set(ids(data("st_qa", st_qa, num_samples=8, seed=1).eval_dataset("validation")))
    assert other != chosen[1]


def test_the_halves_do_not_depend_on_the_number_or_order_of_the_rows(tmp_path):
    build, _ = DATASETS["text_vqa"]
    rows, features = build("validation", 0, 30)
    for folder, some in (("all", rows), ("reversed", rows[::-1]), ("few", rows[5:15])):
        write_rows(tmp_path / folder / "validation.parquet", some, features)
    images = {
        folder: {s.image_id for s in data("text_vqa", tmp_path / folder).eval_dataset("calibration")}
        for folder in ("all", "reversed", "few")
    }
    assert images["reversed"] == images["all"] and images["few"] < images["all"]


def test_ids_do_not_read_images(text_vqa):
    rows = data("text_vqa", text_vqa).eval_dataset("validation")
    columns = rows.rows.without_images().table.dataset.column_names
    assert "image" not in columns and "question" in columns and "ocr_tokens" not in columns
    assert rows.fingerprint().startswith(f"{len(rows)} samples, ") and len(rows.ids()) == len(rows)


def same_rows(build, folder, change, by_path=False):
    """A folder of one split whose rows were changed; with ``by_path`` images are files beside it."""
    rows, features = DATASETS[build][0]("validation", 0, 12)
    rows = [change(index, dict(row)) for index, row in enumerate(rows)]
    if by_path:
        for index, row in enumerate(rows):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            (folder / "images" / f"{index}.png").write_bytes(row["image"]["bytes"])
            row["image"] = {"bytes": None, "path": f"images/{index}.png"}
    # as a plain table: `datasets` would read the files and store their bytes
    write_rows(folder / "validation.parquet", rows, None if by_path else features)
    return data(build, folder, num_samples=6)


@pytest.mark.parametrize("by_path", [False, True], ids=["stored", "by path"])
def test_another_image_under_the_same_names_is_other_data(tmp_path, by_path):
    """Ids, questions and answers are the same: the fingerprint has to see the image."""
    noise = encode(Image.effect_noise((32, 32), 90).convert("RGB"))
    plain = same_rows("text_vqa", tmp_path / "a", lambda index, row: row, by_path)
    rows = plain.eval_dataset("validation")
    chosen = {int(name.split("/")[1]) for name, _ in rows.ids()}
    for name, hidden in (("b", max(chosen)), ("c", min(set(range(12)) - chosen))):

        def replace(index, row, hidden=hidden):
            return {**row, "image": {**row["image"], "bytes": noise}} if index == hidden else row

        changed = same_rows("text_vqa", tmp_path / name, replace, by_path).eval_dataset("validation")
        assert changed.ids() == rows.ids()
        # of a row that was not chosen nothing matters
        assert (changed.fingerprint() != rows.fingerprint()) == (hidden in chosen)
    assert not any(isinstance(rows[position], BadSample) for position in range(len(rows)))
    assert (
        rows.fingerprint() == data("text_vqa", tmp_path / "a", num_samples=6).eval_dataset("validation").fingerprint()
    )


def test_what_is_asked_beside_the_question_is_data_too(tmp_path):
    """The same rows, but another prompt (Molmo's own), other options."""
    (tmp_path / "a").mkdir()
    same_rows("text_vqa", tmp_path / "a", lambda index, row: row)
    prints = {
        data(task, tmp_path / "a").eval_dataset("validation").fingerprint()
        for task in (TextVQA(), TextVQA(), OtherQuestion(), OtherKind())
    }
    assert len(prints) == 3
    rows, features = DATASETS["science_qa_img"][0]("validation", 0, 8)
    found = set()
    for name, more in (("b", []), ("c", ["none of these"])):
        changed = [{**row, "choices": [*row["choices"], *more]} for row in rows]
        write_rows(tmp_path / name / "validation.parquet", changed, features)
        found.add(data("science_qa_img", tmp_path / name).eval_dataset("validation").fingerprint())
    assert len(found) == 2


class OtherQuestion(TextVQA):
    def question(self, entry) -> str:
        return f"{super().question(entry)} Be brief."


class OtherKind(TextVQA):
    answer_kind = "free"


def test_images_by_path_stay_inside_the_data_folder(tmp_path):
    """Where a row names a file, it is one of the folder that the user gave; anything else costs the sample."""
    outside = tmp_path / "secret.png"
    outside.write_bytes(encode(Image.new("RGB", (8, 8))))
    inside = tmp_path / "data" / "text_vqa"
    (inside / "images").mkdir(parents=True)
    (tmp_path / "data" / "shared").mkdir()
    for place in (inside / "images", tmp_path / "data" / "shared"):
        (place / "a.png").write_bytes(outside.read_bytes())
    good = ["images/a.png", "images/../images/a.png", str(inside / "images" / "a.png"), "../shared/a.png"]
    bad = [str(outside), "../../secret.png", "images/../../../secret.png", "/etc/passwd", "../../data/../secret.png"]
    rows, _ = DATASETS["text_vqa"][0]("validation", 0, len(good + bad))
    rows = [{**row, "image": {"bytes": None, "path": path}} for row, path in zip(rows, good + bad)]
    write_rows(inside / "validation.parquet", rows)
    write_rows(inside / "calibration.parquet", rows[:1])  # so that validation has all of its rows
    found = [*data("text_vqa", tmp_path / "data").eval_dataset("validation")]
    reasons = [each.reason if isinstance(each, BadSample) else None for each in found]
    assert reasons[: len(good)] == [None] * len(good)
    for path, reason in zip(bad, reasons[len(good) :]):
        assert f"{path!r} lies outside of {tmp_path / 'data'}" in reason


# local folders


@pytest.mark.parametrize(
    "names",
    [
        ["validation.parquet"],
        ["validation-00000-of-00002.parquet", "validation-00001-of-00002.parquet"],
        ["data/val-0.parquet"],
        ["validation/0000.parquet", "validation/0001.parquet"],
        ["text_vqa/validation.parquet", "dv_qa/validation.parquet"],
        ["anything.parquet"],
    ],
)
def test_files_are_found_however_a_folder_is_laid_out(tmp_path, names):
    build, _ = DATASETS["text_vqa"]
    for number, name in enumerate(names):
        write_rows(tmp_path / name, *build("validation", 6 * number, 6))
    module = data("text_vqa", tmp_path)
    expected = 6 * sum("dv_qa" not in name for name in names)
    assert len(module.eval_dataset("calibration")) + len(module.eval_dataset("validation")) == expected
    with pytest.raises(ValueError, match="the role train needs train"):
        module.eval_dataset("train")


def test_a_single_file_is_a_folder_too(text_vqa):
    (path,) = text_vqa.glob("validation*")
    assert len(data("text_vqa", path).eval_dataset("validation")) > 0


def test_the_folder_of_a_configuration_is_used(tmp_path):
    for name in ("doc_qa", "info_qa"):
        write_dataset(name, tmp_path / {"doc_qa": "DocVQA", "info_qa": "InfographicVQA"}[name])
    assert "date on page" in data("doc_qa", tmp_path).eval_dataset("validation")[0].question
    assert "How many in" in data("info_qa", tmp_path).eval_dataset("validation")[0].question


def test_a_calibration_file_of_ones_own_is_used(text_vqa, tmp_path):
    build, _ = DATASETS["text_vqa"]
    write_rows(tmp_path / "calibration.parquet", *build("x", 0, 5))
    write_rows(tmp_path / "validation.parquet", *build("x", 100, 5))
    module = data("text_vqa", tmp_path)
    assert len(module.eval_dataset("calibration")) == len(module.eval_dataset("validation")) == 5
    module.check_disjoint("calibration", "validation")


def test_splits_can_be_chosen(text_vqa):
    module = data(TextVQA(splits={"calibration": "train"}), text_vqa)
    assert len(module.eval_dataset("calibration")) == len(module.eval_dataset("validation")) == 40
    with pytest.raises(ValueError, match="split must be one of train, calibration, validation, got 'test'"):
        TextVQA(splits={"test": "test"})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no *.parquet for chart_qa in"),
        ({"train.parquet": 2, "val.parquet": 2}, "needs test*.parquet in {}; the splits there are train, validation"),
    ],
)
def test_absent_files_and_splits_are_named(tmp_path, files, message):
    build, _ = DATASETS["chart_qa"]
    for name, count in files.items():
        write_rows(tmp_path / name, *build("x", 0, count))
    with pytest.raises(ValueError) as caught:
        data("chart_qa", tmp_path).eval_dataset("validation")
    assert message.format(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--data.path: .*nowhere does not exist; expected a folder"):
        data("text_vqa", tmp_path / "nowhere").eval_dataset("validation")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "validation.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"text_vqa: cannot read validation\*.parquet in .*: .*[Pp]arquet"):
        data("text_vqa", tmp_path).eval_dataset("validation")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("task", "name", "split", "withheld"),
    [
        (TextVQA, "text_vqa", "validation", {"answers": []}),
        (TextVQA, "text_vqa", "validation", {"answers": [""] * 10}),
        (DocVQA, "doc_qa", "validation", {"answers": None}),
        (MMMU, "mmmu", "validation", {"answer": "?"}),
        (ScienceQAImage, "science_qa_img", "test", {"answer": None}),
        (SceneTextVQA, "st_qa", "train", {"qas": [{"question": "What?", "answers": []}]}),
    ],
)
def test_a_split_with_withheld_answers_is_refused(tmp_path, task, name, split, withheld, streaming):
    rows, features = DATASETS[name][0](split, 0, 6)
    write_rows(tmp_path / f"{split}.parquet", [row | withheld for row in rows], features)
    module = data(task(streaming=streaming), tmp_path, num_samples=5, calibration_samples=5)
    with pytest.raises(ValueError, match=f"{name}: split '{split}' of .* has no answers .* withheld"):
        module.eval_dataset("validation")
    asked = list(module.without_answers().eval_dataset("validation"))
    assert asked and all(isinstance(sample, Sample) and sample.references == () for sample in asked)


def test_a_list_of_questions_may_be_stored_as_a_struct_of_lists(tmp_path):
    rows = [
        {"image": draw(index), "qa": {"question": ["Is it?", "Is it not?"], "answer": ["Yes.", "No."]}}
        for index in range(10)
    ]
    write_rows(tmp_path / "train.parquet", rows)
    samples = [
        sample for role in ("calibration", "validation") for sample in data("figure_qa", tmp_path).eval_dataset(role)
    ]
    assert len(samples) == 20 and {s.references[0] for s in samples if s.question == "Is it not?"} == {"0"}


# streaming


@pytest.mark.parametrize("task", [TextVQA, SceneTextVQA])
def test_a_stream_gives_samples_of_the_whole(task, text_vqa, st_qa):
    folder = {"text_vqa": text_vqa, "st_qa": st_qa}[task.name]
    for role in ("calibration", "validation"):
        whole = {sample.id: sample for sample in data(task(), folder).eval_dataset(role)}
        chosen = [
            list(data(task(streaming=True), folder, num_samples=n, calibration_samples=n).eval_dataset(role))
            for n in (2, 5, len(whole) - 1, 10_000)
        ]
        assert [len(samples) for samples in chosen] == [2, 5, len(whole) - 1, len(whole)]
        for fewer, more in zip(chosen, chosen[1:]):
            assert set(ids(fewer)) <= set(ids(more))
        for sample in chosen[-1]:
            assert (sample.question, sample.references) == (whole[sample.id].question, whole[sample.id].references)
            assert (
                sample.image_id == whole[sample.id].image_id
                and sample.image.tobytes() == whole[sample.id].image.tobytes()
            )
    # different images as long as there are any, and not always the same question about them
    few = chosen[1]
    assert len({sample.image_id for sample in few}) == 5
    assert task is TextVQA or len({sample.question for sample in few}) == 2


def test_a_stream_stops_where_it_has_enough(text_vqa, monkeypatch):
    read = []
    original = datasets.IterableDataset.__iter__

    def counting(self):
        for row in original(self):
            read.append(row)
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", counting)
    module = data(TextVQA(streaming=True), text_vqa, num_samples=3)
    assert len(module.eval_dataset("validation")) == 3 and len(read) < 20


def test_a_stream_needs_a_number(text_vqa):
    with pytest.raises(ValueError, match="text_vqa is streamed: expected a number of samples, got all"):
        data(TextVQA(streaming=True), text_vqa).eval_dataset("validation")


def test_a_stream_misses_columns_by_name(tmp_path):
    write_rows(tmp_path / "validation.parquet", [{"image": draw(0), "question": "What?"}])
    with pytest.raises(ValueError, match="text_vqa: column 'answers' is missing"):
        data(TextVQA(streaming=True), tmp_path, num_samples=3).eval_dataset("validation")


def test_the_built_in_task_cannot_be_streamed():
    module = data("shapes_vqa", num_samples=3)
    module.task.streaming = True
    with pytest.raises(ValueError, match="shapes_vqa cannot be streamed"):
        module.eval_dataset("validation")


# the hub


@pytest.fixture
def hub(monkeypatch):
    """Stands for `datasets.load_dataset`: notes its arguments, gives the fixture's rows or raises."""

    class Hub:
        calls: list = []
        absent: set = set()
        name = "text_vqa"

        def __call__(self, path, name=None, **kwargs):
            self.calls.append((path, name, kwargs))
            if path in self.absent:
                raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")
            rows, features = DATASETS[self.name][0](kwargs["split"], 0, 8)
            table = datasets.Dataset.from_list(rows, features=features)
            return table.to_iterable_dataset() if kwargs["streaming"] else table

    hub = Hub()
    hub.calls, hub.absent = [], set()
    monkeypatch.setattr(datasets, "load_dataset", hub)
    return hub


@pytest.mark.parametrize(
    ("task", "role", "expected"),
    [
        (TextVQA(), "validation", ("lmms-lab-encoder/textvqa", None, "validation", "main")),
        (TextVQA(), "train", ("lmms-lab-encoder/textvqa", None, "train", "main")),
        (
            TextVQA(repository="me/textvqa", revision="abc123"),
            "calibration",
            ("me/textvqa", None, "validation", "abc123"),
        ),
        (DocVQA(), "validation", ("lmms-lab-encoder/DocVQA", "DocVQA", "validation", "main")),
        (DocVQA(), "train", ("HuggingFaceM4/DocumentVQA", None, "train", "main")),
        (DocVQA(splits={"train": "train"}), "train", ("lmms-lab-encoder/DocVQA", "DocVQA", "train", "main")),
        (OKVQA(), "validation", ("lmms-lab-encoder/OK-VQA", None, "val2014", "main")),
        (OKVQA(), "train", ("Multimodal-Fatima/OK-VQA_train", None, "train", "main")),
        (ScienceQAImage(), "validation", ("lmms-lab-encoder/ScienceQA", "ScienceQA-IMG", "test", "main")),
        (ScienceQAImage("lmms-lab/ScienceQA"), "train", ("lmms-lab/ScienceQA", "ScienceQA-IMG", "train", "main")),
        (ScienceQAImage("derek-thomas/ScienceQA"), "train", ("derek-thomas/ScienceQA", None, "train", "main")),
        (ChartQA(), "validation", ("HuggingFaceM4/ChartQA", None, "test", "main")),
        (PlotQA(), "calibration", ("jinaai/plotqa", None, "test", "main")),
        (PlotQA(), "train", ("HuggingFaceM4/the_cauldron", "plotqa", "train", "main")),
        (FigureQA(config="default"), "validation", ("vikhyatk/figureqa", "default", "train", "main")),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("streaming", [False, True])
def test_repository_configuration_split_and_revision_are_passed_on(hub, monkeypatch, task, role, expected, streaming):
    hub.name = task.name
    if task.name == "figure_qa":  # whose fixture has no declared features
        hub.name = "dv_qa"
        monkeypatch.setattr(FigureQA, "references", lambda self, entry: ("1",))
    monkeypatch.setattr(task, "streaming", streaming)
    data(task, num_samples=2, calibration_samples=2).eval_dataset(role)
    repository, config, split, revision = expected
    arguments = {"split": split, "revision": revision, "streaming": streaming}
    assert hub.calls[0] == (repository, config, arguments)


def test_a_repository_that_moved_is_found_under_its_other_name(hub):
    hub.absent = {"lmms-lab-encoder/textvqa"}
    assert len(data("text_vqa").eval_dataset("validation")) > 0
    assert [call[0] for call in hub.calls] == ["lmms-lab-encoder/textvqa", "lmms-lab/textvqa"]
    hub.calls.clear()
    assert len(data(TextVQA(repository="lmms-lab/textvqa")).eval_dataset("validation")) > 0
    assert [call[0] for call in hub.calls] == ["lmms-lab/textvqa"]


def test_a_repository_that_is_nowhere_is_named_with_a_way_out(hub):
    hub.absent = {"lmms-lab-encoder/textvqa", "lmms-lab/textvqa"}
    with pytest.raises(ValueError) as caught:
        data("text_vqa").eval_dataset("validation")
    message = str(caught.value)
    assert "text_vqa: lmms-lab-encoder/textvqa or lmms-lab/textvqa cannot be reached" in message
    assert "--data.path FOLDER with validation*.parquet" in message and "\n" not in message


def test_several_configurations_are_read_one_after_another(hub):
    hub.name = "mmmu"
    task = MMMU(repository="MMMU/MMMU", config=["Art", "Math"])
    assert len(data(task).eval_dataset("validation")) == 16
    assert [call[1] for call in hub.calls] == ["Art", "Math"]


def test_a_wrong_split_lists_those_there_are(monkeypatch, text_vqa):
    (path,) = text_vqa.glob("validation*")
    original = datasets.load_dataset

    def local(repository, config, split, revision, streaming):
        return original("parquet", data_files={"validation": [str(path)]}, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", local)
    for streaming in (False, True):
        task = TextVQA(splits={"validation": "valdation"}, streaming=streaming)
        with pytest.raises(ValueError, match=r"text_vqa: cannot read split 'valdation' of lmms.*\['validation'\]"):
            data(task, num_samples=2).eval_dataset("validation")


OFFLINE = """
import sys
from lit_depth.cli import main
main(["importance", "--data.task", "text_vqa", "--output_dir", sys.argv[1]])
"""


@pytest.mark.slow
def test_offline_without_a_copy_ends_with_a_readable_error(tmp_path):
    command = [sys.executable, "-c", OFFLINE, str(tmp_path)]
    environment = {**ENVIRONMENT, "HF_HOME": str(tmp_path / "hub")}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    message = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert message.startswith("error: text_vqa: lmms-lab-encoder/textvqa or lmms-lab/textvqa cannot be reached")
    assert "OfflineModeIsEnabled" in message and "--data.path FOLDER with validation*.parquet" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_offline_is_respected_in_this_process_too(streaming):
    with pytest.raises(ValueError, match=r"cannot be reached and is not in the cache \(.*OfflineModeIsEnabled"):
        data(TextVQA(streaming=streaming), num_samples=2).eval_dataset("validation")


def test_parity_is_known():
    assert TextVQA(parity="molmo").max_new_tokens == 12 and TextVQA().max_new_tokens == 64
    with pytest.raises(ValueError, match="parity must be null or molmo, got 'lmms'"):
        TextVQA(parity="lmms")


# malformed rows

TEN = ["stop"] * 10
GOOD = draw(0)


def stored(content: bytes | None) -> dict:
    return {"bytes": content, "path": None}


NOISE = Image.effect_noise((64, 64), 50)
# what is wrong with a row of TextVQA, and the reason that is recorded
MALFORMED = [
    ({"image": None}, "no image"),
    ({"image": stored(None)}, "no image"),
    ({"image": {"bytes": None, "path": "a.png"}}, "does not exist"),
    ({"image": {"bytes": None, "path": "/nowhere/a.png"}}, "lies outside of"),
    ({"image": {"bytes": None, "path": "gone.png"}}, "does not exist"),
    ({"image": stored(b"")}, "empty"),
    ({"image": stored(b"\x00")}, "unknown or unsupported format"),
    ({"image": stored(b"<html>404</html>")}, "unknown or unsupported format"),
    ({"image": stored(b"%PDF-1.4")}, "PDF is not read; save it as JPEG"),
    ({"image": stored(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")}, "unknown or unsupported format"),
    ({"image": stored(b"\x89PNG\r\n\x1a\n")}, "cannot be decoded"),
    ({"image": stored(encode(NOISE)[:1000])}, "cannot be decoded"),
    ({"image": stored(encode(NOISE)[:60])}, "cannot be decoded"),
    ({"image": stored(encode(NOISE, "jpeg")[:300])}, "cannot be decoded"),
    ({"image": stored(encode(NOISE, "jpeg")[:3])}, "cannot be decoded"),
    ({"image": stored(encode(NOISE, "gif")[:200])}, "cannot be decoded"),
    ({"image": stored(encode(NOISE, "bmp")[:200])}, "cannot be decoded"),
    ({"image": stored(encode(NOISE, "tiff")[:-2000])}, "cannot be decoded"),
    ({"image": stored(encode(NOISE, "webp")[:100])}, "cannot be decoded"),
    ({"image": stored(b"RIFF\x10\x00\x00\x00WEBPVP8 ")}, "cannot be decoded"),
    ({"image": stored(png_of_size(20_000, 20_000))}, "refused"),
    (
        {"image": stored(encode(Image.fromarray(__import__("numpy").full((2, 2), -1.0, "float32")), "tiff"))},
        "grey values",
    ),
    ({"question": None}, "no question"),
    ({"question": ""}, "no question"),
    ({"question": "  \n"}, "no question"),
    ({"answers": None}, "no reference answer"),
    ({"answers": []}, "no reference answer"),
    ({"answers": [""] * 10}, "no reference answer"),
    ({"answers": [None] * 10}, "no reference answer"),
    ({"answers": ["stop"]}, "expected 10 answers, got 1"),
    ({"answers": TEN[:9]}, "expected 10 answers, got 9"),
    ({"image": None, "question": None, "answers": None}, "no question"),
]


@pytest.fixture(scope="module")
def malformed(tmp_path_factory):
    """Forty good rows with the malformed ones among them."""
    folder = tmp_path_factory.mktemp("malformed")
    good = {"question": "What?", "image": GOOD, "answers": TEN}
    rows = [good | {"image_id": str(index), "question_id": index} for index in range(40 + len(MALFORMED))]
    places = list(range(3, 2 * len(MALFORMED) + 3, 2))
    for place, (wrong, _) in zip(places, MALFORMED):
        rows[place] = rows[place] | wrong
    # `calibration` is a file of its own, so that `validation` is not divided
    write_rows(folder / "calibration.parquet", [good | {"image_id": "another", "question_id": 0}])
    write_rows(folder / "validation.parquet", rows)
    return folder, {place: reason for place, (_, reason) in zip(places, MALFORMED)}


def test_a_malformed_row_costs_its_sample_and_says_why(malformed):
    folder, reasons = malformed
    samples = list(data("text_vqa", folder).eval_dataset("validation"))
    assert len(MALFORMED) >= 30 and len(samples) == 40 + len(reasons)
    for index, sample in enumerate(samples):
        assert isinstance(sample, BadSample) == (index in reasons), (index, sample)
        if isinstance(sample, BadSample):
            assert reasons[index] in sample.reason, (index, sample.reason)
            assert sample.id in (f"text_vqa/validation/{index}", f"validation/{index}/{index}")
    assert len({sample.id for sample in samples}) == len(samples)


class Echo(LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_malformed_rows_pass_the_predict_loop(malformed, prompter, tmp_path, num_workers):
    folder, reasons = malformed
    module = data("text_vqa", folder, prompter=prompter, num_workers=num_workers, batch_size=8)
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **options)
    batches = trainer.predict(Echo(), module.predict_dataloader())
    bad = [sample for batch in batches for sample in batch["bad_samples"]]
    good = [sample for batch in batches for sample in batch["samples"]]
    assert len(bad) == len(reasons) and len(good) == 40 and all(isinstance(sample, Sample) for sample in good)
    assert all(batch["input_ids"].shape[0] == len(batch["samples"]) for batch in batches if batch["samples"])


def test_reasons_are_the_same_in_every_run(malformed):
    folder, _ = malformed
    first, second = ([s for s in data("text_vqa", folder).eval_dataset("validation")] for _ in range(2))
    assert [s.reason for s in first if isinstance(s, BadSample)] == [
        s.reason for s in second if isinstance(s, BadSample)
    ]


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("science_qa_img", {"answer": 7}, "expected an answer from 0 to 2, got 7"),
        ("science_qa_img", {"choices": ["one"]}, "expected 2 to 26 choices, got 1"),
        ("mmmu", {"question_type": "multiple-choice", "answer": "Z"}, "expected a letter from A to C"),
        ("mmmu", {"question_type": "multiple-choice", "answer": "AB"}, "expected a letter from A to C"),
        ("mmmu", {"question_type": "multiple-choice", "options": "not a list"}, "expected 2 to 26 options"),
        ("figure_qa", {"qa": [{"question": "Is it?", "answer": "Perhaps."}]}, "expected the answer yes or no"),
        ("figure_qa", {"qa": [{"question": "", "answer": "Yes."}]}, "no question"),
        ("figure_qa", {"qa": []}, "no question"),
        ("figure_qa", {"qa": None}, "no question"),
        ("tally_qa", {"qa": [{"question": "How many?", "answer": None, "is_simple": None}]}, "no reference answer"),
        ("coco_caption", {"answer": None}, "no reference answer"),
        ("plot_qa", {"image": None}, "no image"),
    ],
)
def test_what_a_task_refuses_of_its_own(tmp_path, name, wrong, reason):
    build, splits = DATASETS[name]
    rows, features = build(splits[-1], 1, 12)
    rows[0]["options"] = "['x', 'y', 'z']"
    rows[4] |= ({"options": "['x', 'y', 'z']"} if name == "mmmu" else {}) | wrong
    if name != "mmmu":
        rows = [{key: value for key, value in row.items() if key != "options"} for row in rows]
    write_rows(tmp_path / f"{splits[-1]}.parquet", rows, features)
    module = data(name, tmp_path)
    bad = [s for role in ("calibration", "validation") for s in module.eval_dataset(role) if isinstance(s, BadSample)]
    assert len(bad) == 1 and reason in bad[0].reason


@pytest.mark.parametrize("answers", ["stop", "['stop', 'halt']", ["stop", "halt"], [{"answer": "stop"}]])
def test_answers_are_read_however_they_are_stored(tmp_path, answers):
    rows = [
        {"image": draw(i), "question": "What?", "answers": answers, "questionId": str(i), "docId": i} for i in range(6)
    ]
    write_rows(tmp_path / "validation.parquet", rows)
    sample = data("doc_qa", tmp_path).eval_dataset("validation")[0]
    assert sample.references[0] == "stop" and len(sample.references) <= 2


def test_rows_are_counted_by_question_without_reading_images(st_qa):
    rows = SceneTextVQA().load("validation", str(st_qa))
    assert isinstance(rows, QuestionRows) and len(rows) == 2 * len({int(row) for row in rows.rows})
