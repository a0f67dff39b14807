"""How a model is asked: samples of any task become the inputs of its family.

A task says what is asked (question, options, kind of answer, its own name); a prompter writes it the way its family was
trained to be asked, and knows the names of the inputs that come of it. A family of its own kind names its prompter in
``prompter_class`` of its model class, or, where that class is not ours, has ``PROMPTER`` in
``models/<model type>/prompting_<model type>.py``; every other model is asked through the chat template of its processor
or tokenizer, or as plain text where there is none.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_depth.functional.choices import option_letters
from lit_depth.functional.inputs import IGNORE, count_image_tokens
from lit_depth.functional.token_masking.prompt import encode_prompt, image_token_ids, row_inputs

Box = tuple[float, float, float, float]

# how long the answer should be, in words that instruction-tuned models follow
_INSTRUCTIONS = {
    "short": "Answer in one word or a short phrase.",
    "number": "Answer with a number alone.",
    "choice": "Answer with the letter of the right option alone.",
    "caption": "Describe the picture in one sentence.",
    "free": "",
}


class Asked(Protocol):
    """What a prompter reads of a `lit_depth.data.Sample`."""

    @property
    def image(self) -> Any:
        """An upright RGB picture, or None."""

    @property
    def question(self) -> str:
        """The question alone; empty where the kind of answer says it all."""

    @property
    def options(self) -> tuple[str, ...]:
        """Texts to choose from, in the order of their letters; the answer is then a letter."""

    @property
    def task(self) -> str:
        """Name of the task; empty where there is none."""

    @property
    def answer_kind(self) -> str:
        """``short``, ``choice``, ``number``, ``caption`` or ``free``; empty = ``short``."""


class VisionToken(NamedTuple):
    """One token that carries image features."""

    position: int
    """Position in the sequence."""
    crop: int
    """0 for the overview, then the crops row by row."""
    box: Box | None
    """(left, top, right, bottom) in pixels of the original image; None where the token shows letterbox border only."""


class Prompter:
    """What all families share. A subclass gives `text`, and overrides what its family does in its own way.

    Args:
        processor: The model's processor, or the tokenizer of a text model.
        config: The model's configuration, which names the image token of some models.
    """

    image_inputs: tuple[str, ...] = ()
    """Names of the model inputs that hold images."""

    def __init__(self, processor: Any, config: Any = None) -> None:
        self.processor = processor
        self.config = config

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; a text model's processor is its tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    def text(self, asked: Asked) -> str:
        """What is written of a sample, before the frame that every prompt has (roles, start and image tokens)."""
        raise NotImplementedError

    def encode(self, samples: Sequence[Asked]) -> dict[str, Tensor]:
        """Model inputs of some samples, padded on the left.

        Returns:
            ``input_ids`` and ``attention_mask`` ``[batch, seq]``, and those of `image_inputs` where there are images.

        Raises:
            ValueError: If a sample cannot be put to this model.
        """
        return self._encode([self.text(sample) for sample in samples], [sample.image for sample in samples])

    def _encode(self, texts: list[str], images: list[Any]) -> dict[str, Tensor]:
        raise NotImplementedError

    def encode_prompt(self, prompt: str, image: Any = None, *, raw: bool = False) -> dict[str, Tensor]:
        """Model inputs of one text, in the frame that every prompt has, or ``raw``, complete as it is.

        Raises:
            ValueError: As `lit_depth.functional.token_masking.prompt.encode_prompt`.
        """
        if raw or not prompt.strip():
            return encode_prompt(self.processor, prompt, image, raw=raw)
        return self._encode([prompt], [image])

    def prompt_length(self, asked: Asked) -> int | None:
        """Tokens of the prompt, those of its image included, without preparing the image; None = nobody can tell."""
        return None

    def answer_ids(self, texts: Sequence[str]) -> Tensor:
        """Tokens that the model should generate for each answer, the end token (if there is one) included.

        Returns:
            Long ``[batch, answer]``, padded on the right with -100.
        """
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        lead = self._before_answer()
        rows = [self.tokenizer(lead + text, add_special_tokens=False)["input_ids"] for text in texts]
        return pad_sequence([torch.tensor([*row, *end]) for row in rows], batch_first=True, padding_value=IGNORE)

    def _before_answer(self) -> str:
        """What stands between the prompt and the answer's first letter."""
        return " "

    def num_vision_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Tokens of each row that carry image features, long ``[batch]``."""
        return count_image_tokens(self.config, inputs["input_ids"])

    def image_token_positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Which positions an image put into the prompt, borders and separators included: bool ``[batch, seq]``."""
        ids = inputs["input_ids"]
        return torch.isin(ids, ids.new_tensor(sorted(image_token_ids(self.processor, self.config))))

    def image_places(self, image: Any) -> list[VisionToken]:
        """Which part of a picture each of its vision tokens shows, by position; empty where nobody can tell."""
        return []

    @classmethod
    def row_inputs(cls, batch: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        """One row of a padded batch, see `lit_depth.functional.token_masking.prompt.row_inputs`."""
        return row_inputs(batch, row)


class TextPrompter(Prompter):
    """Plain text, for a model without a chat template: ``Question: ... Answer:``.

    It shows no images. What a model answers that cannot see them is what the questions give away.
    """

    def text(self, asked: Asked) -> str:
        question = asked.question or _INSTRUCTIONS["caption"]
        return "\n".join([f"Question: {question}", *_option_lines(asked), "Answer:"])

    def _encode(self, texts: list[str], images: list[Any]) -> dict[str, Tensor]:
        _warn_unseen(images)
        return left_padded([self.tokenizer(text)["input_ids"] for text in texts], pad_token(self.tokenizer))

    def encode_prompt(self, prompt: str, image: Any = None, *, raw: bool = False) -> dict[str, Tensor]:
        return encode_prompt(self.processor, prompt, image, raw=raw)

    def prompt_length(self, asked: Asked) -> int:
        return len(self.tokenizer(self.text(asked))["input_ids"])


class ChatPrompter(Prompter):
    """The chat template of a processor, or of a text model's tokenizer, which does not show images.

    Args:
        processor: With a ``chat_template``.
        config: As for `Prompter`.
    """

    def __init__(self, processor: Any, config: Any = None) -> None:
        super().__init__(processor, config)
        self.image_inputs = tuple(getattr(getattr(processor, "image_processor", None), "model_input_names", ()))

    def text(self, asked: Asked) -> str:
        kind = "choice" if asked.options else asked.answer_kind or "short"
        parts = [asked.question, *_option_lines(asked), _INSTRUCTIONS[kind]]
        return "\n".join(part for part in parts if part)

    def _encode(self, texts: list[str], images: list[Any]) -> dict[str, Tensor]:
        if not self.image_inputs:
            _warn_unseen(images)
            rows = [self.tokenizer(self._framed(text), add_special_tokens=False)["input_ids"] for text in texts]
            return left_padded(rows, pad_token(self.tokenizer))
        if self.tokenizer.pad_token_id is None:
            raise ValueError(f"expected a tokenizer with a pad token, got a {type(self.tokenizer).__name__} without")
        encoded = self.processor(
            images=[image for image in images if image is not None] or None,
            text=[self._framed(text, image is not None) for text, image in zip(texts, images)],
            add_special_tokens=False,  # the template writes them
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}

    def _framed(self, text: str, with_image: bool = False, answer: str | None = None) -> str:
        """The template's text of one question, up to where the answer begins; with an answer to its end."""
        content: Any = [{"type": "image"}] * with_image + [{"type": "text", "text": text}]
        turns = [{"role": "user", "content": content if self.image_inputs else text}]
        if answer is not None:
            content = [{"type": "text", "text": answer}] if self.image_inputs else answer
            turns.append({"role": "assistant", "content": content})
        framed: str = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
        return framed

    def _before_answer(self) -> str:
        # read off the template: some have a space there, some a line end that the prompt brings along
        prompt, whole = self._framed("?"), self._framed("?", answer="answer")
        return whole.removeprefix(prompt).partition("answer")[0] if whole.startswith(prompt) else ""


def prompter_class(model: Any) -> type[Prompter] | None:
    """The prompter that a model's family has of its own."""
    found: type[Prompter] | None = getattr(model, "prompter_class", None)
    family = getattr(getattr(model, "config", None), "model_type", "")
    # the folder first: asking for what stands in one that is missing raises
    names = [f"lit_depth.models.{family}", f"lit_depth.models.{family}.prompting_{family}"]
    if found is None and family.isidentifier() and all(find_spec(name) for name in names):
        found = import_module(names[-1]).PROMPTER
    return found


def prompter_for(model: nn.Module, processor: Any) -> Prompter:
    """What puts questions to a model.

    >>> from lit_depth import load_bundled
    >>> type(prompter_for(*load_bundled())).__name__
    'MolmoPrompter'

    Args:
        model: A Hugging Face model.
        processor: Its processor, or the tokenizer of a text model.
    """
    parts = (processor, getattr(processor, "tokenizer", None))
    general = ChatPrompter if any(getattr(part, "chat_template", None) for part in parts) else TextPrompter
    return (prompter_class(model) or general)(processor, getattr(model, "config", None))


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Rows of tokens as one batch.

    >>> left_padded([[5], [6, 7]], pad=0)
    {'input_ids': tensor([[0, 5],
            [6, 7]]), 'attention_mask': tensor([[0, 1],
            [1, 1]])}
    """
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    input_ids = pad_sequence(ids, batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
    return {"input_ids": input_ids, "attention_mask": mask}


def pad_token(tokenizer: Any) -> int:
    """Token that fills rows: the pad token, else the end token, else 0."""
    return next(each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if each is not None)


def option_lines(options: Sequence[str], mark: str = ": ") -> list[str]:
    """Options behind their letters, a line each.

    >>> option_lines(("a cat", "a cow"))
    ['A: a cat', 'B: a cow']
    """
    return [f"{letter}{mark}{option}" for letter, option in zip(option_letters(options) if options else "", options)]


def _warn_unseen(images: Sequence[Any]) -> None:
    if any(image is not None for image in images):
        warnings.warn("a model without a processor of images does not see them", stacklevel=3)


def _option_lines(asked: Asked) -> list[str]:
    return option_lines(asked.options, ". ")
