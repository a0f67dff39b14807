"""Letters out of the answers of chat models, and sentences in which there is none."""

from __future__ import annotations

import pytest

from lit_depth.metrics import ChatChoiceAccuracy, parse_chat_choice, parse_choice

OPTIONS = ["dog", "cat", "cow", "hen"]
# answers and the letters that a person reads in them
READ = {
    "D": ["D", "d", "D.", "(D)", "hen", "Hen.", "Answer: d"],
    "B": [
        "**B**", r"\boxed{B}", "[B]", "Option B", "B because it purrs", "Answer B", "A good answer is B",
        "**B.** cat", "**(B)**", "**B: cat**", "__B__", "`B`", "*B*", r"$\boxed{\text{B}}$", r"\boxed{\mathrm{B}}",
        r"\boxed{\textbf{(B)}}", "<answer>B</answer>",
        "Answer: B", "Answer - B", "Answer: **B**", "**Answer:** B", "**Answer: B**", "The answer is: B",
        "The answer is **B**.", "The answer to the question is B.", "The answer would be B.", "Choice (B)", "Letter: B",
        "the correct choice is option B.", "I choose B", "I would go with (B).", "B is the correct answer.",
        "So I choose (B) here", "B - cat", "B. A cat", "B. a cat, because A is a dog",
        "A dog barks.\nA cat purrs.\nAnswer: B", "Let me think.\nB", "Let me think.\nB. cat", "Let me think.\ncat",
        "A. dog\nB. cat\nThe answer is B", "B\nBecause dogs bark and (A) is a dog", "Answer: B\nA cat purrs.",
    ],
    "C": [
        "The answer is not (D) but (C)", "(A) is wrong, so (C).", "Not option A and not option B.\nThe answer is C.",
        "C, not D", "The best option is C rather than A.", "Between (A) and (C), I choose (C).",
        "As (D) cannot give milk, the answer is C.", "Why not? Answer: C", "A. dogs bark\nThe correct answer is C.",
    ],
}  # fmt: skip
NONE = [
    "", "I", "I think a cat", "I do not know", "I'm not sure. B",
    "Both A and B", "A or B", "A/B", "A, B", "A) B)", "A. B. C.", "**A** or **B**", "The answer is A or B.",
    "Answer: A, B", "The answer is A, B and C.", "Answer B, C or D", "Options A, B and C are wrong",
    "not C but D", "The answer is not (C).", "I would not choose option A.", "I don't think it is (A).",
    "B is incorrect.", "Everything except (B).", "None of the options is correct.", "None of A, B, C",
    "The answer is A dog", "A dog is here", "**A dog** is shown", "A cat is here", "As far as I see, nothing",
    "Answer: C major", "Vitamin C is good", "Grade A beef", "Plan B", "It is a hen or a cow",
    "Option E", "**E**", r"\boxed{E}",
    "A. dog\nB. cat\nC. cow\nD. hen", "A) dog B) cat C) cow D) hen", "dog\ncat\ncow\nhen",
]  # fmt: skip


@pytest.mark.parametrize(("letter", "answer"), [(letter, answer) for letter in READ for answer in READ[letter]])
def test_a_letter_is_read(letter, answer):
    assert parse_chat_choice(answer, OPTIONS) == letter


@pytest.mark.parametrize("answer", NONE)
def test_nothing_is_guessed(answer):
    assert parse_chat_choice(answer, OPTIONS) is None


@pytest.mark.parametrize("answer", ["D", "(B) a cat", "The answer is C.", "dog", "Z", "Answer: (C)", ""])
def test_where_the_strict_reading_finds_the_only_letter_this_one_finds_the_same(answer):
    strict = parse_choice(answer, OPTIONS)
    assert strict is None or parse_chat_choice(answer, OPTIONS) == strict


def test_the_shell_counts_what_could_not_be_parsed():
    metric = ChatChoiceAccuracy()
    metric.update(["**B**", "B because", "neither", "**A**"], [["B"]] * 4, options=[["dog", "cat"]] * 4)
    assert metric.compute().item() == 0.5 and metric.parse_failed.item() == 1
