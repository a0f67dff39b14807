"""The letters of multiple choice."""

from __future__ import annotations

import pytest

from lit_depth.functional.choices import MAX_OPTIONS, option_letters


def test_every_option_has_a_letter_up_to_the_alphabet():
    assert option_letters(["a cat", "", "a dog"]) == "ABC"
    assert option_letters(["x"] * MAX_OPTIONS)[-1] == "Z"


@pytest.mark.parametrize("options", [[], ["", " "], "abc", ["x"] * 27])
def test_what_is_no_list_of_options_is_refused(options):
    with pytest.raises(ValueError, match="expected options as a list of 1 to 26 texts"):
        option_letters(options)
