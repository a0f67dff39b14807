"""The table of importance methods, and functions of one's own by their paths, against plain loops."""

from __future__ import annotations

import inspect

import pytest
import torch

from lit_depth.functional import find_blocks, proxy_importance
from lit_depth.functional.importance.methods import (
    METHODS,
    SIGNATURES,
    TABLE,
    Method,
    check_methods,
    find_method,
    taylor,
)
from tests.helpers.tiny_models import tiny_batch, tiny_model


def change(before, after):
    """Norm of what a block adds."""
    return (after - before).norm(dim=-1)


def sharpness(weights):
    """The largest weight of every query."""
    return weights.amax(-1)


def squares(gradient, weight):
    return (gradient * gradient).sum()


def other(x, y):
    return x


def all_at_once(before, after):
    return (after - before).norm()


def growth(after, before):
    """What a block adds to the norm: another value if the two are mixed up."""
    return after.norm(dim=-1) - before.norm(dim=-1)


def growth_in_order(before, after):
    return growth(after=after, before=before)


def weight_alone(weight, gradient, power=2):
    return (weight**power).sum()


def by_position(before, after, /):
    return after.norm(dim=-1)


small_change = Method("small_change", "last_state", "lower", change)
of_other_names = Method("of_other_names", "states", "higher", other)
of_another_kind = Method("of_another_kind", "attention", "higher", change)
NOT_A_FUNCTION = 3


def own(name: str) -> str:
    return f"{__name__}.{name}"


def test_every_method_takes_what_its_kind_says():
    assert tuple(TABLE) == METHODS == check_methods(METHODS)
    for name, method in TABLE.items():
        assert method.name == name and tuple(inspect.signature(method.function).parameters) == SIGNATURES[method.kind]
    assert TABLE["taylor_signed"].direction == "lower"


def test_a_function_of_ones_own_is_of_the_kind_whose_parameters_it_has():
    assert find_method(own("change")) == Method(own("change"), "states", "higher", change)
    assert (find_method(own("sharpness")).kind, find_method(own("squares")).kind) == ("attention", "gradient")
    mine = find_method(own("small_change"))
    assert (mine.name, mine.kind, mine.direction) == (own("small_change"), "last_state", "lower")
    assert find_method("taylor").function is taylor


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tailor", "expected methods among .*got 'tailor'"),
        (own("absent"), "expected the class path of an importance method, got .*AttributeError"),
        ("no_such_package.method", "expected the class path of an importance method, got .*PYTHONPATH"),
        (
            own("other"),
            r"function of \(before, after\) or \(weights\) or \(gradient, weight\) or \(weight\), got .*other\(x, y\)",
        ),
        (own("NOT_A_FUNCTION"), "expected a function of .*NOT_A_FUNCTION$"),
        (own("by_position"), r"expected a function of .*by_position\(before, after, /\)$"),
        (own("of_other_names"), r"expected a function of \(before, after\), got .*of_other_names\(x, y\)$"),
        (own("of_another_kind"), r"expected a function of \(weights\), got .*of_another_kind\(before, after\)$"),
    ],
)
def test_what_is_no_method_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        check_methods([name])


@pytest.mark.parametrize("change", [{"kind": "state"}, {"direction": "less"}])
def test_a_method_of_no_known_kind_or_direction_is_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"expected {name} as"):
        Method(**{"name": "mine", "kind": "states", "direction": "lower", "function": growth} | change)


def test_the_order_of_parameters_does_not_matter():
    model = tiny_model("llama")
    batch = tiny_batch(model, rows=2)
    batch["labels"] = batch["input_ids"].clone()
    scores = proxy_importance(model, [batch], list(map(own, ("growth", "growth_in_order", "weight_alone"))))
    assert torch.equal(scores[own("growth")], scores[own("growth_in_order")])
    assert scores[own("growth")].abs().min() > 0
    num_labels = int(batch["attention_mask"][:, 1:].mul(batch["attention_mask"][:, :-1]).sum())
    for block, score in zip(find_blocks(model), scores[own("weight_alone")]):
        squares = sum((weight.detach().double() ** 2).sum() for weight in block.parameters())
        assert score.item() == pytest.approx(squares.item() / num_labels, rel=1e-5)


def test_scores_of_ones_own_in_plain_loops():
    """Beside a method of the table, which stays what it is."""
    model = tiny_model("llama")
    model.config._attn_implementation = "eager"
    batch = tiny_batch(model, rows=3)
    batch["labels"] = batch["input_ids"].clone()
    names = ["taylor", *map(own, ("change", "small_change", "sharpness", "squares"))]
    scores = proxy_importance(model, [batch], names)
    assert list(scores) == names
    torch.testing.assert_close(scores["taylor"], proxy_importance(model, [batch], ["taylor"])["taylor"])

    real = batch["attention_mask"].bool()
    blocks, kept = find_blocks(model), {}
    hooks = [
        block.register_forward_hook(lambda _, args, output, i=i: kept.update({i: (args[0], output)}))
        for i, block in enumerate(blocks)
    ]
    labels = batch.pop("labels").masked_fill(~(real & real.roll(1, dims=1)), -100)
    positions = (real.cumsum(1) - 1).clamp_min(0)
    output = model(**batch, position_ids=positions, output_attentions=True, use_cache=False)
    for hook in hooks:
        hook.remove()
    logits, targets = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").backward()
    num_labels = int((labels[:, 1:] != -100).sum())
    for i, block in enumerate(blocks):
        before, after = kept[i]
        added = (after - before).norm(dim=-1)
        last = [row.nonzero().max() for row in real]
        expected = {
            "change": added[real].mean(),
            "small_change": torch.stack([added[row, position] for row, position in enumerate(last)]).mean(),
            "sharpness": output.attentions[i].amax(-1).mean(1)[real].mean(),
            "squares": sum((weight.grad**2).sum() for weight in block.parameters()) / num_labels,
        }
        for name, value in expected.items():
            assert scores[own(name)][i].item() == pytest.approx(value.item(), rel=1e-4), (name, i)


def test_a_function_that_gives_other_than_one_number_each_is_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"all_at_once: expected a tensor of shape \[\d+\], got \[\]"):
        proxy_importance(model, [tiny_batch(model, rows=2)], [own("all_at_once")])


def test_weight_magnitude_is_the_sum_of_absolute_weights_and_needs_no_sample() -> None:
    model = tiny_model("llama")
    scores = proxy_importance(model, [], ["weight_magnitude"])["weight_magnitude"]
    expected = [sum(weight.double().abs().sum() for weight in block.parameters()) for block in find_blocks(model)]
    torch.testing.assert_close(scores, torch.stack(expected).detach(), rtol=1e-6, atol=0)
    assert torch.equal(proxy_importance(model, [tiny_batch(model)], ["weight_magnitude"])["weight_magnitude"], scores)
    assert not scores.requires_grad


def test_weights_that_cannot_be_read_are_named() -> None:
    model = tiny_model("llama")
    block = find_blocks(model)[1]
    block.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="weight_magnitude needs the weights themselves, but .* of block 1 is"):
        proxy_importance(model, [], ["weight_magnitude"])
