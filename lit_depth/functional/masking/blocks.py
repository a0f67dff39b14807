"""Find the transformer blocks (decoder layers) of a Hugging Face model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lit_depth.functional.arguments import checked


@checked
def find_blocks(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """Return the decoder blocks of ``model``: the list itself, not a copy.

    Without ``path`` the decoder is ``model.get_decoder()``; for a module that only *holds* a Hugging Face model (a
    LightningModule, a PEFT or ``torch.compile`` wrapper) it is that of the one language model inside. The blocks are
    the decoder's ``nn.ModuleList`` of ``config.num_hidden_layers`` entries.

    Args:
        model: a text model, a vision-language model, or any module that holds exactly one.
        path: dotted path of the block list, from ``model``, e.g. ``"model.language_model.layers"``.

    Raises:
        ValueError: no decoder blocks, several candidates, or a ``path`` that does not name an ``nn.ModuleList``.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> len(find_blocks(LlamaForCausalLM(LlamaConfig(**sizes))))
    3
    """
    if path is not None:
        return _blocks_at(model, path)
    candidates = {
        _join(root_path, block_path): blocks
        for root_path, root in _language_models(model)
        for block_path, blocks in _decoder_block_lists(root)
    }
    if not candidates:
        raise ValueError(
            f"expected a decoder with a ModuleList of config.num_hidden_layers blocks, found none in "
            f"{type(model).__name__}; pass blocks=<dotted path>. {_describe_lists(model)}{_describe_hidden(model)}"
        )
    if len(candidates) > 1:
        raise ValueError(
            f"expected one list of decoder blocks, found {len(candidates)} in {type(model).__name__}: "
            f"{', '.join(candidates)}; choose one with blocks=<dotted path>"
        )
    return next(iter(candidates.values()))


def context_length(model: nn.Module) -> int | None:
    """Tokens that a model was made for (``max_position_embeddings`` of its text model); None where it does not say.

    A sliding window is no limit: blocks forget what is outside of it, and go on.
    """
    config = getattr(model, "config", None)
    if isinstance(config, PreTrainedConfig):
        config = config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


@checked
def find_decoder(model: nn.Module, blocks: nn.ModuleList) -> PreTrainedModel | None:
    """Return the innermost Hugging Face model inside ``model`` that holds ``blocks``; None if there is none."""
    decoder = None
    # named_modules walks from the outside in, so the last match is the innermost
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and any(child is blocks for child in module.modules()):
            decoder = module
    return decoder


def _blocks_at(model: nn.Module, path: str) -> nn.ModuleList:
    module = model
    walked = ""
    for name in path.split("."):
        # named_children leaves out a module's second name
        every = module.named_modules(remove_duplicate=False)
        children = {child: inner for child, inner in every if child and "." not in child}
        if name not in children:
            near = difflib.get_close_matches(name, children, n=1)
            hint = f"did you mean {_join(walked, near[0])!r}? " if near else ""
            raise ValueError(
                f"expected the path of the blocks, no module at {path!r}: {walked or type(model).__name__} has no "
                f"child {name!r}; {hint}{_describe_lists(model)}"
            )
        module, walked = children[name], _join(walked, name)
    if not isinstance(module, nn.ModuleList) or len(module) == 0:
        raise ValueError(
            f"expected a non-empty ModuleList of blocks at {path!r}, got {type(module).__name__}; "
            f"{_describe_lists(model)}"
        )
    return module


def _language_models(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Outermost modules with a token-reading decoder: (path, module). Vision towers are left out."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        is_model = isinstance(module, PreTrainedModel) or (module is model and hasattr(module, "get_decoder"))
        if not is_model or name.startswith(inside):
            continue
        if name == "":
            yield name, module
            return
        inside += (name + ".",)
        if _reads_tokens(module):
            yield name, module


def _reads_tokens(model: Any) -> bool:
    """Whether the decoder embeds token ids; a vision tower embeds pixels. A model that does not say is believed."""
    try:
        embeddings = model.get_decoder().get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return True
    return embeddings is None or any(isinstance(module, nn.Embedding) for module in embeddings.modules())


def _decoder_block_lists(root: Any) -> list[tuple[str, nn.ModuleList]]:
    """ModuleLists of the right length in the decoder of ``root``, the shallowest ones only: (path from root, list)."""
    if not _reads_tokens(root):
        return []
    decoder = root.get_decoder()
    decoder_path = next((name for name, module in root.named_modules() if module is decoder), "")
    config: Any = getattr(decoder, "config", None) or getattr(root, "config", None)
    if isinstance(config, PreTrainedConfig):
        config = config.get_text_config(decoder=True)
    num_blocks = getattr(config, "num_hidden_layers", None)
    found = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks
    ]
    # experts inside a block, or a tower deeper down, can have the same length by chance
    depth = min((name.count(".") for name, _ in found), default=0)
    return [(_join(decoder_path, name), module) for name, module in found if name.count(".") == depth]


def _describe_lists(model: nn.Module) -> str:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [(n, m) for n, m in lists if not any(n.startswith(other + ".") for other, _ in lists)]
    if not outer:
        return f"{type(model).__name__} holds no ModuleList"
    return "module lists are: " + ", ".join(f"{name} ({len(module)} entries)" for name, module in outer)


def _describe_hidden(model: nn.Module) -> str:
    """Hugging Face models that attributes hold in plain lists or dicts."""
    found = []
    for name in vars(model).keys() - vars(nn.Module()).keys():
        held = getattr(model, name, None)
        members = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else ()
        found += [f"{name!r} ({type(one).__name__})" for one in members if isinstance(one, PreTrainedModel)]
    if not found:
        return ""
    return (
        f". A plain list or dict hides its modules from torch: {', '.join(sorted(found))}; hold them in an "
        "nn.ModuleList or nn.ModuleDict"
    )


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
