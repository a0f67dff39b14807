"""One prompt alone, without padding: encoded by a processor or tokenizer, or taken out of a batch; what its tokens are.

A processor is told from a tokenizer by its ``tokenizer``; nothing else about it is assumed but how transformers' own
are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import checked, shorten
from lit_depth.functional.engine.decoding_configuration import end_token_ids
from lit_depth.functional.inputs import TEXT_INPUTS, is_image_input
from lit_depth.functional.token_masking.distances import token_masking

if TYPE_CHECKING:
    import pandas as pd


@checked
def run_token_masking(
    model: nn.Module,
    processor: Any,
    prompt: str,
    *,
    image: Any = None,
    raw: bool = False,
    num_output_tokens: int = 1,
    after_end: bool = False,
    blocks: str | None = None,
) -> pd.DataFrame:
    """Hide every token of a prompt in turn, block by block, and measure the change: see `token_masking`.

    Args:
        model: A Hugging Face decoder (text or vision-language) in evaluation mode.
        processor: Its processor, or its tokenizer.
        prompt: For this, ``image`` and ``raw`` see `encode_prompt`.
        num_output_tokens: 1 analyses the prompt; N analyses it again after each of the first N - 1 tokens that the
            model generates.
        after_end: Go on after an end token (of the model's generation_config, or the tokenizer's).
        blocks: Dotted path of the decoder blocks, where they cannot be found.

    Returns:
        As `token_masking`, with the text of every token, ``token_masked``, in place of its id. Of its ``attrs``,
        ``input_ids`` are the prompt's tokens and ``generated_text`` is what the model generates, N tokens at most.

    Raises:
        ValueError: As `encode_prompt` and `token_masking`.

    Example:
        >>> from lit_depth import load_bundled
        >>> frame = run_token_masking(*load_bundled(), "Is there a red cross?")
        >>> frame.loc[0, ["token_masked", "variant"]].tolist()
        ['<|endoftext|>', 'Full']
    """
    inputs = encode_prompt(processor, prompt, image, raw=raw)
    device = next(model.parameters()).device
    # the hooks of an offloaded model, whose parameters lie on the meta device, move its inputs themselves
    on_device = inputs if device.type == "meta" else {name: value.to(device) for name, value in inputs.items()}
    ends = end_token_ids(model, _tokenizer(processor))
    frame = token_masking(model, on_device, num_output_tokens, after_end=after_end, end_tokens=ends, blocks=blocks)
    frame = name_tokens(frame, processor)
    frame.attrs["input_ids"] = inputs["input_ids"][0].tolist()
    return frame


@checked
def encode_prompt(processor: Any, prompt: str, image: Any = None, *, raw: bool = False) -> dict[str, Tensor]:
    """The model's inputs for one prompt.

    Special tokens in the prompt's text count as such. Some processors wrap it, such as `` User: {prompt} Assistant:``;
    one that is ``raw`` is complete as it is: no wrapping (a processor that wraps has ``encode_raw`` beside its call),
    and no second start token. Gives ``input_ids`` and ``attention_mask`` ``[1, seq]``, and the image's tensors.

    Raises:
        ValueError: If the prompt is empty or blank, or an image is given to a tokenizer.
    """
    if not callable(processor) or not hasattr(_tokenizer(processor), "decode"):
        raise ValueError(f"expected a processor or a tokenizer of transformers, got {shorten(processor)}")
    if not prompt.strip():
        raise ValueError(f"expected a prompt with text, got an empty one ({prompt!r})")
    start = start_token(processor)
    if raw and start is not None:
        rest = prompt.removeprefix(_tokenizer(processor).decode([start]))
        inputs = _encode(processor, rest, image, raw)
        # otherwise nobody puts a start token in front
        if inputs["input_ids"][0, :1].tolist() == [start]:
            return inputs
    return _encode(processor, prompt, image, raw)


def _encode(processor: Any, text: str, image: Any, raw: bool) -> dict[str, Tensor]:
    if not hasattr(processor, "tokenizer"):
        if image is not None:
            raise ValueError(f"expected a processor that takes images, got the tokenizer {type(processor).__name__}")
        encoded = processor(text, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
    call = getattr(processor, "encode_raw", processor) if raw else processor
    encoded = call(images=image, text=text, return_tensors="pt")
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def start_token(processor: Any) -> int | None:
    """Id that stands in front of every prompt; a processor may have one where its tokenizer has none."""
    own = getattr(processor, "bos_token_id", None)
    return getattr(_tokenizer(processor), "bos_token_id", None) if own is None else own


@checked
def name_tokens(frame: pd.DataFrame, processor: Any) -> pd.DataFrame:
    """Put ``token_masked``, a text, in place of ``token_id``; ``attrs["generated_text"]`` is what was generated.

    A special token is its name, and half of a character is shown as ``\\ufffd``.
    """
    texts = {token_id: _tokenizer(processor).decode([int(token_id)]) for token_id in frame["token_id"].unique()}
    named = frame.rename(columns={"token_id": "token_masked"})
    named["token_masked"] = frame["token_id"].map(texts).astype(object)
    generated, following = frame.attrs["generated_ids"], frame.attrs["next_id"]
    named.attrs = dict(frame.attrs)
    named.attrs["generated_text"] = _tokenizer(processor).decode(
        [*generated, *([] if following is None else [following])]
    )
    return named


@checked
def token_kinds(processor: Any, token_ids: Iterable[int], config: Any = None) -> list[str]:
    """What each token of a prompt is: ``start``, ``vision`` or ``text``.

    ``vision`` is every token that an image puts into the prompt, border and column tokens included. The start token is
    a kind of its own because many heads rest on it, whatever the prompt says.

    The model's configuration names the image token of some models.

    Example:
        >>> from lit_depth import load_bundled
        >>> processor = load_bundled()[1]
        >>> patch, colon = processor.tokenizer.convert_tokens_to_ids(["<im_patch>", ":"])
        >>> token_kinds(processor, [processor.bos_token_id, patch, colon])
        ['start', 'vision', 'text']
    """
    start, images = start_token(processor), image_token_ids(processor, config)
    return [
        "start" if position == 0 and token_id == start else "vision" if token_id in images else "text"
        for position, token_id in enumerate(token_ids)
    ]


def image_token_ids(processor: Any, config: Any = None) -> set[int]:
    """Ids of all tokens that an image puts into a prompt, as far as the processor or the configuration names them."""
    found = {*(getattr(processor, "image_token_ids", None) or ())}
    for holder in (processor, config):
        found |= {getattr(holder, name, None) for name in ("image_token_id", "image_token_index")}
    return found - {None}


@checked
def row_inputs(batch: Mapping[str, Any], row: int) -> dict[str, Tensor]:
    """One row of a padded batch as the processor would have given it alone, without padding.

    Families whose image inputs count positions of the padded row have a ``row_inputs`` of their own, see
    `lit_depth.models.prompting.Prompter`.

    The batch axis stays, of length 1. ``attention_mask`` is 0 at the padding, on whichever side; entries without that
    axis are left out.

    Raises:
        ValueError: If there are no ``input_ids`` ``[batch, seq]``, the attention mask has another shape, or an image
            input does not have one entry per row.

    Example:
        >>> batch = {"input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]), "attention_mask": torch.tensor([[0, 1, 1]] * 2)}
        >>> row_inputs(batch, 0)
        {'input_ids': tensor([[5, 6]]), 'attention_mask': tensor([[1, 1]])}
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise ValueError(f"expected batches with input_ids [batch, seq], got the entries {sorted(map(str, batch))}")
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape:
        raise ValueError(f"expected an attention_mask {list(ids.shape)}, got {list(mask.shape)}")
    kept = mask[row].bool()
    found = {name: batch[name] for name in TEXT_INPUTS if isinstance(batch.get(name), Tensor)}
    # position ids may have axes in front
    inputs = {name: value[..., row : row + 1, :][..., kept] for name, value in found.items()}
    images = {name: value for name, value in batch.items() if is_image_input(name) and isinstance(value, Tensor)}
    for name, value in images.items():
        if len(value) != len(ids):
            raise ValueError(
                f"expected {name} with one entry per row, got {len(value)} for {len(ids)} rows: use batches of one"
            )
        inputs[name] = value[row : row + 1]
    return inputs
