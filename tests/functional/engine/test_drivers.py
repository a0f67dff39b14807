"""What the engine assumes of a model is checked; where it does not hold, masks are answered one after another."""

from __future__ import annotations

import warnings

import pytest
import torch

from lit_depth.functional import find_blocks, generate, masked, sweep_forward, sweep_generate
from lit_depth.functional.engine import api as sweep_module
from lit_depth.functional.engine import decode as decode_module
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.engine.drivers import CannotDriveError, Front, TrieDriver, driven
from lit_depth.functional.engine.trie import MaskTrie
from tests.helpers.model_zoo import ZOO, forced_logprob, plain_answers
from tests.helpers.sweep_laws import ANSWERS, check_every_entry, masks_for
from tests.helpers.wrappers import LowRank, SoftPrompt, Wrapper

NEW_TOKENS = 4


# ---- wrappers


@pytest.mark.parametrize("name", ["llama", "gptj, types"])
def test_a_wrapper_with_low_rank_updates_is_driven(name):
    model, inputs = ZOO[name]()
    before = plain_answers(model, inputs, NEW_TOKENS)
    for block in find_blocks(model):
        where = "up_proj" if name == "llama" else "fc_in"
        setattr(block.mlp, where, LowRank(getattr(block.mlp, where)))
    wrapper = Wrapper(model)
    assert not torch.equal(before, plain_answers(wrapper, inputs, NEW_TOKENS))
    assert check_every_entry(wrapper, inputs) == []


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_a_wrapper_puts_in_front_of_the_prompt_is_seen(name):
    model, inputs = ZOO[name]()
    wrapper = SoftPrompt(model).eval()
    assert not torch.equal(plain_answers(wrapper, inputs, NEW_TOKENS), plain_answers(model, inputs, NEW_TOKENS))
    said = check_every_entry(wrapper, inputs)
    rows, length = inputs["input_ids"].shape
    assert len(said) == 1 and f"see {rows} rows of {length + 3} tokens, got {rows} of {length}" in said[0]
    _, found = answer_masks(
        wrapper, inputs, masks_for(model), max_new_tokens=0, eos_token_id=None, pad_token_id=0, answer_ids=ANSWERS
    )
    for mask, scores in zip(masks_for(model), found):
        with masked(model, mask):
            torch.testing.assert_close(scores, forced_logprob(wrapper, inputs, ANSWERS), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_peft_models_are_answered_as_they_are(name, kind):
    peft = pytest.importorskip("peft", reason="needs the package peft")
    model, inputs = ZOO[name]()
    config = (
        peft.LoraConfig(
            target_modules=["c_attn"] if name == "gpt2" else ["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
        if kind == "lora"
        else peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    said = check_every_entry(peft.get_peft_model(model, config).eval(), inputs)
    assert (said == []) == (name == "llama" and kind == "lora")


# ---- what does not fit, and what goes wrong


def test_logits_of_another_shape_than_asked_for_are_not_taken():
    """GPT-2 views three kept positions of three rows as nine positions of one."""
    model, inputs = ZOO["gpt2"]()
    masks = masks_for(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        whole = sweep_forward(model, inputs, masks).logits
        kept = sweep_forward(model, inputs, masks, logits_to_keep=3).logits
    torch.testing.assert_close(kept, whole[:, :, -3:], atol=1e-4, rtol=0)
    assert "takes states of the prompt's shape [3, 9] alone, got [12, 3]" in str(caught[-1].message)


def test_what_changes_hidden_states_between_blocks_is_noticed():
    model, inputs = ZOO["llama"]()
    find_blocks(model)[2].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    said = check_every_entry(model, inputs)
    assert len(said) == 1 and "block 2 is not given what the block before it returned" in said[0]


def test_an_engine_that_answers_otherwise_is_noticed(monkeypatch):
    """Nothing of the model's form tells: only its own answers do."""
    model, inputs = ZOO["llama"]()
    real = decode_module.RowDriver.make_forward

    def forgetful(driver, block_idx, forward):
        wrong = real(driver, block_idx, forward)
        return lambda states, *args, **kwargs: wrong(states, *args, **kwargs) * (1.0 if block_idx else 1.2)

    monkeypatch.setattr(decode_module.RowDriver, "make_forward", forgetful)
    said = check_every_entry(model, inputs)
    assert len(said) == 1 and "does not give the answers" in said[0]


def test_an_error_of_the_engine_is_told_and_one_of_the_model_is_raised(monkeypatch):
    model, inputs = ZOO["llama"]()
    masks = masks_for(model)

    def broken(*_):
        raise IndexError("of the model")

    hook = model.register_forward_pre_hook(broken)
    with pytest.raises(IndexError, match="of the model"):  # comes again one mask after another
        sweep_generate(model, inputs, masks, 1)
    hook.remove()
    assert model not in sweep_module._REFUSED

    def fail(*_):
        raise ZeroDivisionError("a\nreason")

    monkeypatch.setattr(TrieDriver, "make_forward", fail)
    with pytest.warns(
        UserWarning, match="LlamaForCausalLM is answered one mask after another: ZeroDivisionError: a reason"
    ):
        sweep_generate(model, inputs, masks, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = []
        answer_masks(
            model, inputs, masks, max_new_tokens=1, eos_token_id=None, pad_token_id=0, on_mask=lambda: done.append(1)
        )
    assert len(done) == len(masks)


def test_memory_that_runs_out_is_no_reason_to_go_on(monkeypatch):
    model, inputs = ZOO["llama"]()

    def fail(*_):
        raise torch.OutOfMemoryError("x")

    monkeypatch.setattr(TrieDriver, "make_forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        sweep_forward(model, inputs, masks_for(model))
    with pytest.raises(torch.OutOfMemoryError):
        sweep_generate(model, inputs, masks_for(model)[:1], 1)
    assert model not in sweep_module._REFUSED


def test_an_interruption_is_no_reason_to_go_on(monkeypatch):
    model, inputs = ZOO["llama"]()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrieDriver, "make_forward", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep_generate(model, inputs, masks_for(model), 1)


@torch.no_grad()
def test_a_later_chunk_must_be_called_as_the_first_was():
    """Embeddings of the first are used again, so masks and positions must be the same without the image."""
    model, inputs = ZOO["llama"]()
    blocks, masks = find_blocks(model), masks_for(model)
    drivers = [TrieDriver(MaskTrie(masks), None, None)]
    with driven(blocks, drivers[0].make_forward):
        model(**inputs, use_cache=False)
    front = drivers[0].front
    assert isinstance(front, Front) and len(front.calls) == len(blocks)
    with driven(blocks, TrieDriver(MaskTrie(masks), None, None, front=front).make_forward):
        again = model(input_ids=inputs["input_ids"] * 0 + 5, attention_mask=inputs["attention_mask"], use_cache=False)
        torch.testing.assert_close(again.logits, model(**inputs, use_cache=False).logits)
    other = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    with driven(blocks, TrieDriver(MaskTrie(masks), None, None, front=front).make_forward):
        with pytest.raises(CannotDriveError, match="depend on the image"):
            model(**other, use_cache=False)


@pytest.mark.parametrize("name", ["mpt", "bloom", "falcon, alibi"])
def test_biases_per_key_are_told_from_rows_by_their_name(name):
    """As many rows as heads: the first axis of a bias is as long as that of a mask."""
    model, inputs = ZOO[name]()
    inputs = {key: torch.cat([value, value[:1]]) for key, value in inputs.items()}
    assert len(inputs["input_ids"]) == model.config.num_attention_heads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sweep_generate(model, inputs, masks_for(model), NEW_TOKENS)
        rows = generate(model, inputs, masks_for(model), NEW_TOKENS)
    for index, mask in enumerate(masks_for(model)):
        with masked(model, mask):
            expected = plain_answers(model, inputs, NEW_TOKENS)
        assert torch.equal(found[index], expected)
        assert torch.equal(rows[index], expected[index])
