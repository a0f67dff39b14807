"""Configuration of Molmo: a text model, a CLIP vision tower and the connector between them.

Two spellings are read. The *released* one is the flat ``config.json`` of the published checkpoints, with one set of
names for MolmoE-1B and another for the dense models; the *nested* one is this class's own (``text_config``,
``vision_config``). Configurations are always written in the released spelling, so that a saved checkpoint is one that
any reader of the release understands.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, CLIPVisionConfig, Olmo2Config, OlmoeConfig, Qwen2Config
from transformers.configuration_utils import PretrainedConfig

# native name -> released name; the two families spell the same facts differently
_MOE_TEXT_FIELDS = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "num_hidden_layers": "n_layers",
    "num_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_top_k",
}
_DENSE_TEXT_FIELDS = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "num_hidden_layers": "num_hidden_layers",
}
_COMMON_TEXT_FIELDS = {
    "vocab_size": "embedding_size",
    "rms_norm_eps": "layer_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
}
_VISION_FIELDS = {
    "hidden_size": "image_emb_dim",
    "intermediate_size": "image_mlp_dim",
    "num_hidden_layers": "image_num_layers",
    "num_attention_heads": "image_num_heads",
    "patch_size": "image_patch_size",
    "hidden_act": "image_mlp_activations",
    "layer_norm_eps": "image_norm_eps",
    "initializer_range": "initializer_range",
}
# ViT-L/14 at 336 pixels without its last block: hard-coded in the code of the dense releases, absent from their config
_DENSE_VISION_BACKBONE = {
    "image_default_input_size": [336, 336],
    "image_emb_dim": 1024,
    "image_mlp_dim": 4096,
    "image_num_layers": 23,
    "image_num_heads": 16,
    "image_patch_size": 14,
    "image_mlp_activations": "quick_gelu",
    "image_norm_eps": 1e-5,
    "initializer_range": 0.02,
}
# what `MolmoConfig` is without arguments
_MOLMOE_1B = {
    "block_type": "moe",
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 16,
    "mlp_ratio": 1,
    "moe_num_experts": 64,
    "moe_top_k": 8,
    "embedding_size": 50304,
    "vocab_size": 50280,
    "max_position_embeddings": 32768,
    "pad_token_id": 1,
    "attention_layer_norm": True,
    "qkv_bias": False,
}
# further arguments of transformers' own configurations
_OF_THE_BASE = (
    "attn_implementation",
    "experts_implementation",
    "name_or_path",
    "output_attentions",
    "torch_dtype",
)
# values of released fields that this composition implements; anything else is refused rather than ignored
_SUPPORTED = {
    "activation_type": ("swiglu",),
    "alibi": (False,),
    "attn_logit_softcapping": (None,),
    "bias_for_layer_norm": (False,),
    "block_type": ("moe", "sequential", "llama"),
    "clip_qkv": (None,),
    "final_logit_softcapping": (None,),
    "image_padding_embed": ("pad_and_partial_pad", None),
    "image_pooling_2d": ("attention-meanq", "attention_meanq"),
    "image_projector": ("mlp",),
    "include_bias": (False,),
    "layer_norm_type": ("rms",),
    "moe_interleave": (False,),
    "moe_shared_expert": (False,),
    "normalize_input_embeds": (False,),
    "rope": (True,),
    "scale_logits": (False,),
    "tie_word_embeddings": (False,),
    "use_cls_feature": (False,),
    "weight_tying": (False,),
}
TEXT_CONFIGS = {"olmoe": OlmoeConfig, "qwen2": Qwen2Config, "olmo2": Olmo2Config}


class MolmoConfig(PretrainedConfig):
    """Configuration of `MolmoForConditionalGeneration`, from released (flat) or nested fields.

    Where nothing says how large a text model is, or of which kind, it is MolmoE-1B's.

    Args:
        text_config: Configuration of the text model: ``olmoe`` (MolmoE-1B), ``qwen2`` (7B-D, 72B) or ``olmo2`` (7B-O).
            ``vocab_size`` counts the rows of the output head; the input table has ``additional_vocab_size`` more.
        vision_config: Configuration of the CLIP vision tower.
        vit_layers: Blocks of the vision tower whose outputs are concatenated, in this order; negative from the end.
        image_pooling_h: Rows of patches pooled into one image token.
        image_pooling_w: Columns of patches pooled into one image token.
        image_padding_embed: ``"pad_and_partial_pad"`` adds learned vectors to features of padded patches, or None.
        additional_vocab_size: Rows that the input embedding has beyond the output head.
        tokenizer_vocab_size: Number of real tokens (the released ``vocab_size``), at most ``text_config.vocab_size``.
        **kwargs: Fields of a released flat configuration, or of `transformers.PretrainedConfig`.

    Raises:
        ValueError: If a released field asks for something that this model does not implement.

    Example:
        >>> config = MolmoConfig(d_model=32, n_heads=4, n_layers=2, moe_num_experts=4, moe_top_k=2, mlp_ratio=1,
        ...                      embedding_size=64, block_type="moe", attention_layer_norm=True)
        >>> config.text_config.model_type, config.text_config.num_hidden_layers, config.text_config.intermediate_size
        ('olmoe', 2, 16)
    """

    model_type = "molmo"
    sub_configs: ClassVar = {"text_config": AutoConfig, "vision_config": AutoConfig}

    # given as a dict, a config object or None; config objects once constructed
    text_config: Any = None
    vision_config: Any = None
    vit_layers: list[int] | tuple[int, ...] = (-2, -9)
    image_pooling_h: int = 2
    image_pooling_w: int = 2
    image_padding_embed: str | None = "pad_and_partial_pad"
    additional_vocab_size: int = 128
    tokenizer_vocab_size: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            fields, kwargs = _nested_from_released(
                {
                    **kwargs,
                    "image_padding_embed": self.image_padding_embed,
                    "tie_word_embeddings": self.tie_word_embeddings,
                }
            )
            for name, value in fields.items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
        if isinstance(self.text_config, dict):
            model_type = self.text_config.get("model_type")
            if model_type not in TEXT_CONFIGS:
                raise ValueError(f"text_config.model_type must be one of {sorted(TEXT_CONFIGS)}, got {model_type!r}")
            self.text_config = TEXT_CONFIGS[model_type](**self.text_config)
        if self.vision_config is None:
            self.vision_config = _vision_from_released({})
        if not isinstance(self.vision_config, PretrainedConfig):
            self.vision_config = CLIPVisionConfig(**self.vision_config)
        if self.tie_word_embeddings or self.text_config.tie_word_embeddings:
            raise ValueError("unsupported Molmo configuration: expected tie_word_embeddings = False, got True")
        # the text model builds its input table from its own config
        self.text_config.additional_vocab_size = self.additional_vocab_size
        self.vit_layers = list(self.vit_layers)
        if self.tokenizer_vocab_size is None:
            self.tokenizer_vocab_size = self.text_config.vocab_size
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches along the height and the width of one crop."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side

    @property
    def used_vision_blocks(self) -> list[int]:
        """Indices (from 0) of the vision blocks named by `vit_layers`, in that order."""
        count = self.vision_config.num_hidden_layers
        return [layer % count for layer in self.vit_layers]

    def to_diff_dict(self) -> dict[str, Any]:
        """The configuration in its released, flat spelling: what ``save_pretrained`` writes."""
        base = super().to_diff_dict()
        kept = {
            name: value
            for name, value in base.items()
            if name in PretrainedConfig().to_dict() or name in ("architectures", "dtype", "transformers_version")
        }
        return {**kept, **_released_from_nested(self), "model_type": self.model_type}


def _nested_from_released(flat: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a released flat configuration into (own fields, remaining fields of `PretrainedConfig`)."""
    for name, allowed in _SUPPORTED.items():
        if name in flat and flat[name] not in allowed:
            expected = " or ".join(repr(value) for value in allowed)
            raise ValueError(f"unsupported Molmo configuration: expected {name} = {expected}, got {flat[name]!r}")
    if not flat.keys() & {"block_type", "d_model", "n_layers", *_DENSE_TEXT_FIELDS.values()}:
        flat = {**_MOLMOE_1B, **flat}
    mixture = flat.get("block_type") == "moe"
    names = {**_COMMON_TEXT_FIELDS, **(_MOE_TEXT_FIELDS if mixture else _DENSE_TEXT_FIELDS)}
    missing = [released for released in (names["hidden_size"], names["num_hidden_layers"]) if released not in flat]
    if missing:
        raise ValueError(f"not a Molmo configuration: expected text_config, or the released field(s) {missing}")
    text = {native: flat[released] for native, released in names.items() if flat.get(released) is not None}
    # the released configs name no end or begin token; transformers' family defaults belong to other tokenizers
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        text.setdefault(token, None)
    text.setdefault("num_key_value_heads", text["num_attention_heads"])
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": float(flat.get("rope_theta", 10000.0))}
    text["tie_word_embeddings"] = False
    if mixture:
        # the released width is that of gate and up together
        text["intermediate_size"] = (flat.get("mlp_hidden_size") or flat.get("mlp_ratio", 4) * text["hidden_size"]) // 2
        if not flat.get("attention_layer_norm", True) or flat.get("norm_after", False):
            raise ValueError("unsupported Molmo configuration: MolmoE has attention_layer_norm and no norm_after")
        text_config: PretrainedConfig = OlmoeConfig(**text)
    else:
        text["intermediate_size"] = flat["intermediate_size"] // 2
        norms = (bool(flat.get("norm_after", False)), bool(flat.get("attention_layer_norm", False)))
        if norms == (True, True) and not flat.get("qkv_bias", False):
            text_config = Olmo2Config(**text)
        elif norms == (False, False) and flat.get("qkv_bias", True):
            text_config = Qwen2Config(**text)
        else:
            raise ValueError(
                "unsupported Molmo configuration: expected norm_after, attention_layer_norm, qkv_bias = "
                f"(false, false, true) or (true, true, false), got {(*norms, flat.get('qkv_bias'))}"
            )
    own = {
        "text_config": text_config,
        "vision_config": _vision_from_released(flat.get("vision_backbone") or {}),
        "tokenizer_vocab_size": flat.get("vocab_size"),
    }
    return own, {name: flat[name] for name in _OF_THE_BASE if name in flat}


def _vision_from_released(backbone: dict[str, Any]) -> CLIPVisionConfig:
    """The vision tower of a released ``vision_backbone``, which the dense releases leave out."""
    backbone = {**_DENSE_VISION_BACKBONE, **backbone}
    vision = {native: backbone[released] for native, released in _VISION_FIELDS.items()}
    height, width = backbone["image_default_input_size"]
    if height != width:
        raise ValueError(f"unsupported Molmo configuration: expected square crops, got {height}x{width} pixels")
    return CLIPVisionConfig(**vision, image_size=height)


def _released_from_nested(config: MolmoConfig) -> dict[str, Any]:
    """Inverse of `_nested_from_released`."""
    text, vision = config.text_config, config.vision_config
    mixture = text.model_type == "olmoe"
    names = {**_COMMON_TEXT_FIELDS, **(_MOE_TEXT_FIELDS if mixture else _DENSE_TEXT_FIELDS)}
    flat = {released: getattr(text, native, None) for native, released in names.items()}
    flat["rope_theta"] = text.rope_parameters["rope_theta"]
    flat["vocab_size"] = config.tokenizer_vocab_size
    flat["additional_vocab_size"] = config.additional_vocab_size
    if mixture:
        flat |= {"block_type": "moe", "mlp_hidden_size": 2 * text.intermediate_size, "activation_type": "swiglu"}
        flat |= {"attention_layer_norm": True, "norm_after": False, "qkv_bias": False}
    else:
        after = text.model_type == "olmo2"
        flat |= {"intermediate_size": 2 * text.intermediate_size}
        flat |= {"attention_layer_norm": after, "norm_after": after, "qkv_bias": not after}
    flat |= {"layer_norm_type": "rms", "weight_tying": False, "use_position_ids": True}
    backbone = {released: getattr(vision, native) for native, released in _VISION_FIELDS.items()}
    backbone["image_default_input_size"] = [vision.image_size, vision.image_size]
    backbone["image_num_pos"] = config.grid_size[0] * config.grid_size[1] + 1
    backbone["image_num_key_value_heads"] = vision.num_attention_heads
    backbone["image_head_dim"] = vision.hidden_size // vision.num_attention_heads
    flat["vision_backbone"] = backbone
    flat |= {
        "vit_layers": list(config.vit_layers),
        "image_pooling_2d": "attention-meanq",
        "image_pooling_h": config.image_pooling_h,
        "image_pooling_w": config.image_pooling_w,
        "image_projector": "mlp",
        "image_padding_embed": config.image_padding_embed,
    }
    return flat
