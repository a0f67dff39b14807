"""Memory that is told before anything is loaded, held to the bytes of real weights, caches and tensors."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.cache_utils import Cache

from lit_depth.functional import find_blocks, masked
from lit_depth.functional.latency.footprint import request_bytes, weight_bytes
from lit_depth.models.loading import auto_class, outline_model
from tests.helpers.families import FAMILIES
from tests.helpers.model_zoo import ZOO
from tests.helpers.pruning import pruned_copy

SOME = ["Llama", "Gemma 2", "Molmo (MolmoE-1B)", "Molmo (7B-D, 72B)", "Qwen2.5-VL", "Gemma 3", "gpt-oss"]
EVERY = [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
# each family in one of two number formats; the sizes of float16 are those of bfloat16
EACH_IN_ONE = [
    pytest.param(name, dtype, marks=[getattr(pytest.mark, mark) for mark, here in marks.items() if here])
    for index, name in enumerate(FAMILIES)
    for place, dtype in enumerate(("float32", "bfloat16", "float16"))
    for marks in [{"slow": name not in SOME, "exhaustive": place != index % 2}]
]


def held_bytes(model: torch.nn.Module) -> int:
    """Of parameters and buffers, each once."""
    held = {id(each): each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers())}
    return sum(held.values())


def layer_bytes(cache: Cache) -> tuple[int, ...]:
    """Of the memory behind each layer's tensors."""
    found = []
    for layer in cache.layers:
        tensors = [each for each in vars(layer).values() if isinstance(each, torch.Tensor)]
        tensors += [each for inner in vars(layer).values() if isinstance(inner, dict) for each in inner.values()]
        tensors = [each for each in tensors if isinstance(each, torch.Tensor)]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        found.append(sum(size for pointer, size in storages.items() if pointer))
    return tuple(found)


def real_cache(model: PreTrainedModel, batch_size: int, prompt: int, new_tokens: int) -> Cache:
    ids = torch.randint(10, 40, (batch_size, prompt), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = dict(do_sample=False, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options
    )
    return next(value for value in output.values() if isinstance(value, Cache))


@pytest.mark.parametrize(("name", "dtype"), EACH_IN_ONE)
def test_weights_and_cache_of_a_family_are_exact(tmp_path, name, dtype):
    FAMILIES[name].write(tmp_path)
    outline, _ = outline_model_without_processor(tmp_path, dtype)
    config = AutoConfig.from_pretrained(tmp_path)
    model = auto_class(config).from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    num_blocks = len(find_blocks(model))
    weights = weight_bytes(outline)
    assert weights == weight_bytes(model)
    assert weights.total(range(num_blocks)) == held_bytes(model)
    mask = [True, False, True, True]
    pruned = pruned_copy(model, mask)
    assert weights.total([0, 2, 3]) == held_bytes(pruned)
    if dtype == "float16":  # the cache has the sizes of bfloat16
        return
    # prompts within and beyond a window, and one that is decoded beyond it
    for batch_size, prompt, new_tokens in ((1, 5, 1), (2, 9, 4), (1, 70, 1), (2, 60, 9)):
        planned = request_bytes(outline, batch_size, prompt, new_tokens)
        assert planned.cache == layer_bytes(real_cache(model, batch_size, prompt, new_tokens))
    with masked(model, mask):
        kept = layer_bytes(real_cache(model, 2, 60, 9))
    assert planned.cache_total([0, 2, 3]) == sum(kept) == sum(layer_bytes(real_cache(pruned, 2, 60, 9)))


def outline_model_without_processor(folder: Path, dtype: str) -> tuple[PreTrainedModel, Any]:
    """From ``config.json`` alone: the rest of the folder is hidden."""
    alone = folder / "alone"
    alone.mkdir()
    (alone / "config.json").write_text((folder / "config.json").read_text())
    return outline_model(str(alone), dtype=dtype)


HYBRIDS = ["bamba", "lfm2", "jamba", "qwen3_next", "falcon_h1", "granite_hybrid", "mamba"]


@pytest.mark.slow
@pytest.mark.parametrize("name", HYBRIDS)
def test_recurrent_states_are_counted(name):
    if name not in ZOO:
        pytest.skip("no such family in the zoo")
    model, _ = ZOO[name]()
    with torch.device("meta"):
        outline = type(model)._from_config(model.config)
    planned = request_bytes(outline, 2, 9, 4)
    assert planned.cache == layer_bytes(real_cache(model, 2, 9, 4))


# ---- shapes of released models, by hand from their published configurations


def llama_70b() -> PreTrainedModel:
    """https://huggingface.co/meta-llama/Llama-3.1-70B: 80 blocks, 8192 wide, 64 heads of 128, 8 of keys and values."""
    sizes = dict(vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80)
    heads = dict(num_attention_heads=64, num_key_value_heads=8, tie_word_embeddings=False)
    with torch.device("meta"):
        return LlamaForCausalLM._from_config(LlamaConfig(**sizes, **heads), dtype=torch.bfloat16)


def test_a_model_of_70_billion_weights_by_hand():
    model = llama_70b()
    block = 8192 * (64 + 2 * 8 + 64) * 128 + 3 * 8192 * 28672 + 2 * 8192
    rope = 2 * 64 * 4  # inverse frequencies, and those before scaling
    weights = weight_bytes(model)
    assert weights.blocks == (2 * block,) * 80
    assert weights.text == 2 * (2 * 128256 * 8192 + 8192) + rope and weights.vision == 0
    assert round(weights.total(range(80)) / 2e9, 2) == 70.55  # billions of weights
    planned = request_bytes(model, 8, 2000, 128)
    assert planned.cache == (8 * 2127 * 2 * 8 * 128 * 2,) * 80  # 327,680 bytes a token
    # in an MLP: embeddings, the block's input, the residual stream and its norm; gate, up-projection and their product
    widest = 8 * 2000 * 2 * (4 * 8192 + 3 * 28672)
    # and masks and positions, whose queries and keys share the heads of 128
    rest = 8 * 2000 * 2000 + 2 * 8 * 2000 * 128 * 2
    assert widest < planned.activations[40] < widest + 2 * rest


def test_a_vision_language_model_of_72_billion_weights():
    """https://huggingface.co/Qwen/Qwen2.5-VL-72B-Instruct, whose page tells 73.4 billion weights."""
    text = dict(vocab_size=152064, hidden_size=8192, intermediate_size=29568, num_hidden_layers=80)
    text |= dict(num_attention_heads=64, num_key_value_heads=8)
    vision = dict(depth=32, hidden_size=1280, out_hidden_size=8192, intermediate_size=3456, num_heads=16)
    with torch.device("meta"):
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    weights = weight_bytes(model)
    assert round(weights.total(range(80)) / 2e9, 1) == 73.4
    assert round(weights.vision / 2e9, 2) == 0.70
    assert request_bytes(model, 1, 1000, 2).cache_total(range(80)) == 1001 * 327_680


def test_compressed_keys_and_values():
    """DeepSeek-V3 (https://arxiv.org/abs/2412.19437) keeps 512 + 64 numbers a token and block, in place of heads."""
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM._from_config(DeepseekV3Config(num_hidden_layers=4), dtype=torch.bfloat16)
    assert request_bytes(model, 1, 100, 1).cache == (100 * (512 + 64) * 2,) * 4


# ---- activations, held to what is alive in a real run


class Alive(TorchDispatchMode):
    """Bytes of what the kernels of a real run return, and their peak."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.before = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
        self.known: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if not isinstance(each, torch.Tensor):
                continue
            storage = each.untyped_storage()
            if storage.data_ptr() in self.before or id(storage) in self.known:
                continue
            self.known[id(storage)] = storage.nbytes()
            weakref.finalize(storage, self.known.pop, id(storage))
        self.peak = max(self.peak, sum(self.known.values()))
        return result


@pytest.mark.parametrize(("batch_size", "prompt"), [(1, 300), (4, 200)])
@pytest.mark.parametrize("name", EVERY)
def test_activations_are_those_of_a_run(tmp_path, name, batch_size, prompt):
    """Peak of cache and activations of a prompt, as planned and as measured: within a tenth."""
    FAMILIES[name].write(tmp_path)
    outline, _ = outline_model_without_processor(tmp_path, "float32")
    config = AutoConfig.from_pretrained(tmp_path)
    model = auto_class(config).from_pretrained(tmp_path, dtype=torch.float32).eval()
    planned = request_bytes(outline, batch_size, prompt, 1)
    ids = torch.randint(10, 40, (batch_size, prompt))
    padding = torch.ones_like(ids)
    padding[1:, :3] = 0
    with torch.no_grad(), Alive(model) as alive:
        model(ids, attention_mask=padding, use_cache=True, logits_to_keep=1)
    blocks = range(len(planned.cache))
    expected = planned.cache_total(blocks) + planned.activations_peak(blocks)
    assert abs(alive.peak - expected) < 0.1 * expected, (alive.peak, expected)


def test_a_model_with_weights_is_refused():
    sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    with pytest.raises(ValueError, match="expected a Hugging Face model on the meta device, got a LlamaForCausalLM"):
        request_bytes(LlamaForCausalLM(LlamaConfig(**sizes)), 1, 1, 1)
    with pytest.raises(ValueError, match="expected prompt_tokens of at least 1, got 0"):
        request_bytes(llama_70b(), 1, 0, 1)
