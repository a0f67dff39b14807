"""The other way round: lm-evaluation-harness evaluates a model whose blocks are skipped, as ``--model lit_depth``.

The harness finds the models of its own package alone, so its command is started from here, with the same arguments:

    python -m lit_depth.integrations.lm_eval_model --model lit_depth \\
        --model_args pretrained=HuggingFaceTB/SmolLM2-135M,skip=3+7 --tasks arc_easy
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_depth.functional import MaskSet, find_blocks, from_indices, masked


def register() -> type:
    """Make ``lit_depth`` a model of the harness, and return its class.

    It is the harness's own ``hf`` with all its arguments, and with these:

    - ``mask``: ``0111``, a digit for each block, 1 = it runs;
    - ``skip``: numbers of the blocks to skip instead, ``3+7``.

    Raises:
        ImportError: If the harness, or the package ``accelerate`` that its models need, is not installed.
    """
    from lm_eval.api.registry import model_registry, register_model
    from lm_eval.models.huggingface import HFLM

    if "lit_depth" in model_registry:
        return model_registry.get("lit_depth")

    @register_model("lit_depth")
    class MaskedHFLM(HFLM):
        """``hf`` with some of its blocks skipped."""

        def __init__(self, pretrained: Any, mask: Any = None, skip: Any = None, **kwargs: Any) -> None:
            super().__init__(pretrained, **kwargs)
            self.mask = read_mask(len(find_blocks(self.model)), mask, skip)

        def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
            with masked(self.model, self.mask[0]):
                return super().loglikelihood(*args, **kwargs)

        def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
            with masked(self.model, self.mask[0]):
                return super().loglikelihood_rolling(*args, **kwargs)

        def generate_until(self, *args: Any, **kwargs: Any) -> Any:
            with masked(self.model, self.mask[0]):
                return super().generate_until(*args, **kwargs)

    return MaskedHFLM


def read_mask(num_blocks: int, mask: Any = None, skip: Any = None) -> MaskSet:
    """The one mask that ``mask`` or ``skip`` say, as they come from the harness's command line.

    >>> read_mask(4, mask="0111").ids, read_mask(4, mask=111).ids, read_mask(4, skip="0+3").ids, read_mask(2).ids
    (('0111',), ('0111',), ('0110',), ('11',))

    Args:
        num_blocks: Blocks of the model.
        mask: Digits, or the number that the harness reads them as, without the zeros that it begins with.
        skip: Numbers of blocks, joined by plus signs, or one number, or a list; None = none.

    Raises:
        ValueError: If both are given, or they say no mask of this model.
    """
    if mask is not None and skip is not None:
        raise ValueError(f"expected mask or skip, got both: mask={mask}, skip={skip}")
    if mask is not None:
        text = str(mask).zfill(num_blocks) if isinstance(mask, int) else str(mask)
        return MaskSet.of([text], num_blocks)
    texts = skip if isinstance(skip, Sequence) and not isinstance(skip, str) else str("" if skip is None else skip)
    parts = texts.split("+") if isinstance(texts, str) else list(map(str, texts))
    wrong = [part for part in parts if part and not (part.isdecimal() and int(part) < num_blocks)]
    if wrong:
        raise ValueError(f"expected skip as numbers of blocks from 0 to {num_blocks - 1}, as in 3+7, got {skip}")
    skipped = {int(part) for part in parts if part}
    active = [block for block in range(num_blocks) if block not in skipped]
    return MaskSet.of([from_indices(num_blocks, active)], num_blocks)


def main() -> None:
    """The harness's own command, which knows this model besides."""
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
