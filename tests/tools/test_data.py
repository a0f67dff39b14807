"""``lit-depth data FILE``: what is shown of a file of questions."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from lit_depth.cli import main
from tests.helpers.commands import run


def test_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = []
    for n in range(4):
        Image.new("RGB", (30, 20), (60 * n, 0, 0)).save(tmp_path / f"{n}.png")
        question, answer = f"How <b>many</b> $ {n}?", "two" if n else ""
        rows.append({"question": question, "answer": answer, "image": f"{n}.png", "note": "-"})
    rows.append({"question": "Where?", "answer": "here", "image": "lost.png"})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    main(["data", "q.jsonl"])
    out = capsys.readouterr().out
    assert "question = question, answer = answer, image = image; not read: note" in out
    assert "the constant answer 'two' scores 1.000, the best of 1" in out
    assert "vqa2: How <b>many</b>" in out
    assert "1 of the questions cannot be asked." in out and "'lost.png' does not exist" in out
    assert re.search(r"calibration +unnamed +\d +\d +1 +[01]\n|validation +unnamed +\d +\d +1 +[01]\n", out)
    page = (tmp_path / "results" / "data" / "q" / "report.html").read_text()
    assert "How &lt;b&gt;many" in page and "data:image/svg+xml;base64," in page


def test_a_table_without_answers_is_shown_as_it_will_be_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for n in range(5):
        Image.new("RGB", (30, 20), (50 * n, 0, 0)).save(tmp_path / f"{n}.png")
    rows = "".join(f"How many {n}?,{n}.png\n" for n in range(5))
    (tmp_path / "q.csv").write_text(f"question,image\n{rows}")
    main(["data", "q.csv"])
    out = capsys.readouterr().out
    assert "q.csv: 5 questions without answers." in out and "nothing is scored" in out and "calibration" not in out
    # all of them, each with its own picture: read, questions, images, without answer, other faults
    assert re.search(r"validation +unnamed +5 +5 +5 +0\n", out)
    assert "data:image/svg+xml;base64," in (tmp_path / "results" / "data" / "q" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["q.jsonl", "--columns.question", "Q"], "has no column 'Q'"),
        (["nowhere"], "nowhere does not exist"),
        (["bad.jsonl"], "none of 1 questions can be asked: .*lost..png"),
        (["q.jsonl", "--metric", "best"], "expected the name of a metric"),
        (
            ["q.jsonl", "--metric", "vqa"],
            "--metric vqa does not fit these answers: expected at least 10 .*; give another",
        ),
        (["q.jsonl", "--metric", "logprob_per_token"], "does not fit these answers: expected a metric of answers"),
    ],
)
def test_what_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = {"question": "?", "answer": "a"}
    (tmp_path / "q.jsonl").write_text("\n".join([json.dumps(row)] * 4))
    (tmp_path / "bad.jsonl").write_text("\n".join([json.dumps({**row, "image": f"lost{n}.png"}) for n in "ab"]))
    with pytest.raises(SystemExit) as ended:
        main(["data", *arguments])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_texts_are_shown_by_document(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"what color is the {name} shape")
    assert run(["data", tmp_path, "--output_dir", tmp_path / "out"]) == 0
    told = capsys.readouterr().out
    assert "2 documents" in told and "one.txt" in told and "two.txt" in told and "tokens to be predicted" in told


def test_all_pictures_of_a_question_are_shown_and_counted(tmp_path, capsys):
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200), (200, 0, 200)]
    for number, color in enumerate(colors):
        Image.new("RGB", (40, 20 + number), color).save(tmp_path / f"{number}.png")
    rows = [{"question": f"{n}?", "answer": "yes", "images": [f"{2 * n}.png", f"{2 * n + 1}.png"]} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(["data", tmp_path / "q.jsonl", "--output_dir", tmp_path / "out"]) == 0
    out = capsys.readouterr().out
    counts = {role: int(images) for role, images in re.findall(r"(calibration|validation) +unnamed +\d +(\d)", out)}
    assert sorted(counts.values()) == [2, 4]
    (figure,) = (tmp_path / "out").rglob("questions.png")
    shown = np.array(Image.open(figure).convert("RGB")).reshape(-1, 3)
    assert sum((shown == color).all(1).any() for color in colors) == counts["validation"]


def test_prompts_beyond_the_context_and_copies_in_both_halves_are_told(tmp_path, capsys):
    for name in ("a", "b"):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{name}.png")
    rows = [{"question": "?", "answer": "yes", "image": f"{name}.png"} for name in ("a", "b")]
    rows += [{"question": "word " * 3000, "answer": "yes"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(["data", tmp_path / "q.jsonl", "--output_dir", tmp_path / "out"]) == 0
    out = capsys.readouterr().out
    assert "1 images stand in both: name what is the same image" in out
    assert re.search(r"unnamed/2 +the prompt has [\d,]+ tokens, the limit is 496", out)
