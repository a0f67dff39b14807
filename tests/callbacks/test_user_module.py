"""Callbacks find the Hugging Face model in any LightningModule, under whatever name and inside whatever wrapper."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader
from transformers import LlamaForSequenceClassification

from lit_depth.callbacks import (
    AccuracyDropImportance,
    BeamSearchAblation,
    BlockMask,
    LatencyTimer,
    ProxyImportance,
    TokenMaskImpact,
)
from lit_depth.callbacks.batch_scores import score_masks, token_accuracy
from lit_depth.callbacks.user_module import accepted, language_model
from tests.helpers.plain_repository import NUM_BLOCKS, PlainModule, loader, trainer
from tests.helpers.tiny_models import tiny_batch, tiny_model


class Mine(pl.LightningModule):
    """Somebody's module without a ``forward``: ``hold`` puts the model into it, ``model_of`` takes it out again."""

    def __init__(self, hold: Callable[[Any, nn.Module], Any], model_of: Callable[[Any], Any]) -> None:
        super().__init__()
        hold(self, PlainModule().model)
        self.model_of = model_of

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", self.model_of(self)(**batch).loss, add_dataloader_idx=True)
        self.log("val_noise", torch.rand(()) + random.random() + np.random.rand())  # any draw would change it

    def predict_step(self, batch, batch_idx):
        return self.model_of(self)(**batch).logits


class Wrapper(nn.Module):
    """As PEFT's: a model inside a model inside, attributes handed through."""

    def __init__(self, base_model: nn.Module) -> None:
        super().__init__()
        self.base_model = base_model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


class OwnModel(nn.Module):
    """Not a model of transformers, though it holds one, and a configuration of its own; it insists on labels."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner, self.config = inner, {"name": "mine"}

    def forward(self, input_ids, attention_mask, labels):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def compiled_in_place(module, model) -> None:
    module.lm = model
    module.lm.compile(backend="eager")


def with_a_second_name(module, model) -> None:
    module.lm = module.alias = model


HELD = {
    "lm": (lambda s, m: setattr(s, "lm", m), lambda s: s.lm),
    "vlm": (lambda s, m: setattr(s, "vlm", m), lambda s: s.vlm),
    "module list": (lambda s, m: setattr(s, "parts", nn.ModuleList([nn.Linear(2, 2), m])), lambda s: s.parts[1]),
    "module dict": (lambda s, m: setattr(s, "parts", nn.ModuleDict({"lm": m})), lambda s: s.parts["lm"]),
    "module inside": (lambda s, m: setattr(s, "net", PlainModule()), lambda s: s.net.model),
    "like PEFT": (lambda s, m: setattr(s, "net", Wrapper(Wrapper(m))), lambda s: s.net),
    "like PEFT, as model": (lambda s, m: setattr(s, "model", Wrapper(Wrapper(m))), lambda s: s.model),
    "class of ones own": (lambda s, m: setattr(s, "model", OwnModel(m)), lambda s: s.model),
    "data parallel": (lambda s, m: setattr(s, "lm", nn.DataParallel(m)), lambda s: s.lm),
    "compiled": (lambda s, m: setattr(s, "lm", torch.compile(m, backend="eager")), lambda s: s.lm),
    "compiled in place": (compiled_in_place, lambda s: s.lm),
    "two names": (with_a_second_name, lambda s: s.alias),
}


def every_callback(**options) -> list[pl.Callback]:
    """All that measure, those before the timer which run the model at the end of a batch."""
    return [
        AccuracyDropImportance(**options),
        BeamSearchAblation(max_removed=1, racing=False, **options),
        ProxyImportance(**options),
        TokenMaskImpact(num_samples=2, **options),
        LatencyTimer(warmup_batches=0, **options),
    ]


def found_by(callbacks: list[pl.Callback]) -> dict[str, Any]:
    drop, beam, proxy, tokens, timer = callbacks
    return {
        "scores": drop.scores.tolist(),
        "importance": drop.importance.tolist(),
        "ablations": {ablation.removed: ablation.score for ablation in beam.result.levels[0].ablations},
        "proxies": {method: values.tolist() for method, values in proxy.importance.items()},
        "tokens": tokens.summary,
        "requests": [(sample["batch"], sample["num_output_tokens"]) for sample in timer.samples],
    }


def validate(module: pl.LightningModule, *callbacks: pl.Callback, loaders=None, **options) -> dict[str, float]:
    pl.seed_everything(7, verbose=False)
    engine = trainer(callbacks, **options)
    engine.validate(module, loaders or loader(), verbose=False)
    return {name: float(value) for name, value in engine.callback_metrics.items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the callbacks find in a module with ``self.model``; their own tests check it against pruned copies."""
    callbacks = every_callback()
    validate(PlainModule(), *callbacks)
    return found_by(callbacks)


# torch.compile takes seconds
HOLDERS = [pytest.param(name, marks=[pytest.mark.slow] if "compiled" in name else []) for name in HELD]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield torch._dynamo.reset
    torch._dynamo.reset()


@pytest.mark.parametrize("holder", HOLDERS)
def test_all_callbacks_find_the_model_and_its_owner_notices_nothing(holder, expected, recwarn, fresh_compiler):
    plain = validate(Mine(*HELD[holder]))
    fresh_compiler()  # code that was compiled without the timer's hooks would go on without them
    callbacks = every_callback()
    watched = validate(Mine(*HELD[holder]), *callbacks)
    assert {name: watched[name] for name in plain} == plain
    assert found_by(callbacks) == expected
    assert not [warning for warning in recwarn if "one after another" in str(warning.message)]


@pytest.mark.parametrize("holder", [name for name in HELD if "compiled" not in name])
def test_a_mask_is_set_on_the_model_that_is_found(holder):
    mask = BlockMask(skipped_block_indices=[1])
    assert validate(Mine(*HELD[holder]), mask)["val_loss"] == validate(PlainModule(), mask)["val_loss"]


@pytest.mark.slow
def test_nothing_is_compiled_for_a_callback(fresh_compiler):
    counter = CompileCounter()
    module = Mine(lambda s, m: setattr(s, "lm", torch.compile(m, backend=counter)), lambda s: s.lm)
    batches = [next(iter(loader()))] * 3
    validate(module, loaders=DataLoader(batches, batch_size=None))
    alone = counter.frame_count
    fresh_compiler()
    counter.frame_count = 0
    validate(module, *every_callback()[:-1], loaders=DataLoader(batches, batch_size=None))
    assert counter.frame_count == alone > 0


def test_a_vision_language_model_under_another_name():
    model, batch = tiny_model("llava"), tiny_batch(tiny_model("llava"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    class Vlm(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.vlm = model

    with torch.no_grad():
        guesses = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1].argmax(-1)
    right = [
        (row == label)[label != -100].double().mean()
        for row, label in zip(guesses, batch["labels"][:, 1:], strict=True)
    ]
    torch.testing.assert_close(token_accuracy(Vlm(), batch).double(), torch.stack(right), rtol=0, atol=1e-6)
    assert language_model(Vlm()) == (model, "model.language_model.layers")


def two_models(module, model) -> None:
    module.teacher, module.student = tiny_model("llama"), model


def two_heads(module, model) -> None:
    """One decoder under two heads, as of a policy and its value."""
    module.value = LlamaForSequenceClassification(model.config)
    module.value.model = model.model
    module.lm = model


@pytest.mark.parametrize(("hold", "path"), [(two_models, "student.model.layers"), (two_heads, "lm.model.layers")])
@pytest.mark.parametrize("index", range(6))
def test_of_several_models_one_has_to_be_named(hold, path, index, expected):
    def make(**options) -> pl.Callback:
        return [*every_callback(**options), BlockMask(skipped_block_indices=[1], **options)][index]

    module = Mine(hold, lambda s: s.get_submodule(path.split(".")[0]))
    with pytest.raises(ValueError, match=rf"found 2 in Mine: .*{path}.*choose one with blocks=<dotted path>"):
        validate(module, make())
    callback = make(blocks=path)
    loss = validate(module, callback)["val_loss"]
    if isinstance(callback, BlockMask):
        assert loss == validate(PlainModule(), BlockMask(skipped_block_indices=[1]))["val_loss"]
    elif isinstance(callback, AccuracyDropImportance):
        assert callback.scores.tolist() == expected["scores"]
    elif isinstance(callback, ProxyImportance):
        assert {method: values.tolist() for method, values in callback.importance.items()} == expected["proxies"]
    elif isinstance(callback, TokenMaskImpact):
        assert callback.summary == expected["tokens"]
    elif isinstance(callback, LatencyTimer):
        assert len(callback.samples) == 4
    else:
        (level,) = callback.result.levels
        assert {ablation.removed: ablation.score for ablation in level.ablations} == expected["ablations"]


def test_the_head_on_the_way_to_the_blocks_is_the_model():
    module = Mine(two_heads, lambda s: s.lm)
    assert language_model(module, "lm.model.layers") == (module.lm, "model.layers")
    assert language_model(module, "value.model.layers") == (module.value, "model.layers")


def test_the_blocks_may_be_named_by_a_second_name():
    module = Mine(with_a_second_name, lambda s: s.lm)
    assert language_model(module, "alias.model.layers") == language_model(module) == (module.lm, "model.layers")


@pytest.mark.parametrize("hidden", [lambda model: [model], lambda model: {"lm": model}])
def test_a_model_in_a_plain_list_or_dict_is_named(hidden):
    module = Mine(lambda s, m: setattr(s, "models", hidden(m)), lambda s: s.models)
    for callback in (*every_callback(), BlockMask(skipped_block_indices=[1])):
        with pytest.raises(ValueError, match=r"'models' \(LlamaForCausalLM\); hold them in an nn.ModuleList"):
            validate(module, callback)


class LearnedPrompt(nn.Module):
    """As PEFT's prompt tuning: two learned embeddings stand before the tokens, and given positions are ignored."""

    active_peft_config = SimpleNamespace(is_prompt_learning=True)

    def __init__(self, base_model: nn.Module) -> None:
        super().__init__()
        self.base_model = base_model
        generator = torch.Generator().manual_seed(3)
        self.prompt = nn.Parameter(torch.randn(2, base_model.config.hidden_size, generator=generator))

    def forward(self, input_ids, attention_mask, labels=None, position_ids=None, **options):
        embeddings = self.base_model.get_input_embeddings()(input_ids)
        embeddings = torch.cat([self.prompt.expand(len(input_ids), -1, -1), embeddings], dim=1)
        mask = torch.cat([attention_mask.new_ones(len(input_ids), 2), attention_mask], dim=1)
        if labels is not None:
            labels = torch.cat([labels.new_full((len(labels), 2), -100), labels], dim=1)
        return self.base_model(inputs_embeds=embeddings, attention_mask=mask, labels=labels, **options)


def test_learned_prompts_belong_to_the_model():
    module = Mine(lambda s, m: setattr(s, "net", LearnedPrompt(m)), lambda s: s.net)
    assert language_model(module) == (module.net, "base_model.model.layers")
    callback = AccuracyDropImportance()
    with pytest.warns(UserWarning, match="one after another: LearnedPrompt: it is not a model of transformers"):
        validate(module, callback)
    with torch.no_grad():
        rows = [module.net.eval()(**b).logits[:, 2:-1].argmax(-1) == b["labels"][:, 1:] for b in loader()]
    right = torch.cat(rows)[:, 2:].float().mean(1)
    torch.testing.assert_close(callback.scores[0], right)
    assert right.sum() != sum(token_accuracy(PlainModule(), batch).sum() for batch in loader())
    with pytest.raises(ValueError, match="padding cannot be told"):
        validate(module, ProxyImportance(["block_influence"]))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden_states):
        return hidden_states + self.linear(hidden_states)


class Handmade(nn.Module):
    """A model of no library."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(24, 16), nn.Linear(16, 24)
        self.stack = nn.ModuleList(Residual(16) for _ in range(3))

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.embed(input_ids)
        for block in self.stack:
            hidden = block(hidden)
        return SimpleNamespace(logits=self.head(hidden), loss=hidden.mean())


def test_a_model_of_no_library_is_scored_one_mask_after_another():
    module = Mine(lambda s, m: setattr(s, "handmade", Handmade()), lambda s: s.handmade)
    callback = AccuracyDropImportance(blocks="handmade.stack")
    with pytest.warns(UserWarning, match="one after another: Handmade: it is not a model of transformers"):
        validate(module, callback)
    reference = Handmade()
    for skipped, scores in zip([None, 0, 1, 2], callback.scores, strict=True):
        if skipped is not None:
            reference.stack[skipped].linear.weight.data.zero_()
            reference.stack[skipped].linear.bias.data.zero_()
        rows = [reference(b["input_ids"], None).logits[:, :-1].argmax(-1) == b["labels"][:, 1:] for b in loader()]
        assert torch.equal(scores, torch.cat(rows)[:, 2:].float().mean(1))
        reference = Handmade()
    assert language_model(module, "handmade.stack") == (module.handmade, "stack")


def test_inputs_that_the_model_does_not_know_are_left_out():
    class Strict(nn.Module):
        def forward(self, input_ids, attention_mask): ...

    inputs = {"input_ids": torch.zeros(1), "index": torch.zeros(1)}
    assert list(accepted(Strict(), inputs)) == ["input_ids"]
    assert list(accepted(PlainModule().model, inputs)) == ["input_ids", "index"]


def test_entries_that_are_no_tensors_belong_to_the_owner(expected):
    """Of a batch's tensors, names and numbers only the tensors go to the model."""

    class Labelled(Mine):
        def validation_step(self, batch, batch_idx):
            assert batch["names"][0].startswith("row")

    rows = [row | {"names": f"row {index}", "weight": 0.5} for index, row in enumerate(loader().dataset)]
    callbacks = every_callback()[:-1]
    validate(Labelled(*HELD["lm"]), *callbacks, loaders=DataLoader(rows, batch_size=6))
    assert found_by([*callbacks, LatencyTimer()]) == expected | {"requests": []}


@dataclasses.dataclass
class Pair:
    input_ids: torch.Tensor
    labels: torch.Tensor


@pytest.mark.parametrize("kind", [Pair, lambda ids, labels: [ids, labels]])
def test_batches_of_another_kind_are_named(kind):
    class Pairs(Mine):
        def validation_step(self, batch, batch_idx): ...

    batches = [kind(batch["input_ids"], batch["labels"]) for batch in loader()]
    given = type(batches[0]).__name__
    what_to_do = ["pass score_fn", "pass score_fn", "override inputs_of", "mappings with input_ids"]
    for callback, message in zip(every_callback(), what_to_do):
        with pytest.raises(ValueError, match=f"expected .*{message}") as caught:
            validate(Pairs(*HELD["lm"]), callback, loaders=DataLoader(batches, batch_size=None))
        assert f"got {given}" in str(caught.value)
    # a score function of one's own reads them
    callback = AccuracyDropImportance(lambda module, batch: torch.zeros(6))
    validate(Pairs(*HELD["lm"]), callback, loaders=DataLoader(batches[:2], batch_size=None))
    assert callback.scores.shape == (1 + NUM_BLOCKS, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.pop("labels"), r"needs batch\['labels'\]; pass score_fn"),
        (lambda batch: batch.update(labels=batch["labels"][:, 0]), r"labels \[batch, seq\] .* \[6, 8\], got \[6\]"),
        (lambda batch: batch.update(labels=batch["labels"][:, 1:]), r"got \[6, 7\]; pass score_fn"),
    ],
)
def test_labels_that_cannot_be_read_are_named(change, message):
    batch = next(iter(loader()))
    change(batch)
    with pytest.raises(ValueError, match=message):
        score_masks(PlainModule(), batch, torch.ones(1, NUM_BLOCKS).bool())


def a_classifier(model) -> nn.Module:
    model.config.pad_token_id = 0
    return LlamaForSequenceClassification(model.config)


@pytest.mark.parametrize(("make", "given"), [(lambda model: model.model, "none"), (a_classifier, r"\[6, 2\]")])
def test_a_model_without_logits_of_tokens_needs_a_score_function(make, given):
    class Silent(Mine):
        def validation_step(self, batch, batch_idx): ...

    module = Silent(lambda s, m: setattr(s, "net", make(m)), lambda s: s.net)
    with pytest.raises(ValueError, match=rf"{type(module.net).__name__} to give logits .* got {given}; pass score_fn"):
        token_accuracy(module, next(iter(loader())))
    callback = AccuracyDropImportance(lambda pl_module, batch: torch.zeros(len(batch["labels"])), max_batches=1)
    validate(module, callback)
    assert callback.scores.shape == (1 + NUM_BLOCKS, 6)


# ---- the loop around


def test_several_loaders_are_one_set_of_samples(expected):
    rows = loader().dataset
    loaders = [DataLoader(rows[:12], batch_size=6), DataLoader(rows[12:], batch_size=6)]
    plain = validate(Mine(*HELD["lm"]), loaders=loaders)
    callbacks = every_callback()
    watched = validate(Mine(*HELD["lm"]), *callbacks, loaders=loaders)
    assert {name: watched[name] for name in plain} == plain
    single = validate(Mine(*HELD["lm"]), *every_callback())
    names = {name for name in single if name.startswith(("importance/", "ablation/", "tokens/", "latency/"))}
    assert watched.keys() - plain.keys() == names  # no dataloader's index behind them
    found = found_by(callbacks)
    assert {**found, "requests": None} == {**expected, "requests": None}
    places = [(sample["dataloader"], sample["batch"]) for sample in callbacks[-1].samples]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_batches_go_back_to_the_device_as_those_of_their_loader():
    class Moved(Mine):
        moved: list[int] = []

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            self.moved.append(dataloader_idx)
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

    rows = loader().dataset
    loaders = [DataLoader(rows[:6], batch_size=6), DataLoader(rows[6:12], batch_size=6)]
    validate(Moved(*HELD["lm"]), BeamSearchAblation(max_removed=1, racing=False), loaders=loaders)
    assert sorted(Moved.moved) == [0, 0, 1, 1]  # each once by the loop, once for the search


def test_a_limit_of_batches_is_that_of_the_loop():
    callbacks = every_callback()
    validate(Mine(*HELD["lm"]), *callbacks, limit_val_batches=2)
    assert callbacks[0].scores.shape == (1 + NUM_BLOCKS, 12)
    assert {ablation.num_samples for ablation in callbacks[1].result.levels[0].ablations} == {12}
    assert len(callbacks[-1].samples) == 2


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        self.logged.append(metrics)

    def log_hyperparams(self, *args, **kwargs): ...


def test_nothing_is_measured_in_a_sanity_check():
    class Trained(PlainModule):
        def on_train_start(self):
            seen.append([len(engine.logger.logged), *(getattr(callback, "samples", None) for callback in callbacks)])

    seen: list[Any] = []
    callbacks = every_callback()
    engine = pl.Trainer(
        callbacks=callbacks,
        logger=Recorder(),
        max_epochs=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    engine.fit(Trained(), loader(), loader())
    assert seen == [[0, None, None, None, None, []]]
    assert len(callbacks[-1].samples) == 4 and callbacks[0].scores.shape[1] == 20
    keys = [key for metrics in engine.logger.logged for key in metrics if key.startswith("latency/total")]
    assert keys and len(keys) == len(set(keys))  # one loop


def test_scores_are_taken_in_the_precision_of_the_loop():
    seen: list[bool] = []

    def score(pl_module, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return torch.full((len(batch["labels"]),), 0.5)

    for callback in (AccuracyDropImportance(score), BeamSearchAblation(max_removed=1, score_fn=score)):
        validate(Mine(*HELD["lm"]), callback, precision="bf16-mixed")
        assert seen and all(seen)
        seen.clear()
        validate(Mine(*HELD["lm"]), callback)
        assert seen and not any(seen)
        seen.clear()


def test_a_score_that_draws_random_numbers_of_any_kind_disturbs_nobody():
    drawn: list[tuple[float, ...]] = []

    def score(pl_module, batch):
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return torch.zeros(len(batch["labels"]))

    plain = validate(Mine(*HELD["lm"]))
    callbacks = [AccuracyDropImportance(score), BeamSearchAblation(max_removed=1, score_fn=score)]
    watched = validate(Mine(*HELD["lm"]), *callbacks)
    assert {name: watched[name] for name in plain} == plain
    masks = [drawn[start : start + 1 + NUM_BLOCKS] for start in range(0, 4 * (2 + NUM_BLOCKS), 2 + NUM_BLOCKS)]
    assert all(len(set(draws)) == 1 for draws in masks)  # every mask of a batch meets the same numbers


@pytest.mark.parametrize("before", range(4))
def test_the_timer_does_not_hear_what_other_callbacks_run(before):
    """A request of the loop is one, whichever callback stands before the timer."""
    others = every_callback()
    timer = others.pop()
    validate(Mine(*HELD["lm"]), others[before], timer)
    assert [(sample["batch"], sample["batch_size"]) for sample in timer.samples] == [(0, 6), (1, 6), (2, 6), (3, 2)]
