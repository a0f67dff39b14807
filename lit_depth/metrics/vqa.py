"""VQA soft accuracy (coco_2014_vqa, text_vqa, okvqa)."""

import re
from collections.abc import Sequence
from typing import Literal

from lit_depth.functional.arguments import check_least, checked
from lit_depth.metrics.base import SampleMetric, check_references

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"}
_NUMBERS |= {"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The official table, by its right-hand sides: an answer that lacks one of the apostrophes gets it back. ("let's" and
# "she's" are in the table too, but only map to themselves; those of "I" never match, since answers are lower case.)
_CONTRACTIONS = re.findall(
    r"\S+",
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
    """,
)
_RESTORED = {
    word[: apostrophe.start()] + word[apostrophe.end() :]: word
    for word in _CONTRACTIONS
    for apostrophe in re.finditer("'", word)
}
_RESTORED["somebody'd"] = "somebodyd"  # the other way round in the official table


@checked
def normalize_vqa_answer(text: str) -> str:
    """Bring an answer into the form in which VQA answers are compared.

    Punctuation becomes a space, or nothing where it stands next to a space or where the answer has a number such as
    ``1,000``; periods go unless a digit follows; the answer is lower-cased; number words up to ten become digits
    (``none`` becomes ``0``); articles go; forgotten apostrophes of contractions come back. The rules and word lists are
    those of the official VQA evaluator (Antol et al., "VQA", 2015, https://arxiv.org/abs/1505.00468;
    https://visualqa.org/evaluation.html), down to its limit of 32 removed periods.

    Args:
        text: Answer of a model or a person.

    Returns:
        The normalised answer, which may be empty.

    Example:
        >>> normalize_vqa_answer("The two t-shirts.")
        '2 t shirts'
        >>> normalize_vqa_answer("$1,000.50")
        '$1000.50'
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    keeps_together = re.search(r"\d,\d", text) is not None
    vanishing = [mark for mark in _PUNCTUATION if keeps_together or f"{mark} " in text or f" {mark}" in text]
    text = re.sub(f"[{re.escape(_PUNCTUATION)}]", lambda match: "" if match[0] in vanishing else " ", text)
    # The evaluator passes a flag of value 32 where Python expects the number of replacements.
    text = re.sub(r"\.(?!\d)", "", text, count=32)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


@checked
def vqa_accuracy(
    prediction: str,
    references: Sequence[str],
    variant: Literal["official", "molmo"] = "official",
    *,
    min_references: int = 10,
) -> float:
    """Soft accuracy of an answer that several people were asked for.

    - ``official``: an answer is right to the degree min(matches / 3, 1), averaged over all ways to leave one of the
      references out; with ten references, 1, 2, 3 and 4 matches give 0.3, 0.6, 0.9 and 1.0. Antol et al., "VQA", 2015
      (https://arxiv.org/abs/1505.00468). As the later evaluators do, and unlike the first official script, references
      that all agree are normalised too.
    - ``molmo``: min(matches / 3, 1) over all references, as Molmo's evaluator has it.

    Both sides pass through :func:`normalize_vqa_answer`.

    Args:
        prediction: Answer of the model.
        references: Answers of people, as many as were asked.
        variant: ``"official"`` or ``"molmo"``.
        min_references: Fewest references accepted. One reference could score at most 0 or 1/3 without being wrong, so
            fewer than the ten of the VQA datasets are refused unless asked for.

    Returns:
        A score from 0.0 to 1.0.

    Raises:
        ValueError: If there are fewer references than asked for, if ``references`` is a bare string, or if the variant
            is unknown.

    Example:
        >>> vqa_accuracy("A cat.", ["cat"] * 3 + ["dog"] * 7)
        0.9
        >>> vqa_accuracy("A cat.", ["cat"] * 3 + ["dog"] * 7, variant="molmo")
        1.0
    """
    check_references(references)
    check_least(1, min_references=min_references)
    num_references = len(references)
    if num_references < min_references:
        raise ValueError(f"expected at least {min_references} reference answers for VQA accuracy, got {num_references}")
    answer = normalize_vqa_answer(prediction)
    matches = sum(answer == normalize_vqa_answer(reference) for reference in references)
    if variant == "molmo":
        return min(matches, 3) / 3
    # leaving out a reference that matches takes one match away, leaving out another takes none
    thirds = matches * min(matches - 1, 3) + (num_references - matches) * min(matches, 3)
    return thirds / (3 * num_references)


class VQAAccuracy(SampleMetric):
    """Mean of :func:`vqa_accuracy` in its official variant.

    Example:
        >>> metric = VQAAccuracy()
        >>> metric.update(["cat", "dog"], [["cat"] * 3 + ["dog"] * 7] * 2)
        >>> metric.compute()
        tensor(0.9500)
    """

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0 to 1."""
        return vqa_accuracy(prediction, references)


class MolmoVQAAccuracy(SampleMetric):
    """Mean of :func:`vqa_accuracy` in the variant of Molmo's evaluator, to compare with its published figures.

    Example:
        >>> metric = MolmoVQAAccuracy()
        >>> metric.update(["cat", "dog"], [["cat"] * 3 + ["dog"] * 7] * 2)
        >>> metric.compute()
        tensor(1.)
    """

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0 to 1."""
        return vqa_accuracy(prediction, references, variant="molmo")
