"""How released Molmo checkpoints map onto the native modules, declared for transformers' checkpoint conversion.

The same declarations, reversed by transformers, write the released names back. transformers looks declarations up by
class name and scopes them to that submodule, which is why every part that needs its own (q/k/v exist in the text model
and in CLIP) is a class of ours.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    MergeModulelist,
    Split,
    WeightConverter,
    WeightRenaming,
)

from lit_depth.models.whole_weights import OnWhole, single

Conversions: TypeAlias = list[WeightConverter | WeightRenaming]

# the output head of the dense releases; MolmoE's is called lm_head already
DENSE_HEAD = r"^model\.transformer\.ff_out\.weight"


class JoinVocabulary(ConversionOps):
    """Stack the base rows and the added rows of the embedding table; the added part has a size of its own."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        parts = [single(input_dict[pattern]) for pattern in source_patterns]
        return {target_patterns[0]: torch.cat(parts)}

    @property
    def reverse_op(self) -> ConversionOps:
        return SplitVocabulary()


class SplitVocabulary(ConversionOps):
    """Inverse of `JoinVocabulary`: the base part has as many rows as the output head."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        config: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        table = single(next(iter(input_dict.values())))
        rows = config.text_config.vocab_size
        return {
            target_patterns[0]: table[:rows].clone(),
            target_patterns[1]: table[rows:].clone(),
        }

    @property
    def reverse_op(self) -> ConversionOps:
        return JoinVocabulary()


class LinearToPatchConvolution(ConversionOps):
    """Patch embedding ``[hidden, patch * patch * 3]`` (row, column, channel) to ``[hidden, 3, patch, patch]``."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        weight = single(next(iter(input_dict.values())))
        side = int((weight.shape[1] // 3) ** 0.5)
        return {target_patterns[0]: weight.view(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()}

    @property
    def reverse_op(self) -> ConversionOps:
        return PatchConvolutionToLinear()


class PatchConvolutionToLinear(ConversionOps):
    """Inverse of `LinearToPatchConvolution`."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        weight = single(next(iter(input_dict.values())))
        return {target_patterns[0]: weight.permute(0, 2, 3, 1).flatten(1).contiguous()}

    @property
    def reverse_op(self) -> ConversionOps:
        return LinearToPatchConvolution()


def _qkv(source: str) -> WeightConverter:
    targets = [r"\.self_attn\.q_proj", r"\.self_attn\.k_proj", r"\.self_attn\.v_proj"]
    return WeightConverter(source, targets, operations=[OnWhole(Split(dim=0))])


def _dense(attention_norm: str, mlp_norm: str) -> Conversions:
    """Blocks of the dense releases; where the two norms sit depends on the family."""
    return [
        WeightRenaming(r"\.attn_norm", rf"\.{attention_norm}"),
        WeightRenaming(r"\.ff_norm", rf"\.{mlp_norm}"),
        WeightRenaming(r"\.attn_out", r"\.self_attn\.o_proj"),
        WeightRenaming(r"(layers\.\d+)\.q_norm", r"\1\.self_attn\.q_norm"),
        WeightRenaming(r"(layers\.\d+)\.k_norm", r"\1\.self_attn\.k_norm"),
        WeightRenaming(r"\.ff_out", r"\.mlp\.down_proj"),
        _qkv(r"\.att_proj"),
        # the released half that is multiplied comes first, the half that is activated second
        WeightConverter(r"\.ff_proj", [r"\.mlp\.up_proj", r"\.mlp\.gate_proj"], operations=[OnWhole(Chunk(dim=0))]),
    ]


HEAD: Conversions = [WeightRenaming(DENSE_HEAD, r"^lm_head\.weight")]
MOLMO: Conversions = [
    WeightRenaming(r"^transformer\.ln_f", r"^language_model\.norm"),
    WeightRenaming(r"^transformer\.blocks", r"^language_model\.layers"),
    WeightRenaming(r"^vision_backbone\.image_vit", r"^vision_tower"),
    WeightRenaming(r"^vision_backbone", r"^connector"),
    WeightConverter(
        [r"^transformer\.wte\.embedding", r"^transformer\.wte\.new_embedding"],
        r"^language_model\.embed_tokens\.weight",
        operations=[OnWhole(JoinVocabulary())],
    ),
]
OLMOE: Conversions = [
    WeightRenaming(r"\.attn\.attn_norm", r"\.input_layernorm"),
    WeightRenaming(r"\.mlp\.ff_norm", r"\.post_attention_layernorm"),
    WeightRenaming(r"\.attn\.attn_out", r"\.self_attn\.o_proj"),
    WeightRenaming(r"\.attn\.q_norm", r"\.self_attn\.q_norm"),
    WeightRenaming(r"\.attn\.k_norm", r"\.self_attn\.k_norm"),
    _qkv(r"\.attn\.att_proj"),
    WeightConverter(
        [r"mlp.experts.*.gate_proj.weight", r"mlp.experts.*.up_proj.weight"],
        "mlp.experts.gate_up_proj",
        operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
    ),
    WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[MergeModulelist(dim=0)]),
]
QWEN2 = _dense("input_layernorm", "post_attention_layernorm")
OLMO2 = _dense("post_attention_layernorm", "post_feedforward_layernorm")
VISION: Conversions = [
    WeightRenaming(r"^class_embedding", r"^embeddings\.class_embedding"),
    WeightRenaming(r"^positional_embedding", r"^embeddings\.position_embedding\.weight"),
    WeightRenaming(r"^pre_ln", r"^pre_layrnorm"),
    WeightRenaming(r"^transformer\.resblocks", r"^encoder\.layers"),
    WeightRenaming(r"\.attention\.wq", r"\.self_attn\.q_proj"),
    WeightRenaming(r"\.attention\.wk", r"\.self_attn\.k_proj"),
    WeightRenaming(r"\.attention\.wv", r"\.self_attn\.v_proj"),
    WeightRenaming(r"\.attention\.wo", r"\.self_attn\.out_proj"),
    WeightRenaming(r"\.feed_forward\.w1", r"\.mlp\.fc1"),
    WeightRenaming(r"\.feed_forward\.w2", r"\.mlp\.fc2"),
    WeightRenaming(r"\.attention_norm", r"\.layer_norm1"),
    WeightRenaming(r"\.ffn_norm", r"\.layer_norm2"),
    WeightConverter(
        r"^patch_embedding\.weight",
        r"^embeddings\.patch_embedding\.weight",
        operations=[LinearToPatchConvolution()],
    ),
]


def register_conversions() -> None:
    """Make ``from_pretrained`` and ``save_pretrained`` speak the released names for Molmo's classes."""
    declarations = {
        "MolmoForConditionalGeneration": HEAD,
        "MolmoModel": MOLMO,
        "MolmoOlmoeModel": OLMOE,
        "MolmoQwen2Model": QWEN2,
        "MolmoOlmo2Model": OLMO2,
        "MolmoVisionModel": VISION,
    }
    for each in MOLMO:
        # transformers scopes what is inside another model; alone, the model finds its own prefix in released names
        each.scope_prefix, each.base_model_prefix = "", "model"
    for class_name, declaration in declarations.items():
        register_checkpoint_conversion_mapping(class_name, declaration, overwrite=True)
