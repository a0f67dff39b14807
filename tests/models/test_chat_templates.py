"""What a chat template reads and writes."""

from __future__ import annotations

from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from lit_depth.models.chat_templates import QUIET, ChatTemplate
from tests.helpers.tiny_checkpoints import tokenizer

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}[assistant]"
# the forms in which families write their modes of thinking
THINKING = {
    "a mode that is on": (
        PLAIN + ASKS + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>"
        "{% endif %}{% endif %}",
        {"enable_thinking": False},
        "[user]Hi<|endoftext|>[assistant]<think></think>",
        "[user]Hi<|endoftext|>[assistant]",
    ),
    "a mode with a default": (
        "{% if not thinking is defined %}{% set thinking = true %}{% endif %}"
        + PLAIN
        + ASKS
        + "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        {"thinking": False},
        "[user]Hi<|endoftext|>[assistant]</think>",
        "[user]Hi<|endoftext|>[assistant]<think>",
    ),
    "an effort": (
        "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
        "[system]Reasoning: {{ reasoning_effort }}" + PLAIN + ASKS + "{% endif %}",
        {"reasoning_effort": "low"},
        "[system]Reasoning: low[user]Hi<|endoftext|>[assistant]",
        "[system]Reasoning: True[user]Hi<|endoftext|>[assistant]",
    ),
    "reasoning": (
        "{% set reasoning = reasoning if reasoning is defined else true %}"
        + PLAIN
        + ASKS
        + "{% if reasoning %}<think>{% else %}</think>{% endif %}{% endif %}",
        {"reasoning": False},
        "[user]Hi<|endoftext|>[assistant]</think>",
        "[user]Hi<|endoftext|>[assistant]<think>",
    ),
}


def template(text, variables=None):
    owner = tokenizer()
    owner.chat_template = text
    return ChatTemplate(owner, variables)


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize("form", THINKING)
def test_thinking_is_off_unless_it_is_asked_for(form):
    text, variables, quiet, thinking = THINKING[form]
    assert variables.items() <= QUIET.items()
    assert template(text).variables == variables and template(text).write(user("Hi")) == quiet
    on = template(text, dict.fromkeys(variables, True))
    assert on.variables == dict.fromkeys(variables, True) and on.write(user("Hi")) == thinking


def test_a_conversation_that_ends_in_an_answer_asks_for_none():
    turns = [user("Hi"), {"role": "assistant", "content": "Ho"}]
    assert template(PLAIN + ASKS + "{% endif %}").write(*turns) == "[user]Hi<|endoftext|>[assistant]Ho<|endoftext|>"


def test_a_variable_that_the_template_does_not_read_is_refused():
    with pytest.raises(ValueError, match="empty for this chat template, which reads none; got enable_thinking"):
        template(PLAIN, {"enable_thinking": True})
    with pytest.raises(ValueError, match="chat_template_kwargs among thinking; got messages, style"):
        template(PLAIN + "{{ thinking }}", {"style": 1, "messages": 1})


def test_of_several_templates_the_default_is_written():
    assert template({"default": "{{ messages[0].content }}", "tools": "x"}).write(user("Hi")) == "Hi"
    with pytest.raises(ValueError, match="expected a chat template named default, got rag, tools"):
        template({"rag": "y", "tools": "x"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('Only one turn') }}", "the chat template raises on the user's turn: Only one turn"),
        ("{{ messages[0].content + 1 }}", "the chat template raises on the user's turn: "),
        ("{{ messages[3].content.x }}", "the chat template raises on the user's turn: "),
    ],
)
def test_a_template_that_raises_is_named(text, reason):
    with pytest.raises(ValueError, match=reason):
        template(text).write(user("Hi"))


def test_a_template_that_raises_says_what_it_was_told():
    with pytest.raises(
        ValueError, match=r"on the user's turn, told {'reasoning_effort': 'low'} \(--model.* that\): unknown effort"
    ):
        template("{% if reasoning_effort != 'medium' %}{{ raise_exception('unknown effort') }}{% endif %}").write(
            user("Hi")
        )


def test_text_that_is_no_template_is_named():
    with pytest.raises(
        ValueError, match="the checkpoint's chat template is no valid template: .*mend its chat_template.jinja"
    ):
        template("{% if %}")


# as Llama 3.2, Granite 3 and gpt-oss, and Mistral write the date
DATES = {
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = "
    "strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '1 Jan 2000' %}{% endif %}{% endif %}{{ date_string }}": "26 Jul 2024",
    "{{ strftime_now('%B %d, %Y') }}": "July 26, 2024",
    "{% set today = strftime_now('%Y-%m-%d') %}{{ today.split('-')[0] | int - 1 }}": "2023",
}


@pytest.mark.parametrize("text", DATES)
def test_a_template_writes_the_same_on_every_day(text, monkeypatch):
    for day in (3, 4):

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 5, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        assert template(text).write(user("Hi")) == DATES[text] and template(text).tells_date


def test_a_date_of_ones_own_is_written():
    llama = next(iter(DATES))
    assert template(llama, {"date_string": "1 May 2025"}).write(user("Hi")) == "1 May 2025"
    assert not template(PLAIN).tells_date


@pytest.mark.parametrize("variable", ["reasoning_effort", "thinking_effort", "thinking_mode", "thinking_option"])
@pytest.mark.parametrize(
    ("efforts", "lowest"),
    [
        ("['none', 'high']", "none"),
        ('["high", "low", "no_think"]', "no_think"),
        ("['low', 'medium', 'high']", "low"),
        ("['on', 'off']", "off"),
        ("['enabled', 'disabled', 'adaptive']", "disabled"),
        ("['low', 'minimal']", "minimal"),
        ("['thinking', 'chat']", "chat"),
    ],
)
def test_the_lowest_effort_or_mode_that_a_template_takes_is_asked_for(variable, efforts, lowest):
    text = (
        "{% if tool_choice == 'none' %}{% endif %}{% if VARIABLE not in " + efforts + " %}"
        "{{ raise_exception('no such effort') }}{% endif %}{{ VARIABLE }}"
    ).replace("VARIABLE", variable)
    assert template(text).write(user("Hi")) == lowest
    highest = efforts.strip("[]").split(", ")[0].strip("'\"")
    assert template(text, {variable: highest}).write(user("Hi")) == highest


def test_a_mode_that_no_text_of_the_template_names_is_left_to_it():
    assert template("{{ thinking_mode | default('its own') }}").write(user("Hi")) == "its own"


def test_a_switch_that_is_asked_for_is_not_undone_by_another():
    """As templates of Cohere have a mode and an effort: an effort alone does nothing where the mode is off."""
    text = (
        "{% set on = reasoning if reasoning is defined else reasoning_effort != 'none' %}"
        "{{ 'thinks' if on else 'silent' }}, {{ reasoning_effort }}"
    )
    asked = {
        "silent, none": {},
        "thinks, high": {"reasoning_effort": "high"},
        "thinks, ": {"reasoning": True},
        "thinks, low": {"reasoning": True, "reasoning_effort": "low"},
    }
    for expected, given in asked.items():
        assert (
            template(text, given).write(user("Hi")) == expected
            and given.items() <= template(text, given).variables.items()
        )
    by_name = template("{{ thinking }}, {{ thinking_mode }}", {"thinking_mode": "deep"})
    assert by_name.write(user("Hi")) == ", deep"
    # what is off already stays wholly off
    assert template(text, {"reasoning": False}).variables == {"reasoning": False, "reasoning_effort": "none"}
