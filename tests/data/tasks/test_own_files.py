"""A user's own files as a task: columns, splits, images and metric, and what is refused."""

from __future__ import annotations

import csv
import json

import datasets
import pytest
from PIL import Image

from lit_depth.data import BadSample, DepthDataModule
from lit_depth.data.tasks.own_files import OwnFiles


def module(path, **options):
    return DepthDataModule(path=str(path), num_samples=None, calibration_samples=None, **options)


def samples(path, split="validation", **options):
    return list(module(path, **options).eval_dataset(split))


@pytest.fixture
def folder(tmp_path):
    """Ten images with three questions each, in a CSV beside them."""
    (tmp_path / "pics").mkdir()
    rows = []
    for n in range(10):
        Image.new("RGB", (20, 10), (n, 0, 0)).save(tmp_path / "pics" / f"{n}.png")
        rows += [(f"pics/{n}.png", f"Question {k} of {n}?", "yes") for k in range(3)]
    with open(tmp_path / "q.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "question", "answer"), *rows])
    return tmp_path


def test_a_csv_with_images_beside_it(folder, capsys):
    datamodule = module(folder / "q.csv")
    both = [list(datamodule.eval_dataset(split)) for split in ("calibration", "validation")]
    assert [len(part) for part in both] == [15, 15]
    images = [{sample.image_id for sample in part} for part in both]
    assert [len(part) for part in images] == [5, 5] and not images[0] & images[1]
    for sample in both[0]:
        assert sample.image.getpixel((0, 0)) == (int(sample.question[-2]), 0, 0)
        assert sample.references == ("yes",)
    assert datamodule.task.metric == "exact"
    assert "metric exact, because the answers are short" in capsys.readouterr().err


def test_the_halves_do_not_depend_on_the_order_of_the_rows(folder):
    lines = (folder / "q.csv").read_text().splitlines()
    (folder / "r.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    first, second = ({sample.question for sample in samples(folder / name)} for name in ("q.csv", "r.csv"))
    assert first == second


def test_splits_by_file_by_column_and_of_a_saved_folder(tmp_path):
    rows = [{"question": f"{split} {n}?", "answer": "a"} for split in ("train", "val") for n in range(3)]
    for split in ("train", "val"):
        part = [row for row in rows if row["question"].startswith(split)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    one = tmp_path / "one" / "all.json"
    one.parent.mkdir()
    one.write_text(json.dumps([{**row, "split": row["question"].split()[0]} for row in rows]))
    saved = tmp_path / "saved"
    parts = {name: datasets.Dataset.from_list(rows[i * 3 :][:3]) for i, name in enumerate(("train", "val"))}
    datasets.DatasetDict(parts).save_to_disk(saved)
    (tmp_path / "files").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").rename(tmp_path / "files" / f"{split}.jsonl")
    for place in (tmp_path / "files", one, saved):
        assert [sample.question for sample in samples(place, "calibration")] == ["train 0?", "train 1?", "train 2?"]
        assert [sample.question for sample in samples(place)] == ["val 0?", "val 1?", "val 2?"]


def test_multiple_choice_from_a_table(tmp_path):
    file = tmp_path / "q.jsonl"
    rows = [{"question": "Which?", "choices": ["cat", "dog"], "answer": answer} for answer in ("dog", "B", 1, "cow")]
    file.write_text("\n".join(map(json.dumps, rows)))
    datamodule = module(file)
    assert (datamodule.task.metric, datamodule.task.answer_kind) == ("multiple_choice", "choice")
    found = [*datamodule.eval_dataset("calibration"), *datamodule.eval_dataset("validation")]
    good = [sample for sample in found if not isinstance(sample, BadSample)]
    assert [sample.references for sample in good] == [("B",)] * 3
    assert {sample.options for sample in good} == {("cat", "dog")}
    (bad,) = (sample for sample in found if isinstance(sample, BadSample))
    assert "expected an answer out of A, B, or the text of an option, got 'cow'" in bad.reason


def test_captions_have_no_question_and_metadata_files_are_understood(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\n0.png,a dark square\n1.png,a red one\n")
    datamodule = module(tmp_path)
    assert (datamodule.task.metric, datamodule.task.answer_kind) == ("cider", "caption")
    every = [*datamodule.eval_dataset("calibration"), *datamodule.eval_dataset("validation")]
    assert [sample.question for sample in every] == ["", ""] and every[0].image.size == (8, 8)


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        ("../secret.png", {}, "lies outside of"),
        ("ABSOLUTE", {}, "lies outside of"),
        ("../secret.png", {"allow_outside": True}, None),
        ("ABSOLUTE", {"allow_outside": True}, None),
        ("https://a.example/b.png", {"allow_outside": True}, "got the address"),
        ("nowhere.png", {}, "the image file 'nowhere.png' does not exist"),
    ],
)
def test_images_are_read_from_the_folder_alone(image, options, reason, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    inner = tmp_path / "data"
    inner.mkdir()
    image = str(tmp_path / "secret.png") if image == "ABSOLUTE" else image
    Image.new("RGB", (8, 8), "red").save(inner / "there.png")
    rows = [{"question": "What?", "answer": "a", "image": name} for name in (image, "there.png")]
    (inner / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = [samples(inner / "q.jsonl", split, **options) for split in ("calibration", "validation")]
    sample = next(each for part in both for each in part if each.id == "unnamed/0")
    assert (reason is None) is (not isinstance(sample, BadSample))
    assert reason is None or reason in sample.reason


def test_rows_without_an_answer_or_a_picture_cost_themselves_only(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [("a.png", "Q0?", "x"), ("", "Q1?", "x"), ("a.png", "Q2?", ""), ("a.png", "", "x")]
    with open(tmp_path / "q.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "question", "answer"), *rows])
    datamodule = module(tmp_path / "q.csv")
    found = [sample for split in ("calibration", "validation") for sample in datamodule.eval_dataset(split)]
    good = {sample.question: sample for sample in found if not isinstance(sample, BadSample)}
    assert set(good) == {"Q0?", "Q1?"} and good["Q1?"].image is None
    reasons = sorted(sample.reason for sample in found if isinstance(sample, BadSample))
    assert reasons == ["ValueError: the row has no question"]
    # is no fault of the file, so it must not end a run of few questions
    assert capsys.readouterr().err.count("1 without an answer left out, the first in row 2, counted from 0") == 1


def test_long_answers_have_room(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([{"question": "?", "answer": "word " * 20}] * 2))
    assert OwnFiles(str(tmp_path / "q.json")).max_new_tokens == 49
    (tmp_path / "r.json").write_text(json.dumps([{"question": "?", "answer": "a"}] * 2))
    assert OwnFiles(str(tmp_path / "r.json")).max_new_tokens == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"path": "owner/name"}, "owner/name is no file or folder here, and the hub does not give it"),
        ({"path": "x.xlsx"}, "expected a file of .jsonl"),
        ({"path": "q.jsonl", "columns": {"question": "Q"}}, "has no column 'Q'"),
        ({"path": "q.jsonl", "task": "text_vqa", "columns": {"question": "Q"}}, "with a path and no task"),
        ({"columns": {"question": "Q"}}, "with a path and no task"),
        ({"path": "one.jsonl"}, "expected two questions or more, half to select masks on and half to report on, got 1"),
        ({"path": "empty.jsonl"}, "empty.jsonl: expected rows, got none"),
    ],
)
def test_what_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.xlsx").write_bytes(b"x")
    (tmp_path / "empty.jsonl").write_text("")
    for name, rows in (("one", 1), ("q", 2)):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "?", "answer": "a"}\n' * rows)
    with pytest.raises(ValueError, match=message):
        DepthDataModule(**options)


def test_options_by_likelihood(tmp_path, capsys):
    rows = [{"question": f"{n}?", "options": ["cat", "dog"], "answer": "dog"} for n in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    datamodule = module(tmp_path / "q.jsonl", answer_by="likelihood")
    for sample in datamodule.eval_dataset("validation"):
        assert (sample.continuations, sample.target, sample.references) == (("cat", "dog"), 1, ("B",))
    assert datamodule.task.metric == "acc"
    assert "metric acc, because options are chosen by the sum" in capsys.readouterr().err
    assert module(tmp_path / "q.jsonl", answer_by="likelihood", metric="acc_norm").task.metric == "acc_norm"


def test_no_options_to_choose_from_by_likelihood(folder):
    with pytest.raises(ValueError, match="expected a column of options to choose from by likelihood, got question"):
        module(folder / "q.csv", answer_by="likelihood")
