"""``lit-depth latency --plan``: memory before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.models.loading import BUNDLED, load_checkpoint
from lit_depth.models.quantization import on_loading, planned_bytes
from lit_depth.trainer import DepthTrainer
from tests.helpers.commands import run
from tests.helpers.families import FAMILIES

GIB = 2**30
# https://huggingface.co/meta-llama/Llama-3.1-70B
LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SIZES = ["--prompt_tokens", "2000", "--new_tokens", "128"]


def config_alone(folder: Path, **fields: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_70B | fields))
    return folder


def plan(folder: Path) -> dict:
    return json.loads((folder / "plan" / "default" / "plan.json").read_text())


def test_70_billion_weights_from_a_configuration_alone(tmp_path, capsys):
    command = ["latency", "--plan", "--model.checkpoint", config_alone(tmp_path / "llama"), *SIZES]
    command += ["--num_active_blocks", "40", "80", "--plan_batches", "1", "8", "--memory_gib", "141"]
    assert run([*command, "--output_dir", tmp_path]) == 0
    out = capsys.readouterr().out
    result = plan(tmp_path)
    assert [(entry["num_active_blocks"], entry["batch_size"]) for entry in result["plans"]] == [
        *((80, 1), (80, 8)),
        *((40, 1), (40, 8)),
    ]
    full, wide, half, _ = result["plans"]
    assert round(full["weight_bytes"] / 2e9, 2) == 70.55
    assert wide["cache_bytes"] == 8 * 2127 * 327_680 and half["cache_bytes"] == 2127 * 327_680 // 2
    assert half["masked_total_bytes"] - half["total_bytes"] == sum(result["weight_bytes"]["blocks"][40:])
    for entry in result["plans"]:
        parts = entry["weight_bytes"] + entry["cache_bytes"] + entry["activation_bytes"]
        assert entry["total_bytes"] == parts and entry["fits"] == (parts <= 141 * GIB)
    assert full["fits"] and "fits 141 GiB" in out and "131.417 GiB" in out
    assert (tmp_path / "plan" / "default" / "report.html").is_file()
    assert not (tmp_path / "latency").exists()
    # another plan of that name takes its place
    assert run([*command, "--output_dir", tmp_path, "--plan_batches", "64"]) == 0
    assert {entry["batch_size"] for entry in plan(tmp_path)["plans"]} >= {64}


@pytest.mark.parametrize(
    ("told", "bits"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4.127),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.156),
        ({"quant_method": "fp8"}, 8.002),
    ],
)
def test_quantised_weights_are_planned_without_their_packages(tmp_path, told, bits):
    """Bits of a weight in a linear map, scales with it, in a model whose embeddings and head stay in bfloat16."""
    folder = config_alone(tmp_path / "llama", quantization_config=told)
    command = ["latency", "--plan", "--model.checkpoint", folder, *SIZES, "--num_active_blocks", "80"]
    assert run([*command, "--plan_batches", "1", "--output_dir", tmp_path]) == 0
    (entry,) = plan(tmp_path)["plans"]
    maps = 80 * (8192 * (64 + 2 * 8 + 64) * 128 + 3 * 8192 * 28672)
    rest = 2 * (2 * 128256 * 8192 + 161 * 8192)
    if bits == 8:  # a scale for each row
        rest += 80 * 4 * ((64 + 2 * 8) * 128 + 2 * 8192 + 2 * 28672)
    assert entry["weight_bytes"] == pytest.approx(rest + maps * bits / 8, rel=2e-4)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_planned_quantised_weights_are_those_that_are_loaded(tmp_path, kind):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantized")
    FAMILIES["Llama"].write(tmp_path)
    outline = DepthModule(str(tmp_path), meta=True).model
    # not by load_checkpoint, which takes 4 bits to a GPU alone
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=on_loading(kind, torch.float32))
    packed = planned_bytes(outline, kind)
    assert len(packed) == 4 * 7
    for name, size in packed.items():
        weight = model.get_parameter(name)
        scales = weight.SCB if kind == "int8" else weight.quant_state.absmax
        assert size == weight.nbytes + scales.nbytes


def test_the_bundled_model_by_its_own_questions(tmp_path, capsys):
    assert run(["latency", "--plan", "true", "--num_active_blocks", "4", "16", "--output_dir", tmp_path]) == 0
    result = plan(tmp_path)
    model, _ = load_checkpoint("bundled")
    held = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    assert result["plans"][0]["weight_bytes"] == held and result["dtype"] == "float32"
    assert 20 < result["prompt_tokens"] < 200
    assert "warning" not in capsys.readouterr().err


def test_no_weights_are_read(tmp_path):
    """Files of weights may be missing, or be no such files."""
    folder = tmp_path / "bundled"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    command = ["latency", "--plan", "--model.checkpoint", folder, "--num_active_blocks", "4", "--output_dir", tmp_path]
    assert run(command) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --prompt_tokens, because"),
        (["--prompt_tokens", "0"], "expected prompt_tokens from 1 to 1048576, got 0"),
        (["--prompt_tokens", "131070"], "the model's context of 131072 tokens, got 131070 and 16: give less"),
        ([*SIZES, "--plan_batches", "0"], "expected plan_batches from 1 to 1048576, got 0"),
        ([*SIZES, "--plan_batches", "[]"], "expected plan_batches with at least one number"),
        ([*SIZES, "--memory_gib", "0"], "expected GiB of memory, more than 0, got 0"),
        ([*SIZES, "--model.phase", "decode"], "expected --model.phase both, got decode"),
        ([*SIZES, "--num_active_blocks", "81"], "must lie in 1..80, got [81]"),
        ([*SIZES, "--model.checkpoint", "nobody/nothing"], "checkpoint nobody/nothing cannot be loaded"),
    ],
)
def test_mistakes_end_with_code_2(tmp_path, capsys, arguments, message):
    folder = config_alone(tmp_path / "llama")
    assert run(["latency", "--plan", "--model.checkpoint", folder, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not list(tmp_path.rglob("plan.json"))


def test_unknown_bits_are_refused(tmp_path, capsys):
    folder = config_alone(tmp_path / "llama", quantization_config={"quant_method": "aqlm"})
    assert run(["latency", "--plan", "--model.checkpoint", folder, *SIZES, "--output_dir", tmp_path]) == 2
    assert "cannot plan for weights quantised by aqlm" in capsys.readouterr().err


def test_a_model_without_weights_is_for_plans_alone(tmp_path, capsys):
    sizes = ["--num_samples", "2", "--output_dir", tmp_path]
    assert run(["importance", "--model.meta", "true", *sizes]) == 2
    assert "expected a model with weights, got --model.meta true" in capsys.readouterr().err


def test_in_python_a_plan_wants_no_weights(tmp_path):
    trainer = DepthTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"DepthModule\(..., meta=True\), got one with them"):
        trainer.latency(DepthModule(), DepthDataModule(), plan=True, output_dir=str(tmp_path))
    model = DepthModule(meta=True)
    found = trainer.latency(
        model, DepthDataModule(), plan=True, plan_batches=[2], num_active_blocks=[1], output_dir=str(tmp_path)
    )
    assert [entry["num_active_blocks"] for entry in found["plans"]] == [16, 1]
