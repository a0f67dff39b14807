"""Letters out of the answers of chat models, and sentences in which there is none."""

from __future__ import annotations

import pytest

from lit_depth.metrics import ChatChoiceAccuracy, parse_chat_choice, parse_choice

OPTIONS = ["dog", "cat", "cow", "hen"]


@pytest.mark.parametrize(
    "answer",
    [
        "D", "d", "D.", "(D)", "**D**", "**D.** hen", "**(D)**", r"\boxed{D}", r"$\boxed{\text{D}}$", "[D]", "Option D",
        "option D.", "D because it lays eggs", "Answer D", "Answer: D", "The answer is **D**.",
        "The correct option is D", "The correct choice is (D).", "The correct answer is: D", "D - hen", "hen",
        "So I choose (D) here",
        "A dog barks.\nA cat purrs.\nAnswer: D", "Not option A and not option B.\nThe correct option is D.",
    ],
)  # fmt: skip
def test_a_letter_is_read(answer):
    assert parse_chat_choice(answer, OPTIONS) == "D"


@pytest.mark.parametrize(
    "answer",
    ["", "A or B", "The answer is A dog", "A dog is here", "Option E", "**E**", "I do not know", "**A** or **B**",
     "Options A, B and C are wrong", "It is a hen or a cow", "As far as I see, nothing"],
)  # fmt: skip
def test_nothing_is_guessed(answer):
    assert parse_chat_choice(answer, OPTIONS) is None


@pytest.mark.parametrize("answer", ["D", "(B) a cat", "The answer is C.", "dog", "Z", "A or B", ""])
def test_where_the_strict_reading_finds_a_letter_this_one_finds_the_same(answer):
    strict = parse_choice(answer, OPTIONS)
    assert strict is None or parse_chat_choice(answer, OPTIONS) == strict


def test_the_shell_counts_what_could_not_be_parsed():
    metric = ChatChoiceAccuracy()
    metric.update(["**B**", "B because", "neither", "**A**"], [["B"]] * 4, options=[["dog", "cat"]] * 4)
    assert metric.compute().item() == 0.5 and metric.parse_failed.item() == 1
