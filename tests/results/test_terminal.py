"""What is printed at the end, by mode."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lit_depth.results.terminal import printing, tell


@pytest.mark.parametrize(("mode", "printed"), [("table", "a table\n"), ("quiet", ""), ("json", '{"drop": 0.25}\n')])
def test_modes(capsys, mode, printed):
    with printing(mode):
        tell("a table", {"drop": np.float64(0.25)})
    assert capsys.readouterr().out == printed


def test_the_mode_ends_with_its_context_also_after_an_exception(capsys):
    with pytest.raises(KeyError), printing("json"):
        raise KeyError
    tell("a table", {})
    assert capsys.readouterr().out == "a table\n"


def test_numbers_that_are_not_json_are_refused(capsys):
    with printing("json"), pytest.raises(ValueError, match="expected finite numbers"):
        tell("", {"drop": float("nan")})
    with printing("json"):
        tell("", {"text": "ü"})
    assert json.loads(capsys.readouterr().out) == {"text": "ü"}
