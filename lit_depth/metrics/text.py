"""Text handling that several metrics share."""

from collections import Counter

from lit_depth.functional.arguments import checked


@checked
def clean_prediction(text: str) -> str:
    """Reduce a generated text to the one answer that is scored, exactly as Molmo's evaluator (``VqaEval``) does.

    One of three rules applies, after outer white space is removed:

    - ``Answer:`` occurs: the text between its first and its second occurrence (or the end), stripped. Nothing else is
      changed in it, so an answer of several lines stays one.
    - Several lines: each line's white space is collapsed, and the most frequent line is kept, the first on ties.
    - Otherwise: white space is collapsed.

    Args:
        text: Decoded generation, special tokens already removed.

    Returns:
        The answer, without outer white space; empty if nothing is left.

    Example:
        >>> clean_prediction("I count them. Answer: two dogs ")
        'two dogs'
        >>> clean_prediction("A\\nB\\nB")
        'B'
    """
    _, marker, answer = text.partition("Answer:")
    if marker:
        return answer.partition("Answer:")[0].strip()
    lines = [" ".join(line.split()) for line in text.strip().split("\n")]
    # Counter keeps the order of insertion and most_common is stable, so the first line wins ties.
    return Counter(lines).most_common(1)[0][0]
