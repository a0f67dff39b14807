"""A model that several processes hold together: the model in one process, up to rounding, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_depth.models.loading import load_checkpoint
from lit_depth.models.tensor_parallel import check_alone, split_over_processes
from lit_depth.module import DepthModule
from tests.helpers.commands import run
from tests.helpers.families import FAMILIES
from tests.helpers.tensor_parallel_laws import TOLERANCE, shared_by_two

# a text model, one that sees, and fused weights with experts and without
SAMPLED = ("Llama", "Qwen2.5-VL", "Molmo (MolmoE-1B)", "Molmo (7B-D, 72B)")
# of whose blocks transformers has no plan
WITHOUT_PLAN = ("Qwen3-VL", "GPT-2", "gpt-oss")


def check_families(names: tuple[str, ...], root: Path) -> None:
    for name in names:
        (root / name).mkdir()
        FAMILIES[name].write(root / name)
    both = shared_by_two("families", str(root), *names)
    assert both[0] == both[1]  # to the last digit
    for name, found in both[0].items():
        assert found["same_weights"], name
        assert 0.5 <= found["held"] < 0.75, name  # norms and routers are whole
        assert found["logits"] < TOLERANCE, name
        for kind in ("blocks", "halves", "decode"):
            assert "refused" not in found[kind] or (kind == "halves" and name not in SAMPLED), (name, found[kind])
            assert found[kind].get("tokens", 0) == 0, (name, kind)
            assert found[kind].get("logprobs", 0) < TOLERANCE, (name, kind)
        assert found["rows"] == 0, name
        # the engine drives what it drives in one process
        assert not found["warned"], (name, found["warned"])


@pytest.mark.slow
def test_two_processes_answer_as_one(tmp_path):
    check_families(SAMPLED, tmp_path)


@pytest.mark.exhaustive
def test_two_processes_answer_as_one_in_every_family(tmp_path):
    left_out = (*SAMPLED, *WITHOUT_PLAN)
    check_families(tuple(name for name, each in FAMILIES.items() if name not in left_out and not each.needs), tmp_path)


@pytest.mark.slow
def test_commands_answer_as_one_process(tmp_path, capsys):
    """Records are written once, a killed run goes on, and what cannot be done ends with exit code 2 everywhere."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    FAMILIES["Qwen2.5-VL"].write(folder)
    for found in shared_by_two("commands", str(tmp_path / "two"), str(folder)):
        assert found["same_records"]
        assert found["codes"] == {"importance": 0, "resumed": 0, "predict": 0, "compare": 2}
    options = ["--model.checkpoint", folder, "--data.batch_size", 4, "--trainer.accelerator", "cpu"]
    alone = ["importance", *options, "--num_samples", 10, "--output_dir"]
    assert run([*alone, tmp_path / "one"]) == 0, capsys.readouterr().err
    two, one = (records_of(tmp_path / each / "importance/default") for each in ("two", "one"))
    assert two.keys() == one.keys() and len(one) == 50
    for key, record in one.items():
        assert two[key] == record | {"reference_logprob": pytest.approx(record["reference_logprob"], abs=TOLERANCE)}
    answers = (tmp_path / "two/predict/answers.jsonl").read_text().splitlines()
    assert len({json.loads(line)["sample"] for line in answers}) == len(answers) == 10
    # of the manifest nothing but the plan differs, the digest of the weights neither
    manifests = [
        json.loads((tmp_path / each / "importance/default/manifest.json").read_text()) for each in ("two", "one")
    ]
    plans = [manifest["arguments"].pop("model.tp_plan") for manifest in manifests]
    assert plans == [{"plan": "auto", "processes": 2}, None]
    assert manifests[0]["arguments"] == manifests[1]["arguments"]
    assert manifests[0]["model"] == manifests[1]["model"]
    assert run([*alone, tmp_path / "two"]) == 2
    assert "holds a run with another model.tp_plan" in capsys.readouterr().err


def records_of(run_folder: Path) -> dict[tuple[str, str], dict]:
    """Records by mask and sample, each written once."""
    paths = sorted(run_folder.glob("records/*/*/rank*.jsonl"))
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    records = [line for line in lines if "mask" in line]
    found = {(record["mask"], record["sample"]): record for record in records}
    assert len(found) == len(records)
    return found


def llama(heads: int = 4, kv_heads: int = 2) -> LlamaForCausalLM:
    sizes = {"vocab_size": 16, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=kv_heads))


@pytest.fixture
def three_processes(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "said"),
    [
        (4, 2, "divides the model's 4 attention heads and 2 key and value heads, got 3"),
        (6, 2, "divides the model's 2 key and value heads, got 3: give torchrun another --nproc_per_node"),
    ],
)
def test_heads_that_cannot_be_dealt_out_are_refused(three_processes, heads, kv_heads, said):
    with pytest.raises(ValueError, match=said):
        split_over_processes(llama(heads, kv_heads), "auto")


def test_heads_that_can_be_dealt_out_pass(three_processes):
    assert split_over_processes(llama(6, 3), "auto").tp_size == 3


@pytest.mark.parametrize("family", WITHOUT_PLAN)
def test_families_without_a_plan_are_refused(three_processes, tmp_path, family):
    FAMILIES[family].write(tmp_path)
    with pytest.raises(ValueError, match="expected rules for the blocks of .*, and transformers has none: give rules"):
        load_checkpoint(str(tmp_path), tp_plan="auto")


def test_fused_files_that_would_be_cut_wrongly_are_refused(three_processes, monkeypatch):
    from transformers.core_model_loading import Chunk, WeightConverter

    from lit_depth.models import tensor_parallel

    fused = WeightConverter("fused.weight", [r"\.gate_proj.weight", r"\.up_proj.weight"], operations=[Chunk(dim=0)])
    monkeypatch.setattr(tensor_parallel, "get_model_conversion_mapping", lambda model: [fused])
    with pytest.raises(
        ValueError, match="expected files in which gate_proj and up_proj of LlamaForCausalLM stand alone"
    ):
        split_over_processes(llama(6, 3), "auto")


def test_one_process_is_refused():
    with pytest.raises(
        ValueError, match="expected several processes that hold the model together, got one: start them"
    ):
        split_over_processes(llama(), "auto")


def test_other_places_beside_it_are_refused():
    check_alone(None, device_map="cpu")
    check_alone("auto", device_map=None, quantization=None)
    with pytest.raises(ValueError, match="leave out --model.device_map and --model.quantization"):
        check_alone("auto", device_map="cpu", quantization=True)
    for options in ({"device_map": "cpu"}, {"quantization": "int8"}):
        with pytest.raises(ValueError, match="splits unquantised weights over processes: leave out --model"):
            load_checkpoint("bundled", tp_plan="auto", **options)
    with pytest.raises(ValueError, match="makes new weights and loads none: leave out .* --model.tp_plan"):
        DepthModule(from_scratch=True, tp_plan="auto")


def test_the_command_line_says_what_is_missing(capsys):
    assert run(["importance", "--model.tp_plan", "auto"]) == 2
    assert "start them by torchrun --nproc_per_node N -m lit_depth" in capsys.readouterr().err
    assert run(["importance", "--model.tp_plan", "some"]) == 2
    assert "tp_plan" in capsys.readouterr().err
