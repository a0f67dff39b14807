"""A fresh process certifies exports of every family, and no export that is wrong in any way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import logging

from lit_depth.functional import find_blocks
from lit_depth.functional.masks import MaskSet
from lit_depth.models.certify import digest
from lit_depth.models.export import state_without
from lit_depth.models.weight_files import WEIGHTS
from lit_depth.studies.export import certificate
from lit_depth.studies.export.certificate import failure, hold, sha256_of, watch
from tests.helpers.exports import certificates, cuttable_masks, exported, three_certificates
from tests.helpers.families import FAMILIES, SEEING, TEXT
from tests.helpers.family_commands import PACKAGES, ROOT, with_packages

logging.disable_progress_bar()
GROUPS = {"text": TEXT, "with images": SEEING}


@pytest.mark.parametrize("group", GROUPS)
def test_exports_of_every_family_are_the_masked_model(group, tmp_path):
    names = [family.name for family in GROUPS[group] if not family.needs]
    evidence = []
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        folder.mkdir()
        evidence += exported(name, cuttable_masks(name, 3), folder)[1]
    verdicts = hold(evidence)
    assert {str(each.folder): failure(verdict) for each, verdict in zip(evidence, verdicts) if failure(verdict)} == {}
    cases = [case for verdict in verdicts for case in verdict["cases"]]
    assert len(verdicts) == 3 * len(names) and len(cases) == 2 * len(verdicts)
    assert all(case["padded_positions"] > 0 for case in cases[::2])
    assert all(case["rows"] == 1 and case["padded_positions"] == 0 for case in cases[1::2])


# blocks that end with a linear layer, experts, and a norm; images and positions of three kinds
ENDS = ("Llama", "Qwen3-MoE", "Gemma 2", "Qwen2-VL")
# a transposed weight of its own kind, which is refused by name
UNPATCHED = ("GPT-2",)


def hold_healed(names: Iterable[str], folder: Path) -> dict[str, str]:
    """What a fresh process says against exports that were patched first."""
    evidence = []
    for number, name in enumerate(names):
        (folder / str(number)).mkdir()
        mask = "1101" if name == "Qwen3-VL" else "1011"
        model, (each,) = exported(name, [mask], folder / str(number), heal=True)
        kept = MaskSet.of(mask).active[0]
        # healing changed weights, and gave them back
        assert each.settings["weights"] != digest(state_without(model, find_blocks(model), kept)), name
        evidence.append(each)
    return {str(each.folder): said for each, verdict in zip(evidence, hold(evidence)) if (said := failure(verdict))}


def test_healed_exports_are_the_patched_and_masked_model(tmp_path):
    assert hold_healed(ENDS, tmp_path) == {}


@pytest.mark.slow
def test_healed_exports_of_every_family_are_the_patched_and_masked_model(tmp_path):
    names = [name for name, family in FAMILIES.items() if not family.needs and name not in UNPATCHED]
    assert hold_healed(names, tmp_path) == {}


@pytest.mark.parametrize("name", UNPATCHED)
def test_a_family_that_cannot_be_patched_is_refused_by_name(name, tmp_path):
    with pytest.raises(ValueError, match="cannot patch a GPT2Block: .* heal by training instead"):
        exported(name, ["1011"], tmp_path, heal=True)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def swap_blocks(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    swapped = {"0": "1", "1": "0"}
    new = {}
    for name, value in tensors.items():
        head, layers, tail = name.partition(".layers.")
        number, _, rest = tail.partition(".")
        new[f"{head}{layers}{swapped.get(number, number)}.{rest}" if layers else name] = value
    save_file(new, folder / WEIGHTS, {"format": "pt"})


def leave_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    new = {name.replace(".layers.2.", ".layers.3."): value for name, value in tensors.items()}
    save_file(new, folder / WEIGHTS, {"format": "pt"})


def change_a_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if "layers.1" in name and "mlp" in name)
    tensors[name].view(-1)[0] += 1e-4
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def lose_a_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[next(name for name in tensors if "layers.1" in name)]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def change_config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


def say_otherwise(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


@dataclass
class Fault:
    family: str
    make: Callable[[Path], None]
    said: str
    hidden: tuple[str, ...] = ()  # what the checkpoint is not held to, so that the logits alone tell


# every export has the mask 1011, of which the list of Gemma 2 keeps sliding, sliding, full
FAULTS = {
    "two blocks swapped": Fault("Llama", swap_blocks, "weights of the masked model"),
    "a block not renumbered": Fault("Llama", leave_a_number, "missing keys|unexpected keys"),
    "a wrong tensor": Fault("Llama", change_a_weight, "weights of the masked model"),
    "a tensor of an expert": Fault("Qwen3-MoE", change_a_weight, "weights of the masked model"),
    "a tensor missing": Fault("Llama", lose_a_weight, "missing keys"),
    "a list not cut": Fault(
        "Gemma 2",
        change_config(layer_types=["sliding_attention", "full_attention"] * 2),
        "layer_types|num_hidden_layers",
    ),
    "a list cut elsewhere": Fault(
        "Gemma 2",
        change_config(layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
        "layer_types",
    ),
    "a number of blocks not cut": Fault("Llama", change_config(num_hidden_layers=4), "missing keys"),
    "another setting": Fault("Llama", change_config(rms_norm_eps=1e-3), "expected rms_norm_eps 1e-06"),
    "other logits": Fault("Llama", change_config(rms_norm_eps=1e-3), "logits differ by", ("other_settings",)),
    "a setting of long prompts": Fault(
        "Llama", change_config(max_position_embeddings=77), "expected max_position_embeddings .* as in the source"
    ),
    "a window that no question fills": Fault("Gemma 2", change_config(sliding_window=77), "expected sliding_window"),
    "another way to answer": Fault(
        "Llama", say_otherwise("generation_config.json", '{"temperature": 9.0, "do_sample": true}'), "generation_config"
    ),
    "another chat template": Fault("Llama", say_otherwise("chat_template.jinja", "{{ messages }}"), "chat_template"),
    "no tokenizer": Fault(
        "Llama", lambda folder: (folder / "tokenizer.json").unlink(), "expected tokenizer.json as in the source"
    ),
    "another number format": Fault("Llama", change_config(dtype="bfloat16"), "expected weights of float32"),
    "no weights": Fault("Llama", lambda folder: (folder / WEIGHTS).unlink(), "OSError"),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, str | None]:
    """What one fresh process says of every fault, and of the exports that have none."""
    evidence, names = [], []
    for name in dict.fromkeys(fault.family for fault in FAULTS.values()):
        folder = tmp_path_factory.mktemp("family")
        _, (right,) = exported(name, ["1011"], folder)
        evidence.append(right)
        names.append(name)
        for kind, fault in FAULTS.items():
            if fault.family == name:
                wrong = folder / kind
                shutil.copytree(right.folder, wrong)
                fault.make(wrong)
                settings = {name: value for name, value in right.settings.items() if name not in fault.hidden}
                evidence.append(right._replace(folder=wrong, settings={**settings, "checkpoint": str(wrong)}))
                names.append(kind)
    return dict(zip(names, map(failure, hold(evidence))))


def test_exports_without_a_fault_are_certified(verdicts):
    assert [verdicts[fault.family] for fault in FAULTS.values()] == [None] * len(FAULTS)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_caught(kind, verdicts):
    assert verdicts[kind] is not None and re.search(FAULTS[kind].said, verdicts[kind]), verdicts[kind]


def test_logits_that_are_not_finite_prove_nothing(tmp_path):
    model, (evidence,) = exported("Llama", ["1011"], tmp_path)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.inf
    given = [(case.name, case.inputs) for case in evidence.cases]
    with pytest.raises(
        ValueError, match=r"expected finite logits of the masked model, got others \(left-padded batch\)"
    ):
        watch(model, MaskSet.of("1011")[0], given, {"max_new_tokens": 1}, tmp_path)


def test_a_process_that_ends_early_is_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(certificate.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="the process that certifies ended with code 1"):
        hold([])


def test_hashes_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of({"a": tmp_path / "a"}) == {"a": known}


COMMITTED = json.loads((ROOT / "benchmarks/results/export_certificates.json").read_text())["families"]


def test_the_committed_certificates_are_of_every_family_and_none_differs():
    assert COMMITTED.keys() == FAMILIES.keys()
    for name, found in COMMITTED.items():
        # of six blocks of which two stay there are fewer masks
        assert len(set(found["masks"])) == (15 if name == "Qwen3-VL" else 20), name
        assert found["failed"] == {} and found["tokens_differ"] == 0 and found["largest_ratio"] <= 1e-6
        assert found["num_cases"] == 2 * len(found["masks"]) and found["padded_positions"] > 0


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.needs])
def test_twenty_masks_are_certified_again(name):
    assert certificates(name) == {**COMMITTED[name], "largest_ratio": pytest.approx(0, abs=1e-6)}


@pytest.mark.slow
def test_families_whose_processors_need_packages_are_certified_with_them():
    names = [name for name, family in FAMILIES.items() if family.needs]
    if not PACKAGES.is_dir():
        for package in {package for name in names for package in FAMILIES[name].needs}:
            pytest.importorskip(package, reason="`make venv` puts the packages of the extra vision beside .venv's own")
    found = with_packages(three_certificates, names)
    assert {name: each["failed"] for name, each in found.items()} == dict.fromkeys(names, {})
