"""How a model is asked: samples of any task become the inputs of its family.

A task says what is asked (question, options, kind of answer, its own name); a prompter writes it the way its family was
trained to be asked, and knows the names of the inputs that come of it. A family of its own kind names its prompter in
``prompter_class`` of its model class, or, where that class is not ours, has ``PROMPTER`` in
``models/<model type>/prompting_<model type>.py``; every other model is asked through the chat template of its processor
or tokenizer, or in a plain frame where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_depth.functional.arguments import num_embeddings
from lit_depth.functional.choices import option_letters
from lit_depth.functional.engine.decoding_configuration import end_token_ids
from lit_depth.functional.inputs import IGNORE, count_image_tokens
from lit_depth.functional.token_masking.prompt import encode_prompt, image_token_ids, row_inputs
from lit_depth.models.chat_templates import TODAY, ChatTemplate
from lit_depth.models.padding import encode_rows, left_padded, pad_token

Box = tuple[float, float, float, float]

# how long the answer should be, in words that instruction-tuned models follow
_INSTRUCTIONS = {
    "short": "Answer in one word or a short phrase.",
    "number": "Answer with a number alone.",
    "choice": "Answer with the letter of the right option alone.",
    "caption": "Describe the picture in one sentence.",
    "free": "",
}
# how instruction-tuned families without a chat template were trained to be asked, by the type of their configuration
_FRAMES = {
    "llava": "USER: {images}{text} ASSISTANT:",
    "llava_next": "USER: {images}{text} ASSISTANT:",
    "vipllava": "###Human: {images}{text}###Assistant:",
}
_QUESTION, _ANSWER = "Where is Lhasa?", "Timbuktu"  # stand for any, and no template writes them itself
_SHOWN = "'type': 'text'"
_PREFIX_FAMILIES = ("paligemma",)
# how prompts end where a model cannot but reason, as those of QwQ, DeepSeek-R1, Kimi-VL-Thinking and Magistral do
_OPEN_THOUGHT = re.compile(r"([<\[◁])(think(?:ing)?[>\]▷])\s*$", re.IGNORECASE)


class Asked(Protocol):
    """What a prompter reads of a `lit_depth.data.Sample`."""

    @property
    def images(self) -> tuple[Any, ...]:
        """Upright RGB pictures in their order; empty for a question about text alone."""

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

    @property
    def continuations(self) -> tuple[str, ...]:
        """Texts whose log-probability is measured behind the prompt; empty where an answer is generated."""

    @property
    def prompt(self) -> str | None:
        """The whole prompt as plain text; None = a family writes the question in its way."""

    @property
    def tokens(self) -> tuple[Sequence[int], Sequence[int]] | None:
        """Of a plain prompt with one continuation the tokens of both, where they are known."""


class VisionToken(NamedTuple):
    """One token that carries image features."""

    position: int
    """Position in the sequence."""
    crop: int
    """0 for the overview, then the crops row by row."""
    box: Box | None
    """(left, top, right, bottom) in pixels of the original image; None where the token shows letterbox border only."""


class AnswerFrame(NamedTuple):
    """What stands around an answer: the end of its prompt, what the model writes first, and what follows."""

    prompt: str
    lead: str
    behind: str


class Prompter:
    """What all families share. A subclass gives `text`, and overrides what its family does in its own way.

    Args:
        processor: The model's processor, or the tokenizer of a text model.
        config: The model's configuration, which names the image token of some models.
    """

    image_inputs: tuple[str, ...] = ()
    """Names of the model inputs that hold images."""
    num_embeddings: int | None = None
    """Number of token ids that the model reads; None = unknown."""
    end_token_ids: Sequence[int] = ()
    """Tokens that end the model's answers, special or not."""

    def __init__(self, processor: Any, config: Any = None) -> None:
        self.processor = processor
        self.config = config

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; a text model's processor is its tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def sees_images(self) -> bool:
        """Whether questions can show images to the model."""
        return bool(self.image_inputs)

    def why_unseen(self) -> str:
        """Why a question about images cannot be put to a model that does not see them."""
        kind = type(self.tokenizer).__name__
        return (
            f"expected a model that sees images, got one with a tokenizer alone ({kind}): --data.drop_images true asks "
            "without the images"
        )

    def settings(self) -> dict[str, Any]:
        """What a prompt depends on beside the processor, fit for JSON."""
        return {"class": type(self).__name__}

    def text(self, asked: Asked) -> str:
        """What is written of a sample, before the frame that every prompt has (roles, start and image tokens)."""
        raise NotImplementedError

    def prompt_text(self, asked: Asked) -> str:
        """`text` of a sample; without its options where these are its continuations, or its plain prompt."""
        if asked.prompt is not None:
            # white space belongs to the word behind it, as tokenizers write it
            return asked.prompt.rstrip() if asked.continuations else asked.prompt
        if asked.continuations and asked.options:
            asked = replace(asked, options=(), answer_kind="short")  # type: ignore[type-var]
        return self.text(asked)

    def encode(self, samples: Sequence[Asked]) -> dict[str, Tensor]:
        """Model inputs of some samples, padded on the left.

        Returns:
            ``input_ids`` and ``attention_mask`` ``[batch, seq]``, and those of `image_inputs` where there are images.

        Raises:
            ValueError: If a sample cannot be put to this model.
            NotImplementedError: If there are images, and the model sees none.
        """
        images = [tuple(sample.images) for sample in samples]
        if any(images) and not self.sees_images:
            raise NotImplementedError(self.why_unseen())
        texts = [self.prompt_text(sample) for sample in samples]
        are_plain = [sample.prompt is not None for sample in samples]
        if any(are_plain) and (any(images) or not all(are_plain)):
            raise ValueError("expected plain prompts without images, in batches of their own")
        inputs = self._plain(samples) if any(are_plain) else self._encode(texts, images)
        highest = int(inputs["input_ids"].max())
        if self.num_embeddings is not None and highest >= self.num_embeddings:
            raise ValueError(
                f"expected token ids below {self.num_embeddings:,}, which the model has, got {highest:,} "
                f"({self.tokenizer.decode([highest])!r}) from its tokenizer"
            )
        return inputs

    def _encode(self, texts: list[str], images: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        raise NotImplementedError

    def encode_prompt(self, prompt: str, image: Any = None, *, raw: bool = False) -> dict[str, Tensor]:
        """Model inputs of one text, in the frame that every prompt has, or ``raw``, complete as it is.

        Raises:
            ValueError: As `lit_depth.functional.token_masking.prompt.encode_prompt`.
        """
        if raw or not prompt.strip():
            return encode_prompt(self.processor, prompt, image, raw=raw)
        if image is not None and not self.sees_images:
            raise ValueError(
                f"expected a processor that takes images, got the tokenizer {type(self.tokenizer).__name__}"
            )
        return self._encode([prompt], [() if image is None else (image,)])

    def prompt_length(self, asked: Asked) -> int | None:
        """Tokens of the prompt, those of its images included, without preparing these; None = nobody can tell."""
        if asked.images:
            return None
        inputs = self._plain([asked]) if asked.prompt is not None else self._encode([self.prompt_text(asked)], [()])
        return inputs["input_ids"].shape[1]

    def _plain(self, samples: Sequence[Asked]) -> dict[str, Tensor]:
        """Model inputs of complete prompts, an empty one of the token that texts begin with."""
        known = [None if sample.tokens is None else sample.tokens[0] for sample in samples]
        rows = [ids or self._plain_ids(self.prompt_text(each)) or self.first_ids() for ids, each in zip(known, samples)]
        return left_padded(rows, pad_token(self.tokenizer))

    def _plain_ids(self, text: str) -> list[int]:
        start = self.tokenizer.bos_token
        starts = start is not None and text.startswith(start)
        return list(self.tokenizer(text, add_special_tokens=not starts)["input_ids"]) if text else []

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a plain text, none in front of it."""
        return self._ids(text)

    def first_ids(self) -> list[int]:
        """The token that texts begin with: the tokenizer's own for that, else its end token."""
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return [next(token for token in (*known, pad_token(self.tokenizer)) if token is not None)]

    def continuation_ids(self, asked: Asked) -> list[list[int]]:
        """Tokens of each continuation of a sample, no end token behind them.

        Behind a plain prompt they are what lm-evaluation-harness makes of the pair: the white space at the prompt's end
        is theirs, and of both together they are what follows as many tokens as the prompt has.

        Raises:
            ValueError: If a continuation has no token.
        """
        if asked.tokens is not None:
            found = [list(asked.tokens[1])]
        elif asked.prompt is None:
            frame = self._answer_frame()
            found = [self._ids_behind(frame.prompt, frame.lead + text) for text in asked.continuations]
        else:
            prompt = self.prompt_text(asked)
            texts = [asked.prompt[len(prompt) :] + text for text in asked.continuations]
            length = len(self._plain_ids(prompt))
            found = [
                self._plain_ids(prompt + text)[length:] if prompt else self._behind_nothing(text) for text in texts
            ]
        empty = [text for text, tokens in zip(asked.continuations, found) if not tokens]
        if empty:
            raise ValueError(f"expected continuations of at least one token, got {empty[0]!r}")
        return found

    def _behind_nothing(self, text: str) -> list[int]:
        tokens, first = self._ids(text), self.first_ids()
        return tokens[1:] if tokens[:1] == first else tokens

    def answer_ids(self, texts: Sequence[str]) -> Tensor:
        """Tokens that the model should generate for each answer, the end token (if there is one) included.

        Returns:
            Long ``[batch, answer]``, padded on the right with -100.
        """
        frame = self._answer_frame()
        end = self._end_of_answer(frame.behind)
        rows = [torch.tensor([*self._ids_behind(frame.prompt, frame.lead + text), *end]) for text in texts]
        return pad_sequence(rows, batch_first=True, padding_value=IGNORE)

    def _answer_frame(self) -> AnswerFrame:
        return AnswerFrame(":", " ", "")

    def _ids_behind(self, before: str, text: str) -> list[int]:
        """Tokens of a text where it stands behind another: some tokenizers write the first word of a text otherwise."""
        start, whole = self._ids(before), self._ids(before + text)
        return whole[len(start) :] if whole[: len(start)] == start else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end_of_answer(self, behind: str) -> list[int]:
        """The token that ends an answer: the one that the frame writes there if it is special or ends answers of the
        model, else the tokenizer's own."""
        following = self._ids(behind.strip())[:1]
        if following and following[0] in {*self._special_tokens(), *self.end_token_ids}:
            return following
        own = self.tokenizer.eos_token_id
        return list(self.end_token_ids[:1]) if own is None else [own]

    def decode(self, tokens: Tensor, answer_after: str | None = None, end_tokens: Sequence[int] = ()) -> list[str]:
        """Generated tokens ``[rows, tokens]`` as text, without special tokens.

        Args:
            tokens: Answers, each padded behind its end token.
            answer_after: Leave out all up to the last occurrence of this text, which may hold special tokens; an
                answer without it is empty. None = leave out nothing.
            end_tokens: A row ends before the first of these: they need not be special, nor what it is padded with.
        """
        ended = torch.isin(tokens, tokens.new_tensor(list(end_tokens))).cumsum(1) > 0
        rows = [row[~after].tolist() for row, after in zip(tokens, ended)]
        if answer_after is None:
            texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
            return texts
        return [self._after(text, answer_after) for text in self.tokenizer.batch_decode(rows)]

    def stops(self, until: Sequence[str], end_tokens: Sequence[int] = ()) -> Callable[[Tensor], Tensor]:
        """What says of rows of tokens ``[rows, tokens]`` whether one of these texts ends them now: bool ``[rows]``.

        It is to be asked after each token that is generated: it looks for texts that have just been completed.
        """
        wanted = [text for text in until if text]
        # each token writes a byte or more, and the first ones may be cut characters
        near = max((len(text.encode()) for text in wanted), default=0) + 4

        def stop(tokens: Tensor) -> Tensor:
            found = ended(tokens[:, -near:])
            rows = found.nonzero().flatten()
            if len(rows):  # in the whole text these may be other characters
                found[rows] = ended(tokens[rows])
            return found

        def ended(tokens: Tensor) -> Tensor:
            texts = self.decode(tokens, None, end_tokens)
            return torch.tensor([any(end in text for end in wanted) for text in texts])

        return stop

    def _after(self, text: str, mark: str) -> str:
        _, found, answer = text.rpartition(mark)
        answer = answer if found else ""
        for special in sorted(self._special_tokens().values(), key=len, reverse=True):
            answer = answer.replace(special, "")
        return answer

    def _special_tokens(self) -> dict[int, str]:
        # `all_special_tokens` leaves out those that have no name, such as the end of a turn
        added = self.tokenizer.added_tokens_decoder
        return {token_id: token.content for token_id, token in added.items() if token.special}

    def num_vision_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Tokens of each row that carry image features, long ``[batch]``."""
        ids = inputs["input_ids"]
        if image_token_ids(None, self.config):
            return count_image_tokens(self.config, ids)
        return torch.isin(ids, ids.new_tensor(sorted(image_token_ids(self.processor, self.config)))).sum(1)

    def image_places(self, image: Any) -> list[VisionToken]:
        """Which part of a picture each of its vision tokens shows, by position; empty where nobody can tell."""
        return []

    @classmethod
    def row_inputs(cls, batch: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        """One row of a padded batch, see `lit_depth.functional.token_masking.prompt.row_inputs`."""
        return row_inputs(batch, row)


class TextPrompter(Prompter):
    """Plain text, for a text model without a chat template: ``Question: ... Answer:``."""

    def text(self, asked: Asked) -> str:
        return plain_question(asked)

    def _encode(self, texts: list[str], images: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        return left_padded(self.tokenizer(texts)["input_ids"], pad_token(self.tokenizer))


class ImagePrompter(Prompter):
    """What prompters of processors that take images share: the frame is a text, and the processor does the rest."""

    def __init__(self, processor: Any, config: Any = None) -> None:
        super().__init__(processor, config)
        self.image_inputs = tuple(getattr(getattr(processor, "image_processor", None), "model_input_names", ()))

    def _framed(self, text: str, num_images: int = 0) -> str:
        raise NotImplementedError

    def _encode(self, texts: list[str], images: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        framed = [self._framed(text, len(shown)) for text, shown in zip(texts, images)]
        start = self.tokenizer.bos_token
        # as transformers decides it of one conversation
        starts = start is not None and framed[0].startswith(start)
        return encode_rows(self.processor, framed, images, add_special_tokens=not starts)


class PlainPrompter(ImagePrompter):
    """A vision-language model without a chat template: in its family's own frame, else as `TextPrompter` asks.

    Raises:
        ValueError: If the processor does not say which text stands for an image.
    """

    def __init__(self, processor: Any, config: Any = None) -> None:
        super().__init__(processor, config)
        self.frame = _FRAMES.get(getattr(config, "model_type", ""))
        if not isinstance(getattr(processor, "image_token", None), str):
            raise ValueError(
                f"expected a processor with a chat template or an image_token, got a {type(processor).__name__} "
                "without either"
            )

    def text(self, asked: Asked) -> str:
        return plain_question(asked) if self.frame is None else instructed_question(asked)

    def _framed(self, text: str, num_images: int = 0) -> str:
        images = f"{self.processor.image_token}\n" * num_images
        return (self.frame or "{images}{text}").format(images=images, text=text)


class PrefixPrompter(PlainPrompter):
    """A task's name in front of the question, as PaliGemma was trained: ``answer en What is it?``, ``caption en``.

    Its processor puts start and end of the prefix around the text.
    """

    def text(self, asked: Asked) -> str:
        if asked.answer_kind == "caption" and not asked.question:
            return "caption en"
        # a line end would end the prefix
        return " ".join(["answer en", *asked.question.split(), *_option_lines(asked)])

    def _framed(self, text: str, num_images: int = 0) -> str:
        return self.processor.image_token * num_images + text

    def _encode(self, texts: list[str], images: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        framed = [self._framed(text, len(shown)) for text, shown in zip(texts, images)]

        def without_images(some: list[str]) -> dict[str, Tensor]:  # which its processor refuses
            rows = [self._ids(f"{self.tokenizer.bos_token}{text}\n") for text in some]
            batch = left_padded(rows, pad_token(self.tokenizer))
            return {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}

        return encode_rows(self.processor, framed, images, without_images=without_images)

    def _answer_frame(self) -> AnswerFrame:
        return AnswerFrame("\n", "", "")


class ChatPrompter(ImagePrompter):
    """The chat template of a processor, or of a text model's tokenizer, which does not show images.

    Args:
        processor: With a ``chat_template``, or a tokenizer with one.
        config: As for `Prompter`.
        chat_template_kwargs: Variables that the template reads, such as ``{"enable_thinking": True}``; a mode of
            thinking is off unless it is asked for (see `lit_depth.models.chat_templates.QUIET`).

    Raises:
        ValueError: If the template does not read one of the variables.
    """

    def __init__(
        self, processor: Any, config: Any = None, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(processor, config)
        owner = processor if getattr(processor, "chat_template", None) else self.tokenizer
        self.template = ChatTemplate(owner, chat_template_kwargs)

    def settings(self) -> dict[str, Any]:
        date = {"date": f"{TODAY:%Y-%m-%d}"} if self.template.tells_date else {}
        return {**super().settings(), "chat_template_kwargs": self.template.variables, **date}

    def text(self, asked: Asked) -> str:
        return instructed_question(asked)

    def _framed(self, text: str, num_images: int = 0) -> str:
        return self.template.write(self._turn("user", text, num_images))

    def _turn(self, role: str, text: str, num_images: int = 0) -> dict[str, Any]:
        typed = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
        return {"role": role, "content": typed if self.image_inputs else text}

    def _encode(self, texts: list[str], images: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        if self.image_inputs:
            return super()._encode(texts, images)
        return left_padded([self._ids(self._framed(text)) for text in texts], pad_token(self.tokenizer))

    def _answer_frame(self) -> AnswerFrame:
        # read off the template: some have a space there, some a line end that the prompt brings along
        prompt, whole = self._framed(_QUESTION), self._answered(_QUESTION, _ANSWER)
        # some write typed content down as Python shows it, or not at all
        if _QUESTION not in prompt or _SHOWN in prompt:
            form = "typed content" if self.image_inputs else "plain text"
            raise ValueError(f"the chat template does not write a user's turn of {form}")
        if whole.startswith(prompt):
            lead, _, behind = whole.removeprefix(prompt).partition(_ANSWER)
        else:
            lead, behind = "", whole.rpartition(_ANSWER)[2]
        thought = _OPEN_THOUGHT.search(prompt)
        if thought is not None:
            # an answer without reasoning stands behind an empty thought
            closed = f"{thought[1]}/{thought[2]}"
            lead = lead if closed in lead else f"\n{closed}\n\n"
        return AnswerFrame(prompt, lead, behind)

    def _answered(self, question: str, answer: str) -> str:
        """A question and its answer, whose content is typed if the template reads that; right behind if it reads none.

        Raises:
            ValueError: If the template raises on an answer in either form.
        """
        asked, typed = self._turn("user", question), self._turn("assistant", answer)
        with suppress(ValueError):
            whole = self.template.write(asked, typed)
            if answer in whole and _SHOWN not in whole:
                return whole
        whole = self.template.write(asked, {**typed, "content": answer})
        return whole if answer in whole else self._framed(question) + answer


def prompter_class(model: Any) -> type[Prompter] | None:
    """The prompter that a model's family has of its own."""
    found: type[Prompter] | None = getattr(model, "prompter_class", None)
    family = getattr(getattr(model, "config", None), "model_type", "")
    # the folder first: asking for what stands in one that is missing raises
    names = [f"lit_depth.models.{family}", f"lit_depth.models.{family}.prompting_{family}"]
    if found is None and family.isidentifier() and all(find_spec(name) for name in names):
        found = import_module(names[-1]).PROMPTER
    return found


def prompter_for(model: nn.Module, processor: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> Prompter:
    """What puts questions to a model.

    >>> from lit_depth import load_bundled
    >>> type(prompter_for(*load_bundled())).__name__
    'MolmoPrompter'

    Args:
        model: A Hugging Face model.
        processor: Its processor, or the tokenizer of a text model.
        chat_template_kwargs: See `ChatPrompter`.

    Raises:
        ValueError: If there is no chat template that reads ``chat_template_kwargs``.
    """
    config, own = getattr(model, "config", None), prompter_class(model)
    parts = (processor, getattr(processor, "tokenizer", None))
    prompter: Prompter
    if own is None and any(getattr(part, "chat_template", None) for part in parts):
        prompter = ChatPrompter(processor, config, chat_template_kwargs)
    elif chat_template_kwargs:
        why = "without a chat template" if own is None else "that is asked in its family's own way"
        raise ValueError(f"expected no chat_template_kwargs for a model {why}, got {dict(chat_template_kwargs)}")
    else:
        prompter = (own or _plain_class(processor, config))(processor, config)
    prompter.num_embeddings = num_embeddings(model)
    prompter.end_token_ids = end_token_ids(model, prompter.tokenizer)
    return prompter


def _plain_class(processor: Any, config: Any) -> type[Prompter]:
    if not hasattr(processor, "image_processor"):
        return TextPrompter
    return PrefixPrompter if getattr(config, "model_type", "") in _PREFIX_FAMILIES else PlainPrompter


def plain_question(asked: Asked) -> str:
    """A question as base models complete it: ``Question: ...``, options, ``Answer:``, a line each."""
    question = asked.question or _INSTRUCTIONS["caption"]
    return "\n".join([f"Question: {question}", *_option_lines(asked), "Answer:"])


def instructed_question(asked: Asked) -> str:
    """A question as instruction-tuned models are asked: with its options, and how long the answer should be."""
    kind = "choice" if asked.options else asked.answer_kind or "short"
    parts = [asked.question, *_option_lines(asked), _INSTRUCTIONS[kind]]
    return "\n".join(part for part in parts if part)


def option_lines(options: Sequence[str], mark: str = ": ") -> list[str]:
    """Options behind their letters, a line each.

    >>> option_lines(("a cat", "a cow"))
    ['A: a cat', 'B: a cow']
    """
    return [f"{letter}{mark}{option}" for letter, option in zip(option_letters(options) if options else "", options)]


def _option_lines(asked: Asked) -> list[str]:
    return option_lines(asked.options, ". ")
