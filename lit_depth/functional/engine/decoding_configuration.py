"""Greedy decoding by one configuration, whoever decodes: `generate` itself, the engine, or a score of a given answer.

What a family does with its inputs (positions, types of tokens, embeddings, a cache of its own) is its own business, and
`generate` knows it. So nobody here prepares inputs: `inside_generate` lets the model's own ``generate`` prepare a
prompt, and takes over where its decoding loop would begin.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation import logits_process

T = TypeVar("T")

# settings of a generation_config that change a greedy answer, the same in every path, and where they change nothing
HONOURED: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "suppress_tokens": None,
    "watermarking_config": None,
}
# those that would make it another kind of decoding, stop it, or change what is returned: overruled in every path
_OVERRULED: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "return_dict_in_generate": False,
    "output_scores": False,
    **dict.fromkeys(
        (
            "assistant_early_exit",
            "cache_config",
            "cache_implementation",
            "constraints",
            "dola_layers",
            "force_words_ids",
            "max_length",
            "max_time",
            "output_attentions",
            "output_hidden_states",
            "output_logits",
            "penalty_alpha",
            "prefill_chunk_size",
            "prompt_lookup_num_tokens",
            "stop_strings",
            "token_healing",
            "use_mtp",
        )
    ),
}
# their scores depend on the row's own tokens alone, and they keep nothing from one step to the next
_WITHOUT_STATE = (
    logits_process.EncoderNoRepeatNGramLogitsProcessor,
    logits_process.EncoderRepetitionPenaltyLogitsProcessor,
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
)


class CannotDriveError(Exception):
    """The model does something that the engine does not understand."""


def greedy_options(max_new_tokens: int, eos: Sequence[int], pad: int) -> dict[str, Any]:
    """Arguments of ``generate`` for greedy decoding as it is done everywhere here; its penalties stay the model's own.

    >>> options = greedy_options(4, [], 0)
    >>> options["do_sample"], options["use_cache"], options["max_new_tokens"], options["eos_token_id"]
    (False, True, 4, None)
    """
    known = GenerationConfig()
    return {
        **{name: value for name, value in _OVERRULED.items() if hasattr(known, name)},
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(eos) or None,  # None given by name: not filled in from the model's own configuration
        "pad_token_id": pad,
        # raises the scores of end tokens, and needs some
        **({} if eos else {"exponential_decay_length_penalty": None}),
    }


def decoding_configuration(model: nn.Module, max_new_tokens: int, eos: Sequence[int], pad: int) -> dict[str, Any]:
    """What decides about a greedy answer besides the model, as a dict for JSON.

    Returns:
        ``greedy``, ``max_new_tokens``, ``end_token_ids``, ``pad_token_id``, and under ``generation_config`` the
        settings of the model's own that change an answer (see `HONOURED`), as far as they do something.
    """
    config = getattr(generating_model(model), "generation_config", None)
    settings = {} if config is None else config.to_dict()
    active = {name: settings.get(name) for name in HONOURED if settings.get(name) not in (None, HONOURED[name])}
    bias = active.get("sequence_bias")
    if isinstance(bias, dict):  # its keys are tuples of tokens
        active["sequence_bias"] = [[list(tokens), value] for tokens, value in bias.items()]
    found = {
        "greedy": True,
        "max_new_tokens": max_new_tokens,
        "end_token_ids": list(eos),
        "pad_token_id": pad,
        "generation_config": active,
    }
    return json.loads(json.dumps(found))


def end_token_ids(model: nn.Module, tokenizer: Any = None) -> list[int]:
    """Tokens that end an answer: those of the model's generation_config and the tokenizer's, in order."""
    config = getattr(generating_model(model), "generation_config", None)
    found: set[int] = set()
    for ids in (getattr(config, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        found.update([ids] if isinstance(ids, int) else ids or ())
    return sorted(found)


def check_generates(model: nn.Module) -> None:
    """Raise ValueError unless the model has ``generate``."""
    if not callable(getattr(model, "generate", None)):
        raise ValueError(f"expected a model with generate, got {type(model).__name__}")


def generating_model(model: nn.Module) -> Any:
    """The outermost module that has transformers' ``generate``: ``model``, or what a wrapper holds; None if none."""
    return next((module for module in model.modules() if isinstance(module, GenerationMixin)), None)


@dataclass(frozen=True)
class PreparedPrompt:
    """One batch as the model's ``generate`` prepared it, with the tokens that were decided on since.

    Attributes:
        model: What runs: the model that was asked to generate, or the language model inside that it asked in turn.
        ids: ``[rows, tokens]``, long; the prompt, then what was appended.
        length: Positions of the prompt.
        num_given: Ids of the prompt, which are none where it was given as embeddings alone.
        is_embedded: Whether it was given as embeddings.
        arguments: What ``generate`` would pass on from step to step.
        processors: What changes the logits of a next token.
        config: The effective configuration.
    """

    model: Any
    ids: Tensor
    length: int
    num_given: int
    is_embedded: bool
    arguments: dict[str, Any]
    processors: logits_process.LogitsProcessorList
    config: Any

    def with_cache(self, cache: Cache | None) -> PreparedPrompt:
        """The same with another cache; None = keys and values are not kept."""
        return replace(self, arguments={**self.arguments, "cache": cache, "use_cache": cache is not None})

    def forward(self, num_new: int | None = None, keep: int = 1) -> Any:
        """Outputs of one forward.

        Args:
            num_new: Tokens from the end that the cache lacks; None = it is empty, or there is none.
            keep: Positions from the end that logits are wanted of, where the model knows how.
        """
        return self.model(**self.forward_inputs(num_new, keep), return_dict=True)

    def forward_inputs(self, num_new: int | None = None, keep: int = 1) -> dict[str, Any]:
        """Arguments of the model in `forward`."""
        given = {**self.arguments}
        if "logits_to_keep" in given:
            given["logits_to_keep"] = keep
        if num_new is None:
            given["is_first_iteration"] = True
        inputs = self.model.prepare_inputs_for_generation(self.ids, next_sequence_length=num_new, **given)
        if "logits_to_keep" in inputs:  # some families put a number of their own there
            inputs["logits_to_keep"] = keep
        return inputs

    def extended(self, tokens: Tensor, outputs: Any = None) -> PreparedPrompt:
        """The same with tokens ``[rows, new]`` behind it, one after the other as if each had been generated.

        Args:
            outputs: Those of the last forward; some families take states from them.
        """
        arguments = self.arguments
        for _ in range(tokens.shape[1]):
            arguments = self.model._update_model_kwargs_for_generation(outputs or {}, {**arguments})
        return replace(self, ids=torch.cat([self.ids, tokens], dim=1), arguments=arguments)

    def for_decoding(self, rows: Tensor) -> PreparedPrompt:
        """The same for the rows ``rows`` (indices, also repeated), without what only the prompt's own forward reads."""
        step = self.model.prepare_inputs_for_generation(self.ids, next_sequence_length=1, **self.arguments)
        read = {
            name: value
            for name, value in self.arguments.items()
            # what the next step's forward does not take may be taken later, but not if it is pixels or their features
            if step.get(name) is not None or (isinstance(value, Tensor) and not value.is_floating_point())
        }
        return replace(self, arguments=read).rows(rows)

    def rows(self, rows: Tensor) -> PreparedPrompt:
        """The same for the rows ``rows`` alone (indices)."""

        def pick(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0:
                return value
            axis = 1 if name == "position_ids" and value.ndim == 3 else 0
            return value.index_select(axis, rows) if value.shape[axis] == len(self.ids) else value

        ids = self.ids.index_select(0, rows)
        arguments = {name: pick(name, value) for name, value in self.arguments.items()}
        processors = self.processors
        if processors:  # some know the prompts that they were made for
            processors = self.model._get_logits_processor(
                generation_config=self.config,
                input_ids_seq_length=self.num_given,
                encoder_input_ids=None if self.is_embedded else ids[:, : self.num_given],
                device=ids.device,
                model_kwargs=arguments,
            )
        return replace(self, ids=ids, arguments=arguments, processors=processors)

    def next_tokens(self, logits: Tensor) -> Tensor:
        """Greedy tokens ``[rows]`` from logits ``[rows, vocabulary]`` at the last token."""
        if not self.processors:
            return logits.argmax(-1)
        scores: Tensor = self.processors(self.ids, logits.to(copy=True, dtype=torch.float32))  # type: ignore[arg-type]
        return scores.argmax(-1)

    def check_processors(self) -> None:
        """Raise `CannotDriveError` for one that rows of another order, or fewer, would change."""
        for processor in self.processors:
            if type(processor) not in _WITHOUT_STATE:
                raise CannotDriveError(f"its generation_config asks for a {type(processor).__name__}")


def inside_generate(
    model: nn.Module, inputs: Mapping[str, Any], options: Mapping[str, Any], decode: Callable[[PreparedPrompt], T]
) -> T:
    """What ``decode`` returns of the prompt that ``model.generate`` prepares; it runs in place of the decoding loop.

    Args:
        inputs: The prompt, as the model takes it.
        options: Further arguments of ``generate``, see `greedy_options`.
    """
    found: list[T] = []

    def loop(owner: Any, ids: Tensor, logits_processor: Any, generation_config: Any, **arguments: Any) -> Tensor:
        arguments.pop("stopping_criteria", None)
        embeddings = arguments.get("inputs_embeds")
        prompt = PreparedPrompt(
            model=owner,
            ids=ids,
            length=ids.shape[1] if embeddings is None else embeddings.shape[1],
            num_given=ids.shape[1],
            is_embedded=embeddings is not None,
            arguments=arguments,
            processors=logits_processor,
            config=generation_config,
        )
        found.append(decode(prompt))
        return ids

    model.generate(**inputs, **options, custom_generate=loop)  # type: ignore[operator]
    return found[0]
