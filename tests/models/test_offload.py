"""Blocks on the disk: the answers of the model in memory, to the last bit, and a skipped block is not read."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from torch import nn

from lit_depth.functional import find_blocks, leave_one_out, masked
from lit_depth.functional.engine.api import answer_masks
from lit_depth.models.loading import load_checkpoint
from tests.helpers.commands import run
from tests.helpers.families import FAMILIES

# files that are run as they are, and such whose weights are put together (experts) or taken apart (fused ones)
AS_THEY_ARE, CONVERTED = "Qwen2.5-VL", ("Mixtral", "Molmo (7B-D, 72B)")
INPUTS = {"input_ids": torch.arange(8, 20).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
ASKED = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0, "answer_ids": torch.tensor([[5, 6], [7, 8]])}


def path_of_blocks(model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is find_blocks(model))


def on_the_disk(model: nn.Module) -> dict[str, str]:
    """A map with all blocks on the disk and the rest in memory."""
    path, places = path_of_blocks(model), {}
    for name, _ in model.named_modules():
        is_around = name == "" or f"{path}.".startswith(f"{name}.")
        if not is_around and not any(name.startswith(f"{each}.") for each in places):
            places[name] = "disk" if name.startswith(f"{path}.") else "cpu"
    return places


@contextmanager
def counting_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """How often each weight is read from the disk."""
    reads, real = Counter(), OffloadedWeightsLoader.__getitem__

    def counted(self, key):
        reads[key] += 1
        return real(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(OffloadedWeightsLoader, "__getitem__", counted)
        yield reads


def both(folder: Path, **options: str) -> tuple[nn.Module, nn.Module]:
    whole, _ = load_checkpoint(str(folder))
    offloaded, _ = load_checkpoint(str(folder), device_map=on_the_disk(whole), **options)
    assert all(weight.is_meta for weight in find_blocks(offloaded).parameters())
    return whole, offloaded


def test_a_skipped_block_is_not_read(tmp_path, monkeypatch):
    FAMILIES[AS_THEY_ARE].write(tmp_path)
    whole, offloaded = both(tmp_path)
    path, mask = path_of_blocks(whole), torch.tensor([True, False, True, True])
    with torch.no_grad(), masked(whole, mask):
        expected = whole(**INPUTS).logits
    with torch.no_grad(), masked(offloaded, mask), counting_reads(monkeypatch) as reads:
        assert torch.equal(offloaded(**INPUTS).logits, expected)
    # every weight of the others once
    active = [
        f"{path}.{index}.{name}" for index in (0, 2, 3) for name, _ in find_blocks(whole)[index].named_parameters()
    ]
    assert reads == Counter(active)


def test_one_pass_reads_a_block_once_for_all_masks(tmp_path, monkeypatch):
    FAMILIES[AS_THEY_ARE].write(tmp_path)
    whole, offloaded = both(tmp_path)
    masks = torch.cat([torch.ones(1, 4, dtype=torch.bool), leave_one_out(4)])
    expected = answer_masks(whole, INPUTS, masks, **ASKED)
    answer_masks(offloaded, INPUTS, masks, **ASKED)  # the first pass is compared with the model
    with counting_reads(monkeypatch) as together:
        found = answer_masks(offloaded, INPUTS, masks, **ASKED)
    assert all(map(torch.equal, found, expected))
    with counting_reads(monkeypatch) as one_by_one:
        for mask in masks:
            answer_masks(offloaded, INPUTS, mask[None], **ASKED)
    # of five masks each block is skipped by one
    assert together.keys() == one_by_one.keys()
    assert {one_by_one[name] / together[name] for name in together} == {4.0}


@pytest.mark.parametrize("family", CONVERTED)
def test_weights_in_another_form_need_a_folder(tmp_path, family):
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "offloaded"
    checkpoint.mkdir()
    FAMILIES[family].write(checkpoint)
    with pytest.raises(ValueError, match="Please provide an `offload_folder`"):
        both(checkpoint)
    whole, offloaded = both(checkpoint, offload_folder=str(folder))
    masks = torch.cat([torch.ones(1, 4, dtype=torch.bool), leave_one_out(4)])
    found, expected = (answer_masks(model, INPUTS, masks, **ASKED) for model in (offloaded, whole))
    assert all(map(torch.equal, found, expected))
    assert list(folder.glob("lit_depth_*/*.safetensors"))
    del offloaded
    gc.collect()  # hooks and modules know each other
    assert not list(folder.iterdir())


def test_a_module_around_one_on_the_disk_is_refused(tmp_path):
    FAMILIES["Llama"].write(tmp_path)
    for around in ("", "model"):
        with pytest.raises(ValueError, match=f"modules beside one another, got '{around}' around 'model.layers.1'"):
            load_checkpoint(str(tmp_path), device_map={around: "cpu", "model.layers.1": "disk"})


def test_a_folder_without_a_map_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is for weights that --model.device_map puts on the disk: give that too"):
        load_checkpoint("bundled", offload_folder=str(tmp_path))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="expected a folder that can be written to, got .*file"):
        load_checkpoint("bundled", offload_folder=str(file), device_map="cpu")


@pytest.mark.slow
def test_commands_write_the_records_of_the_model_in_memory(tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    FAMILIES[AS_THEY_ARE].write(checkpoint)
    places = json.dumps(on_the_disk(load_checkpoint(str(checkpoint))[0]))
    options = ["--model.checkpoint", checkpoint, "--trainer.accelerator", "cpu", "--data.batch_size", 4]
    few = ["--data.num_samples", 8, "--data.calibration_samples", 8]
    commands = [["importance", *few], ["compare", *few, "--num_requests", 0, "--policies", '["prefix"]']]
    for command, *rest in commands:
        for name, own in (("memory", []), ("disk", ["--model.device_map", places])):
            assert run([command, *options, *rest, *own, "--output_dir", tmp_path / name]) == 0, capsys.readouterr().err
        found, expected = (records(tmp_path / name / command) for name in ("disk", "memory"))
        assert found == expected and any(found.values())


def records(folder: Path) -> dict[str, list[str]]:
    """Lines of all records, without the first ones, which name the run."""
    return {
        str(path.relative_to(folder)): path.read_text().splitlines()[1:] for path in sorted(folder.rglob("rank*.jsonl"))
    }
