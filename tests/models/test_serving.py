"""A processor that cannot serve its model is refused when the checkpoint is loaded, in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaForCausalLM

from lit_depth import DepthModule
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.prompting import prompter_for
from lit_depth.models.serving import check_serves
from tests.helpers.commands import run
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_checkpoints import CHAT_TEMPLATE, write_llama, write_llava


@pytest.fixture
def llava(tmp_path):
    return write_llava(tmp_path / "llava")


@pytest.fixture
def llama(tmp_path):
    return write_llama(tmp_path / "llama")


def edit(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def refusal(folder, tmp_path, capsys, *options):
    """The one line that a command ends with."""
    assert run(["importance", "--model.checkpoint", folder, "--output_dir", tmp_path / "out", *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def test_the_models_of_the_tests_are_served(llava, llama):
    for folder in (llava, llama, "bundled"):
        model, processor = load_checkpoint(str(folder))
        check_serves(prompter_for(model, processor), model)


def test_a_tokenizer_of_another_model(llama, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    config = LlamaForCausalLM.from_pretrained(llama).config
    config.vocab_size = 100
    LlamaForCausalLM(config).save_pretrained(llama)
    line = refusal(llama, tmp_path, capsys)
    assert f"of {tokenizer.vocab_size} tokens for a model of 100 embeddings" in line
    config.vocab_size = 4000
    LlamaForCausalLM(config).save_pretrained(llama)
    with pytest.warns(UserWarning, match="tokens, the model 4,000 embeddings: is it this model's own"):
        DepthModule(str(llama))


def test_added_tokens_that_a_model_lacks_cost_their_samples_only(llama):
    """As of Gemma 3's text models, whose tokenizer has a token for images."""
    model, tokenizer = load_checkpoint(str(llama))
    tokenizer.add_tokens(["<extra>"])
    prompter = prompter_for(model, tokenizer)
    check_serves(prompter, model)
    from tests.models.test_prompting import FREE, replace

    fine, other = (replace(FREE, image=None, question=text) for text in ("Is it?", "Is it <extra>?"))
    prompter.encode([fine])
    size = len(tokenizer) - 1
    with pytest.raises(ValueError, match=rf"expected token ids below {size}, .* got {size} \('<extra>'\)"):
        prompter.encode([fine, other])


def test_a_tokenizer_that_ends_every_prompt(llama, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    tokenizer.save_pretrained(llama)
    assert "ends every text with <|endoftext|>, and so every prompt" in refusal(llama, tmp_path, capsys)
    # a chat template writes all special tokens itself
    (llama / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}")
    check_serves(prompter_for(*load_checkpoint(str(llama))), load_checkpoint(str(llama))[0])


def test_a_template_that_raises(llava, llama, tmp_path, capsys):
    for folder in (llava, llama):
        (folder / "chat_template.jinja").write_text("{{ raise_exception('no system turn') }}")
        assert "cannot put a question" in (line := refusal(folder, tmp_path, capsys))
        assert "the chat template raises on the user's turn: no system turn (mend its chat_template.jinja" in line


def test_a_template_that_takes_no_answer(llama, tmp_path, capsys):
    text = "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('none') }}{% endif %}{% endfor %}"
    (llama / "chat_template.jinja").write_text("Hi" + text)
    line = refusal(llama, tmp_path, capsys)
    assert "cannot put a question" in line and "raises on the user's turn and the assistant's turn: none (mend" in line


@pytest.mark.parametrize(
    ("family", "content", "form"),
    [
        ("llava", "{% for p in m.content if p.type == 'image' %}<image>{% endfor %}", "typed content"),
        ("llava", "<image>{{ m.content }}", "typed content"),  # as Python shows it
        ("llama", "{% for p in m.content %}{{ p.text }}{% endfor %}", "plain text"),
    ],
)
def test_a_template_that_does_not_write_the_question(family, content, form, request, tmp_path, capsys):
    folder = request.getfixturevalue(family)
    (folder / "chat_template.jinja").write_text(f"Hi{{% for m in messages %}}{content}{{% endfor %}}")
    assert refusal(folder, tmp_path, capsys).endswith(f"the chat template does not write a user's turn of {form}")


def test_a_template_without_images(llava, tmp_path, capsys):
    (llava / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<image>", ""))
    line = refusal(llava, tmp_path, capsys)
    assert "LlavaProcessor cannot put a question about an image" in line and "image" in line


def test_a_processor_of_another_family(llava, tmp_path, capsys):
    # its image token is another
    edit(llava / "config.json", image_token_index=5, image_token_id=5)
    line = refusal(llava, tmp_path, capsys)
    assert "writes no image token that a LlavaForConditionalGeneration reads" in line


def test_a_processor_whose_inputs_the_model_does_not_take(llava):
    model, processor = load_checkpoint(str(llava))
    prompter = prompter_for(model, processor)
    encode = prompter._encode

    def with_grid(texts, images):
        inputs = encode(texts, images)
        return {**inputs, "image_grid_thw": inputs["input_ids"]}

    prompter._encode = with_grid
    with pytest.raises(ValueError, match="LlavaProcessor, which makes image_grid_thw: a .* does not take that"):
        check_serves(prompter, model)


def test_a_processor_without_what_the_model_needs(llava):
    model, processor = load_checkpoint(str(llava))

    class NeedsGrid(type(model)):
        def forward(self, input_ids=None, pixel_values=None, image_grid_thw=None): ...

    prompter = prompter_for(model, processor)
    model.__class__ = NeedsGrid
    with pytest.raises(ValueError, match="which does not make image_grid_thw: a NeedsGrid needs that"):
        check_serves(prompter, model)


def test_a_vision_language_model_with_a_tokenizer_alone(llava, tmp_path, capsys):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (llava / name).unlink(missing_ok=True)
    line = refusal(llava, tmp_path, capsys)
    assert "preprocessor_config.json" in line or "processor" in line


def test_settings_of_the_processor(llava, llama, tmp_path, capsys):
    larger = ("--model.processor_kwargs", '{"size": {"shortest_edge": 12}}')
    given = json.loads(larger[1])
    module = DepthModule(str(llava), processor_kwargs=given)
    assert module.processor.image_processor.size["shortest_edge"] == 12 and given == json.loads(larger[1])
    line = refusal(llava, tmp_path, capsys, "--model.processor_kwargs", '{"max_pixel": 4}')
    assert "expected settings of a LlavaProcessor as processor_kwargs, got max_pixel; it has crop_size, " in line
    line = refusal(llama, tmp_path, capsys, "--model.processor_kwargs.size", "4")
    assert "expected no processor_kwargs for a model that takes text alone, got size" in line


def test_variables_of_the_chat_template(llava, llama, tmp_path, capsys):
    line = refusal(llava, tmp_path, capsys, "--model.chat_template_kwargs", '{"enable_thinking": true}')
    assert "which reads none; got enable_thinking" in line
    line = refusal(llama, tmp_path, capsys, "--model.chat_template_kwargs.enable_thinking", "true")
    assert "expected no chat_template_kwargs for a model without a chat template" in line
    line = refusal("bundled", tmp_path, capsys, "--model.chat_template_kwargs.enable_thinking", "true")
    assert "expected no chat_template_kwargs for a model that is asked in its family's own way" in line


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(llava):
    edit(llava / "tokenizer_config.json", pad_token=None)
    tokenizer = load_checkpoint(str(llava))[1].tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def refused(folder, **settings):
    with pytest.raises(ValueError, match="Processor cannot put a question about an image to its model") as caught:
        DepthModule(str(folder), **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("weights", "processor"),
    [
        ("LLaVA-NeXT", "LLaVA 1.5"),
        ("LLaVA 1.5", "LLaVA-NeXT"),
        ("PaliGemma", "Gemma 3"),
        ("LLaVA-OneVision", "LLaVA 1.5"),
    ],
)
def test_the_processor_of_a_sibling_is_refused_before_anything_runs(weights, processor, tmp_path):
    parts = {name: tmp_path / name for name in (weights, processor)}
    for name, folder in parts.items():
        folder.mkdir()
        FAMILIES[name].write(folder)
    own = ("config.json", "model.safetensors", "generation_config.json")
    for file in parts[processor].iterdir():
        if file.name not in own:
            shutil.copy(file, parts[weights])
    for file in parts[weights].iterdir():
        if file.name not in own and not (parts[processor] / file.name).is_file():
            file.unlink()
    with pytest.raises(ValueError, match="Processor|tokenizer") as caught:
        DepthModule(str(parts[weights]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Qwen2-VL", {"patch_size": 8}),
        ("Qwen2-VL", {"max_pixels": -5}),
        ("Qwen2-VL", {"max_pixels": "abc"}),
        ("Qwen2-VL", {"merge_size": 4}),
        ("PaliGemma", {"size": {"height": 32, "width": 32}}),
        ("Gemma 3", {"image_seq_length": 9}),
        ("Idefics3", {"image_seq_len": 3}),
        ("LLaVA 1.5", {"num_additional_image_tokens": 0}),
        ("LLaVA-OneVision", {"num_image_tokens": 5}),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_by_name(family, settings, tmp_path):
    FAMILIES[family].write(tmp_path)
    assert f"with processor_kwargs {settings}" in refused(tmp_path, processor_kwargs=settings)


def test_an_image_of_more_tokens_than_the_context_is_refused_before_the_vision_tower_runs(tmp_path, capsys):
    FAMILIES["Qwen2-VL"].write(tmp_path)
    model, _ = load_checkpoint(str(tmp_path))
    context = model.config.text_config.max_position_embeddings
    edge = 8 * int(context**0.5 + 1)  # a token of this family shows 8 x 8 pixels
    settings = {"size": {"shortest_edge": edge**2, "longest_edge": 2 * edge**2}}
    _, processor = load_checkpoint(str(tmp_path), processor_kwargs=settings)
    model.model.visual.forward = None  # would raise
    told = "a question about an image of 64 x 48 pixels has .* of images: --model.processor_kwargs makes them smaller"
    with pytest.raises(ValueError, match=rf"{told}\), the model's context is {context}") as caught:
        check_serves(prompter_for(model, processor), model, settings)
    assert str(caught.value).endswith(f" (with processor_kwargs {settings})")


def test_the_check_leaves_the_model_as_it_was_and_stops_before_its_blocks(llava):
    model, processor = load_checkpoint(str(llava))
    model.model.vision_tower.train()
    before = {name: module.training for name, module in model.named_modules()}
    ran = []
    blocks = find_blocks(model)
    blocks[0].register_forward_hook(lambda *_: ran.append(1))
    hooks = len(blocks[0]._forward_pre_hooks)
    check_serves(prompter_for(model, processor), model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not ran and len(blocks[0]._forward_pre_hooks) == hooks


@pytest.mark.parametrize("away", ["meta", "flash_attention_2", "quantised"])
def test_a_model_that_cannot_run_where_it_lies_is_not_run(away, llava):
    model, processor = load_checkpoint(str(llava))
    prompter = prompter_for(model, processor)
    model.model.vision_tower.forward = None  # would raise
    with pytest.raises(ValueError, match="'NoneType' object is not callable"):
        check_serves(prompter, model)
    if away == "meta":
        model.lm_head.to("meta")
    elif away == "quantised":
        model.config.quantization_config = {"bits": 4}
    else:
        model.config._attn_implementation = away
    check_serves(prompter, model)


def test_running_out_of_memory_says_nothing_of_the_processor(llava):
    model, processor = load_checkpoint(str(llava))

    def forward(*_, **__):
        raise torch.OutOfMemoryError("too much")

    model.model.vision_tower.forward = forward
    with pytest.raises(torch.OutOfMemoryError):
        check_serves(prompter_for(model, processor), model)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"max_pixels": 256}, 4),
        # a checkpoint's own max_pixels do not come before the size that was given
        ({"size": {"shortest_edge": 1024, "longest_edge": 1024}}, 16),
        ({"size": {"shortest_edge": 4096, "longest_edge": 4096}}, 64),
    ],
)
def test_limits_to_the_size_of_an_image_hold(settings, tokens, tmp_path):
    """A token of this family shows 8 x 8 pixels."""
    FAMILIES["Qwen2-VL"].write(tmp_path)
    module = DepthModule(str(tmp_path), processor_kwargs=settings)
    inputs = module.prompter.encode_prompt("What is it?", Image.new("RGB", (64, 64)))
    assert module.prompter.num_vision_tokens(inputs).tolist() == [tokens]
