"""A user's own files as a task: columns, splits, images and metric, and what is refused."""

from __future__ import annotations

import csv
import json

import datasets
import pytest
import torch
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


def picture(path, color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (color, 0, 0)).save(path)


def shades(sample):
    """What tells the pictures of a sample, in their order."""
    return [image.getpixel((0, 0))[0] for image in sample.images]


def by_question(datamodule):
    return {each.question: each for split in ("calibration", "validation") for each in datamodule.eval_dataset(split)}


@pytest.mark.parametrize("kind", ["list", "text", "columns", "named columns", "parquet"])
def test_all_pictures_of_a_question_are_shown_in_order(kind, tmp_path):
    names = [["0.png"], ["1.png", "2.png"], [], ["5.png", "3.png", "4.png"]]
    for color in range(6):
        picture(tmp_path / f"{color}.png", color)
    rows: list[dict] = [{"question": f"{n}?", "answer": "yes"} for n in range(4)]
    columns, file = {}, tmp_path / ("q.parquet" if kind == "parquet" else "q.jsonl")
    for row, images in zip(rows, names):
        if kind == "list":
            row["images"] = images
        elif kind == "text":
            row["image"] = "; ".join(images)
        elif kind == "parquet":
            row["images"] = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in images]
        else:
            stem = "image_" if kind == "columns" else "view"
            row.update({f"{stem}{place}": name for place, name in enumerate([*images, None, None, None][:3], start=1)})
    if kind == "named columns":
        columns = {"image": "view1, view2, view3"}
    if kind == "parquet":
        features = {"question": datasets.Value("string"), "answer": datasets.Value("string")}
        table = datasets.Dataset.from_list(
            rows, features=datasets.Features({**features, "images": datasets.List(datasets.Image())})
        )
        table.to_parquet(file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    datamodule = module(file, columns=columns)
    found = by_question(datamodule)
    assert [shades(found[f"{n}?"]) for n in range(4)] == [[0], [1, 2], [], [5, 3, 4]]
    asked = datamodule.eval_dataset("validation")
    assert [sample.images for sample in asked.without_images()] == [()] * len(asked)
    blind = module(file, columns=columns, drop_images=True)
    assert all(each.images == () for each in by_question(blind).values())
    assert blind.eval_dataset("validation").ids() == asked.ids()


def test_the_fingerprint_sees_every_picture(tmp_path):
    prints = []
    for name, second in (("a", 1), ("b", 9)):
        for color, number in ((0, 0), (second, 1), (2, 2), (3, 3)):
            picture(tmp_path / name / f"{number}.png", color)
        rows = [{"question": f"{n}?", "answer": "yes", "images": [f"{2 * n}.png", f"{2 * n + 1}.png"]} for n in (0, 1)]
        (tmp_path / name / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
        datamodule = module(tmp_path / name / "q.jsonl")
        prints.append({datamodule.eval_dataset(split).fingerprint() for split in ("calibration", "validation")})
    assert len(prints[0] & prints[1]) == 1  # of the half that has the same pictures


def test_questions_that_share_a_picture_stand_in_one_half_and_are_one_cluster(tmp_path):
    images = [["0.png", "1.png"], ["./1.png", "2.png"], ["3.png"], ["sub/../2.png"], ["4.png", "3.png"], ["5.png"]]
    for color in range(6):
        picture(tmp_path / f"{color}.png", color)
    rows = [{"question": f"{n}?", "answer": "yes", "images": those} for n, those in enumerate(images)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    datamodule = module(tmp_path / "q.jsonl")
    ids = {question: sample.image_id for question, sample in by_question(datamodule).items()}
    assert ids["0?"] == ids["1?"] == ids["3?"] and ids["2?"] == ids["4?"] and len(set(ids.values())) == 3
    one, other = (
        {name for sample in datamodule.eval_dataset(split) for name in shades(sample)}
        for split in ("calibration", "validation")
    )
    assert one | other == set(range(6)) and not one & other
    datamodule.check_disjoint("calibration", "validation")


def test_questions_that_all_share_a_picture_cannot_be_dealt_out(tmp_path):
    for color in range(3):
        picture(tmp_path / f"{color}.png", color)
    rows = [{"question": f"{n}?", "answer": "yes", "images": ["0.png", f"{n}.png"]} for n in (1, 2)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="got 1: all questions are linked by images that they share; give a column"):
        module(tmp_path / "q.jsonl")
    rows = [{**row, "image_id": n} for n, row in enumerate(rows)]
    (tmp_path / "named.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(module(tmp_path / "named.jsonl").eval_dataset("validation")) == 1


def test_a_picture_of_the_split_that_is_reported_on_is_not_selected_on(tmp_path):
    for color in range(4):
        picture(tmp_path / f"{color}.png", color)
    for split, pairs in (("train", [(0, 1), (1, 2), (2,)]), ("test", [(3, 2)])):
        rows = [
            {"question": f"{split} {n}?", "answer": "yes", "images": [f"{'./' * n}{each}.png" for each in those]}
            for n, those in enumerate(pairs)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    datamodule = module(tmp_path)
    with pytest.warns(UserWarning, match="2 of 3 rows of split 'train' show images of split 'test', which results are"):
        selected = list(datamodule.eval_dataset("calibration"))
    assert [sample.question for sample in selected] == ["train 0?"]


def test_copies_of_a_picture_in_both_halves_are_refused(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", 7)
    (tmp_path / "q.csv").write_text("question,answer,image\n1?,x,a.png\n2?,x,b.png\n")
    with pytest.raises(
        ValueError, match="share 1 images under two names, for example [ab].png and [ab].png: leave one"
    ):
        module(tmp_path / "q.csv").check_disjoint("calibration", "validation")


def test_the_same_name_in_two_folders_is_two_pictures(tmp_path):
    """As in an image folder, whose splits and parts have folders of their own."""
    for place, (split, part) in enumerate((s, p) for s in ("train", "test") for p in ("x", "y")):
        for number in range(2):
            picture(tmp_path / split / part / f"{number}.png", 10 * place + number)
        rows = "".join(f"{number}.png,{split} {part} {number}?,yes\n" for number in range(2))
        (tmp_path / split / part / "metadata.csv").write_text("file_name,question,answer\n" + rows)
    datamodule = module(tmp_path)
    found = by_question(datamodule)
    assert {question: shades(sample) for question, sample in found.items()} == {
        f"{split} {part} {number}?": [10 * place + number]
        for place, (split, part) in enumerate((s, p) for s in ("train", "test") for p in ("x", "y"))
        for number in range(2)
    }
    assert len({sample.image_id for sample in found.values()}) == 8 and "_folder" not in datamodule.task.unread()


def test_results_beside_a_table_and_other_tables_beside_metadata_are_not_read(folder):
    (folder / "results" / "run").mkdir(parents=True)
    (folder / "results" / "run" / "manifest.json").write_text('{"a": 1}')
    assert len(by_question(module(folder))) == 30
    (folder / "metadata.csv").write_text("file_name,question,answer\npics/0.png,A?,x\npics/1.png,B?,x\n")
    assert set(by_question(module(folder))) == {"A?", "B?"}


def test_pictures_without_a_table_say_what_is_missing(tmp_path):
    for number in range(2):
        picture(tmp_path / f"{number}.png")
    with pytest.raises(
        ValueError, match="got none beside 2 pictures; name them in a metadata.csv with the columns file"
    ):
        module(tmp_path)


def test_a_column_of_splits_may_spell_them_in_any_way(tmp_path, capsys):
    splits = ["Train", "train ", "TEST", "validation", "val", ""]
    rows = "".join(f"{n}?,yes,{split}\n" for n, split in enumerate(splits))
    (tmp_path / "q.csv").write_text("question,answer,split\n" + rows)
    datamodule = module(tmp_path / "q.csv")
    for split, expected in (("calibration", ["0?", "1?"]), ("validation", ["3?", "4?"])):
        assert [sample.question for sample in datamodule.eval_dataset(split)] == expected
    assert "1 rows name no split in the column 'split' and are left out" in capsys.readouterr().err
    # rows of a split are counted in it, as the ids of its samples are
    (tmp_path / "s.csv").write_text("question,answer,split\n0?,yes,train\n1?,yes,train\n2?,yes,val\n3?,,val\n")
    assert [sample.id for sample in module(tmp_path / "s.csv").eval_dataset("validation")] == ["validation/0"]
    assert "1 without an answer left out, the first in row 1 of split 'validation', counted" in capsys.readouterr().err
    (tmp_path / "r.csv").write_text("question,answer,fold\n1?,yes,0\n2?,yes,1\n")
    with pytest.raises(ValueError, match="such as validation or test, got 0, 1; to deal the rows out .* null"):
        module(tmp_path / "r.csv")
    assert len(by_question(module(tmp_path / "r.csv", columns={"split": None}))) == 2


def test_ids_of_images_do_not_depend_on_their_type(tmp_path):
    """A column of numbers of which one is missing is one of floats."""
    for split, ids in (("train", [1, 2, 3]), ("test", [3.0, None, 4.0])):
        table = {"question": [f"{split} {n}?" for n in range(3)], "answer": ["x"] * 3, "image_id": ids}
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / f"{split}.parquet")
    datamodule = module(tmp_path)
    assert {sample.image_id for sample in datamodule.eval_dataset("validation")} == {"3", "4", "test/1"}
    with pytest.raises(ValueError, match="share 1 images, for example '3'"):
        datamodule.check_disjoint("calibration", "validation")


def test_a_metric_that_is_given_is_not_guessed(folder, capsys):
    assert module(folder / "q.csv", metric="contains").task.metric == "contains"
    assert "metric exact" not in (told := capsys.readouterr().err) and "image = image" in told


def test_all_pictures_reach_the_model(processor, prompter, tmp_path):
    """Against the processor, given the files' pictures by hand."""
    for color in range(6):
        picture(tmp_path / f"{color}.png", 40 * color)
    rows = [{"question": f"{n}?", "answer": "yes", "images": [f"{2 * n}.png", f"{2 * n + 1}.png"]} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    datamodule = DepthDataModule(prompter, path=str(tmp_path / "q.jsonl"), num_samples=None)
    (batch,) = datamodule.eval_dataloader("validation")
    numbers = [int(sample.question[:-1]) for sample in batch["samples"]]
    images = [[Image.open(tmp_path / f"{2 * n + place}.png") for place in (0, 1)] for n in numbers]
    expected = processor(images=images, text=[f"vqa2: {n}?" for n in numbers], padding_side="left")
    assert numbers and all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
