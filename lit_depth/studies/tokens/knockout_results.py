"""What ``lit-depth tokens --knockout`` found: entries of the result, averages over prompts, and tables for files."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lit_depth.results.token_tables import METRICS
from lit_depth.studies.tokens.knockout_spans import Span

ANSWERS, POSITIONS = "knockout_results.csv", "knockout_positions.csv"
GROUPS = ("image", "word", "span")


class KnockedOut(NamedTuple):
    """Knockouts of one prompt, see `lit_depth.functional.Knockouts`."""

    spans: list[Span]
    answer_logprob: float
    answers: pd.DataFrame
    positions: pd.DataFrame
    last: int  # final position of the prompt


def describe_knockouts(found: KnockedOut) -> dict[str, Any]:
    """The ``knockouts`` entry of a prompt: of each span, by the block that it is hidden from on.

    ``drop`` is what the log-probability of the answer loses; the distances are those of the state at the prompt's final
    position, null where that belongs to the span.
    """
    ends = found.positions[found.positions["token_position"] == found.last]
    spans = []
    for span in found.spans:
        drop = found.answers.loc[found.answers["span"] == span.name, "drop"]
        rows = ends[ends["span"] == span.name]
        distances = {metric: rows[metric].astype(float).tolist() or [None] * len(drop) for metric in METRICS}
        about = {"span": span.name, "kind": span.kind, "positions": span.positions}
        spans.append(about | {"drop": drop.astype(float).tolist()} | distances)
    return {"answer_logprob": found.answer_logprob, "spans": spans}


def knockout_averages(prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``{kind of span: {"drop": [per block], "l2_distance": ..., "num_prompts": n}}``: over spans, then prompts."""
    averages: dict[str, Any] = {}
    for group in GROUPS:
        means = []
        for prompt in prompts:
            mine = [each for each in prompt["knockouts"]["spans"] if each["kind"] == group]
            if mine:
                values = [[each[name] for name in ("drop", *METRICS)] for each in mine]
                means.append(np.array(values, dtype=float).mean(axis=0))
        if means:
            rows = np.mean(means, axis=0)
            plain = [[None if np.isnan(value) else float(value) for value in row] for row in rows]
            averages[group] = dict(zip(("drop", *METRICS), plain)) | {"num_prompts": len(means)}
    return averages


def table_of_span(found: KnockedOut, span: Span, texts: Sequence[str]) -> pd.DataFrame:
    """Distances at the later positions as a table of tokens by blocks; ``texts`` are those of all positions."""
    rows = found.positions[found.positions["span"] == span.name]
    return pd.DataFrame(
        {
            "generation_step": 0,
            "layer": rows["from_block"],
            "token_masked": [texts[position] for position in rows["token_position"]],
            "token_position": rows["token_position"],
            "variant": "Full",
            **{metric: rows[metric] for metric in METRICS},
        }
    )
