"""What stands around a model: caches, kinds of generation, numbers, attention, adapters and placed weights.

The reference is a physically pruned copy with the same around it. docs/around_a_model.md says the same in words.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lit_depth.functional import find_blocks, from_mask_id, masked, proxy_importance, token_masking
from tests.helpers.masking_laws import assert_restored, generate, snapshot
from tests.helpers.pruning import pruned_copy
from tests.helpers.sweep_laws import check_every_entry
from tests.helpers.tiny_models import tiny_batch, tiny_model

MASKS = ["0111", "1011", "0101"]
FILLED = "cannot skip blocks under PREFIX_TUNING: it gives every forward a filled KV cache"
NO_DRAFT = "expected assistant_early_exit of at least 3, the first active block, got 1"
TABLE = Path(__file__).parents[3] / "docs" / "around_a_model.md"


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def check_pruned(model, mask: str, batch=None, around=lambda model: model, **options) -> None:
    """Tokens and logits of ``generate`` and logits of a forward are those of a pruned copy; the model is as before."""
    batch = tiny_batch(model) if batch is None else batch
    pruned = around(pruned_copy(model, from_mask_id(mask)))
    model = around(copy.deepcopy(model))
    expected, expected_logits = generate(pruned, batch, **options)
    with torch.no_grad():
        expected_forward = pruned(**batch).logits
    generate(model, batch, **options)  # transformers notes the size of a static cache on the model
    before, depth = snapshot(model), model.config.num_hidden_layers
    with masked(model, from_mask_id(mask)), torch.no_grad():
        found, logits = generate(model, batch, **options)
        check_logits(model(**batch).logits, expected_forward)
    assert torch.equal(found, expected)
    check_logits(logits, expected_logits)
    assert_restored(model, before)
    assert model.config.num_hidden_layers == depth


def check_logits(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    # batch and shapes are equal; what is left of 16 bits after an operation is equal, too
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


def one_row(model) -> dict[str, Tensor]:
    return {name: values[:1] for name, values in tiny_batch(model).items()}


# ---- caches and kinds of generation

CACHES = {
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "hybrid": {"cache_implementation": "hybrid"},
    "none": {"use_cache": False},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
def test_caches(model, options, mask):
    check_pruned(model, mask, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="caches are offloaded from a CUDA device")
@pytest.mark.parametrize("name", ["offloaded", "offloaded_static"])
def test_offloaded_caches(model, name):
    batch = {key: values.cuda() for key, values in tiny_batch(model).items()}
    for mask in MASKS:
        check_pruned(model, mask, batch, around=lambda model: model.cuda(), cache_implementation=name)


@pytest.mark.parametrize("backend,package", [("quanto", "optimum.quanto"), ("hqq", "hqq")])
def test_quantised_caches(model, backend, package):
    pytest.importorskip(package, reason=f"needs {package}, which quantises caches")
    config = {"backend": backend, "residual_length": 2} | ({"q_group_size": 8} if backend == "quanto" else {})
    for mask in MASKS:
        check_pruned(model, mask, cache_implementation="quantized", cache_config=config)


KINDS = {
    "beams": {"num_beams": 3},
    "returned beams": {"num_beams": 3, "num_return_sequences": 2},
    "chunks of a prompt": {"prefill_chunk_size": 3},
    "guidance": {"guidance_scale": 1.5},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_kinds_of_generation(model, options):
    for mask in MASKS:
        check_pruned(model, mask, **options)


def test_sampling(model):
    batch = tiny_batch(model)
    for mask in MASKS:
        answers = []
        for each in (pruned_copy(model, from_mask_id(mask)), model):
            torch.manual_seed(0)
            with masked(each, from_mask_id(mask) if each is model else [True] * len(find_blocks(each))):
                answers.append(each.generate(**batch, max_new_tokens=5, do_sample=True, pad_token_id=0))
        assert torch.equal(*answers)


# ---- drafts


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 2}, {"assistant_early_exit": 2}])
def test_drafts_of_the_model_itself(model, options, mask):
    check_pruned(model, mask, one_row(model), **options)


def test_drafts_of_an_assistant(model):
    for assistant in (tiny_model("llama", num_blocks=2), copy.deepcopy(model)):
        for mask in MASKS:
            check_pruned(model, mask, one_row(model), assistant_model=assistant)


def test_a_draft_without_an_active_block_is_refused(model):
    batch, before = one_row(model), snapshot(model)
    with masked(model, from_mask_id("0011")):
        expected = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0)
        with pytest.raises(ValueError, match=NO_DRAFT):
            model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0, assistant_early_exit=1)
        assert model.config.num_hidden_layers == 4
        # the context goes on as if nothing had happened
        assert torch.equal(model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0), expected)
        drafted = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0, assistant_early_exit=3)
        assert torch.equal(drafted, expected)
    assert_restored(model, before)


@pytest.mark.parametrize("phases", [{"phase": "decode"}, {"phase": "prefill", "decode_without_prompt": True}])
def test_a_draft_is_refused_where_prefill_and_decode_differ(model, phases):
    with masked(model, from_mask_id("1011"), **phases), pytest.raises(ValueError, match="no assistant_early_exit"):
        model.generate(**one_row(model), max_new_tokens=5, do_sample=False, pad_token_id=0, assistant_early_exit=2)
    assert model.config.num_hidden_layers == 4


def test_a_draft_that_fails_leaves_the_model_as_deep_as_it_was(model):
    batch, before = one_row(model), snapshot(model)

    def interrupt(*_):
        if model.config.num_hidden_layers == 2:
            raise KeyboardInterrupt

    hook = find_blocks(model)[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), masked(model, from_mask_id("1011")):
        model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0, assistant_early_exit=2)
    hook.remove()
    assert model.config.num_hidden_layers == 4
    assert_restored(model, before)


# ---- numbers, attention, what a forward is asked for


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_numbers_of_other_sizes(model, dtype):
    for mask in MASKS:
        check_pruned(model, mask, around=lambda model: model.to(dtype))


def test_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for mask in MASKS:
            check_pruned(model, mask)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_implementations(model, name):
    def around(model):
        model.set_attn_implementation(name)
        return model

    for mask in ("0111", "1011"):
        check_pruned(model, mask, around=around)


def test_a_forward_gives_what_it_is_asked_for(model):
    batch = tiny_batch(model)
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach()
    asked = (
        batch | {"logits_to_keep": 2},
        batch | {"use_cache": False},
        {"inputs_embeds": embeddings, "attention_mask": batch["attention_mask"]},
    )
    for mask in MASKS:
        pruned = pruned_copy(model, from_mask_id(mask))
        for inputs in asked:
            with masked(model, from_mask_id(mask)), torch.no_grad():
                check_logits(model(**inputs).logits, pruned(**inputs).logits)


def test_tied_heads(model):
    def around(model):
        model.lm_head.weight = model.model.embed_tokens.weight
        return model

    check_pruned(model, "0111", around=around)


def test_gradient_checkpointing_in_the_engine(model):
    model = copy.deepcopy(model)
    model.gradient_checkpointing_enable()
    assert check_every_entry(model.train(), three_rows(model)) == []
    assert model.training


def three_rows(model) -> dict[str, Tensor]:
    return tiny_batch(model, rows=3)


# ---- adapters


def adapted(kind: str) -> nn.Module:
    peft = pytest.importorskip("peft", reason="needs the package peft")
    inside = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    few = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    config = {
        "LoRA": lambda: peft.LoraConfig(r=2, **inside),
        "DoRA": lambda: peft.LoraConfig(r=2, use_dora=True, **inside),
        "LoRA in some blocks": lambda: peft.LoraConfig(
            r=2, layers_to_transform=[1, 2], layers_pattern="layers", **inside
        ),
        "IA3": lambda: peft.IA3Config(feedforward_modules=["down_proj"], **inside),
        "VeRA": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
        "OFT": lambda: peft.OFTConfig(r=2, oft_block_size=0, target_modules=["q_proj"]),
        "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
        "tokens": lambda: peft.TrainableTokensConfig(token_indices=[3, 4, 5]),
        "prompt tuning": lambda: peft.PromptTuningConfig(**few),
        "p-tuning": lambda: peft.PromptEncoderConfig(encoder_hidden_size=8, **few),
        "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(**few),
        "CARTRIDGE": lambda: peft.CartridgeConfig(**few),
        "LLaMA-Adapter": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2),
    }[kind]()
    found = peft.get_peft_model(tiny_model("llama"), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in found.parameters():
            if weight.requires_grad:  # those of the adapter
                weight.normal_(std=0.3)
    return found.eval()


def pruned_inside(adapted: nn.Module, mask: Tensor) -> nn.Module:
    """A copy whose blocks are removed with what the adapter put into them."""
    found = copy.deepcopy(adapted)
    base = found.get_base_model()
    base.model.layers = pruned_copy(base, mask).model.layers
    base.config.num_hidden_layers = int(mask.sum())
    return found


INSIDE = ("LoRA", "DoRA", "LoRA in some blocks", "IA3", "VeRA", "OFT", "norms", "tokens", "LLaMA-Adapter")
IN_FRONT = ("prompt tuning", "p-tuning")


@pytest.mark.parametrize("kind", [*INSIDE, *IN_FRONT])
def test_adapters(kind):
    model = adapted(kind)
    batch = tiny_batch(model.get_base_model())
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for mask in map(from_mask_id, MASKS):
        pruned = pruned_inside(model, mask)
        with masked(model, mask), torch.no_grad():
            check_logits(model(**batch).logits, pruned(**batch).logits)
            assert torch.equal(model.generate(**batch, **options), pruned.generate(**batch, **options))


@pytest.mark.parametrize("kind", [*INSIDE, *IN_FRONT])
@pytest.mark.slow
def test_adapters_in_the_engine(kind):
    model = adapted(kind)
    said = check_every_entry(model, three_rows(model.get_base_model()))
    assert (len(said) == 1 and "see 3 rows of 11 tokens, got 3 of 8" in said[0]) if kind in IN_FRONT else said == []


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merged_adapters(merge):
    model, mask = adapted("LoRA"), from_mask_id("0111")
    batch = tiny_batch(model.get_base_model())
    with torch.no_grad():
        expected = pruned_inside(model, mask)(**batch).logits
    merged = getattr(model, merge)() or model
    with masked(merged, mask), torch.no_grad():
        found = merged(**batch).logits
    # merged weights are rounded once more
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert check_every_entry(merged, three_rows(tiny_model("llama"))) == []


def test_disabled_adapters(model):
    adapter, mask = adapted("LoRA"), from_mask_id("0111")
    batch = tiny_batch(model)
    with adapter.disable_adapter(), masked(adapter, mask), torch.no_grad():
        check_logits(adapter(**batch).logits, pruned_copy(model, mask)(**batch).logits)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "CARTRIDGE"])
def test_adapters_that_fill_a_cache_are_refused_by_name(kind):
    model = adapted(kind)
    message = FILLED.replace("PREFIX_TUNING", kind)
    with pytest.raises(ValueError, match=message):
        masked(model, from_mask_id("0111"))
    with pytest.raises(ValueError, match=message):
        check_every_entry(model, three_rows(model.get_base_model()))
    # what the refusal tells to do
    assert check_every_entry(model.get_base_model(), three_rows(model.get_base_model())) == []


# ---- weights that lie elsewhere


def offloaded(model: nn.Module, folder: Path) -> nn.Module:
    accelerate = pytest.importorskip("accelerate", reason="needs the package accelerate")
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def dispatched(model: nn.Module, folder: Path) -> nn.Module:
    """Every second block on the disk, the first one among them."""
    accelerate = pytest.importorskip("accelerate", reason="needs the package accelerate")
    around = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    blocks = {f"model.layers.{i}": "cpu" if i % 2 else "disk" for i in range(len(find_blocks(model)))}
    where = around | blocks
    return accelerate.dispatch_model(model, where, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("place", [offloaded, dispatched])
def test_placed_weights(model, place, tmp_path):
    batch = tiny_batch(model)
    placed = place(copy.deepcopy(model), tmp_path)
    assert any(weight.is_meta for weight in placed.parameters())
    for mask in map(from_mask_id, MASKS):
        expected, expected_logits = generate(pruned_copy(model, mask), batch)
        with masked(placed, mask):
            found, logits = generate(placed, batch)
        assert torch.equal(found, expected)
        check_logits(logits, expected_logits)
    assert check_every_entry(placed, three_rows(model)) == []
    with pytest.raises(ValueError, match="not in memory"):
        proxy_importance(placed, [batch | {"labels": batch["input_ids"]}], methods=["taylor"])
    halves = [True, False] + [True] * (2 * len(find_blocks(model)) - 2)
    if place is dispatched:
        with pytest.raises(ValueError, match="cannot skip half of block 0: it has a forward of its own"):
            with masked(placed, halves, granularity="sublayer"):
                pass
    else:
        logits = []
        for each in (placed, model):
            with masked(each, halves, granularity="sublayer"), torch.no_grad():
                logits.append(each(**batch).logits)
        check_logits(*logits)
    rows = one_row(model)
    assert token_masking(placed, rows, 2).equals(token_masking(model, rows, 2))


# ---- the table


def test_the_table_names_what_is_tested():
    table = TABLE.read_text(encoding="utf-8")
    names = [*INSIDE, *IN_FRONT, "CARTRIDGE", *CACHES, FILLED, NO_DRAFT]
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", table)]
    assert missing == []
