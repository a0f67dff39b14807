"""Molmo's processor: prompts and images to padded model inputs."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from lit_depth.functional.arguments import checked
from lit_depth.models.molmo.image_processing_molmo import MolmoImageProcessor, MolmoImagesKwargs, rgb_pixels
from lit_depth.models.molmo.tiling_molmo import IMAGE_TOKENS


class MolmoProcessor(ProcessorMixin):
    """Build `BOS + image tokens + " User: {text} Assistant:"` and the crops that go with it.

    BOS is the tokenizer's end token where it has no BOS token (all released Molmo checkpoints). Rows are padded with
    the tokenizer's pad token, or with BOS where it has none; `attention_mask` is 0 there.

    Args:
        image_processor: Cuts the images.
        tokenizer: Tokenizer with the tokens `<im_start>`, `<im_end>`, `<im_patch>` and `<im_col>`.

    Raises:
        ValueError: If the tokenizer lacks one of these tokens, or both a BOS and an end token.
    """

    def __init__(self, image_processor: MolmoImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)
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
    ) -> MolmoProcessor:
        """Load from a folder or a repository in the released layout, or as saved by `save_pretrained`.

        The released files name remote code in `auto_map`; this class replaces it, and it is never run.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            kwargs: Overrides for `MolmoImageProcessor` (such as `max_crops`); others (such as `revision`, `cache_dir`)
                go to both parts. `trust_remote_code` is ignored.

        Raises:
            OSError: If the preprocessor configuration or the tokenizer is not found.
        """
        kwargs.pop("trust_remote_code", None)
        shared = {key: value for key, value in kwargs.items() if key not in MolmoImagesKwargs.__annotations__}
        image_processor = MolmoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False, **shared)
        return cls(image_processor, tokenizer)

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

    @checked
    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        padding_side: str = "left",
        apply_prompt_format: bool = True,
        apply_exif: bool = True,
        max_length: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prepare a batch of prompts, each with at most one image.

        Args:
            images: One image or one per text (see `rgb_pixels`), None for rows without; None for no images at all.
            text: One prompt or a list of them.
            padding_side: "left" or "right".
            apply_prompt_format: Wrap each prompt as `" User: {text} Assistant:"`; False takes it literally.
            apply_exif: Rotate and flip PIL images as their EXIF orientation says.
            max_length: Longest row allowed, in tokens. Rows are never cut.
            return_tensors: Only "pt".

        Returns:
            `input_ids` and `attention_mask`, long `[batch, seq]`; where any row has an image also `images`
            `[batch, T, N, P * P * 3]`, `image_masks` `[batch, T, N]` and `image_input_idx` `[batch, T, M]` as returned
            by `MolmoImageProcessor.preprocess`, with positions counted from the start of the padded row.

        Raises:
            ValueError: If texts and images differ in number, an image cannot be read, or a row exceeds `max_length`.
        """
        if padding_side not in ("left", "right") or return_tensors != "pt":
            raise ValueError(
                "expected padding_side 'left' or 'right' and return_tensors 'pt', got "
                f"{padding_side!r} and {return_tensors!r}"
            )
        texts = [text] if isinstance(text, str) else [] if text is None else list(text)
        rows = images if isinstance(images, (list, tuple)) else [images] * (1 if images is not None else len(texts))
        if not texts or len(texts) != len(rows):
            raise ValueError(
                f"expected one text per image and at least one, got {len(texts)} texts, {len(rows)} images"
            )

        pixels = [None if image is None else rgb_pixels(image, apply_exif) for image in rows]
        sequences = self._sequences(texts, pixels, apply_prompt_format)
        for row, sequence in enumerate(sequences):
            if max_length is not None and len(sequence) > max_length:
                raise ValueError(
                    f"expected at most max_length={max_length} tokens, got {len(sequence)} in row {row}: shorten the "
                    "text, or lower max_crops of the image processor"
                )

        length = max(map(len, sequences))
        batch = {
            "input_ids": torch.full((len(texts), length), self.pad_token_id),
            "attention_mask": torch.zeros(len(texts), length, dtype=torch.long),
        }
        starts = [length - len(sequence) if padding_side == "left" else 0 for sequence in sequences]
        for row, (start, sequence) in enumerate(zip(starts, sequences)):
            batch["input_ids"][row, start : start + len(sequence)] = sequence
            batch["attention_mask"][row, start : start + len(sequence)] = 1
        if any(image is not None for image in pixels):
            batch.update(self.image_processor(pixels))
            index = batch["image_input_idx"]
            # One more than the padding: BOS precedes the image tokens.
            batch["image_input_idx"] = torch.where(index >= 0, index + torch.tensor(starts)[:, None, None] + 1, index)
        return BatchFeature(batch)

    def encode_raw(self, **inputs: Any) -> BatchFeature:
        """A call that takes its texts literally."""
        return self(**inputs, apply_prompt_format=False)

    def _sequences(self, texts: list[str], pixels: list[Tensor | None], apply_prompt_format: bool) -> list[Tensor]:
        """Token ids of each row before padding, long `[length]`."""
        if apply_prompt_format:
            texts = [f" User: {text} Assistant:" for text in texts]
        ids_of_kind, bos = torch.tensor(self.image_token_ids), torch.tensor([self.bos_token_id])
        sequences = []
        for image, ids in zip(pixels, self.tokenizer(texts, add_special_tokens=False)["input_ids"]):
            parts = [bos, torch.tensor(ids, dtype=torch.long)]
            if image is not None:
                parts.insert(1, ids_of_kind[self.image_processor.layout(*image.shape[1:]).token_kinds])
            sequences.append(torch.cat(parts))
        return sequences
