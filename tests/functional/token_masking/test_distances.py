"""Token masking against golden tables, and against one masked forward per token and block in float64."""

from __future__ import annotations

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, masked, prefix, span_masking, token_masking
from lit_depth.functional.token_masking import distances as tokens_module
from lit_depth.functional.token_masking.distances import _hide_each, distances_from_first
from lit_depth.models.loading import BUNDLED, load_bundled
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from tests.helpers.model_zoo import ZOO, plain_answers
from tests.helpers.tiny_models import FAMILIES, IMAGE_TOKEN, VOCABULARY, tiny_model

COLUMNS = [
    "generation_step",
    "layer",
    "token_id",
    "token_position",
    "variant",
    "l2_distance",
    "cosine_distance",
]
KEYS = COLUMNS[:5]
SUPPORTED = [family for family in FAMILIES if family != "falcon"]


def prompt(family: str, length: int = 11) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = {"input_ids": torch.randint(2, VOCABULARY - 1, (1, length), generator=generator)}
    if family == "llava":
        inputs["input_ids"][:, 3:7] = IMAGE_TOKEN
        inputs["pixel_values"] = torch.randn(1, 3, 8, 8, generator=generator)
    return inputs


@pytest.fixture(scope="module")
def molmo():
    """The bundled model, and the prompt with one image of the shapes task."""
    if not (BUNDLED / "model.safetensors").exists():
        pytest.skip("no bundled checkpoint")
    model, processor = load_bundled()
    batch = next(
        iter(DepthDataModule(prompter_for(model, processor), batch_size=1, num_samples=1).eval_dataloader("validation"))
    )
    return model.float(), model_inputs(batch)


# ---- the slow reference: every block runs on its whole cached input, in float64, once for each set of hidden keys


def causal_mask(config, block_idx: int, length: int) -> Tensor:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[block_idx] != "sliding_attention":
        window = None
    past = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    visible = (past >= 0) & (past < (window or length))
    return torch.zeros(1, 1, length, length, dtype=torch.float64).masked_fill(~visible, -torch.inf)


def to_double(value):
    if isinstance(value, tuple):
        return tuple(to_double(part) for part in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def in_float64(block: nn.Module) -> nn.Module:
    exact = copy.deepcopy(block).double()
    for module in exact.modules():
        if hasattr(module, "config"):  # a copy too; grouped products have no float64
            module.config._experts_implementation = "eager"
    return exact


def run_block(block: nn.Module, hidden: Tensor, kwargs: dict, mask: Tensor, num_heads: int) -> list[Tensor]:
    """Vectors at the final position: residual update, attention output, and each head's output."""
    attention = block.self_attn if hasattr(block, "self_attn") else block.attention
    projection = attention.o_proj if hasattr(attention, "o_proj") else attention.dense
    found = {}
    hooks = [
        attention.register_forward_hook(lambda module, args, output: found.update(attention=output[0][0, -1])),
        projection.register_forward_pre_hook(lambda module, args: found.update(heads=args[0][0, -1])),
    ]
    output = block(hidden, **kwargs | {"attention_mask": mask})
    for hook in hooks:
        hook.remove()
    return [output[0, -1] - hidden[0, -1], found["attention"], *found["heads"].view(num_heads, -1)]


@torch.no_grad()
def slow_reference(model, inputs, hidden_sets: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Distances ``[blocks, hidden sets, variants, 2]``, and the rounding of float32 in them ``[blocks, 1, variants]``.

    That is 1e-6 of the vectors' norms. The residual update is a difference of two states, so it also has the rounding
    of these, 1e-7 of their norm: a block that adds little to a large state shows it.
    """
    blocks = find_blocks(model)
    calls = {}
    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs, i=i: calls.update({i: (args, kwargs)}), with_kwargs=True
        )
        for i, block in enumerate(blocks)
    ]
    model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    config = model.config.get_text_config(decoder=True)
    distances, rounding = [], []
    for i, block in enumerate(blocks):
        (hidden,), kwargs = calls[i]
        exact = in_float64(block)
        hidden, kwargs = hidden.double(), {name: to_double(value) for name, value in kwargs.items()}
        mask = causal_mask(config, i, hidden.shape[1])
        base = run_block(exact, hidden, kwargs, mask, config.num_attention_heads)
        rounding.append([[1e-6 * vector.norm().item() for vector in base]])
        rounding[-1][0][0] += 1e-7 * hidden[0, -1].norm().item()
        for hide in hidden_sets:
            changed = run_block(
                exact,
                hidden,
                kwargs,
                mask.index_fill(3, torch.tensor(hide), -torch.inf),
                config.num_attention_heads,
            )
            distances += [
                [(b - a).norm().item(), 1 - torch.cosine_similarity(a, b, dim=0, eps=1e-30).item()]
                for a, b in zip(base, changed)
            ]
    shape = (len(blocks), len(hidden_sets), 2 + config.num_attention_heads, 2)
    return np.array(distances).reshape(shape), np.array(rounding)


def assert_equals_reference(frame: pd.DataFrame, model, inputs, hidden_sets: list[list[int]]) -> None:
    """Within 1e-5 relative, above the rounding of float32 vectors of the sizes that are compared."""
    expected, rounding = slow_reference(model, inputs, hidden_sets)
    found = frame[["l2_distance", "cosine_distance"]].to_numpy(np.float64).reshape(expected.shape)
    assert not np.isnan(expected).any()
    error = np.abs(found - expected)
    assert (error[..., 0] <= 1e-5 * expected[..., 0] + rounding).all(), (error[..., 0] / rounding).max()
    assert (error[..., 1] <= 1e-5 * expected[..., 1] + 1e-7).all(), error[..., 1].max()


@pytest.mark.parametrize("family", SUPPORTED)
def test_equals_one_masked_forward_per_token_and_block(family):
    model, inputs = tiny_model(family), prompt(family)
    frame = token_masking(model, inputs)
    assert_equals_reference(frame, model, inputs, [[j] for j in range(11)])


@pytest.mark.slow
def test_equals_one_masked_forward_on_molmo_with_an_image(molmo):
    model, inputs = molmo
    length = inputs["input_ids"].shape[1]
    assert (inputs["image_input_idx"] >= 0).any()
    assert_equals_reference(token_masking(model, inputs), model, inputs, [[j] for j in range(length)])


@pytest.mark.parametrize("name", ["molmo_o_tiny", "molmo_dense_tiny"])
def test_equals_one_masked_forward_on_the_dense_molmos(golden_dir, name):
    from safetensors.torch import load_file

    from lit_depth.models.molmo import MolmoForConditionalGeneration

    model = MolmoForConditionalGeneration.from_pretrained(golden_dir / name).eval()
    cases = load_file(golden_dir / name / "cases.safetensors")
    names = ("input_ids", "attention_mask", "images", "image_masks", "image_input_idx")
    inputs = {key: cases[f"image.{key}"] for key in names}
    length = inputs["input_ids"].shape[1]
    assert_equals_reference(token_masking(model, inputs), model, inputs, [[j] for j in range(length)])


# ---- golden tables


@pytest.mark.parametrize("prompt_idx", [0, 1])
@pytest.mark.parametrize("weights", ["plain", "sharp"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_tables(golden_dir, weights, prompt_idx, attention):
    folder = golden_dir / "token_masking" / weights
    meta = json.loads((folder / "meta.json").read_text())["prompts"][prompt_idx]
    model = Qwen3ForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()
    frame = token_masking(model, {"input_ids": torch.tensor([meta["token_ids"]])}, num_output_tokens=2)
    assert list(frame.columns) == COLUMNS and frame.attrs["generated_ids"] == meta["generated"]
    for table in (f"prompt{prompt_idx}.csv", f"prompt{prompt_idx}.float64.csv"):
        golden = pd.read_csv(folder / table)
        pd.testing.assert_frame_equal(frame[KEYS], golden[KEYS], check_dtype=False)
        np.testing.assert_allclose(frame["l2_distance"], golden["l2_distance"], atol=5e-5, rtol=1e-5)
        np.testing.assert_allclose(frame["cosine_distance"], golden["cosine_distance"], atol=2e-5, rtol=0)


def test_a_head_on_one_token_needs_the_explicit_softmax():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, generator=generator)
    logits[0, 4] += 15
    values = torch.randn(2, 9, 8, generator=generator)
    exact = torch.stack(
        [
            logits.double().index_fill(1, torch.tensor(j), -torch.inf).softmax(-1).unsqueeze(1) @ values.double()
            for j in range(9)
        ]
    ).squeeze(2)
    assert logits.softmax(-1).max() > 0.9999
    assert (_hide_each(logits, values) - exact).abs().max() < 2e-6
    weights = logits.softmax(-1).unsqueeze(-1)
    naive = ((weights * values).sum(1, keepdim=True) - weights * values) / (1 - weights)
    assert (naive.transpose(0, 1) - exact).abs().max() > 1e-4  # or this test would show nothing


# ---- spans, steps


@pytest.mark.parametrize("family", ["qwen3", "olmoe"])
def test_spans_equal_masked_forwards(family):
    model, inputs = tiny_model(family), prompt(family)
    spans = {"image": [2, 3, 4, 5], "question": [8, 6, 10], "most": list(range(10)), "one": [7]}
    frame = span_masking(model, inputs, spans)
    assert list(frame.columns) == [
        "generation_step",
        "layer",
        "span",
        "num_tokens",
        "variant",
        "l2_distance",
        "cosine_distance",
    ]
    assert_equals_reference(frame, model, inputs, list(spans.values()))
    assert frame["span"].unique().tolist() == list(spans)
    assert frame.groupby("span")["num_tokens"].unique().map(list).to_dict() == {k: [len(v)] for k, v in spans.items()}
    single = token_masking(model, inputs).query("token_position == 7")
    for column in ("l2_distance", "cosine_distance"):
        np.testing.assert_allclose(frame.query("span == 'one'")[column], single[column], rtol=1e-4, atol=1e-6)


def test_a_span_of_all_tokens_is_undefined_until_a_token_is_generated():
    model, inputs = tiny_model("llama"), prompt("llama")
    frame = span_masking(model, inputs, {"all": range(11)}, num_output_tokens=2)
    undefined = frame[["l2_distance", "cosine_distance"]].isna().all(axis=1)
    assert undefined.tolist() == (frame["generation_step"] == 0).tolist()
    assert len(frame.attrs["generated_ids"]) == 1


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "molmo"])
def test_a_step_is_the_analysis_of_the_longer_prompt(family, request):
    model, inputs = request.getfixturevalue("molmo") if family == "molmo" else (tiny_model(family), prompt(family))
    length = inputs["input_ids"].shape[1]
    frame = token_masking(model, inputs, num_output_tokens=3, after_end=True)
    generated = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, eos_token_id=None)
    assert frame.attrs["generated_ids"] == generated[0, length:].tolist()
    for step in range(3):
        longer = inputs | {"input_ids": generated[:, : length + step]}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        alone = token_masking(model, longer)
        found = frame[frame["generation_step"] == step].drop(columns="generation_step").reset_index(drop=True)
        pd.testing.assert_frame_equal(found, alone.drop(columns="generation_step"))
        assert found.groupby("layer").size().unique().tolist() == [(length + step) * found["variant"].nunique()]


def with_types(name, inputs, tokens) -> dict[str, Tensor]:
    """A longer prompt of one request, marked by hand as the family sees it: a suffix of PaliGemma, text of Gemma 3."""
    longer = inputs | {"input_ids": torch.cat([inputs["input_ids"], torch.tensor([tokens], dtype=torch.long)], dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    new = torch.full((1, len(tokens)), int(name == "paligemma"))
    longer["token_type_ids"] = torch.cat([inputs["token_type_ids"], new], dim=1)
    return longer


@pytest.mark.parametrize("name", ["paligemma", "gemma3"])
def test_a_step_sees_generated_tokens_as_the_model_does_while_it_generates(name):
    """They are no part of what PaliGemma sees in both directions."""
    model, batch = ZOO[name]()
    inputs = {key: value[:1] for key, value in batch.items()}
    frame = token_masking(model, inputs, num_output_tokens=3)
    tokens = plain_answers(model, inputs, 3)[0].tolist()
    assert [*frame.attrs["generated_ids"], frame.attrs["next_id"]] == tokens
    for step in range(3):
        longer = with_types(name, inputs, tokens[:step])
        found = frame[frame["generation_step"] == step].drop(columns="generation_step").reset_index(drop=True)
        alone = token_masking(model, longer).drop(columns="generation_step")
        pd.testing.assert_frame_equal(found, alone)
        if name == "paligemma":  # the slow reference knows no windows beside images
            assert_equals_reference(found, model, longer, [[j] for j in range(longer["input_ids"].shape[1])])


def test_a_model_that_reads_behind_a_prompt_otherwise_than_it_generates_is_refused():
    """Its generated tokens are marked as a part of the prompt, which is seen in both directions."""
    model, batch = ZOO["paligemma"]()
    inputs = {key: value[:1] for key, value in batch.items()}
    real = model._update_model_kwargs_for_generation

    def as_a_prompt(outputs, arguments):
        types = torch.nn.functional.pad(arguments["token_type_ids"], (0, 1))
        return real(outputs, arguments) | {"token_type_ids": types}

    model._update_model_kwargs_for_generation = as_a_prompt
    assert len(token_masking(model, inputs, 1)) > 0
    with pytest.raises(ValueError, match="got PaliGemma.*; analyse the prompt alone"):
        token_masking(model, inputs, 3)


def test_generation_ends_with_an_end_token():
    model, inputs = tiny_model("llama"), prompt("llama")
    whole = token_masking(model, inputs, 4)
    tokens = [*whole.attrs["generated_ids"], whole.attrs["next_id"]]
    end = next(index for index, token in enumerate(tokens[1:], 1) if token not in tokens[:index])
    model.generation_config.eos_token_id = [63, tokens[end]]
    spans = {"some": [2, 3]}
    for analyse in (token_masking, lambda *given, **options: span_masking(*given[:2], spans, *given[2:], **options)):
        frame = analyse(model, inputs, 4)
        assert frame.attrs["generated_ids"] == tokens[:end] and frame.attrs["next_id"] == tokens[end]
        assert frame["generation_step"].unique().tolist() == list(range(end + 1))
        every = analyse(model, inputs, 4, after_end=True)
        assert [*every.attrs["generated_ids"], every.attrs["next_id"]] == tokens
        pd.testing.assert_frame_equal(frame, every[every["generation_step"] <= end])
        other = analyse(model, inputs, 4, end_tokens=[tokens[0]])
        assert other.attrs["generated_ids"] == [] and other.attrs["next_id"] == tokens[0]


def test_given_positions_go_on():
    model, inputs = tiny_model("llama"), prompt("llama")
    frame = token_masking(model, inputs | {"position_ids": torch.arange(11)[None]}, num_output_tokens=2)
    pd.testing.assert_frame_equal(frame, token_masking(model, inputs, num_output_tokens=2))


# ---- what is undefined, invisible, small


@pytest.mark.parametrize("family", ["llama", "olmoe", "gemma2", "gpt_neox"])
def test_one_token_prompts_are_undefined_not_zero(family):
    model = tiny_model(family)
    frame = token_masking(model, {"input_ids": torch.tensor([[5]])}, num_output_tokens=2)
    undefined = frame[["l2_distance", "cosine_distance"]].isna()
    assert undefined.all(axis=1).tolist() == (frame["generation_step"] == 0).tolist()
    assert not undefined[frame["generation_step"] == 1].any(axis=None)


def test_a_token_outside_of_the_window_changes_nothing():
    model, inputs = tiny_model("mistral"), prompt("mistral")
    frame = token_masking(model, inputs)
    outside = frame["token_position"] < 11 - model.config.sliding_window
    heads = frame["variant"].str.startswith("Head")
    assert (frame[outside & heads]["l2_distance"] == 0).all()
    assert (frame[outside]["l2_distance"] < 1e-6).all()
    assert (frame[~outside]["l2_distance"] > 0).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_only_visible_token_is_undefined_and_others_change_nothing(attention, dtype):
    model = tiny_model("mistral", num_blocks=2).to(dtype)
    model.config.sliding_window = 1
    model.set_attn_implementation(attention)
    frame = token_masking(model, prompt("mistral"))
    last = frame["token_position"] == 10
    assert frame[last][["l2_distance", "cosine_distance"]].isna().all(axis=None)
    assert (frame[~last][["l2_distance", "cosine_distance"]] < 1e-6).all(axis=None)


def test_cosine_distance():
    rows = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-2.0, 1.0], [-1.0, -2.0], [0.0, 0.0]])
    found = distances_from_first(rows)
    torch.testing.assert_close(found[:3, 1], torch.tensor([0.0, 1.0, 2.0]))
    assert found[3, 1].isnan() and found[3, 0] == rows[0].norm()  # no direction, no angle
    nearly = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    assert distances_from_first(nearly)[0, 1].item() == pytest.approx(0.5e-8, rel=1e-3)  # 1 - cos in float32 gives 0


def test_chunks_do_not_show(monkeypatch):
    model, inputs = tiny_model("olmoe"), prompt("olmoe")
    whole = token_masking(model, inputs)
    monkeypatch.setattr(tokens_module, "CHUNK_ROWS", 3)
    pd.testing.assert_frame_equal(token_masking(model, inputs), whole, rtol=1e-4, atol=1e-6)


def test_one_row_per_masked_token_runs_through_the_mlp():
    model = tiny_model("llama")
    rows = []
    for block in find_blocks(model):
        block.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[:-1].numel()))
    for length in (8, 16, 32):
        rows.clear()
        token_masking(model, prompt("llama", length))
        # the prompt itself, one row for each token, and the unmasked row
        assert rows == 4 * [length] + 4 * [length + 1] and len(rows) == 8


# ---- 16 bits


@pytest.mark.parametrize("family", ["llama", "olmoe", "gemma2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_distances_of_16_bit_models_do_not_drown_in_rounding(family, attention):
    model = tiny_model(family).bfloat16()
    if family != "gemma2":
        model.set_attn_implementation(attention)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = prompt(family)
    frame = token_masking(model, inputs)
    assert frame["l2_distance"].dtype == np.float32
    # the reference takes the model's own 16-bit block inputs
    assert_equals_reference(frame, model, inputs, [[j] for j in range(11)])
    after = model.state_dict()
    assert all(after[name].dtype == tensor.dtype and after[name].equal(tensor) for name, tensor in before.items())


def test_mixed_precision_around_it_changes_nothing():
    model, inputs = tiny_model("llama"), prompt("llama")
    plain = token_masking(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pd.testing.assert_frame_equal(token_masking(model, inputs), plain)


# ---- refusals


def attention_functions() -> dict:
    """State of transformers' attention interface."""
    return dict(ALL_ATTENTION_FUNCTIONS) | {"of the instance": dict(vars(ALL_ATTENTION_FUNCTIONS))}


class NeighbourMixing(nn.Module):
    """An MLP that looks at other positions."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mlp(hidden) + 0.01 * hidden.mean(dim=1, keepdim=True)


def with_mixing_mlp():
    model = tiny_model("llama")
    model.model.layers[2].mlp = NeighbourMixing(model.model.layers[2].mlp)
    return model


def with_two_attentions():
    model = tiny_model("llama")
    block = model.model.layers[1]
    block.mlp.register_forward_pre_hook(lambda module, args: (block.self_attn(args[0], rope(model, args[0]))[0],))
    return model


def rope(model, hidden):
    return model.model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])


def with_flex_attention():
    model = tiny_model("llama")
    model.set_attn_implementation("flex_attention")
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tiny_model("falcon"), r"FalconForCausalLM|FalconDecoderLayer"),
        (with_mixing_mlp, r"update of block 2 \(LlamaDecoderLayer\) is off by"),
        (with_two_attentions, r"block 1 \(LlamaDecoderLayer\) made 2 such calls"),
        (with_flex_attention, "'sdpa' or 'eager', got 'flex_attention'"),
        (lambda: tiny_model("llama").train(), "evaluation mode"),
    ],
    ids=["falcon", "mixing", "two attentions", "flex", "training"],
)
def test_other_models_are_refused(build, message):
    model = build()
    before = attention_functions()
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        token_masking(model, prompt("llama"))
    assert attention_functions() == before
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()] == hooks


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named(value):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"block 1 \(LlamaDecoderLayer\) gives NaN or infinity"):
        token_masking(model, prompt("llama"))


def test_skipped_blocks_are_refused():
    model = tiny_model("llama")
    with masked(model, prefix(4, 3)), pytest.raises(ValueError, match="block 3 .* made 0 such calls"):
        token_masking(model, prompt("llama"))


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, {}, "empty"),
        ({}, {}, r"input_ids \[1, seq\]"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long)}, {}, r"one prompt, got \[2, 3\]"),
        ({"input_ids": torch.ones(1, 129, dtype=torch.long)}, {}, "at most 128 tokens .* prompt of 129"),
        (
            {"input_ids": torch.ones(1, 127, dtype=torch.long)},
            {"num_output_tokens": 3},
            "prompt of 127 and 2 to generate",
        ),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.tensor([[0, 1, 1]])},
            {},
            "without padding",
        ),
        (prompt("llama"), {"num_output_tokens": 0}, "at least 1, got 0"),
        (prompt("llama"), {"end_tokens": [3, 99]}, "end_tokens from 0 to 63, got 99"),
    ],
)
def test_bad_input(inputs, options, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        token_masking(model, inputs, **options)


@pytest.mark.parametrize("spans", [{}, {"a": []}, {"a": [1, 1]}, {"a": [11]}, {"a": [-1]}])
def test_bad_spans(spans):
    with pytest.raises(ValueError, match="span"):
        span_masking(tiny_model("llama"), prompt("llama"), spans)


def test_a_full_context_is_no_error():
    frame = token_masking(tiny_model("llama", num_blocks=1), prompt("llama", 128))
    assert len(frame) == 128 * 6 and not frame.isna().any(axis=None)


def test_nothing_stays_behind():
    model, inputs = tiny_model("llama"), prompt("llama")
    before = model(**inputs).logits
    registered = attention_functions()
    token_masking(model, inputs)
    assert attention_functions() == registered
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model(**inputs).logits.equal(before)
