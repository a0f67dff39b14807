"""The tables hold what was measured, with the prompt's name where there are several."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from lit_depth.results.token_tables import COLUMNS, read_token_masking
from lit_depth.studies.tokens.analysis import Measured
from lit_depth.studies.tokens.files import SPANS, write_files
from lit_depth.studies.tokens.prompts import Prompt

TABLE = pd.DataFrame([(0, 0, "a", 0, "Full", 0.5, 0.25), (0, 0, "a", 0, "Attn", 1.5, 0.75)], columns=COLUMNS)


def measured(name: str, spans: bool) -> Measured:
    table = TABLE.assign(span="text") if spans else None
    return Measured(Prompt(name, name, None, None), ["text"], TABLE, table, "no", "cpu")


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
@pytest.mark.parametrize("spans", [False, True])
def test_every_file_is_named_and_there(tmp_path, names, spans):
    result = {"prompts": [{"text": name, "page": f"{name}.html"} for name in names]}
    written = write_files(tmp_path, result, [measured(name, spans) for name in names], SimpleNamespace())
    assert set(written) == {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.html" for name in names} < set(written) and (SPANS in written) is spans
    frame = read_token_masking(tmp_path / "masking_results.csv")
    assert len(frame) == 2 * len(names) and ("prompt" in frame.columns) is (len(names) > 1)
    if len(names) > 1:
        assert list(frame["prompt"].unique()) == names
