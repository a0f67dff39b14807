"""Molmo as a composition of transformers' own parts, registered with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from lit_depth.models.molmo.configuration_molmo import MolmoConfig
from lit_depth.models.molmo.image_processing_molmo import MolmoImageProcessor
from lit_depth.models.molmo.modeling_molmo import MolmoForConditionalGeneration, MolmoModel
from lit_depth.models.molmo.processing_molmo import MolmoProcessor
from lit_depth.models.molmo.prompting_molmo import MolmoPrompter
from lit_depth.models.molmo.vision_tokens_molmo import vision_tokens
from lit_depth.models.prompting import VisionToken

AutoConfig.register("molmo", MolmoConfig, exist_ok=True)
# one class for both of transformers' backends: it needs neither torchvision nor a fallback warning
_BACKENDS: dict[str, type] = {"pil": MolmoImageProcessor, "torchvision": MolmoImageProcessor}
AutoImageProcessor.register(MolmoConfig, image_processor_classes=_BACKENDS, exist_ok=True)
AutoModel.register(MolmoConfig, MolmoModel, exist_ok=True)
# the model card of the release loads it as a causal language model
for _auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _auto.register(MolmoConfig, MolmoForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MolmoConfig, MolmoProcessor, exist_ok=True)

__all__ = [
    "MolmoConfig",
    "MolmoForConditionalGeneration",
    "MolmoImageProcessor",
    "MolmoModel",
    "MolmoProcessor",
    "MolmoPrompter",
    "VisionToken",
    "vision_tokens",
]
