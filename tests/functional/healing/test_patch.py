"""Laws of patched models: least squares, exact where it can be, a standard checkpoint, and nothing else changed."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from lit_depth.functional import find_blocks, masked
from lit_depth.functional.healing import gauss_newton
from lit_depth.functional.healing.patch import patch
from tests.helpers.pruning import pruned_copy
from tests.helpers.tiny_models import tiny_model

FAMILIES = ("llama", "qwen3", "mistral", "olmoe", "olmo2", "gemma2", "gpt_neox", "falcon")


def batches(count=6, rows=8, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(1, 60, (rows, length), generator=generator)} for _ in range(count)]


def states(model, block_idx, inputs):
    found = []
    hook = find_blocks(model)[block_idx].register_forward_hook(
        lambda _m, _a, out: found.append(out if torch.is_tensor(out) else out[0])
    )
    with torch.no_grad():
        model(**inputs, use_cache=False)
    hook.remove()
    return found[0]


def relative(found, expected):
    """Sum of squared errors, each relative to the length of the state."""
    return float(((found - expected).square().sum(-1) / expected.square().sum(-1)).sum())


def mask_of(*skipped, num_blocks=6):
    mask = torch.ones(num_blocks, dtype=torch.bool)
    mask[list(skipped)] = False
    return mask


def test_the_map_is_numpys_least_squares():
    model, data = tiny_model("llama", num_blocks=6), batches()
    found = patch(model, mask_of(2, 3), data, ridges=(0.0,))
    name = "model.layers.1.mlp.down_proj.weight"
    inputs = []
    hook = model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _m, args, _o: inputs.append(args[0]))
    rest = [states(model, 3, batch) - states(model, 1, batch) for batch in data]
    length = torch.cat([states(model, 3, batch) for batch in data]).flatten(0, 1).double().norm(dim=1, keepdim=True)
    hook.remove()
    # each batch was read twice
    # errors are relative to the length of the state
    features = (torch.cat(inputs[: 2 * len(data) : 2]).flatten(0, 1).double() / length).numpy()
    target = (torch.cat(rest).flatten(0, 1).double() / length).numpy()
    expected, *_ = np.linalg.lstsq(features, target, rcond=None)
    change = (found.weights[name] - model.state_dict()[name]).double().numpy()
    np.testing.assert_allclose(change, expected.T, atol=2e-6 * np.abs(expected).max())
    assert set(found.weights) == {name}
    assert found.spans[0].num_tokens == len(features)


def linear_span(model):
    """Make block 2 a linear map of what block 1 alone writes: channels 0 to 7."""
    width = model.config.hidden_size
    layers = model.model.layers
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, :8] = 0
        for block_idx, layer in enumerate(layers):
            layer.self_attn.o_proj.weight[:8] = 0
            if block_idx == 0:
                layer.mlp.down_proj.weight[:8] = 0
        layers[2].self_attn.o_proj.weight.zero_()
        layers[2].post_attention_layernorm = nn.Identity()
        layers[2].mlp = nn.Linear(width, width, bias=False)
        layers[2].mlp.weight.zero_()
        layers[2].mlp.weight[:, :8] = torch.randn(width, 8, generator=generator)
    return model


def test_a_linear_span_is_restored_to_rounding():
    model = linear_span(tiny_model("llama", num_blocks=6))
    mask, new = mask_of(2), {"input_ids": torch.randint(1, 60, (4, 9))}
    found = patch(model, mask, batches())
    with torch.no_grad():
        full = model(**new).logits
        with masked(model, mask):
            lost = model(**new).logits
            with found.applied():
                healed = model(**new).logits
    assert (lost - full).abs().max() > 0.1 * full.abs().max()
    assert (healed - full).abs().max() < 1e-5 * full.abs().max()
    assert found.spans[0].unexplained < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_and_patched_is_the_pruned_checkpoint_with_the_weights(family):
    model = tiny_model(family, num_blocks=5)
    mask, before = mask_of(1, 2, 4, num_blocks=5), copy.deepcopy(model.state_dict())
    pointers = {name: each.data_ptr() for name, each in model.named_parameters()}
    found = patch(model, mask, batches())
    new = {"input_ids": torch.randint(1, 60, (4, 9))}
    with found.applied(), masked(model, mask), torch.no_grad():
        healed = model(**new).logits
    assert {name: each.data_ptr() for name, each in model.named_parameters()} == pointers
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(not each.requires_grad or each.grad is None for each in model.parameters())
    standard = pruned_copy(copy.deepcopy(found).apply(), mask)
    with torch.no_grad():
        torch.testing.assert_close(standard(**new).logits, healed, rtol=0, atol=1e-6 * float(healed.abs().max()))
    assert [span.skipped for span in found.spans] == [(1, 2), (4,)]
    assert [span.block for span in found.spans] == [0, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_behind_a_span_come_closer_on_other_texts(family):
    model, mask = tiny_model(family, num_blocks=5), mask_of(2, 3, num_blocks=5)
    found = patch(model, mask, batches(count=12))
    (new,) = batches(count=1, rows=32, seed=9)
    full = states(model, 3, new)
    with masked(model, mask):
        lost = relative(states(model, 3, new), full)
        with found.applied():
            left = relative(states(model, 3, new), full)
    assert found.spans[0].unexplained < 1
    assert left / lost == pytest.approx(found.spans[0].unexplained, rel=0.2)


def test_later_spans_see_what_earlier_ones_leave():
    """The second span's map is the one that is found for it alone in a model that has the first one's for good."""
    model, data = tiny_model("llama", num_blocks=6), batches()
    together = patch(model, mask_of(2, 4), data, ridges=(1.0,))
    assert [span.ridge for span in together.spans] == [1.0, 1.0]
    name = "model.layers.3.mlp.down_proj.weight"
    full = [states(model, 4, batch) for batch in data]
    changed = copy.deepcopy(model)
    changed.load_state_dict({key: value for key, value in together.weights.items() if key != name}, strict=False)
    inputs = []
    hook = changed.model.layers[3].mlp.down_proj.register_forward_hook(lambda _m, args, _o: inputs.append(args[0]))
    with masked(changed, mask_of(2, 4)):
        rest = [target - states(changed, 3, batch) for target, batch in zip(full, data)]
    hook.remove()
    length = torch.cat(full).flatten(0, 1).double().norm(dim=1, keepdim=True)
    features, target = (torch.cat(each).flatten(0, 1).double() / length for each in (inputs, rest))
    gram = features.T @ features
    expected = torch.linalg.solve(
        gram + 1.0 * gram.diagonal().mean() * torch.eye(len(gram)).double(), features.T @ target
    )
    change = (together.weights[name] - model.state_dict()[name]).double()
    torch.testing.assert_close(change, expected.T, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_padding_and_batch_size_change_nothing():
    model, mask, data = tiny_model("llama", num_blocks=6), mask_of(3), batches(count=2)
    rows = torch.cat([batch["input_ids"] for batch in data])
    one_by_one = [{"input_ids": row[None]} for row in rows]
    padded = [
        {
            "input_ids": nn.functional.pad(batch["input_ids"], (3, 0)),
            "attention_mask": nn.functional.pad(torch.ones_like(batch["input_ids"]), (3, 0)),
        }
        for batch in data
    ]
    expected, *others = (patch(model, mask, each, ridges=(1e-2,)) for each in (data, one_by_one, padded))
    for other in others:
        assert other.spans[0].num_tokens == expected.spans[0].num_tokens == rows.numel()
        for name, value in expected.weights.items():
            torch.testing.assert_close(other.weights[name], value, rtol=0, atol=1e-5 * float(value.abs().max()))


def labelled_batches(place=6, **options):
    """One token of each row is its answer."""
    found = batches(**options)
    for batch in found:
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        batch["labels"][:, place] = batch["input_ids"][:, place]
    return found


def test_maps_of_labelled_data_weigh_a_token_by_what_the_labels_depend_on_it():
    model, mask, data = tiny_model("llama", num_blocks=6), mask_of(4), labelled_batches(count=4)
    found = patch(model, mask, data, ridges=(10.0,), steps=0)
    assert found.spans[0].ridge == 10.0
    features, targets, weights = [], [], []
    for batch in data:
        ids = batch["input_ids"]
        seen = model(ids, output_hidden_states=True)
        behind = seen.hidden_states[5]  # of blocks 0 to 4
        (gradient,) = torch.autograd.grad(seen.logits[:, 5].gather(1, ids[:, 6:7]).sum(), behind)
        square = gradient.square().sum(-1)
        assert not square[:, 6:].any()
        weights.append(square / square.sum(1, keepdim=True))
        targets.append(behind - seen.hidden_states[4])
        hook = model.model.layers[3].mlp.down_proj.register_forward_hook(lambda _m, args, _o: features.append(args[0]))
        model(ids)
        hook.remove()
    x, y = (torch.cat(each).detach().flatten(0, 1).double() for each in (features, targets))
    weighted = x * torch.cat(weights).detach().flatten()[:, None]
    gram = weighted.T @ x
    expected = torch.linalg.solve(gram + 10.0 * gram.diagonal().mean() * torch.eye(len(gram)), weighted.T @ y)
    name = "model.layers.3.mlp.down_proj.weight"
    change = (found.weights[name] - model.state_dict()[name]).double()
    torch.testing.assert_close(change, expected.T, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_fitted_to_answers_it_is_the_pruned_checkpoint_with_the_weights(family):
    model, mask = tiny_model(family, num_blocks=5), mask_of(1, 2, 4, num_blocks=5)
    before, data = copy.deepcopy(model.state_dict()), labelled_batches(count=3)
    found = patch(model, mask, [*data, data[0]], steps=2)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    (span,) = found.spans
    assert (span.skipped, span.block, span.num_tokens) == ((1, 2, 4), 0, 32) and span.unexplained < 1
    assert set(found.weights) == set(span.weights)
    kept = {
        f"{name}." for name, each in model.named_modules() if each in {find_blocks(model)[0], find_blocks(model)[3]}
    }
    assert all(any(name.startswith(block) for block in kept) for name in span.weights)
    new = {"input_ids": torch.randint(1, 60, (4, 9))}
    with found.applied(), masked(model, mask), torch.no_grad():
        healed = model(**new).logits
    standard = pruned_copy(copy.deepcopy(found).apply(), mask)
    with torch.no_grad():
        torch.testing.assert_close(standard(**new).logits, healed, rtol=0, atol=1e-6 * float(healed.abs().max()))


def test_answers_that_need_more_memory_than_there_is_are_fitted_span_by_span(monkeypatch):
    model, mask, data = tiny_model("llama", num_blocks=6), mask_of(2, 4), labelled_batches(count=4)
    expected = patch(model, mask, data, steps=0)
    monkeypatch.setattr(gauss_newton, "MOST_BYTES", 1000)
    found = patch(model, mask, data)
    assert [span.skipped for span in found.spans] == [(2,), (4,)]
    assert all(torch.equal(value, expected.weights[name]) for name, value in found.weights.items())


def test_steps_that_do_not_help_answers_held_out_are_not_taken():
    """Random answers of random rows: nothing carries over."""
    data = labelled_batches(count=4)
    data[3]["labels"][:, 6] = -100
    data[3]["labels"][:, 9] = data[3]["input_ids"][:, 9]
    found = patch(tiny_model("llama", num_blocks=6), mask_of(2), data)
    assert found.weights == {} and found.spans[0].ridge == math.inf and found.spans[0].unexplained == 1


def test_a_label_of_a_rows_first_token_counts_nothing_because_nothing_predicts_it():
    data = labelled_batches(count=4)
    plain = patch(tiny_model("llama", num_blocks=6), mask_of(2), data, steps=1)
    for batch in data:
        batch["labels"][:, 0] = 1
    found = patch(tiny_model("llama", num_blocks=6), mask_of(2), data, steps=1)
    assert found.spans == plain.spans and found.spans[0].num_tokens > 0


def test_where_nothing_can_be_learnt_nothing_changes():
    model = tiny_model("llama", num_blocks=6)
    with torch.no_grad():
        for layer in model.model.layers[2:3]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    found = patch(model, mask_of(2), batches())
    assert found.spans[0].ridge == math.inf
    assert torch.equal(found.weights["model.layers.1.mlp.down_proj.weight"], model.model.layers[1].mlp.down_proj.weight)


def test_the_full_mask_needs_no_patch():
    found = patch(tiny_model("llama"), "1111", batches())
    assert found.weights == {} and found.spans == ()


@pytest.mark.parametrize(
    ("mask", "data", "expected"),
    [
        ("0111", batches(), "skips block 0: no block before it"),
        ("101", batches(), "expected a mask of 4 blocks, got 3"),
        ("1011", iter(batches()), "read several times"),
        ("1011", [], "expected calibration batches, got none"),
        ("1011", batches(count=1, rows=3), "rows held out"),
    ],
)
def test_what_cannot_be_patched_is_refused(mask, data, expected):
    with pytest.raises(ValueError, match=expected):
        patch(tiny_model("llama"), mask, data)


def test_fewer_than_no_steps_are_refused():
    with pytest.raises(ValueError, match="expected steps, none or more, got -1"):
        patch(tiny_model("llama"), "1011", labelled_batches(), steps=-1)


def test_a_weight_that_two_blocks_share_is_refused():
    model = tiny_model("llama")
    model.model.layers[3].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj\.weight: it is shared with .*layers\.3"):
        patch(model, "1101", batches())
