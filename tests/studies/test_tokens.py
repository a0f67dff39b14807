"""``lit-depth tokens``: the files hold what `token_masking` gives, and mistakes are named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_depth.data import DepthDataModule
from lit_depth.functional import run_token_masking, span_knockout, span_masking, token_masking
from lit_depth.functional.token_masking.prompt import encode_prompt, token_kinds
from lit_depth.module import DepthModule
from lit_depth.results.token_tables import COLUMNS, METRICS, read_token_masking
from lit_depth.studies.tokens import measurements as study
from lit_depth.trainer import DepthTrainer
from tests.helpers.commands import run

QUESTION = "Is there a red cross?"


@pytest.fixture(scope="module")
def module(checkpoint) -> DepthModule:
    return DepthModule(str(checkpoint))


@pytest.fixture(scope="module")
def text_module(tmp_path_factory) -> DepthModule:
    """A text model of one block whose tokenizer knows words that readers of tables take for missing."""
    folder = tmp_path_factory.mktemp("text")
    words = ["</s>", "NA", "null", "nan", "cat", "1"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="cat"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    sizes = dict(vocab_size=6, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=6)).save_pretrained(folder)
    return DepthModule(str(folder))


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def analyse(module: DepthModule, tmp_path: Path, **options) -> dict:
    """What the command calls once it has built module, data and trainer."""
    trainer = DepthTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return trainer.tokens(module, DepthDataModule(), output_dir=str(tmp_path), **options)


def read(tmp_path, name="default"):
    return json.loads((tmp_path / "tokens" / name / "tokens.json").read_text())


def assert_same_table(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, check_column_type=False, check_dtype=False, rtol=1e-6, atol=1e-7)


def tables(folder: Path) -> list[pd.DataFrame]:
    return [read_token_masking(folder / f"masking_results{kind}") for kind in (".csv", ".json", ".parquet")]


def page_images(page: Path) -> list[dict]:
    """What the page holds of the pictures."""
    (found,) = re.findall(r'<script[^>]*id="images"[^>]*>(.*?)</script>', page.read_text())
    return json.loads(found)


# ---- results


def test_without_arguments_the_first_question_of_the_task_is_analysed(checkpoint, module, tmp_path, capsys):
    # on the device that the expectation is computed on; nothing else is given
    on_cpu = ["--trainer.accelerator", "cpu"]
    assert run(["tokens", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *on_cpu]) == 0
    out, folder = capsys.readouterr().out, tmp_path / "tokens" / "default"
    model, processor = module.model, module.processor
    data = DepthDataModule(module.prompter, num_samples=1)
    (sample,) = data.eval_dataset("validation")
    expected = run_token_masking(model, processor, module.prompter.text(sample), image=sample.image)
    for found in tables(folder):
        assert list(found.columns) == list(COLUMNS)
        assert_same_table(found, expected)
    result = read(tmp_path)
    (entry,) = result["prompts"]
    assert (entry["name"], entry["text"], entry["image"]) == (sample.id, module.prompter.text(sample), sample.image_id)
    assert entry["generated_text"] == expected.attrs["generated_text"] and repr(entry["generated_text"]) in out
    assert entry["num_tokens"] == expected["token_position"].max() + 1
    assert entry["num_vision_tokens"] == processor.image_processor.num_image_tokens(*sample.image.size[::-1])
    (image,) = page_images(folder / "tokens.html")
    assert [image["width"], image["height"]] == list(sample.image.size)
    patches = expected[expected["token_masked"] == "<im_patch>"]["token_position"].unique().tolist()
    assert [token[0] for token in image["tokens"]] == patches
    for name in ("figures/tokens_by_block.png", "report.html", "manifest.json", "tokens.html"):
        assert (folder / name).stat().st_size > 0 and (name == "manifest.json" or str(folder / name) in out)


def test_many_prompts_have_a_column_pages_and_averages(module, tmp_path, picture):
    model, processor = module.model, module.processor
    image = Image.open(picture).convert("RGB")
    entries = [QUESTION, {"prompt": "What: {is} this?", "image": "picture.png", "name": "1"}]
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(entries))
    result = analyse(module, tmp_path, prompts=tmp_path / "prompts.yaml", spans=True, num_output_tokens=2)
    folder = tmp_path / "tokens" / "default"
    assert result == read(tmp_path)
    names = ["prompt 0", "1"]
    asked = [(QUESTION, None), ("What: {is} this?", image)]
    alone = [run_token_masking(model, processor, text, image=i, num_output_tokens=2) for text, i in asked]
    for found in tables(folder):
        assert list(found.columns) == ["prompt", *COLUMNS]
        for name, expected in zip(names, alone):
            assert_same_table(found[found["prompt"] == name].drop(columns="prompt").reset_index(drop=True), expected)
    assert [entry["name"] for entry in result["prompts"]] == names
    assert [entry["page"] for entry in result["prompts"]] == ["tokens_0.html", "tokens_1.html"]
    assert [len(page_images(folder / entry["page"])) for entry in result["prompts"]] == [0, 1]

    # averages, slowly: over the tokens and steps of a prompt, then over the prompts that have such tokens
    lengths = [len(frame.attrs["input_ids"]) for frame in alone]
    num_image = processor.image_processor.num_image_tokens(40, 90)

    def kind(prompt: int, step: int, position: int) -> str:
        if position == lengths[prompt] + step - 1:
            return "final"
        if position >= lengths[prompt]:
            return "generated"
        if position == 0:
            return "start"
        return "vision" if prompt == 1 and position <= num_image else "text"

    assert list(result["averages"]) == ["vision", "text", "final", "start"]
    for group, variants in result["averages"].items():
        for variant in ("Full", "Attn"):
            for metric in METRICS:
                for layer in (0, 7, 15):
                    means = []
                    for prompt, frame in enumerate(alone):
                        rows = frame[(frame["layer"] == layer) & (frame["variant"] == variant)]
                        places = zip(rows["generation_step"], rows["token_position"], rows[metric])
                        values = [float(value) for step, at, value in places if kind(prompt, step, at) == group]
                        means += [sum(values) / len(values)] if values else []
                    assert variants["num_prompts"] == len(means)
                    expected_mean = sum(means) / len(means)
                    assert variants[variant][metric][layer] == pytest.approx(expected_mean, rel=1e-5, abs=1e-9)

    # the image, and the text, as a whole
    whole = pd.read_csv(folder / "span_results.csv", dtype={"prompt": str})
    assert whole.groupby("prompt")["span"].unique().map(list).to_dict() == {
        "prompt 0": ["text"],
        "1": ["image", "text"],
    }
    spans = {"image": range(1, num_image + 1), "text": range(num_image + 1, lengths[1] - 1)}
    expected = span_masking(model, encode_prompt(processor, *asked[1]), spans, 2)
    assert_same_table(whole[whole["prompt"] == "1"].drop(columns="prompt").reset_index(drop=True), expected)
    found = result["spans"]["image"]["Full"]["l2_distance"][3]
    rows = expected.query("layer == 3 and variant == 'Full' and span == 'image'")
    assert found == pytest.approx(rows["l2_distance"].astype(float).mean(), rel=1e-6)


def test_the_most_influential_tokens_are_those_of_the_table(module, tmp_path):
    analyse(module, tmp_path, prompt=QUESTION)
    table = read_token_masking(tmp_path / "tokens" / "default" / "masking_results.csv")
    for entry in read(tmp_path)["prompts"][0]["layers"]:
        rows = table[(table["layer"] == entry["layer"]) & (table["variant"] == "Full")]
        strongest = sorted(rows["l2_distance"].tolist(), reverse=True)[:5]
        assert [each["l2_distance"] for each in entry["most_influential"]] == strongest
        for each in entry["most_influential"]:
            (row,) = rows[rows["token_position"] == each["token_position"]].to_dict("records")
            assert row["token_masked"] == each["token_masked"]


def test_a_prompt_file_is_the_whole_prompt(module, tmp_path, picture):
    model, processor = module.model, module.processor
    file = tmp_path / "prompt.txt"
    text = "<|endoftext|> User: Is there <|padding|>a cross? \r\n Assistant:\n"
    for start in (b"", b"\xef\xbb\xbf"):
        file.write_bytes(start + text.encode())
        name = f"bom{len(start)}"
        analyse(module, tmp_path, prompt_file=file, image=picture, name=name)
        (table, *_) = tables(tmp_path / "tokens" / name)
        image = Image.open(picture).convert("RGB")
        assert_same_table(table, run_token_masking(model, processor, text, image=image, raw=True))
        texts = table.query("layer == 0 and variant == 'Full'")["token_masked"].tolist()
        assert texts.count("<|endoftext|>") == 1 and "<|padding|>" in texts and "\r" in "".join(texts)
    analyse(module, tmp_path, prompt_file=file, image=picture, name="bom0")  # the same prompt


def test_several_questions_of_the_task(module, tmp_path):
    result = analyse(module, tmp_path, num_samples=3)
    assert len({entry["name"] for entry in result["prompts"]}) == 3 and len({e["page"] for e in result["prompts"]}) == 3
    assert result["averages"]["vision"]["num_prompts"] == 3 and result["bad_samples"] == []


def test_questions_that_do_not_fit_cost_themselves_only(module, tmp_path, capsys, monkeypatch):
    family = type(module.prompter)
    text, too_long = family.text, DepthDataModule(num_samples=1).eval_dataset("validation")[0].id
    monkeypatch.setattr(family, "text", lambda self, s: text(self, s) + (" red" * 600 if s.id == too_long else ""))
    result = analyse(module, tmp_path, num_samples=3)
    (bad,) = result["bad_samples"]
    assert bad["id"] == too_long and "at most 512 tokens" in bad["reason"] and len(result["prompts"]) == 2
    assert f"{too_long} is left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no question can be analysed .*at most 512 tokens"):
        analyse(module, tmp_path, name="none")


def test_a_text_model_and_tokens_that_read_like_missing_values(text_module, tmp_path):
    analyse(text_module, tmp_path, prompt="NA null nan 1", num_output_tokens=2)
    expected = run_token_masking(text_module.model, text_module.processor, "NA null nan 1", num_output_tokens=2)
    for found in tables(tmp_path / "tokens" / "default"):
        assert_same_table(found, expected)
        assert found["token_masked"].tolist()[:16:4] == ["NA", "null", "nan", "1"]
    assert page_images(tmp_path / "tokens" / "default" / "tokens.html") == []


def test_what_is_generated_ends_with_an_end_token(module, tmp_path, monkeypatch, capsys):
    """One prompt's first token is its last; the other goes on, as both do where they may."""
    questions = [QUESTION, "What color is the circle?"]
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(questions))
    tokenizer, options = module.tokenizer, {"num_output_tokens": 4, "after_end": True}
    free = [run_token_masking(module.model, module.processor, text, **options) for text in questions]
    first, second = ([*frame.attrs["generated_ids"], frame.attrs["next_id"]] for frame in free)
    assert first[0] not in second and tokenizer.eos_token_id not in (*first, *second)
    monkeypatch.setattr(module.model.generation_config, "eos_token_id", [first[0]])
    prompts = {"prompts": tmp_path / "prompts.yaml", "spans": True}
    result = analyse(module, tmp_path, **prompts, num_output_tokens=4)
    assert [entry["num_generation_steps"] for entry in result["prompts"]] == [1, 4]
    assert result["num_output_tokens"] == 4 and "2 prompts, 4 generation steps" in capsys.readouterr().out
    assert result["prompts"][0]["generated_text"] == tokenizer.decode(first[:1])
    whole = analyse(module, tmp_path, **prompts, name="whole", **options)
    assert [entry["num_generation_steps"] for entry in whole["prompts"]] == [4, 4]
    for name, expected in (("default", free[0][free[0]["generation_step"] == 0]), ("whole", free[0])):
        found = read_token_masking(tmp_path / "tokens" / name / "masking_results.csv")
        found = found[found["prompt"] == "prompt 0"].drop(columns="prompt").reset_index(drop=True)
        assert_same_table(found[expected.columns], expected.reset_index(drop=True))
    with pytest.raises(ValueError, match="another after_end: there true, now false"):
        analyse(module, tmp_path, **prompts, name="whole", num_output_tokens=4)


def test_a_prompt_of_one_token_is_undefined_not_an_error(module, text_module, tmp_path, capsys):
    file = tmp_path / "start.txt"
    file.write_text("<|endoftext|>")
    for name, each, options in (("a", module, {"prompt_file": file}), ("b", text_module, {"prompt": "cat"})):
        result = analyse(each, tmp_path, name=name, **options)
        assert "A prompt of one token" in capsys.readouterr().out
        folder = tmp_path / "tokens" / name
        for found in tables(folder):
            assert found[list(METRICS)].isna().all(axis=None) and found["token_position"].unique().tolist() == [0]
        assert "NaN" not in (folder / "masking_results.json").read_text() + (folder / "tokens.json").read_text()
        assert all(layer["most_influential"] == [] for layer in result["prompts"][0]["layers"])
        assert not (folder / "figures").exists()


def test_what_is_measured_stays_measured(text_module, tmp_path, monkeypatch):
    module = text_module
    (tmp_path / "prompts.yaml").write_text("[cat nan 1, cat null]")
    options = {"prompts": tmp_path / "prompts.yaml", "spans": True}
    analyse(module, tmp_path, **options)
    folder = tmp_path / "tokens" / "default"
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".html")}
    measured, calls = study.token_masking, []
    monkeypatch.setattr(study, "token_masking", lambda *a, **k: calls.append(1) or measured(*a, **k))
    analyse(module, tmp_path, **options)
    assert not calls and {path: path.read_bytes() for path in written} == written
    (folder / "records" / "0001.json").unlink()  # killed at the second prompt
    analyse(module, tmp_path, **options, device="cpu")
    assert len(calls) == 1 and {path: path.read_bytes() for path in written} == written
    for change, message in (
        ({"num_output_tokens": 2}, "another num_output_tokens: there 1, now 2"),
        ({"spans": False}, "another spans"),
        ({"prompts": None, "prompt": "cat nan 1"}, "holds a run with another prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            analyse(module, tmp_path, **options | change)


def test_knockouts_are_those_of_the_functions_and_stay_measured(module, tmp_path, picture, monkeypatch, capsys):
    options = {"prompt": QUESTION, "image": picture, "knockout": True, "num_output_tokens": 2, "after_end": True}
    result = analyse(module, tmp_path, **options)
    folder = tmp_path / "tokens" / "default"
    inputs = encode_prompt(module.processor, QUESTION, Image.open(picture).convert("RGB"))
    kinds = token_kinds(module.processor, inputs["input_ids"][0].tolist())
    frame = token_masking(module.model, inputs, 2, after_end=True)
    answer = torch.tensor([[*frame.attrs["generated_ids"], frame.attrs["next_id"]]])
    entry = result["prompts"][0]["knockouts"]
    spans = {each["span"]: each["positions"] for each in entry["spans"]}
    assert [each["kind"] for each in entry["spans"]][:2] == ["image", "word"] and "cross? [" in " ".join(spans)
    assert next(iter(spans.values())) == [place for place, kind in enumerate(kinds) if kind == "vision"]
    expected = span_knockout(module.model, inputs, spans, answer)
    assert entry["answer_logprob"] == pytest.approx(expected.answer_logprob, abs=1e-6)
    drops = expected.answers.pivot(index="span", columns="from_block", values="drop")
    for each in entry["spans"]:
        np.testing.assert_allclose(each["drop"], drops.loc[each["span"]], atol=1e-5)
    for name, table in (("results", expected.answers), ("positions", expected.positions)):
        found = pd.read_csv(folder / f"knockout_{name}.csv")
        pd.testing.assert_frame_equal(found, table, check_dtype=False, rtol=1e-3, atol=1e-4)
    # the table that scripts know is what it is without them
    (table, *_) = tables(folder)
    assert_same_table(table, analyse_alone(module, tmp_path, **options | {"knockout": False}))
    page = (folder / "tokens.html").read_text()
    assert "Hidden from a block and all later ones" in page and (folder / "figures" / "token_knockout.png").is_file()
    assert "hidden from block" in capsys.readouterr().out
    # started again it measures nothing and says the same; killed before its end it measures once more
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".html")}
    calls, measured = [], study.span_knockout
    monkeypatch.setattr(study, "span_knockout", lambda *a, **k: calls.append(1) or measured(*a, **k))
    for killed in (False, True):
        if killed:
            (folder / "records" / "0000.json").unlink()
        analyse(module, tmp_path, **options)
        assert len(calls) == killed and {path: path.read_bytes() for path in written} == written
    for change in ({"span": ["1-3"]}, {"knockout": False}):
        with pytest.raises(ValueError, match="another knockout"):
            analyse(module, tmp_path, **options | change)


def analyse_alone(module: DepthModule, tmp_path: Path, **options) -> pd.DataFrame:
    """The table of a run of its own."""
    analyse(module, tmp_path, name="alone", **options)
    return read_token_masking(tmp_path / "tokens" / "alone" / "masking_results.csv")


def test_given_spans_of_several_prompts(text_module, tmp_path, capsys):
    (tmp_path / "prompts.yaml").write_text("[cat nan 1, cat null]")
    options = {"prompts": tmp_path / "prompts.yaml", "knockout": True}
    result = analyse(text_module, tmp_path, **options, span=["0", "0-1"])
    names = [[each["span"] for each in prompt["knockouts"]["spans"]] for prompt in result["prompts"]]
    assert names == [["cat [0]", "cat nan [0-1]"], ["cat [0]", "cat null [0-1]"]]
    found = pd.read_csv(tmp_path / "tokens" / "default" / "knockout_results.csv", keep_default_na=False)
    assert found["prompt"].unique().tolist() == ["prompt 0", "prompt 1"] and len(found) == 4
    assert list(result["knockouts"]) == ["span"] and result["knockouts"]["span"]["num_prompts"] == 2
    assert "one span, mean" in capsys.readouterr().out
    with pytest.raises(ValueError, match="prompt 1: --span: expected positions from 0 to 1, got 2"):
        analyse(text_module, tmp_path, **options, span=["2"], name="far")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["# no comment", "[1, 2]", "What: is this?"])
def test_any_text_can_be_a_prompt(checkpoint, tmp_path, text):
    assert run(["tokens", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, f"--prompt={text}"]) == 0
    assert read(tmp_path)["prompts"][0]["text"] == text


# ---- mistakes


@pytest.fixture
def files(tmp_path, picture):
    """Files that prompts and images may be looked for in."""
    (tmp_path / "latin.txt").write_bytes("Gr\u00f6\u00dfe".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    (tmp_path / "text.png").write_text("no picture")
    for name, content in {
        "mapping": "prompt: a",
        "nothing": "",
        "broken": "[a",
        "number": "- 42",
        "nested": "- [a]",
        "unknown": "- {prompt: a, picture: b}",
        "without": "- {image: b}",
        "twice": "- {prompt: a, name: x}\n- {prompt: b, name: x}",
        "blank": "- a\n- ''",
        "no_image": "- {prompt: a, image: nowhere.png}",
        "bad_image": "- {prompt: a, image: text.png}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "expected a prompt with text, got an empty one"),
        ({"prompt": "  "}, "expected a prompt with text, got an empty one"),
        ({"prompt": "red " * 600}, "expected at most 512 tokens (the model's context), got a prompt of"),
        ({"prompt": "a", "num_output_tokens": 600}, "expected at most 512 tokens (the model's context)"),
        ({"prompt": "a", "num_output_tokens": 0}, "num_output_tokens of at least 1, got 0"),
        ({"prompt": "a", "span": ["1"]}, "--span names what --knockout true hides: give both"),
        ({"prompt": "a", "knockout": True, "span": []}, "--span names what --knockout true hides"),
        ({"prompt": "a", "knockout": True, "span": ["3-1"]}, "--span: expected positions such as 3-7 or 5, got '3-1'"),
        ({"num_samples": 0}, "num_samples of at least 1, got 0"),
        ({"prompt": "a", "prompt_file": "@empty.txt"}, "expected one of --prompt, --prompt_file"),
        ({"prompt": "a", "num_samples": 2}, "got --prompt and --num_samples"),
        ({"prompts": "@blank.yaml", "image": "@picture.png"}, "--image needs --prompt or --prompt_file"),
        ({"image": "@picture.png"}, "--image needs --prompt or --prompt_file"),
        ({"prompt": "a", "image": "@nowhere.png"}, "does not exist"),
        ({"prompt": "a", "image": "@text.png"}, "cannot be decoded"),
        ({"prompt": "a", "image": "@broken.png"}, "cannot be decoded"),
        ({"prompt": "a", "image": "@"}, "does not exist"),
        ({"prompt_file": "@nowhere.txt"}, "nowhere.txt cannot be read: No such file"),
        ({"prompt_file": "@"}, "cannot be read: Is a directory"),
        ({"prompt_file": "@latin.txt"}, "expected UTF-8 text, "),
        ({"prompt_file": "@latin.txt"}, "has the byte 0xf6 at 2"),
        ({"prompt_file": "@empty.txt"}, "got an empty one"),
        ({"prompt_file": "@blank.txt"}, "got an empty one"),
        ({"prompts": "@mapping.yaml"}, "expected a list of prompts"),
        ({"prompts": "@nothing.yaml"}, "expected a list of prompts"),
        ({"prompts": "@broken.yaml"}, "is no YAML"),
        ({"prompts": "@number.yaml"}, "entry 0 of"),
        ({"prompts": "@nested.yaml"}, "entry 0 of"),
        ({"prompts": "@unknown.yaml"}, "of which only prompt is required"),
        ({"prompts": "@without.yaml"}, "of which only prompt is required"),
        ({"prompts": "@twice.yaml"}, "expected distinct names"),
        ({"prompts": "@blank.yaml"}, "prompt 1: expected a prompt with text"),
        ({"prompts": "@no_image.yaml"}, "nowhere.png"),
        ({"prompts": "@bad_image.yaml"}, "cannot be decoded"),
        ({"prompts": "@nowhere.yaml"}, "cannot be read"),
        ({"prompts": "@picture.png"}, "expected UTF-8 text"),
        ({"device": "cuda:99"}, "device: expected cpu, cuda or cuda:1"),
        ({"device": "gpu"}, "device: expected cpu, cuda or cuda:1"),
        ({"device": "meta"}, "device: expected cpu, cuda or cuda:1"),
    ],
)
def test_mistakes_are_named_in_one_line_before_anything_is_written(module, files, options, message):
    paths = {name: f"{files}/{value[1:]}" for name, value in options.items() if str(value).startswith("@")}
    with pytest.raises(ValueError) as error:
        analyse(module, files, **options | paths)
    assert message in str(error.value) and "\n" not in str(error.value) and not (files / "tokens").exists()


def test_mistakes_with_a_text_model(text_module, tmp_path, picture):
    for options, message in (
        ({"prompt": "cat", "image": picture}, "expected a processor that takes images"),
        ({"prompt": "cat cat cat", "num_output_tokens": 5}, "at most 6 tokens .*got a prompt of 3 and 4 to generate"),
        ({"prompt": "cat", "spans": True}, "--spans needs an image"),
        ({}, "expected a model that sees images, got one with a tokenizer alone"),
    ):
        with pytest.raises(ValueError, match=message):
            analyse(text_module, tmp_path, **options)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--promptt", "a"], "unrecognized arguments: --promptt a"),
        (["--num_output_tokens", "three"], "--num_output_tokens: expected an integer or null, got 'three'"),
        (["--spans", "perhaps"], "perhaps"),
    ],
)
def test_wrong_flags_are_named_without_the_whole_usage(checkpoint, capsys, arguments, message):
    assert run(["tokens", "--model.checkpoint", checkpoint, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "--help" in err and len(err.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "expected a prompt with text, got an empty one"),
        (["--prompt", "a", "--image", "nowhere.png"], "does not exist"),
        (["--prompt-file", __file__, "--prompt", "a"], "got --prompt and --prompt_file"),
        (["--device", "cuda:99"], "device: expected cpu, cuda or cuda:1"),
        (["--data.tasks", "shapes_vqa", "text_vqa"], "questions from one task"),
        (["--trainer.accelerator", "cpu", "--trainer.devices", "2"], "by one process, got 2"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    assert run(["tokens", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and len(err.splitlines()) <= 2 and not list(tmp_path.iterdir())
