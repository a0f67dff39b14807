"""A checkpoint without blocks holds the weights of a pruned copy; what cannot be one is refused beforehand."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig

from lit_depth.models import export, weight_files
from lit_depth.models.export import (
    FIELDS,
    block_path,
    check_cuttable,
    cut_config,
    fields_of,
    is_uniform,
    new_folder,
    prune_checkpoint,
    text_config,
)
from lit_depth.models.loading import BUNDLED, load_bundled, load_checkpoint
from lit_depth.models.weight_files import INDEX, WEIGHTS, HeldWeights
from tests.helpers.families import FAMILIES
from tests.helpers.pruning import pruned_copy

SOME = ("Llama", "Qwen3-MoE", "Gemma 3 (text)", "SmolLM3", "GPT-2", "Molmo (MolmoE-1B)", "Molmo (7B-O)", "Qwen2-VL")
MASK = [True, False, True, True]
WITHOUT_4_AND_13 = [block not in (4, 13) for block in range(16)]


def written(name: str, folder: Path) -> Path:
    folder.mkdir()
    FAMILIES[name].write(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return written("Llama", tmp_path_factory.mktemp("llama") / "source")


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def assert_same_weights(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", SOME)
def test_files_and_memory_give_the_weights_and_settings_of_a_pruned_copy(name, tmp_path):
    source = written(name, tmp_path / "source")
    model, _ = load_checkpoint(str(source))
    expected = pruned_copy(model, MASK)
    for weights in (None, HeldWeights(model)):
        written_to = tmp_path / f"out {weights is None}"
        with new_folder(written_to) as folder:
            done = prune_checkpoint(source, MASK, folder, weights)
        found, _ = load_checkpoint(str(written_to))
        assert_same_weights(found, expected)
        text, reference = text_config(found.config), text_config(expected.config)
        fields = FIELDS.get(text.model_type, export.Fields())
        assert {n: getattr(text, n) for n in fields.lists} == {n: getattr(reference, n) for n in fields.lists}
        assert text.num_hidden_layers == 3 and done.skipped == (1,) and done.num_blocks == 4
        assert {"tokenizer.json", "generation_config.json"} <= set(done.copied)
        assert all((source / file).read_bytes() == (written_to / file).read_bytes() for file in done.copied)


def test_the_released_layout_is_cut_as_it_is_and_its_vision_lists_stay(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        prune_checkpoint(BUNDLED, WITHOUT_4_AND_13, folder)
    config, before = (json.loads((each / "config.json").read_text()) for each in (tmp_path / "out", BUNDLED))
    assert config == before | {"n_layers": 14} and config["vit_layers"] == [-1, -2]
    model, _ = load_checkpoint(str(tmp_path / "out"))
    assert_same_weights(model, pruned_copy(load_bundled()[0], WITHOUT_4_AND_13))


def rename(folder: Path, old: str, new: str) -> None:
    """Give the weights of a checkpoint the names of another version of transformers."""
    tensors = load_file(folder / WEIGHTS)
    assert any(name.startswith(old) for name in tensors)
    save_file({name.replace(old, new, 1): value for name, value in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def flatten(folder: Path) -> None:
    """Put the settings of the text model outside, as the first releases have them."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    del text["model_type"], text["layer_types"]  # a rule gives them
    (folder / "config.json").write_text(json.dumps(text | config))


def test_names_and_settings_of_earlier_releases_stay_theirs(tmp_path):
    llava, qwen = written("LLaVA 1.5", tmp_path / "llava"), written("Qwen2-VL", tmp_path / "qwen")
    now = [name for name in load_file(llava / WEIGHTS) if ".layers.0." in name and "vision" not in name]
    rename(llava, now[0].partition(".layers.")[0], "language_model.model")
    rename(qwen, next(n for n in load_file(qwen / WEIGHTS) if ".layers.0." in n).partition(".layers.")[0], "model")
    flatten(qwen)
    for source, path in ((llava, "language_model.model.layers"), (qwen, "model.layers")):
        with new_folder(tmp_path / f"{source.name} out") as folder:
            prune_checkpoint(source, MASK, folder)
        found = load_file(tmp_path / f"{source.name} out" / WEIGHTS)
        assert {name.removeprefix(f"{path}.").split(".")[0] for name in found if name.startswith(path)} == set("012")
        before, (after, _) = load_checkpoint(str(source))[0], load_checkpoint(str(tmp_path / f"{source.name} out"))
        assert_same_weights(after, pruned_copy(before, MASK))


def test_a_rule_by_the_number_of_a_block_becomes_a_list():
    """Written by hand: blocks 1 and 3 have experts, 2 is said to have none; 5 sees all, as every sixth does."""
    moe = Qwen3MoeConfig(num_hidden_layers=5, decoder_sparse_step=2, mlp_only_layers=[2], num_experts=4)
    raw = {"decoder_sparse_step": 2, "max_window_layers": 3, "num_hidden_layers": 5}
    cut = cut_config(raw, moe, [0, 1, 3])
    expected = {"decoder_sparse_step": 1, "mlp_only_layers": [0], "max_window_layers": 2, "num_hidden_layers": 3}
    assert cut == expected
    gemma = AutoConfig.for_model("gemma3_text", num_hidden_layers=7, sliding_window_pattern=6)
    cut = cut_config({"sliding_window_pattern": 6}, gemma, [4, 5, 6])
    assert cut == {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    assert not is_uniform(gemma) and not is_uniform(moe) and is_uniform(LlamaConfig())


def test_settings_that_older_releases_say_twice_are_cut_twice():
    config = AutoConfig.for_model("llava", text_config={"model_type": "qwen2", "num_hidden_layers": 3})
    raw = {"num_hidden_layers": 3, "hidden_size": 8, "vision_config": {"num_hidden_layers": 3}, "text_config": {}}
    cut = cut_config(raw, config, [0, 2])
    assert cut["num_hidden_layers"] == cut["text_config"]["num_hidden_layers"] == 2
    assert cut["text_config"]["layer_types"] == ["full_attention"] * 2 and "layer_types" not in cut
    assert cut["vision_config"] == {"num_hidden_layers": 3} and cut["hidden_size"] == 8
    assert fields_of(raw, config).lists == ("layer_types",)


def test_shards_are_of_the_sources_size_and_one_of_them_is_in_memory(tmp_path, out, monkeypatch):
    source = written("Llama", tmp_path / "source")
    model, _ = load_checkpoint(str(source))
    (source / WEIGHTS).unlink()
    model.save_pretrained(source, max_shard_size="30KB")
    most = max(sum(weight_files.header_of(path).values()) for path in source.glob("*.safetensors"))
    written_bytes = []

    def save(tensors, *args, **options):
        written_bytes.append(sum(value.nbytes for value in tensors.values()))
        return save_file(tensors, *args, **options)

    monkeypatch.setattr(weight_files, "save_file", save)
    prune_checkpoint(source, MASK, out)
    assert len(written_bytes) > 3 and max(written_bytes) <= most
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(written_bytes)
    assert set(index["weight_map"].values()) == {path.name for path in out.glob("*.safetensors")}
    assert_same_weights(load_checkpoint(str(out))[0], pruned_copy(model, MASK))


def test_tied_embeddings_are_written_once(tmp_path):
    torch.manual_seed(0)
    sizes = dict(vocab_size=16, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=4)
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "source")
    for weights in (None, HeldWeights(model)):
        with new_folder(tmp_path / f"{weights is None}") as folder:
            prune_checkpoint(tmp_path / "source", MASK, folder, weights)
        assert "lm_head.weight" not in load_file(tmp_path / f"{weights is None}" / WEIGHTS)
        found = LlamaForCausalLM.from_pretrained(tmp_path / f"{weights is None}")
        assert_same_weights(found, pruned_copy(model, MASK))
        assert found.lm_head.weight is found.model.embed_tokens.weight


def test_a_model_in_another_number_format_says_so(llama, out):
    model, _ = load_checkpoint(str(llama), dtype="bfloat16")
    prune_checkpoint(llama, MASK, out, HeldWeights(model))
    found, _ = load_checkpoint(str(out))
    assert found.dtype == torch.bfloat16
    assert_same_weights(found, pruned_copy(model, MASK))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True, True], "expected a mask of 4 blocks, got 2"),
        ([[True] * 4, [True, False, True, True]], "expected one mask for all questions, got 2"),
        ([False] * 4, "expected at least one active block"),
    ],
)
def test_a_mask_of_another_model_is_refused(llama, out, mask, message):
    with pytest.raises(ValueError, match=message):
        prune_checkpoint(llama, mask, out)


def test_blocks_that_do_something_by_their_place_are_refused(tmp_path, out):
    with pytest.raises(ValueError, match="each divides its attention by its place"):
        check_cuttable(GPT2Config(scale_attn_by_inverse_layer_idx=True), [0])
    source = written("Qwen3-VL", tmp_path / "source")
    with pytest.raises(ValueError, match="cannot remove block 1 of a qwen3_vl: features of its vision tower"):
        prune_checkpoint(source, MASK, out)
    assert list(out.iterdir()) == []
    prune_checkpoint(source, [True, True, False, True], out)
    assert text_config(load_checkpoint(str(out))[0].config).num_hidden_layers == 3


def test_an_unknown_family_is_refused_by_name(tmp_path, out):
    from transformers import MambaConfig, MambaForCausalLM

    MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=2)).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"expected a family whose blocks are known by name \(aya_vision, .*got mamba"):
        prune_checkpoint(tmp_path / "source", [True, False], out)


def test_blocks_are_all_there_at_one_place():
    with pytest.raises(ValueError, match="blocks 0 to 2 at one place, got 2 at model.layers"):
        block_path("llama", ["model.layers.0.x", "model.layers.2.x"], 3)
    with pytest.raises(ValueError, match="got 1 at model.layers, 1 at layers"):
        block_path("llama", ["model.layers.0.x", "layers.0.x"], 1)
    with pytest.raises(ValueError, match="got none at model.layers or layers"):
        block_path("llama", ["other.0.x"], 1)


def test_a_quantisation_that_names_blocks_is_refused(llama, tmp_path, out):
    shutil.copytree(llama, tmp_path / "source")
    config = json.loads((llama / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.3.mlp"]}
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantization names single blocks"):
        prune_checkpoint(tmp_path / "source", MASK, out)


def test_what_lies_there_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new folder, .*out is there already"):
        with new_folder(tmp_path / "out"):
            raise AssertionError("nothing is written")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(llama, tmp_path, monkeypatch, error):
    def full(*args, **options):
        (args[1]).write_bytes(b"half")
        raise error

    monkeypatch.setattr(weight_files, "save_file", full)
    with pytest.raises((ValueError, KeyboardInterrupt), match="No space left on device|^$"):
        with new_folder(tmp_path / "out") as folder:
            prune_checkpoint(llama, MASK, folder)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_seen_before(llama, out, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(ValueError, match="expected 0.00 GB of free space .*, got 0.00 GB"):
        prune_checkpoint(llama, MASK, out)
    assert list(out.iterdir()) == []


def test_code_that_comes_with_a_checkpoint_is_copied_and_never_run(llama, tmp_path, out):
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    config = json.loads((llama / "config.json").read_text()) | {"auto_map": {"AutoConfig": "own.OwnConfig"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "own.py").write_text("raise SystemExit('it was run')\n")
    (source / "LICENSE").write_text("terms")
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    done = prune_checkpoint(source, MASK, out)
    assert {"own.py", "LICENSE"} <= set(done.copied) and not (out / "pytorch_model.bin").exists()
    assert json.loads((out / "config.json").read_text())["auto_map"] == config["auto_map"]
    assert_same_weights(load_checkpoint(str(out))[0], pruned_copy(load_checkpoint(str(llama))[0], MASK))
