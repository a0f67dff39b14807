"""The training that heals: what comes of it is that of a plain loop, and the model is what it was afterwards."""

from __future__ import annotations

import signal
import sys

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import get_cosine_schedule_with_warmup

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, masked
from lit_depth.functional.masks import MaskSet
from lit_depth.models.certify import digest
from lit_depth.studies.export.training import Training, check_training, train
from lit_depth.studies.shared.run_folder import Run

MASK = MaskSet.of("101101")[0]
STEPS = 3


@pytest.fixture(scope="module")
def module(small_checkpoint) -> DepthModule:
    module = DepthModule(str(small_checkpoint)).eval()
    module.model(torch.arange(2, 8)[None], output_router_logits=True)  # transformers adds hooks at the first call
    # as a caller may have left it
    module.model.lm_head.weight.requires_grad_(False)
    module.model.lm_head.weight.grad = torch.ones_like(module.model.lm_head.weight)
    return module


def how(method: str, module: DepthModule, rate: float = 1e-3, **data) -> tuple[Training, DepthDataModule]:
    datamodule = DepthDataModule(num_samples=8, calibration_samples=8, train_batch_size=2, **data)
    datamodule.attach(module)
    training = Training.of(method, STEPS, rate, 2 if method == "lora" else None, module, datamodule)
    assert training is not None
    return training, datamodule


def trained(folder, module, method="full", start=None, rate=1e-3, **data):
    training, datamodule = how(method, module, rate, **data)
    trainer = DepthTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    run = Run(trainer, module, datamodule, folder, {"heal": method}, 0.0)
    return train(run, MASK, start or {}, training)


def state(module):
    """All that a training could leave behind."""
    model = module.model
    weights = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    flags = {name: (weight.requires_grad, id(weight.grad)) for name, weight in model.named_parameters()}
    modes = {name: (type(each), each.training, sorted(vars(each))) for name, each in model.named_modules()}
    return weights, flags, modes, torch.get_rng_state(), module.device


def assert_given_back(module, before):
    weights, flags, modes, random, device = state(module)
    assert list(weights) == list(before[0]) and (flags, device) == (before[1], before[4])
    assert {name: (mode, before[2].get(name)) for name, mode in modes.items() if mode != before[2].get(name)} == {}
    for name, (place, value) in weights.items():
        assert place == before[0][name][0] and torch.equal(value, before[0][name][1]), name
    assert torch.equal(random, before[3])


def of_skipped_blocks(module) -> set[str]:
    blocks = find_blocks(module.model)
    path = next(name for name, each in module.model.named_modules() if each is blocks)
    names = [name for name, _ in module.model.named_parameters()]
    return {name for name in names for block in (1, 4) if name.startswith(f"{path}.{block}.")}


def test_all_weights_are_those_of_a_plain_loop(module, small_checkpoint, tmp_path):
    before = state(module)
    found = trained(tmp_path, module)
    assert_given_back(module, before)

    plain = DepthModule(str(small_checkpoint))
    _, data = how("full", plain, train_images=2 * STEPS)
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, STEPS // 2, STEPS)
    plain.model.train()
    torch.manual_seed(0)
    with masked(plain.model, MASK):
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            plain.training_loss(batch)[0].backward()
            torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    whole = dict(module.model.named_parameters())
    expected = {name: weight for name, weight in plain.model.named_parameters() if not torch.equal(weight, whole[name])}
    assert set(found.weights) == set(expected) and len(expected) > 20
    for name, value in found.weights.items():
        torch.testing.assert_close(value, expected[name].data, rtol=0, atol=1e-7)
    assert not set(found.weights) & of_skipped_blocks(module)
    # the same seed gives the same weights, another one others
    assert digest(trained(tmp_path, module).weights) == digest(found.weights)
    assert digest(trained(tmp_path, module, seed=1).weights) != digest(found.weights)


def test_adapters_change_linear_weights_and_experts_of_the_other_blocks_alone(module, tmp_path):
    pytest.importorskip("peft", reason="needs the package peft")
    before = state(module)
    found = trained(tmp_path, module, "lora")
    assert_given_back(module, before)
    weights = dict(module.model.named_parameters())
    inside = {name for block in find_blocks(module.model) for name in map(id, block.parameters())}
    assert found.weights and all(id(weights[name]) in inside for name in found.weights)
    assert not set(found.weights) & of_skipped_blocks(module)
    assert all(weights[name].ndim >= 2 for name in found.weights)
    # what is added to a matrix has the rank that was asked for
    change = next(value - weights[name] for name, value in found.weights.items() if value.ndim == 2)
    singular = torch.linalg.svdvals(change.detach().double())
    assert singular[1] > 1e-7 and bool((singular[2:] < 1e-2 * singular[1]).all())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_without_learning_the_start_is_what_is_found(module, tmp_path, method):
    if method == "lora":
        pytest.importorskip("peft", reason="needs the package peft")
    name, weight = next(item for item in module.model.named_parameters() if item[1].ndim == 2)
    start = {name: weight.detach() + 1}
    found = trained(tmp_path, module, method, start, rate=0.0)
    assert set(found.weights) == {name} and torch.equal(found.weights[name], start[name])
    with found.applied():
        assert torch.equal(weight.data, start[name])


class Stopped(BaseException):
    """What no library handles."""


@pytest.mark.parametrize(
    ("method", "error", "seen"),
    [
        ("full", RuntimeError("on purpose"), RuntimeError),
        ("lora", KeyboardInterrupt(), SystemExit),  # which Lightning makes of it
        ("lora", Stopped(), Stopped),
    ],
)
def test_a_training_that_ends_early_leaves_nothing(module, tmp_path, monkeypatch, method, error, seen):
    if method == "lora":
        pytest.importorskip("peft", reason="needs the package peft")
    real, calls = module.training_loss, []

    def failing(batch):
        calls.append(batch)
        if len(calls) > 1:
            raise error
        return real(batch)

    before = state(module)
    monkeypatch.setattr(module, "training_loss", failing, raising=False)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(seen):
            trained(tmp_path, module, method)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert len(calls) == 2
    monkeypatch.undo()
    assert_given_back(module, before)


def test_the_progress_bar_says_what_is_trained_and_on_what(module, tmp_path, capsys):
    training, datamodule = how("full", module)
    trainer = DepthTrainer(accelerator="cpu", logger=False)
    train(Run(trainer, module, datamodule, tmp_path, {}, 0.0), MASK, {}, training)
    shown = "".join(capsys.readouterr())
    assert "Healing (full), shapes_vqa, train split: 100%" in shown and f"{STEPS}/{STEPS}" in shown
    assert "answer loss=" in shown and "Epoch" not in shown.rpartition("\r")[2]


def test_weights_that_are_no_numbers_are_refused(module, tmp_path):
    before = state(module)
    with pytest.raises(ValueError, match=r"give a smaller --heal_learning_rate than 1e\+30"):
        trained(tmp_path, module, rate=1e30)
    assert_given_back(module, before)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"task": "text_vqa"},
            "--heal full trains on the train split: .* text_vqa is for evaluation only; --heal patch",
        ),
        ({"train_collator": "no.such.Collator"}, "--heal full trains on the train split: "),
    ],
)
def test_a_task_that_cannot_be_trained_on_is_refused(module, data, message):
    training, datamodule = how("full", module, **data)
    with pytest.raises(ValueError, match=message) as refused:
        check_training(training, module, datamodule)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [torch.arange(4), iter(())], ids=["fewer", "a stream"])
def test_a_task_with_fewer_images_than_the_steps_take_is_refused(module, monkeypatch, given):
    """Else the model card would tell of steps that were never taken."""
    training, datamodule = how("lora", module)
    check_training(training, module, datamodule)
    images = given if isinstance(given, torch.Tensor) else type("Stream", (IterableDataset,), {"__iter__": iter})()
    monkeypatch.setattr(type(datamodule.task), "training_set", lambda *_: images)
    monkeypatch.setattr(type(datamodule.task), "train_in_order", True)
    with pytest.raises(ValueError, match=f"expected {2 * STEPS} images of shapes_vqa, got (4|a stream): give fewer"):
        check_training(training, module, datamodule)


def test_a_model_that_cannot_be_trained_is_refused(module, monkeypatch):
    training, datamodule = how("full", module)
    check_training(training, module, datamodule)
    with monkeypatch.context() as changed:
        changed.setattr(module, "is_placed", True)
        with pytest.raises(ValueError, match="expected --model.device_map null"):
            check_training(training, module, datamodule)
    module.model.half()
    try:
        with pytest.raises(ValueError, match="float16 loses the steps of AdamW"):
            check_training(training, module, datamodule)
    finally:
        module.model.float()


def test_adapters_without_peft_are_refused(module, monkeypatch):
    training, datamodule = how("lora", module)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'lit_depth\[lora\]'"):
        check_training(training, module, datamodule)


def test_no_training_is_asked_for_by_the_other_strengths(module):
    datamodule = DepthDataModule()
    none = (None, None, None, module, datamodule)
    assert [Training.of(heal, *none) for heal in ("none", "patch")] == [None, None]
    lora, full = (Training.of(heal, *none) for heal in ("lora", "full"))
    assert lora.entry()["lora_rank"] == 16 and "lora_rank" not in full.entry()
    assert full.num_images == 150 * datamodule.train_batch_size and full.learning_rate == 1e-3
