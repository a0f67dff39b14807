"""Weights of few bits: refused by name, or loaded and evaluated."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lit_depth.functional.masking.skip import masked
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.quantization import check_devices, check_stored, is_quantized, method_name
from lit_depth.module import DepthModule
from lit_depth.studies.export.arguments import choose
from lit_depth.studies.export.writing import check_exportable
from lit_depth.trainer import DepthTrainer
from tests.helpers.commands import run
from tests.helpers.families import FAMILIES

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    FAMILIES["Llama"].write(folder)
    return folder


def copy_of(source: Path, folder: Path, **fields: object) -> Path:
    """A checkpoint with other fields in its configuration."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def with_weight(source: Path, folder: Path, name: str, dtype: torch.dtype) -> Path:
    copy_of(source, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: weights[name].to(dtype)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_weights_without_their_scales_are_refused_by_name(llama, tmp_path, dtype, said):
    folder = with_weight(llama, tmp_path, UP, dtype)
    with pytest.raises(ValueError, match=rf"got {UP} in {said} \(model.safetensors\), and no quantization_config"):
        load_checkpoint(str(folder))


def test_the_command_says_so_in_a_line(llama, tmp_path, capsys):
    folder = with_weight(llama, tmp_path, UP, torch.int8)
    assert run(["importance", "--model.checkpoint", folder, "--output_dir", tmp_path / "runs"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"got {UP} in I8" in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_several_floating_formats_are_one_models(llama, tmp_path, dtype):
    """What is stored in another format than the others is converted to theirs, and nothing else is."""
    model, _ = load_checkpoint(str(with_weight(llama, tmp_path, UP, dtype)))
    whole, _ = load_checkpoint(str(llama))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for name, weight in whole.named_parameters():
        expected = weight.to(dtype).float() if name == UP else weight
        assert torch.equal(model.get_parameter(name), expected), name


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq, which cannot run here: .*optimum"),
        ({"quant_method": "awq", "bits": 4}, "quantised by awq, which cannot run here: .*gptqmodel"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "by compressed-tensors, which cannot run here"),
        ({"quant_method": "hqq"}, "quantised by hqq, which cannot run here"),
        ({"quant_method": "fbgemm_fp8"}, "quantised by fbgemm_fp8, which cannot run here: .*requires a GPU"),
        ({"quant_method": "nonsense"}, "quantised by nonsense: expected one of aqlm, .*, gptq,"),
        ({"bits": 4}, "quantised by an unnamed method: expected one of"),
    ],
)
def test_methods_that_cannot_run_are_refused_by_name(llama, tmp_path, told, message):
    packages = {"gptq": "optimum", "awq": "gptqmodel", "compressed-tensors": "compressed_tensors", "hqq": "hqq"}
    package = packages.get(str(told.get("quant_method")))
    if package is not None and find_spec(package):
        pytest.skip(f"{package} is installed here")
    if told.get("quant_method") == "fbgemm_fp8" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(str(copy_of(llama, tmp_path, quantization_config=told)))


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have the kernels")
def test_weights_that_are_unpacked_are_warned_of(llama, tmp_path, method):
    folder = copy_of(llama, tmp_path, quantization_config={"quant_method": method})
    with pytest.warns(UserWarning, match=f"quantised by {method}, for which there are no kernels here"):
        model, _ = load_checkpoint(str(folder))
    assert not is_quantized(model)


def test_quantised_once_is_enough(llama, tmp_path):
    folder = copy_of(llama, tmp_path, quantization_config={"quant_method": "fp8"})
    with pytest.raises(ValueError, match=r"expected --model.quantization none, got int8: .* quantised already \(fp8\)"):
        load_checkpoint(str(folder), quantization="int8")


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes_8bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_names_of_methods(told, name):
    assert method_name(told) == name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device_map", ["cuda", "cuda:0", {"": 0}, {"model": "cpu", "lm_head": "cuda:1"}])
def test_gpus_that_are_not_there_are_named(device_map):
    with pytest.raises(ValueError, match="--model.device_map: expected devices of this machine, got "):
        check_devices(device_map)


@pytest.mark.parametrize("device_map", [{}, "", "nonsense", "meta", {"": "meta"}, {"": "nonsense"}, {"": -1}])
def test_maps_to_no_device_are_refused(device_map):
    with pytest.raises(ValueError, match="--model.device_map: expected auto, balanced, .* got "):
        check_devices(device_map)


@pytest.mark.parametrize("device_map", [None, "auto", "cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "disk"}])
def test_maps_to_devices_that_are_there_pass(device_map):
    check_devices(device_map)


@pytest.mark.parametrize("device_map", [{"nonsense": "cpu"}, {"": "cpu", "nonsense": "cpu"}])
def test_maps_that_place_nothing_are_refused(llama, device_map):
    with pytest.raises(ValueError, match=r"expected names of modules .* got 'nonsense'; it is made of model, lm_head"):
        load_checkpoint(str(llama), device_map=device_map)


def test_an_empty_quantization_config_is_refused(llama, tmp_path):
    with pytest.raises(ValueError, match="expected a quantization_config in config.json that names a quant_method"):
        load_checkpoint(str(copy_of(llama, tmp_path, quantization_config={})))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int8])
def test_stacked_experts_of_integers_are_weights_by_any_name(tmp_path, dtype):
    weights = {"blocks.0.experts.gate_up_proj": torch.ones(2, 4, 4, dtype=dtype), "blocks.0.scale": torch.ones(2)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="got blocks.0.experts.gate_up_proj in "):
        check_stored(tmp_path)


def test_buffers_of_integers_are_no_weights(tmp_path):
    buffers = {"position_ids": torch.arange(4)[None], "num_batches_tracked": torch.tensor(3), "seen": torch.ones(3) > 0}
    save_file(buffers, tmp_path / "model.safetensors")
    check_stored(tmp_path)


# ---- bitsandbytes, which has kernels for CPUs too

ON_A_GPU = pytest.param(
    "nf4",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="4 bits need a CUDA device")],
)
KINDS = pytest.mark.parametrize("kind", ["int8", ON_A_GPU])


@pytest.fixture
def wide(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint whose rows are whole groups of the 64 weights that share a scale in NF4."""
    pytest.importorskip("bitsandbytes", reason="needs the extra quantized")
    sizes = dict(hidden_size=128, intermediate_size=192, head_dim=32)
    folder = copy_of(llama, tmp_path / "wide", **sizes)
    config = LlamaConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_bitsandbytes_it_is_named(llama):
    if find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed here")
    with pytest.raises(ValueError, match=r"--model.quantization int8, .* pip install 'lit_depth\[quantized\]'"):
        load_checkpoint(str(llama), quantization="int8")


# the values of NF4, table 5 of the paper on QLoRA (https://arxiv.org/abs/2305.14314), appendix E
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """A weight as it is after quantisation, by hand: 127 steps of each row, or NF4 of 64 weights in a line."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    groups = weight.reshape(-1, 64)
    scale = groups.abs().amax(1, keepdim=True)
    nearest = (groups[..., None] / scale[..., None] - NF4).abs().argmin(-1)
    return (NF4[nearest] * scale).reshape(weight.shape)


@KINDS
def test_quantised_weights_are_the_papers(wide, kind):
    """Every map multiplies by its weight rounded by hand, up to 16-bit products, or inputs of 8 bits: below 1%."""
    whole, _ = load_checkpoint(str(wide))
    model, _ = load_checkpoint(str(wide), quantization=kind)
    assert is_quantized(model) and not is_quantized(whole)
    packed = [name for name, weight in model.named_parameters() if weight.dtype in (torch.int8, torch.uint8)]
    assert len(packed) == 4 * 7  # of every block q, k, v, o, gate, up and down
    generator = torch.Generator().manual_seed(0)
    for name in packed:
        weight = whole.get_parameter(name).detach()
        inputs = torch.randn(5, weight.shape[1], generator=generator)
        with torch.no_grad():
            got = model.get_submodule(name.removesuffix(".weight"))(inputs.to(model.device)).cpu()
        products = inputs @ rounded(weight, kind).T
        assert (got - products).norm() < 0.01 * products.norm(), name
        if kind == "nf4":
            assert (got - inputs @ weight.T).norm() > 0.05 * products.norm(), name


@KINDS
def test_quantised_blocks_are_skipped(wide, kind):
    model, _ = load_checkpoint(str(wide), quantization=kind)
    ids, mask = torch.arange(8, 20, device=model.device).view(2, 6), torch.tensor([True, False, True, True])
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.no_grad(), masked(model, mask):
        logits, tokens = model(ids).logits, model.generate(ids, **options)
    del model.model.layers[1]
    model.config.num_hidden_layers = 3
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
        assert torch.equal(model.generate(ids, **options), tokens)


@KINDS
def test_a_checkpoint_that_was_saved_quantised_loads(wide, tmp_path, kind):
    model, processor = load_checkpoint(str(wide), quantization=kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_checkpoint(str(tmp_path))
    ids = torch.arange(8, 14, device=model.device)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_quantised_model_is_not_exported_nor_trained(wide):
    module = DepthModule(str(wide), quantization="int8", device_map="cpu")
    trainer = DepthTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    masks = choose(module, [1], None, None, None, None).masks
    with pytest.raises(ValueError, match="cannot export a quantised model: .* export the unquantised checkpoint"):
        check_exportable(trainer, module, masks, weights=True)
    check_exportable(trainer, module, masks, weights=False)  # files for other tools hold no weights
    with pytest.raises(ValueError, match="cannot train a quantised model"):
        trainer.fit(module, train_dataloaders=[0])


@pytest.mark.slow
def test_commands_evaluate_quantised_weights_on_a_cpu(wide, tmp_path, capsys):
    command = ["importance", "--model.checkpoint", wide, "--model.quantization", "int8", "--data.drop_images", "true"]
    sizes = ["--num_samples", "8", "--output_dir", tmp_path, "--trainer.accelerator", "cpu"]
    if torch.cuda.is_available():
        sizes += ["--model.device_map", "cpu"]
    assert run([*command, *sizes]) == 0, capsys.readouterr().err
    manifest = json.loads((tmp_path / "importance" / "default" / "manifest.json").read_text())
    assert manifest["arguments"]["model.quantization"] == "int8"
    assert run([*command, *sizes, "--model.quantization", "none"]) == 2
    assert "another model.quantization" in capsys.readouterr().err


@pytest.mark.parametrize("device_map", [None, "cpu", {"": "cpu"}])
def test_4_bits_on_a_cpu_are_refused(llama, device_map):
    """Their ``state_dict`` leaves scales transposed (bitsandbytes 0.50): a run would change what it measures."""
    if device_map is None and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match="--model.quantization nf4: expected them on a CUDA device, because reading"):
        load_checkpoint(str(llama), quantization="nf4", device_map=device_map)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_command_evaluates_quantised_weights_on_a_gpu(wide, tmp_path, kind):
    command = ["importance", "--model.checkpoint", wide, "--model.quantization", kind, "--data.drop_images", "true"]
    sizes = ["--num_samples", "8", "--output_dir", tmp_path, "--trainer.accelerator", "gpu"]
    assert run([*command, *sizes]) == 0
