"""Proxy scores against the golden numbers, and against a slow reference that runs every row alone without padding."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GemmaConfig,
    GptOssConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
)

from lit_depth.functional import ProxyScores, find_blocks, masked, proxy_importance
from lit_depth.functional.importance.methods import (
    GRADIENT_METHODS,
    METHODS,
    TABLE,
    angular_distance,
)
from lit_depth.models.molmo import MolmoForConditionalGeneration
from tests.helpers.model_zoo import ZOO
from tests.helpers.tiny_models import tiny_batch, tiny_model
from tests.helpers.wrappers import Wrapper

INPUTS = ("input_ids", "attention_mask", "images", "image_masks", "image_input_idx")
GOLDEN = {
    "activation_magnitude": ("activation_l2", 1e-5),
    "relative_magnitude": ("relative_magnitude", 1e-5),
    "block_influence": ("block_influence", 1e-5),
    "angular_distance": ("angular_distance", 1e-5),
    "angular_distance_last_token": ("angular_distance_last_token", 1e-5),
    "gradient": ("grad_abs_sum", 1e-4),
    "taylor": ("taylor_abs_sum", 1e-4),
    "taylor_signed": ("taylor_signed_sum", 1e-3),
    "attention_entropy": ("attention_entropy", 1e-5),
}
# what the weights themselves are not needed for
WITHOUT_GRADIENT = [name for name, method in TABLE.items() if method.kind not in ("gradient", "weight")]


@pytest.fixture(scope="module")
def golden(golden_dir) -> tuple[PreTrainedModel, dict[str, Tensor], dict]:
    model = MolmoForConditionalGeneration.from_pretrained(golden_dir / "molmoe_tiny").eval()
    cases = load_file(golden_dir / "molmoe_tiny" / "cases.safetensors")
    expected = json.loads((golden_dir / "importance" / "importance.json").read_text())
    batch = {name: cases[f"{expected['case']}.{name}"] for name in INPUTS}
    return model, batch | {"labels": torch.tensor(expected["labels"])}, expected


def check_golden(scores: dict[str, Tensor], expected: dict) -> None:
    for method, (name, rtol) in GOLDEN.items():
        reference = torch.tensor([block[name] for block in expected["blocks"]], dtype=torch.float64)
        torch.testing.assert_close(
            scores[method], reference, rtol=rtol, atol=0, msg=lambda text, m=method: f"{m}: {text}"
        )


def test_golden_scores(golden):
    model, batch, expected = golden
    scores = proxy_importance(model, [batch])
    assert tuple(scores) == METHODS and set(GOLDEN) <= set(METHODS)
    check_golden(scores, expected)


def test_golden_scores_do_not_depend_on_the_batches(golden):
    model, batch, expected = golden
    scores = proxy_importance(model, ({name: value[row : row + 1] for name, value in batch.items()} for row in (0, 1)))
    check_golden(scores, expected)


def test_golden_angle_across_two_blocks(golden):
    model, batch, expected = golden
    blocks, entered, left = find_blocks(model), {}, {}

    def keep(block_idx: int):
        def hook(block, args, output):
            entered[block_idx], left[block_idx] = args[0], output

        return hook

    hooks = [block.register_forward_hook(keep(block_idx)) for block_idx, block in enumerate(blocks)]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    rows, last = torch.arange(2), batch["attention_mask"].sum(1) - 1  # padded on the right
    found = [
        angular_distance(entered[i][rows, last].double(), left[i + 1][rows, last].double()).mean().item()
        for i in range(len(blocks) - 1)
    ]
    assert found == pytest.approx(expected["angular_distance_last_token_n2"], rel=1e-5)


def build(family: str) -> PreTrainedModel:
    model = tiny_model(family)
    if family == "falcon":  # cannot be switched to eager attention: it has to be loaded so
        model.config._attn_implementation = "eager"
    return model


def labelled_batch(model: PreTrainedModel, rows: int = 4) -> dict[str, Tensor]:
    """Left-padded rows with different numbers of labels, some of them on padding, where they do not count."""
    batch = tiny_batch(model, rows=rows)
    labels = batch["input_ids"].clone()
    for row in range(rows):
        labels[row, row % 3 + 2 : row % 3 + 4] = -100
    return batch | {"labels": labels}


def reference_scores(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, list[float]]:
    """Every row alone, without padding, through the model's own outputs; plain loops over tokens and weights."""
    model = copy.deepcopy(model)
    model.config.get_text_config()._attn_implementation = "eager"
    blocks = find_blocks(model)
    sums = [dict.fromkeys(WITHOUT_GRADIENT, 0.0) for _ in blocks]
    loss, num_labels, num_tokens, num_rows = torch.zeros(()), 0, 0, len(batch["input_ids"])
    raw: list[Tensor] = []
    blocks[-1].register_forward_hook(
        lambda block, args, output: raw.append(output[0] if isinstance(output, tuple) else output)
    )
    for row in range(num_rows):
        real = batch["attention_mask"][row].bool()
        inputs = {"input_ids": batch["input_ids"][row][real][None]}
        if "pixel_values" in batch:
            inputs["pixel_values"] = batch["pixel_values"][row : row + 1]
        output = model(**inputs, output_hidden_states=True, output_attentions=True, use_cache=False)
        states = [state[0].detach().double() for state in (*output.hidden_states[:-1], raw.pop())]
        length = len(states[0])
        for block_idx, score in enumerate(sums):
            for t in range(length):
                x, y = states[block_idx][t], states[block_idx + 1][t]
                before, after, change = (math.sqrt(float(v @ v)) for v in (x, y, y - x))
                # no direction, no norm: as if unchanged where it is unchanged, else a right angle and a whole change
                cosine = float(x @ y) / (before * after) if before and after else float(change == 0)
                score["activation_magnitude"] += after
                score["relative_magnitude"] += change / after if after else float(change != 0)
                score["block_influence"] += 1 - cosine
                score["angular_distance"] += math.acos(max(-1.0, min(1.0, cosine))) / math.pi
                weights = output.attentions[block_idx][0, :, t].tolist()
                entropies = [-sum(p * math.log(p) for p in head if p > 0) for head in weights]
                score["attention_entropy"] += sum(entropies) / len(entropies)
            score["angular_distance_last_token"] += math.acos(max(-1.0, min(1.0, cosine))) / math.pi
        labels = batch["labels"][row][real]
        for t in range(1, length):
            if labels[t] != -100:
                loss = loss - output.logits[0, t - 1].float().log_softmax(-1)[labels[t]]
                num_labels += 1
        num_tokens += length
    (loss / num_labels).backward()
    scores = {
        method: [s[method] / (num_rows if method == "angular_distance_last_token" else num_tokens) for s in sums]
        for method in sums[0]
    }
    scores["weight_magnitude"] = [
        math.fsum(weight.detach().double().abs().sum().item() for weight in block.parameters()) for block in blocks
    ]
    for method in GRADIENT_METHODS:
        scores[method] = []
        for block in blocks:
            total = 0.0
            for weight in block.parameters():
                gradient = weight.grad.double()
                term = {
                    "gradient": gradient.abs(),
                    "taylor": (gradient * weight).abs(),
                    "taylor_signed": gradient * weight,
                }
                total += term[method].sum().item()
            scores[method].append(total)
    return scores


def check_reference(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    scores, expected = proxy_importance(model, [batch]), reference_scores(model, batch)
    for method in METHODS:
        reference = torch.tensor(expected[method], dtype=torch.float64)
        # a signed sum cancels
        atol = 1e-5 * max(expected["taylor"]) if method == "taylor_signed" else 0
        rtol = 1e-4 if method in GRADIENT_METHODS else 1e-5
        torch.testing.assert_close(
            scores[method], reference, rtol=rtol, atol=atol, msg=lambda text, m=method: f"{m}: {text}"
        )


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmoe", "gemma2", "gpt_neox", "falcon", "llava"])
def test_left_padded_batches_equal_rows_alone(family):
    model = build(family)
    batch = labelled_batch(model)
    check_reference(model, batch)


SIZES = dict(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    initializer_range=0.3,
    pad_token_id=0,
)
PADDED_EMBEDDINGS = {
    "gemma": lambda: GemmaConfig(**SIZES, head_dim=8),
    "phi3": lambda: Phi3Config(**SIZES, eos_token_id=2),
    "deepseek_v3": lambda: DeepseekV3Config(
        **SIZES,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "llama": lambda: LlamaConfig(**SIZES),
    "olmoe": lambda: OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    "opt": lambda: OPTConfig(  # positions are added to the embeddings: no state is zero
        vocab_size=32, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, init_std=0.3,
        word_embed_proj_dim=32, pad_token_id=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", PADDED_EMBEDDINGS)
def test_a_counted_token_without_a_state_decides_nothing_alone(family):
    """The embedding of the padding token is all zeros; here it is read as a token, also as a row's first and last."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(PADDED_EMBEDDINGS[family]()).eval()
    assert not model.get_input_embeddings().weight[0].any()
    ids = torch.tensor([[0, 5, 6, 0, 7], [0, 0, 9, 10, 0], [3, 4, 5, 6, 8]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    check_reference(model, batch)


def test_states_of_zeros_have_stated_values():
    zero, x, y = torch.zeros(3), torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.0, 2.0, 0.0])
    before, after = torch.stack([zero, zero, x, x, x]).double(), torch.stack([zero, y, zero, x, -x]).double()
    expected = {
        "activation_magnitude": [0, 2, 0, 5, 5],
        "relative_magnitude": [0, 1, 1, 0, 2],
        "block_influence": [0, 1, 1, 0, 2],
        "angular_distance": [0, 0.5, 0.5, 0, 1],
    }
    for method, values in expected.items():
        found = TABLE[method].function(before, after)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-7)


def broken_block(model: PreTrainedModel) -> None:
    find_blocks(model)[1].mlp.up_proj.weight.data[0, 0] = torch.nan


def broken_head(model: PreTrainedModel) -> None:
    model.lm_head.weight.data[5] = torch.inf


def broken_attention(model: PreTrainedModel) -> None:
    find_blocks(model)[2].self_attn.register_forward_hook(lambda module, args, out: (out[0], out[1] * torch.nan))


def broken_gradient(model: PreTrainedModel) -> None:
    find_blocks(model)[2].self_attn.v_proj.weight.register_hook(lambda gradient: gradient * torch.inf)


@pytest.mark.parametrize(
    ("change", "methods", "message"),
    [
        (broken_block, ["block_influence"], "finite hidden states, got NaN or infinite ones first from block 1"),
        (broken_block, ["taylor"], "a finite loss on labelled tokens, got nan"),
        (broken_head, ["gradient"], "a finite loss on labelled tokens, got"),
        (
            broken_attention,
            ["attention_entropy"],
            "finite attention weights, got .* first from block 2",
        ),
        (broken_gradient, ["taylor_signed"], "NaN or infinite ones for self_attn.v_proj.weight of block 2"),
    ],
)
def test_values_that_are_not_finite_are_reported_not_hidden(change, methods, message):
    model = build("llama")
    batch = labelled_batch(model)
    change(model)
    with pytest.raises(ValueError, match=message):
        proxy_importance(model, [batch], methods)


def test_what_happens_at_padding_is_not_reported():
    model = build("llama")
    batch = labelled_batch(model)
    expected = proxy_importance(model, [batch], ["block_influence"])["block_influence"]

    def spoil(module, args, output):
        return output.masked_fill((batch["attention_mask"] == 0)[..., None], torch.nan)

    find_blocks(model)[-1].register_forward_hook(spoil)
    assert torch.equal(proxy_importance(model, [batch], ["block_influence"])["block_influence"], expected)


def test_a_model_without_logits_has_all_scores_but_those_of_gradients():
    model = build("llama")
    batch = labelled_batch(model)
    expected = proxy_importance(model, [batch], WITHOUT_GRADIENT)
    found = proxy_importance(model.model, [batch], WITHOUT_GRADIENT)
    assert all(torch.equal(found[method], expected[method]) for method in WITHOUT_GRADIENT)
    with pytest.raises(ValueError, match="need logits .* LlamaModel gave none; choose other methods"):
        proxy_importance(model.model, [batch])
    classifier = LlamaForSequenceClassification(model.config)
    with pytest.raises(ValueError, match=r"LlamaForSequenceClassification gave \[4, 2\]"):
        proxy_importance(classifier, [batch], ["taylor"])


@pytest.mark.parametrize("family", ["llama", "olmoe", "llava"])
def test_scores_do_not_depend_on_the_batch_size(family):
    model = build(family)
    batch = labelled_batch(model, rows=8)
    whole = proxy_importance(model, [batch])
    for size in (1, 4):
        parts = [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, 8, size)]
        pooled = proxy_importance(model, parts)
        for method in METHODS:
            atol = 1e-5 * float(whole["taylor"].max()) if method == "taylor_signed" else 0
            torch.testing.assert_close(pooled[method], whole[method], rtol=1e-5, atol=atol)


def test_what_stands_on_padding_and_its_side_do_not_matter():
    model = build("llama")
    batch = labelled_batch(model)
    scores = proxy_importance(model, [batch])
    padding = batch["attention_mask"] == 0
    changed = batch | {"input_ids": batch["input_ids"].masked_fill(padding, 5), "labels": batch["labels"].clone()}
    changed["labels"][padding] = 7
    right = {}
    for name, values in batch.items():
        right[name] = torch.stack([row.roll(-int(n)) for row, n in zip(values, padding.sum(1))])
    right["labels"][right["attention_mask"] == 0] = -100
    for other in (changed, right):
        for method, values in proxy_importance(model, [other]).items():
            torch.testing.assert_close(values, scores[method], rtol=1e-5, atol=1e-6)


def test_training_mode_and_dropout_do_not_matter():
    model = tiny_model("llama", attention_dropout=0.5)
    batch = labelled_batch(model)
    scores = proxy_importance(model, [batch])
    again = proxy_importance(model.train(), [batch])
    assert all(torch.equal(again[method], scores[method]) for method in METHODS)


def test_inference_mode_outside_does_not_matter():
    model = build("llama")
    scores = proxy_importance(model, [labelled_batch(model)])
    with torch.inference_mode():
        again = proxy_importance(model, [labelled_batch(model)])  # inputs are made in it, as a loop's are
    assert all(torch.equal(again[method], scores[method]) and not again[method].is_inference() for method in METHODS)


def test_only_what_was_asked_for_is_computed():
    model = build("llama")
    model.set_attn_implementation("eager")  # or only the entropy would be taken under it
    batch = labelled_batch(model)
    every = proxy_importance(model, [batch])
    for method in METHODS:
        (name, values), *others = proxy_importance(model, [batch], [method]).items()
        assert name == method and not others
        assert torch.equal(values, every[method])
    del batch["labels"]
    assert list(proxy_importance(model, [batch], WITHOUT_GRADIENT)) == WITHOUT_GRADIENT


def test_one_forward_per_batch_and_no_gradient_outside_the_blocks():
    model = build("llava")
    forwards, backwards = [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.Conv2d):
            module.register_forward_hook(lambda m, a, output, name=name: backwards.append((name, output.requires_grad)))
    proxy_importance(model, [labelled_batch(model)] * 3)
    assert len(forwards) == 3
    assert backwards and not any(requires_grad for _, requires_grad in backwards)


def test_many_small_gradients_survive_in_bfloat16():
    """300 equal batches have the score of one: a bfloat16 accumulator would stop growing at 256 times its addend."""
    model = tiny_model("llama", num_blocks=1).bfloat16()
    batch = labelled_batch(model, rows=1)
    once = proxy_importance(model, [batch], ["gradient"])["gradient"]
    often = proxy_importance(model, [batch] * 300, ["gradient"])["gradient"]
    torch.testing.assert_close(often, once, rtol=1e-4, atol=0)


def fingerprint(model: PreTrainedModel) -> list:
    """Everything about a model that a pass might leave changed."""
    found: list = [(name, value.clone()) for name, value in model.state_dict().items()]
    for name, weight in model.named_parameters():
        grad = None if weight.grad is None else weight.grad.clone()
        found.append((name, weight.requires_grad, id(weight), weight.data_ptr(), id(weight.grad), grad))
    for name, module in model.named_modules():
        hooks = [list(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)]
        found.append((name, module.training, hooks, "forward" in vars(module)))
        if isinstance(module, PreTrainedModel):
            found.append((name, json.dumps(module.config.to_dict(), default=str), module.config._attn_implementation))
    return found


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for one, other in zip(first, second)
        for a, b in zip(one, other)
    )


class Stop(Exception):
    pass


@pytest.mark.parametrize("failure", [None, "forward", "labels", "backward"])
@pytest.mark.parametrize("family", ["llama", "olmoe", "llava"])
def test_the_model_is_given_back_exactly(family, failure, monkeypatch):
    model = build(family)
    batch = labelled_batch(model)
    model(**batch).loss.backward()  # gradients of the user's own
    blocks = find_blocks(model)
    model.train()
    blocks[1].eval()
    next(blocks[0].parameters()).requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(False)
    scores = ProxyScores(model)
    if failure == "forward":

        def stop(*_):
            raise Stop

        blocks[-1].register_forward_hook(stop)
    if failure == "backward":
        monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: (_ for _ in ()).throw(Stop()))
    if failure == "labels":
        batch["labels"] = batch["labels"][:, 1:]
    before = fingerprint(model)
    assert same(before, fingerprint(model))
    if failure is None:
        scores.update(batch)
    else:
        with pytest.raises(ValueError if failure == "labels" else Stop):
            scores.update(batch)
        with pytest.raises(ValueError, match="got none"):
            scores.compute()  # the batch was not counted
    assert same(before, fingerprint(model))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_of_all_parts_are_restored(golden, attention):
    model, batch, _ = golden
    model = copy.deepcopy(model)
    model.config.text_config._attn_implementation = attention
    model.config.vision_config._attn_implementation = "sdpa"
    parts, seen = (model.config.text_config, model.config.vision_config), []
    model.model.vision_tower.register_forward_hook(
        lambda *_: seen.append([part._attn_implementation for part in parts])
    )
    proxy_importance(model, [batch], ["attention_entropy"])
    assert seen == [["eager", "sdpa"]]  # the vision tower stays as it is
    assert [part._attn_implementation for part in parts] == [attention, "sdpa"]


def test_attention_weights_that_cannot_be_had():
    model = tiny_model("falcon")
    batch = labelled_batch(model)
    before = fingerprint(model)
    with pytest.raises(ValueError, match="FalconModel gave none.*'sdpa'.*attn_implementation='eager'"):
        proxy_importance(model, [batch])
    assert same(before, fingerprint(model))
    others = [name for name, method in TABLE.items() if method.kind != "attention"]
    assert list(proxy_importance(model, [batch], others)) == others


def quantised_weight(model: PreTrainedModel) -> None:
    linear = find_blocks(model)[2].self_attn.q_proj
    linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)


def quantised_flag(model: PreTrainedModel) -> None:
    model.is_quantized = True  # as transformers' quantisers set it


def eight_bit_floats(model: PreTrainedModel) -> None:
    linear = find_blocks(model)[0].mlp.up_proj
    linear.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)


def offloaded(model: PreTrainedModel) -> None:
    find_blocks(model)[1].mlp.to("meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantised_weight, "self_attn.q_proj.weight of block 2 is torch.int8"),
        (quantised_flag, "LlamaForCausalLM is quantised"),
        (eight_bit_floats, "mlp.up_proj.weight of block 0 is torch.float8_e4m3fn"),
        (offloaded, "of block 1 is not in memory"),
    ],
)
def test_weights_without_gradients_are_refused(change, message):
    model = tiny_model("llama")
    change(model)
    with pytest.raises(ValueError, match=f"{message}.*choose among activation_magnitude"):
        ProxyScores(model, ["block_influence", "taylor"])
    ProxyScores(model, WITHOUT_GRADIENT)


def test_other_methods_work_without_gradients():
    model = tiny_model("llama")
    batch = labelled_batch(model)
    expected = proxy_importance(model, [batch], WITHOUT_GRADIENT)
    quantised_flag(model)
    found = proxy_importance(model, [batch], WITHOUT_GRADIENT)
    assert all(torch.equal(found[method], expected[method]) for method in WITHOUT_GRADIENT)


def test_a_skipped_block_is_scored_as_the_identity():
    model = build("llama")
    batch = labelled_batch(model)
    with masked(model, [True, False, True, True]):
        scores = proxy_importance(model, [batch])
    assert scores["activation_magnitude"][1] == scores["activation_magnitude"][0]
    assert scores["attention_entropy"].isnan().tolist() == [False, True, False, False]
    for method in ("relative_magnitude", "gradient", "taylor", "taylor_signed"):
        assert scores[method][1] == 0 and scores[method][0] != 0
    assert abs(scores["block_influence"][1]) < 1e-12 and scores["angular_distance"][1] < 1e-7


def test_processes_are_pooled_by_summing():
    model = build("olmoe")
    batch = labelled_batch(model)
    whole = proxy_importance(model, [batch])
    first, second, idle = ProxyScores(model), ProxyScores(model), ProxyScores(model)
    first.update({name: value[:1] for name, value in batch.items()})
    second.update({name: value[1:] for name, value in batch.items()})
    # every process hands over the same tensors in the same order
    handed: list[list[Tensor]] = []
    for scores in (first, second, idle):
        handed.append([])
        scores.reduce(lambda part: handed[-1].append(part.clone()) or part)
    sums = iter([sum(parts) for parts in zip(*handed, strict=True)])
    idle.reduce(lambda part: next(sums))
    for method, values in idle.compute().items():
        torch.testing.assert_close(values, whole[method], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("methods", [["tailor"], [], "taylor"])
def test_unknown_methods_are_refused(methods):
    with pytest.raises(ValueError, match="expected methods .*got"):
        ProxyScores(build("llama"), methods)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.pop("labels"), "need labels"),
        (lambda batch: batch.pop("input_ids"), "expected inputs with input_ids"),
        (lambda batch: batch.update(labels=batch["labels"][:2]), r"expected labels of the shape .* got \[2, 8\]"),
        (lambda batch: batch.update(attention_mask=torch.ones(4, 1, 8, 8)), "expected an attention_mask of the shape"),
    ],
)
def test_bad_inputs_are_named(change, message):
    model = build("llama")
    batch = labelled_batch(model)
    change(batch)
    with pytest.raises(ValueError, match=message):
        proxy_importance(model, [batch])


def test_nothing_to_score_is_an_error():
    model = build("llama")
    batch = labelled_batch(model)
    with pytest.raises(ValueError, match="at least one batch"):
        proxy_importance(model, [], ["block_influence"])
    with pytest.raises(ValueError, match="labelled tokens"):
        proxy_importance(model, [batch | {"labels": torch.full_like(batch["labels"], -100)}])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_wrapper_is_scored_as_what_it_wraps(name):
    """Rows with padding have their own positions, and no more logits than labels are computed, whatever is around."""
    model, inputs = ZOO[name]()
    labels = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 6, -100)
    found, widths = [], []
    model.get_output_embeddings().register_forward_hook(lambda _m, args, _o: widths.append(args[0].shape[1]))
    for each in (model, Wrapper(model)):
        scores = ProxyScores(each, ["block_influence", "taylor"])
        scores.update(inputs, labels)
        found.append(scores.compute())
    for method, values in found[0].items():
        assert torch.equal(found[1][method], values)
    assert widths == [inputs["input_ids"].shape[1] - 5] * 2
