"""What other tools are told of a mask; mergekit's own merge by it holds the same tensors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaConfig

from lit_depth.functional.masks import MaskSet
from lit_depth.models.export import FIELDS, Fields, new_folder, prune_checkpoint, read_config
from lit_depth.models.handoff import LLAMA_CPP, MERGEKIT, block_configs, llama_cpp, mergekit, spans
from tests.helpers.families import FAMILIES

NAMES = ("Llama", "Mistral", "Phi-3", "OLMo 2", "Granite", "GPT-2")


def test_a_passthrough_merge_names_runs_of_blocks():
    text = mergekit("organisation/name", LlamaConfig(num_hidden_layers=6), MaskSet.of("110101"), "bfloat16")
    assert yaml.safe_load(text) == {
        "merge_method": "passthrough",
        "dtype": "bfloat16",
        "slices": [
            {"sources": [{"model": "organisation/name", "layer_range": span}]} for span in ([0, 2], [3, 4], [5, 6])
        ],
    }


@pytest.mark.parametrize("name", ["it's", 'a "b"', "c: d", "#e", "\\f", "é"])
def test_any_folder_can_be_named(name):
    text = mergekit(name, LlamaConfig(num_hidden_layers=2), MaskSet.of("10"), "float32")
    assert yaml.safe_load(text)["slices"][0]["sources"][0]["model"] == name


def test_spans_hold_each_block_once():
    for number in range(1, 2**6):
        blocks = [block for block in range(6) if number >> block & 1]
        found = spans(blocks)
        assert [block for start, end in found for block in range(start, end)] == blocks
        assert all(end < start for (_, end), (start, _) in zip(found, found[1:]))  # no run could be longer


def test_the_list_for_the_quantizer_counts_from_0_and_only_blocks_of_one_kind():
    masks = MaskSet.of("0110")
    assert llama_cpp(LlamaConfig(num_hidden_layers=4), masks) == "0,3"
    assert llama_cpp(LlamaConfig(num_hidden_layers=4), MaskSet.full(4)) is None
    uniform = AutoConfig.for_model("qwen3", num_hidden_layers=4)
    windows = AutoConfig.for_model("qwen3", num_hidden_layers=4, use_sliding_window=True, max_window_layers=2)
    assert llama_cpp(uniform, masks) == "0,3" and llama_cpp(windows, masks) is None
    assert llama_cpp(AutoConfig.for_model("mamba"), masks) is None
    assert mergekit("x", AutoConfig.for_model("gemma2"), masks, "float32") is None
    assert {"mistral"} <= set(LLAMA_CPP) & set(MERGEKIT)


def test_halves_that_do_nothing_are_said_block_by_block():
    whole = block_configs(MaskSet.of("10"))
    assert [(each["attention"]["no_op"], each["ffn"]["no_op"]) for each in whole] == [(False, False), (True, True)]
    halves = block_configs(MaskSet.of("100111", granularity="sublayer"))
    found = [(each["attention"]["no_op"], each["ffn"]["no_op"]) for each in halves]
    assert found == [(False, True), (True, False), (False, False)]


def test_families_whose_settings_have_lists_are_none_of_mergekits():
    """It cuts the number of blocks alone, so transformers refuses the configuration that it writes."""
    assert [kind for kind in MERGEKIT if FIELDS.get(kind, Fields()).lists] == []


@pytest.fixture(scope="module")
def command() -> str:
    """Beside this interpreter, on the path, or where LIT_DEPTH_MERGEKIT says."""
    named = os.environ.get("LIT_DEPTH_MERGEKIT")
    beside = Path(sys.executable).with_name("mergekit-yaml")
    found = named or (str(beside) if beside.is_file() else shutil.which("mergekit-yaml"))
    if found is None:
        pytest.skip("no mergekit: pip install mergekit, or name its mergekit-yaml by LIT_DEPTH_MERGEKIT")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_mergekits_own_merge_has_the_same_tensors(name, command, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    FAMILIES[name].write(source)
    masks = MaskSet.of("1011")
    with new_folder(tmp_path / "ours") as folder:
        prune_checkpoint(source, masks, folder)
    (tmp_path / "merge.yaml").write_text(mergekit(str(source), read_config(source)[1], masks, "float32"))
    merge = [command, tmp_path / "merge.yaml", tmp_path / "theirs", "--no-copy-tokenizer"]
    done = subprocess.run(list(map(str, merge)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (
        {name: value for path in (tmp_path / who).glob("*.safetensors") for name, value in load_file(path).items()}
        for who in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
