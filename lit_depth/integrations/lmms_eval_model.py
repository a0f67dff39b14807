"""The other way round: lmms-eval evaluates a model whose blocks are skipped, as ``--model lit_depth``.

lmms-eval finds it by the entry point of this package:

    lmms_eval --model lit_depth --model_args pretrained=organisation/name,skip=3+7 --tasks pope
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from lit_depth.data.images import load_image
from lit_depth.data.task import Sample
from lit_depth.integrations.lm_eval_model import read_mask
from lit_depth.integrations.lmms_eval import DEFAULT_NEW_TOKENS, MODEL_NAME, cut
from lit_depth.module import DepthModule, model_inputs

_CLASS = "MaskedModel"


def manifest() -> Any:
    """What the entry point says of the model: its name and its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_NAME, simple_class_path=f"{__name__}.{_CLASS}")


def __getattr__(name: str) -> Any:
    """The class of the model, `MaskedModel`, which needs lmms-eval."""
    if name != _CLASS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _model_class()


@lru_cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    class MaskedModel(lmms):
        """A model of lit_depth with some of its blocks skipped, which answers one question after another.

        Args:
            pretrained: As `lit_depth.DepthModule` takes a checkpoint.
            mask: ``0111``, a digit for each block, 1 = it runs.
            skip: Numbers of the blocks to skip instead, ``3+7``.
            device: Where it runs; None = on the CPU.
            batch_size: Left aside, like ``max_batch_size``.
            **kwargs: Further arguments of `lit_depth.DepthModule`.
        """

        def __init__(
            self,
            pretrained: str = "bundled",
            mask: Any = None,
            skip: Any = None,
            device: str | None = None,
            batch_size: Any = 1,
            max_batch_size: Any = None,
            **kwargs: Any,
        ) -> None:
            super().__init__()
            self.module = DepthModule(checkpoint=pretrained, **kwargs).to(device or "cpu").eval()
            self.mask = read_mask(self.module.num_units, mask, skip)[0]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [self._answer(*request.args) for request in requests]

        def _answer(self, question: str, how: Any, show: Any, doc_id: int, task: str, split: str) -> str:
            shown = [load_image(each) for each in show(self.task_dict[task][split][doc_id]) or ()]
            return cut(greedy_answer(self.module, self.mask, question, shown, how), how.get("until"))

        def loglikelihood(self, requests: Sequence[Any]) -> Any:
            raise NotImplementedError("expected a task that generates its answers")

        def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
            raise NotImplementedError("expected a task of one round")

    return MaskedModel


@torch.inference_mode()
def greedy_answer(module: DepthModule, mask: torch.Tensor, question: str, shown: Sequence[Any], how: Any) -> str:
    """The greedy answer under a mask, by transformers' own generation.

    Args:
        module: Holds the model.
        mask: Bool ``[num_units]``.
        question: Put through the template of the model's family.
        shown: Pictures, upright and RGB.
        how: Settings, of which ``max_new_tokens`` is read.
    """
    first, more = (shown[0], tuple(shown[1:])) if shown else (None, ())
    sample = Sample("", "", first, question, ("",), more_images=more, answer_kind="free")
    inputs = {name: value.to(module.device) for name, value in module.prompter.encode([sample]).items()}
    model: Any = module.model
    with module.masked(mask):
        tokens = model.generate(
            **model_inputs(inputs),
            max_new_tokens=int(how.get("max_new_tokens", DEFAULT_NEW_TOKENS)),
            do_sample=False,
            eos_token_id=module.end_token_ids or None,
            pad_token_id=module.pad_token_id,
        )
    (text,) = module.texts(tokens[:, inputs["input_ids"].shape[1] :])
    return text
