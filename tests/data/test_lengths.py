"""How long prompts may be: the bound never exceeds what the tokenizer counts, and what is too long costs its sample."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_depth import load_bundled
from lit_depth.data import DepthDataModule, EvalCollator, Sample
from lit_depth.data.lengths import HUGE, PromptLimit, fewest_tokens
from lit_depth.models.molmo import MolmoPrompter
from lit_depth.models.prompting import prompter_for

CORPUS = ["hello world, hello   again", "1,000 dogs --- and 22 cats.", "naïve café 漢字 漢字"] * 20


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of each kind that models use."""
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"])
        backend.train_from_iterator(CORPUS, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    backend = Tokenizer(models.BPE(byte_fallback=kind == "byte fallback"))
    special = ["<end>"]
    if kind == "byte level":
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special
        )
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.add_tokens(["   ", "many words in one"])
    return tokenizer


TOKENIZERS = {kind: trained(kind) for kind in ("byte level", "byte fallback", "unigram")}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet="helo wrdag1,0-漢字é<>", max_size=200))
@example(text="many words in one" * 9 + "   " * 40)
@example(text="e\u0301" * 50)
@example(text="<end>" * 20)
@example(text="hello world " * 30)
def test_the_bound_never_exceeds_what_the_tokenizer_counts(kind, text):
    tokenizer = TOKENIZERS[kind]
    assert fewest_tokens(tokenizer, text) <= len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_bound_is_of_use_and_there_is_none_where_text_may_vanish():
    for kind in ("byte level", "byte fallback"):
        assert fewest_tokens(TOKENIZERS[kind], "hello world " * 10_000) >= 10_000
    assert fewest_tokens(TOKENIZERS["unigram"], "hello world " * 10_000) == 0
    swallowing = trained("byte level")
    swallowing.add_tokens([AddedToken("<image>", rstrip=True)])
    assert fewest_tokens(swallowing, "<image>" + " " * 10_000) == 0
    assert fewest_tokens(SimpleNamespace(), "no fast tokenizer") == 0


@pytest.fixture(scope="module")
def bundled():
    return load_bundled()


def attached(bundled, **options) -> DepthDataModule:
    model, processor = bundled
    data = DepthDataModule(**options)
    data.attach(SimpleNamespace(prompter=Verbatim(processor), model=model, hparams={"max_new_tokens": 12}))
    return data


class Verbatim(MolmoPrompter):
    """Asks what it is given."""

    def text(self, asked):
        if asked.question == "none":
            raise ValueError("there is no question")
        return asked.question


def collate(data: DepthDataModule, samples: list[Sample]):
    (loader,) = [data.eval_dataloader("validation")]
    collator = EvalCollator(loader.collate_fn.prompter, loader.collate_fn.limit)
    return collator(samples)


def words(count: int) -> str:
    return "is " * count


def test_a_prompt_beyond_the_context_costs_its_sample(bundled):
    """The bundled model has 512 positions; 12 are for the answer."""
    samples = [Sample(str(n), "i", None, words(n), ("yes",)) for n in (20, 480, 500, 20_000)]
    lengths = {sample.id: len(bundled[1](text=[sample.question], images=[None])["input_ids"][0]) for sample in samples}
    batch = collate(attached(bundled), samples)
    fits = [sample.id for sample in samples if lengths[sample.id] <= 500]
    assert batch["sample_ids"] == fits and fits
    assert batch["input_ids"].shape[1] == max(lengths[name] for name in fits)  # no padding for those left out
    reasons = {bad.id: bad.reason for bad in batch["bad_samples"]}
    assert set(reasons) == set(lengths) - set(fits) and len(reasons) >= 1
    for name, reason in reasons.items():
        assert f"the prompt has {lengths[name]:,} tokens, the limit is 500 (the model's context of 512" in reason


def test_image_tokens_count(bundled):
    image = Image.new("RGB", (400, 300))
    alone = len(bundled[1](text=["is it"], images=[image])["input_ids"][0])
    samples = [Sample("a", "i", image, "is it", ("yes",)), Sample("b", "i", image, "is it red", ("yes",))]
    batch = collate(attached(bundled, max_prompt_tokens=alone), samples)
    assert batch["sample_ids"] == ["a"] and "--data.max_prompt_tokens" in batch["bad_samples"][0].reason


def test_a_huge_text_is_counted_out_before_it_is_tokenised(bundled, monkeypatch):
    data = attached(bundled)
    huge = Sample("huge", "i", None, words(2**20 // 3), ("yes",))
    long_answer = Sample("answer", "i", None, "is it?", (words(HUGE),))
    small = Sample("small", "i", None, "is it?", ("yes",))
    kind = type(bundled[1].tokenizer)
    original, lengths = kind.__call__, []

    def spy(self, text, *args, **kwargs):
        lengths.extend(map(len, [text] if isinstance(text, str) else text))
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", spy)
    batch = collate(data, [huge, small, long_answer])
    assert batch["sample_ids"] == ["small"] and max(lengths) < 100
    reasons = {bad.id: bad.reason for bad in batch["bad_samples"]}
    assert "at least" in reasons["huge"] and "the limit is 500" in reasons["huge"]
    assert "the reference answer has at least" in reasons["answer"]


def test_a_long_reference_costs_its_sample(bundled):
    sample = Sample("long", "i", None, "is it?", (words(600),))
    strange = Sample("strange", "i", None, "none", ("yes",))
    (bad,) = collate(attached(bundled), [strange])["bad_samples"]
    assert bad.reason == "ValueError: there is no question"
    batch = collate(attached(bundled), [sample, Sample("ok", "i", None, "is it?", ("yes",))])
    assert batch["sample_ids"] == ["ok"] and "reference answer" in batch["bad_samples"][0].reason


def test_the_limit_follows_the_longest_answer(bundled):
    data = attached(bundled)
    assert data.eval_dataloader("validation").collate_fn.limit[:1] == (500,)
    data.max_new_tokens = 511
    assert data.eval_dataloader("validation").collate_fn.limit.tokens == 1
    data.max_new_tokens = 512
    with pytest.raises(ValueError, match="leave room for a prompt in the model's context of 512 tokens, got 512"):
        data.eval_dataloader("validation")
    given = attached(bundled, max_prompt_tokens=30)
    assert given.eval_dataloader("validation").collate_fn.limit == PromptLimit(30, "--data.max_prompt_tokens")
    unattached = DepthDataModule(prompter_for(*bundled))
    assert unattached.eval_dataloader("validation").collate_fn.limit is None
