"""A chat template: what it reads, what it writes, and which modes of thinking it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from transformers.utils import chat_template_utils

QUIET: dict[str, Any] = {
    "enable_thinking": False,
    "thinking": False,
    "reasoning": False,
    "thinking_budget": 0,
    "reasoning_effort": "low",
    "thinking_effort": "low",
    "thinking_mode": None,
    "thinking_option": None,
}
"""Variables by which templates know their modes of thinking, and what makes a model answer at once, or nearly so.

Of efforts and modes it is the lowest that the template speaks of, and these where it speaks of none (None = its own).
"""
_MEND = " (mend its chat_template.jinja in a copy of the checkpoint)"
_NAMED = ("reasoning_effort", "thinking_effort", "thinking_mode", "thinking_option")
_LOWEST = ("none", "no_think", "off", "disabled", "chat", "short", "minimal", "low")  # the lowest first
TODAY = datetime(2024, 7, 26, 12)
"""The day that templates are told it is: the one that Llama 3 falls back to where it knows of none."""


class ChatTemplate:
    """The chat template of a processor or tokenizer, with its variables.

    Args:
        owner: The processor or tokenizer.
        variables: Values of variables that the template reads, beside `QUIET`; where one of them turns thinking on, the
            other switches of it are the template's own.

    A template that asks for the date is told `TODAY`, and writes the same on every day.

    Raises:
        ValueError: If the template does not read one of them, or there are several templates and none is the default.
    """

    def __init__(self, owner: Any, variables: Mapping[str, Any] | None = None) -> None:
        self.owner = owner
        text = self._default()
        self.tells_date = "strftime_now" in text
        known = _read_variables(text)
        unknown = sorted((variables or {}).keys() - known)
        if unknown:
            there = f"among {', '.join(sorted(known))}" if known else "empty for this chat template, which reads none"
            raise ValueError(f"expected chat_template_kwargs {there}; got {', '.join(unknown)}")
        self.variables = _quiet(text, known, variables or {}) | dict(variables or {})

    def _default(self) -> str:
        template: str | Mapping[str, str] = self.owner.chat_template
        if isinstance(template, Mapping):
            if "default" not in template:
                raise ValueError(f"expected a chat template named default, got {', '.join(template)}")
            return template["default"]
        return template

    def write(self, *turns: dict[str, Any]) -> str:
        """The text of a conversation, up to where the model goes on if the last turn is the user's.

        Raises:
            ValueError: If the template raises.
        """
        asks = turns[-1]["role"] == "user"
        try:
            with _at_noon():
                text: str = self.owner.apply_chat_template(
                    list(turns), tokenize=False, add_generation_prompt=asks, **self.variables
                )
        # templates run code of their own, and raise whatever it raises
        except Exception as error:
            roles = " and ".join(f"the {turn['role']}'s turn" for turn in turns)
            told = f", told {self.variables} (--model.chat_template_kwargs changes that)" if self.variables else ""
            raise ValueError(f"the chat template raises on {roles}{told}: {error}{_MEND}") from error
        return text


def _quiet(template: str, known: set[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """What turns thinking off in a template; nothing where a variable that was given turns it on."""
    found = QUIET | {name: _lowest(template, name) for name in _NAMED}
    found = {name: value for name, value in found.items() if name in known and value is not None}
    # of several switches each can turn it off: an effort that is asked for needs the mode that it belongs to
    asks = any(name in QUIET and value != found.get(name) for name, value in given.items())
    return {} if asks else found


def _lowest(template: str, variable: str) -> str | None:
    """The lowest effort, or mode, of thinking that a template speaks of where it reads the variable.

    >>> text = "{% if reasoning_effort not in ['none', 'high'] %}{{ raise_exception('?') }}{% endif %}"
    >>> _lowest(text, "reasoning_effort")
    'none'
    """
    tags = [tag for tag in re.findall(r"\{[%{].*?[%}]\}", template, re.DOTALL) if variable in tag]
    named = {text for tag in tags for text in re.findall(r"""["'](\w+)["']""", tag)}
    return next((each for each in _LOWEST if each in named), QUIET[variable])


class _Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return TODAY


@contextmanager
def _at_noon() -> Iterator[None]:
    """Let templates read `TODAY` off the clock, which transformers gives them and no variable replaces."""
    before = chat_template_utils.datetime
    chat_template_utils.datetime = _Clock  # type: ignore[misc]
    try:
        yield
    finally:
        chat_template_utils.datetime = before  # type: ignore[misc]


def _read_variables(template: str) -> set[str]:
    try:
        found = chat_template_utils._get_template_variables(template)
    except TemplateError as error:
        raise ValueError(f"the checkpoint's chat template is no valid template: {error}{_MEND}") from error
    # what every conversation has
    given = {"messages", "add_generation_prompt", "raise_exception", "strftime_now", "tools", "documents"}
    return {name for name in found if name not in given and not name.endswith("_token")}
