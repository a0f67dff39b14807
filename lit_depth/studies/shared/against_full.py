"""How answers under a mask agree with the full model's, sample by sample: columns of records as arrays, and entries.

Of each sample:

| name | value |
|---|---|
| ``same_answer`` | 1 if all generated tokens are the full model's, end token included (of older records: the texts) |
| ``right_to_wrong`` | 1 if the score is lower than the full model's; of scores 0 and 1, a right answer that is lost |
| ``wrong_to_right`` | 1 if it is higher |
| ``flips`` | 1 if it is either |
| ``first_difference`` | index of the first generated token that is another; NaN if none is |
| ``reference_agreement`` | share of the reference answer's tokens at which the most likely token is the full model's |
| ``acceptance`` | the same along the full model's own answer: what it would accept of a draft |
| ``tokens_per_check`` | `lit_depth.functional.token_agreement.tokens_per_check` of `NUM_DRAFT` tokens |
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lit_depth.functional.token_agreement import tokens_per_check

Floats = NDArray[np.float64]
FIRST = "first_difference"
ACCEPTANCE_TOKENS = 16  # of the full model's own answer that are read under every mask
NUM_DRAFT = 4
# scores are sums of rounded numbers
_EQUAL = 1e-9


def agreement_columns(records: pd.DataFrame, quality: pd.DataFrame, with_flips: bool) -> dict[str, Floats]:
    """Arrays ``[masks, samples]`` by name, as far as the records know; nothing without records of the full model.

    Args:
        records: One row for each mask and sample.
        quality: Their scores, a row for each mask and a column for each sample.
        with_flips: Whether scores say that an answer is right.
    """
    names = [str(name) for name in quality.index]
    full = next((place for place, name in enumerate(names) if "0" not in name), None)
    if full is None:
        return {}

    def table(name: str) -> NDArray[Any] | None:
        """A column by mask and sample; None where an earlier version recorded some of it, or all."""
        if name not in records or records[name].isna().any():
            return None
        values = records.pivot(index="mask", columns="sample", values=name)
        return values.reindex(index=quality.index, columns=quality.columns).to_numpy()

    found: dict[str, Floats] = {}
    first, texts = table(FIRST), table("prediction")
    if first is not None:
        first = first.astype(float)
        found = {"same_answer": (first < 0).astype(float), FIRST: np.where(first < 0, np.nan, first)}
    elif texts is not None:
        found["same_answer"] = (texts == texts[full]).astype(float)
    if with_flips:
        scores = quality.to_numpy(float)
        worse, better = (sign * (scores - scores[full]) > _EQUAL for sign in (-1, 1))
        for name, changed in (("right_to_wrong", worse), ("wrong_to_right", better), ("flips", worse | better)):
            found[name] = changed.astype(float)
    if (reference := table("reference_agreement")) is not None:
        found["reference_agreement"] = reference.astype(float)
    if (accepted := table("accepted")) is not None:
        found["acceptance"] = _each(accepted, lambda text: text.count("1") / len(text))
        found["tokens_per_check"] = _each(
            accepted, lambda text: tokens_per_check([char == "1" for char in text], NUM_DRAFT)
        )
    return found


def _each(table: NDArray[Any], measure: Any) -> Floats:
    """A measure of every text, computed once for equal ones."""
    known = {text: measure(text) for text in set(table.ravel().tolist())}
    return np.array([[known[text] for text in row] for row in table.tolist()], dtype=float)


def pooled_columns(parts: Sequence[Mapping[str, Floats]], weights: Sequence[float]) -> dict[str, Floats]:
    """Columns of several tasks one behind the other, weighted as scores are; those that every task has."""
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {
        name: np.concatenate(
            [part[name] * (1 if name == FIRST else weight) for part, weight in zip(parts, weights)], axis=1
        )
        for name in shared
    }
