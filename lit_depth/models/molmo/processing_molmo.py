"""Molmo's processor: prompts and images to padded model inputs."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs

from lit_depth.functional.arguments import check_least, fits, plain_type, shorten
from lit_depth.models.molmo.image_processing_molmo import (
    MolmoImageProcessor,
    MolmoImagesKwargs,
    images_of_row,
    rgb_pixels,
)
from lit_depth.models.molmo.tiling_molmo import IMAGE_TOKENS

CHAT_TEMPLATE = """\
{{- bos_token or eos_token -}}
{%- set system = namespace(text='') -%}
{%- for message in messages -%}
    {%- set parts = namespace(text='') -%}
    {%- if message['content'] is string -%}
        {%- set parts.text = message['content'] -%}
    {%- else -%}
        {%- for part in message['content'] if part['type'] == 'text' -%}
            {%- set parts.text = parts.text + part['text'] -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if message['role'] == 'system' -%}
        {%- set system.text = parts.text + ' ' -%}
    {%- elif message['role'] == 'user' -%}
        {{- ' User: ' + system.text + parts.text -}}
        {%- set system.text = '' -%}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' Assistant:' -}}
        {%- generation -%}
        {{- ' ' + parts.text -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- raise_exception('expected the role system, user or assistant, got ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- ' Assistant:' -}}
{%- endif -%}
"""
"""A conversation in the frame of a single question: images go in front, and so does what a system message says."""


class MolmoTextKwargs(TextKwargs, total=False):
    """`apply_prompt_format`: True frames each text as `" User: {text} Assistant:"`, False takes it literally, None
    frames it unless it begins with the text of the BOS token, as a chat template's prompt does."""

    apply_prompt_format: bool | None


class MolmoProcessorKwargs(ProcessingKwargs, total=False):
    """Arguments of a call to `MolmoProcessor`."""

    text_kwargs: MolmoTextKwargs  # type: ignore[misc]
    images_kwargs: MolmoImagesKwargs  # type: ignore[misc]


class _Sequence(NamedTuple):
    """Tokens of one row before padding, and where each token of its text stands in it."""

    bos: list[int]
    image: list[int]
    text: list[int]
    offsets: list[tuple[int, int]]

    @property
    def ids(self) -> list[int]:
        return [*self.bos, *self.image, *self.text]


class MolmoProcessor(ProcessorMixin):
    """Build `BOS + image tokens + " User: {text} Assistant:"` and the crops that go with it.

    BOS is the tokenizer's end token where it has no BOS token (all released Molmo checkpoints). Rows are padded with
    the tokenizer's pad token, or with BOS where it has none; `attention_mask` is 0 there.

    Args:
        image_processor: Cuts the images.
        tokenizer: Tokenizer with the tokens `<im_start>`, `<im_end>`, `<im_patch>` and `<im_col>`.
        chat_template: How a conversation is written; None = Molmo's own frame around each turn.

    Raises:
        ValueError: If the tokenizer lacks one of these tokens, or both a BOS and an end token.
    """

    valid_processor_kwargs = MolmoProcessorKwargs  # type: ignore[assignment]
    text_kwargs = {"padding": True, "return_tensors": "pt"}

    def __init__(
        self,
        image_processor: MolmoImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in IMAGE_TOKENS if token not in vocabulary]
        if missing:
            raise ValueError(f"expected a tokenizer with the tokens {list(IMAGE_TOKENS)}, got one without {missing}")
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ValueError("expected a tokenizer with a BOS or an end token, got one with neither")
        self.image_token_ids = [vocabulary[token] for token in IMAGE_TOKENS]

    @property
    def bos_token_id(self) -> int:
        """Id that starts every row: the tokenizer's BOS, else its end token."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows: the tokenizer's pad token, else `bos_token_id`."""
        pad = self.tokenizer.pad_token_id
        return self.bos_token_id if pad is None else pad

    @property
    def model_input_names(self) -> list[str]:
        """Keys that a call returns."""
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    # The base class spells out the hub's arguments, which pass through here.
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load from a folder or a repository in the released layout, or as saved by `save_pretrained`.

        The released files name remote code in `auto_map`; this class replaces it, and it is never run.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            kwargs: Overrides for `MolmoImageProcessor` (such as `max_crops`); parts of the processor itself
                (`tokenizer`, ...), used instead of those that the files name; others (such as `revision`, `cache_dir`)
                go to all parts. `trust_remote_code` is ignored.

        Raises:
            OSError: If the preprocessor configuration or the tokenizer is not found.
        """
        kwargs.pop("trust_remote_code", None)
        given = {name: kwargs.pop(name, None) for name in ("image_processor", "tokenizer", "chat_template")}
        shared = {key: value for key, value in kwargs.items() if key not in MolmoImagesKwargs.__annotations__}
        source = pretrained_model_name_or_path
        image_processor = given["image_processor"] or MolmoImageProcessor.from_pretrained(source, **kwargs)
        tokenizer = given["tokenizer"] or AutoTokenizer.from_pretrained(source, trust_remote_code=False, **shared)
        stored, _ = cls.get_processor_dict(source, **shared)
        return cls(image_processor, tokenizer, given["chat_template"] or stored.get("chat_template"))

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> list:
        """Save the tokenizer, `processor_config.json` and, as in the release, `preprocessor_config.json`.

        Args:
            save_directory: Folder, created if needed.
            push_to_hub: Also upload; the upload leaves out `preprocessor_config.json`, whose fields are in the other.
            kwargs: Passed to transformers.

        Returns:
            Paths of the configuration files.
        """
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        return [*files, *self.image_processor.save_pretrained(save_directory)]

    # The base class spells out arguments that pass through here.
    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers; what the template writes is complete, so tokens are made of it without the frame."""
        options = {"apply_prompt_format": False, **(kwargs.pop("processor_kwargs", None) or {})}
        return super().apply_chat_template(conversation, chat_template, processor_kwargs=options, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch of prompts, each with any number of images, whose tokens come first.

        Args:
            images: For one prompt an image (see `rgb_pixels`) or a list of them; for several a list with one entry
                each: an image, a list of images, or None. None for no images at all.
            text: One prompt or a list of them.
            kwargs: Those of a transformers processor, flat or as `text_kwargs`, `images_kwargs` and `common_kwargs`:

                - `padding` (True): True or "longest", "max_length", or False; `padding_side` ("left"; the tokenizer's
                  own is not asked), `pad_to_multiple_of`.
                - `max_length`: longest row allowed, in tokens. Longer rows are refused, or cut with `truncation`: the
                  text loses tokens at the tokenizer's `truncation_side`, BOS and image tokens are never cut.
                - `add_special_tokens` (True): False leaves out BOS.
                - `apply_prompt_format` (None), see `MolmoTextKwargs`; `apply_exif` (True) and the settings of
                  `MolmoImageProcessor`, for this call alone.
                - `return_tensors` ("pt"): "pt", "np", or None for lists of tokens and numpy images;
                  `return_attention_mask` (True), `return_offsets_mapping`.

        Returns:
            `input_ids` and `attention_mask`, long `[batch, seq]`; where any row has an image also `images`
            `[batch, T, N, P * P * 3]`, `image_masks` `[batch, T, N]` and `image_input_idx` `[batch, T, M]` as returned
            by `MolmoImageProcessor.preprocess`, with positions counted from the start of the padded row.

        Raises:
            ValueError: If texts and images differ in number, an image cannot be read, a row exceeds `max_length`, or
                rows that differ in length should be stacked without padding.
        """
        if kwargs.pop("videos", None) is not None or kwargs.pop("audio", None) is not None:
            raise ValueError("expected text and images, got videos or audio")
        nested = {**kwargs, **(kwargs.get("text_kwargs") or {}), **(kwargs.get("common_kwargs") or {})}
        for name, kind in {"padding_side": str | None, "return_tensors": str | None, "max_length": int | None}.items():
            if not fits(nested.get(name), kind):
                raise ValueError(f"expected {name} as {plain_type(kind)}, got {shorten(nested[name])}")
        check_least(1, max_length=nested.get("max_length"))
        side = nested.get("padding_side") or "left"
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        wanted, cuts = options["text_kwargs"], options["images_kwargs"]
        tensors = wanted.get("return_tensors")
        if side not in ("left", "right") or tensors not in ("pt", "np", None):
            raise ValueError(
                "expected padding_side 'left' or 'right' and return_tensors 'pt', 'np' or None, got "
                f"{side!r} and {tensors!r}"
            )
        if not isinstance(text, str | list | tuple | None):
            raise ValueError(f"expected text as a text or a list of texts, got {text!r}")
        texts = [text] if isinstance(text, str) else list(text or ())
        cutter, upright = self.image_processor.with_settings(cuts), cuts.get("apply_exif", True)
        pixels = [[rgb_pixels(image, upright) for image in row] for row in _images_of_rows(images, texts)]
        sequences = [self._sequence(text, row, cutter, wanted) for text, row in zip(texts, pixels)]
        sequences = [self._within(row, sequence, wanted) for row, sequence in enumerate(sequences)]
        batch, starts = self._padded(sequences, side, wanted)
        if any(pixels):
            batch |= cutter(pixels)
            index = batch["image_input_idx"]
            # BOS, where there is one, precedes the image tokens
            first = torch.tensor([start + len(sequence.bos) for start, sequence in zip(starts, sequences)])
            batch["image_input_idx"] = torch.where(index >= 0, index + first[:, None, None], index)
        return _converted(batch, tensors)

    def encode_raw(self, **inputs: Any) -> BatchFeature:
        """A call that takes its texts literally."""
        return self(**inputs, apply_prompt_format=False)

    def _sequence(self, text: str, pixels: list[Tensor], cutter: MolmoImageProcessor, wanted: dict) -> _Sequence:
        """Tokens of one prompt and its images."""
        if not isinstance(text, str):
            raise ValueError(f"expected text as a string or a list of strings, got {type(text).__name__} in the list")
        framed, bos_text = wanted.get("apply_prompt_format"), self.tokenizer.bos_token or self.tokenizer.eos_token
        complete = text.startswith(bos_text) and not framed
        written = text.removeprefix(bos_text) if complete else text
        if framed or (framed is None and not complete):
            written = f" User: {text} Assistant:"
        placed = bool(wanted.get("return_offsets_mapping"))
        tokens = self.tokenizer(written, add_special_tokens=False, return_offsets_mapping=placed)
        skipped = len(bos_text) if complete else 0
        with_bos = complete or wanted.get("add_special_tokens") in (True, None)
        kinds = [kind for image in pixels for kind in cutter.layout(*image.shape[1:]).token_kinds.tolist()]
        return _Sequence(
            bos=[self.bos_token_id] if with_bos else [],
            image=[self.image_token_ids[kind] for kind in kinds],
            text=tokens["input_ids"],
            offsets=[(start + skipped, end + skipped) for start, end in tokens.get("offset_mapping", ())],
        )

    def _within(self, row: int, sequence: _Sequence, wanted: dict) -> _Sequence:
        """A sequence of at most `max_length` tokens: as it is, or cut where `truncation` says so."""
        limit, cut = wanted.get("max_length"), wanted.get("truncation") not in (None, False, "do_not_truncate")
        if limit is None and cut:
            limit = self.tokenizer.model_max_length
        length = len(sequence.ids)
        excess = 0 if limit is None else max(length - limit, 0)
        if excess and (not cut or excess > len(sequence.text)):
            raise ValueError(
                f"expected at most max_length={limit} tokens, got {length} in row {row}: shorten the text, or lower "
                "max_crops of the image processor" + (" (BOS and image tokens are never cut)" if cut else "")
            )
        kept = slice(excess, None) if self.tokenizer.truncation_side == "left" else slice(len(sequence.text) - excess)
        return sequence._replace(text=sequence.text[kept], offsets=sequence.offsets[kept])

    def _padded(self, sequences: list[_Sequence], side: str, wanted: dict) -> tuple[dict[str, Any], list[int]]:
        """Rows as `padding` asks for them, and where each begins."""
        rows, padding = [sequence.ids for sequence in sequences], wanted.get("padding")
        lengths = [len(row) for row in rows]
        if padding in (None, False, "do_not_pad"):
            widths = lengths
            if wanted.get("return_tensors") and len(set(lengths)) > 1:
                raise ValueError(f"expected padding true to stack rows of different lengths, got {lengths} tokens")
        else:
            width = max(*lengths, (padding == "max_length" and wanted.get("max_length")) or 0)
            multiple = wanted.get("pad_to_multiple_of") or 1
            widths = [-(-width // multiple) * multiple] * len(rows)
        gaps = [width - length for width, length in zip(widths, lengths)]
        starts = gaps if side == "left" else [0] * len(rows)

        def filled(values: Sequence[list], empty: Any) -> list[list]:
            return [
                [empty] * start + value + [empty] * (gap - start) for start, gap, value in zip(starts, gaps, values)
            ]

        batch: dict[str, Any] = {"input_ids": filled(rows, self.pad_token_id)}
        if wanted.get("return_attention_mask") in (True, None):
            batch["attention_mask"] = filled([[1] * length for length in lengths], 0)
        if wanted.get("return_offsets_mapping"):
            nowhere = (0, 0)
            heads = [[nowhere] * (len(each.bos) + len(each.image)) for each in sequences]
            batch["offset_mapping"] = filled([h + each.offsets for h, each in zip(heads, sequences)], nowhere)
        return batch, starts


def _images_of_rows(images: Any, texts: list[str]) -> list[list[Any]]:
    """The images of each text."""
    if images is None:
        rows: list[list[Any]] = [[] for _ in texts]
    elif not isinstance(images, (list, tuple)):
        rows = [[images]]
    elif len(texts) == 1 and images and not any(each is None or isinstance(each, (list, tuple)) for each in images):
        rows = [list(images)]
    else:
        rows = [images_of_row(each) for each in images]
    if not texts or len(texts) != len(rows):
        raise ValueError(
            f"expected one text per entry of images and at least one, got {len(texts)} texts, {len(rows)} images"
        )
    return rows


def _converted(batch: dict[str, Any], tensors: str | None) -> BatchFeature:
    """A batch of lists of tokens and image tensors as what `return_tensors` names."""
    if tensors == "pt":
        return BatchFeature({name: torch.as_tensor(value) for name, value in batch.items()})
    arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in batch.items()}
    if tensors == "np":
        return BatchFeature({name: np.asarray(value) for name, value in arrays.items()})
    return BatchFeature({name: list(value) for name, value in arrays.items()})
