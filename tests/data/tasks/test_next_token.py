"""Plain texts: documents, their halves, windows of tokens, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.next_token import NextToken, cut
from lit_depth.functional import masked, prefix
from tests.helpers.commands import run

WORDS = ("what", "color", "is", "the", "red", "circle", "left", "of", "blue", "square", "how", "many", "shapes", "are")


def text(length: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + n * n) % len(WORDS)] for n in range(length))


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        (tmp_path / f"essay{number}.txt").write_text(text(20 + 30 * number, number))
    return tmp_path


def module(path, **options):
    return DepthDataModule(path=str(path), num_samples=None, calibration_samples=None, **options)


def documents(path, split="validation", **options):
    return {sample.image_id: sample.references[0] for sample in module(path, **options).eval_dataset(split)}


@pytest.mark.parametrize(("length", "longest"), [(1, 4), (4, 4), (5, 4), (8, 4), (11, 4), (3, 1)])
def test_every_token_is_counted_once_behind_what_stands_before_it(length, longest):
    ids = list(range(1, length + 1))
    windows = list(cut(ids, [0], longest))
    assert [token for _, _, counted in windows for token in counted] == ids
    for start, prompt, counted in windows:
        assert len(prompt) + len(counted) <= longest + 1 and counted == ids[start : start + len(counted)]
        assert prompt == ([0, *ids][start + 1 - len(prompt) : start + 1])
    # the last one looks back as far as a window holds
    assert len(windows) == 1 or sum(map(len, windows[-1][1:])) == longest + 1


def test_windows_are_those_of_lm_evaluation_harness():
    utils = pytest.importorskip("lm_eval.utils")
    for length in (1, 7, 8, 9, 20):
        ids = list(range(1, length + 1))
        theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 0, 8, 1))
        assert [(list(a), list(b)) for a, b in theirs] == [(a, b) for _, a, b in cut(ids, [0], 8)]


def test_documents_of_a_folder_are_dealt_out_in_halves(folder, capsys):
    both = [documents(folder, split) for split in ("calibration", "validation")]
    assert sorted(map(len, both)) == [2, 3] and not both[0].keys() & both[1].keys()
    assert both[0] | both[1] == {file.name: file.read_text() for file in folder.glob("*.txt")}
    assert "task next_token, metric logprob_per_token" in capsys.readouterr().err
    module(folder).check_disjoint("calibration", "validation")


def test_a_single_document_is_cut_in_the_middle_at_white_space(tmp_path):
    whole = text(101)
    (tmp_path / "book.txt").write_text(whole)
    halves = [documents(tmp_path / "book.txt", split) for split in ("calibration", "validation")]
    assert [list(half) for half in halves] == [["book.txt, first half"], ["book.txt, second half"]]
    first, second = (next(iter(half.values())) for half in halves)
    assert first + second == whole and second.startswith(" ") and abs(len(first) - len(second)) < 20


def test_splits_by_file_and_a_column_of_texts(folder, tmp_path):
    for name in ("train", "validation"):
        rows = [{"text": text(10, n), "source": "s"} for n in range(3)]
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = documents(tmp_path / "tables", task="next_token")
    assert found == {f"row {n}": text(10, n) for n in range(3)}
    named = documents(tmp_path / "tables", task="next_token", columns={"text": "source"})
    assert set(named.values()) == {"s"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"text": "other"}, "expected one column of texts, got a, b"), ({"question": "a"}, "expected text, the column")],
)
def test_wrong_columns_are_refused(tmp_path, columns, message):
    (tmp_path / "t.jsonl").write_text(json.dumps({"a": "x", "b": "y"}))
    with pytest.raises(ValueError, match=message):
        documents(tmp_path / "t.jsonl", task="next_token", columns=columns)


def test_empty_texts_and_no_path_are_refused(tmp_path):
    (tmp_path / "t.txt").write_text(" \n")
    with pytest.raises(ValueError, match="expected texts, got none that is not empty"):
        documents(tmp_path / "t.txt")
    with pytest.raises(ValueError, match=r"expected --data.path FILE.txt"):
        NextToken().load("validation")


@torch.no_grad()
def test_log_probabilities_are_those_of_plain_forwards_window_by_window(folder):
    depth = DepthModule()
    datamodule = module(folder, max_prompt_tokens=24, batch_size=3)
    datamodule.attach(depth)
    mask = prefix(16, 9)
    depth.request_masks([mask])
    found: dict[str, list] = {}
    for batch in datamodule.eval_dataloader("validation"):
        outputs = depth.predict_step(batch)
        for sample, (likelihood,) in zip(batch["samples"], outputs.likelihoods[0]):
            found.setdefault(sample.image_id, []).append(likelihood)
    first, tokenizer = depth.prompter.first_ids(), depth.tokenizer
    assert len(found) in (2, 3)
    for name, likelihoods in found.items():
        ids = tokenizer((folder / name).read_text(), add_special_tokens=False)["input_ids"]
        assert sum(each.num_tokens for each in likelihoods) == len(ids)
        total = 0.0
        for start in range(0, len(ids), 23):
            stop = min(start + 23, len(ids))
            before = ids[max(0, stop - 24) : start] if start else first
            row = torch.tensor([[*before, *ids[start:stop]]])
            with masked(depth.model, mask):
                logits = depth.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
            loss = torch.nn.functional.cross_entropy(
                logits[len(before) - 1 : -1], row[0, len(before) :], reduction="sum"
            )
            total -= float(loss)
        assert sum(each.logprob for each in likelihoods) == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_commands_take_texts_or_refuse_them_in_one_line(folder, tmp_path, capsys):
    shared = ["--data.path", folder, "--output_dir", tmp_path / "out", "--data.max_prompt_tokens", 16]
    masks = ["--policies", "[prefix]", "--num_active_blocks", "[8]"]
    assert run(["compare", *shared, *masks]) == 0
    result = json.loads((tmp_path / "out/compare/default/m5_mask_strategy_comparison.json").read_text())
    texts, full = result["texts"], result["full"]["quality"]
    total = sum(each["logprob"] * each["num_tokens"] for each in texts["documents"].values())
    assert total / texts["num_tokens"] == pytest.approx(full, abs=1e-5)  # each token counts alike
    assert all(math.log(each["perplexity"]) == pytest.approx(-each["logprob"]) for each in texts["documents"].values())
    assert result["baseline"] is None and result["full"]["latency_ms"] is None
    told = capsys.readouterr().out
    assert "intervals by document" in told and "perplexity" in told
    for command in ("latency", "select", "tokens"):
        assert run([command, *shared]) == 2
        assert "next_token scores the texts themselves" in capsys.readouterr().err
