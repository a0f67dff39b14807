"""Molmo: a CLIP vision tower, Molmo's pooling connector and an Olmoe, Qwen2 or Olmo2 text model.

Shapes: B batch, S sequence, T crops, N patches of a crop, P pixels along a patch, M image tokens of a crop,
V width of the vision tower, D width of the text model.

The image path follows the release (allenai/molmo, ``olmo/model.py``): features of some vision blocks are concatenated,
padded patches get a learned vector, each 2 x 2 window is pooled by attention whose query is the window's mean, a
SwiGLU projects to the text width, and the result is *added* to the embeddings of the image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, CLIPVisionConfig, GenerationMixin, Olmo2Model, OlmoeModel, PreTrainedModel, Qwen2Model
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MultimodalCausalLMOutputWithPast,
    MultimodalMoeBaseModelOutputWithPast,
)
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPPreTrainedModel, CLIPVisionEmbeddings
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from lit_depth.models.molmo.configuration_molmo import MolmoConfig
from lit_depth.models.molmo.conversion_molmo import DENSE_HEAD, register_conversions
from lit_depth.models.molmo.prompting_molmo import MolmoPrompter
from lit_depth.models.molmo.vision_tokens_molmo import count_vision_tokens, image_token_mask

# as transformers names it of all its models
_old_cache_name = deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")


@dataclass
class MolmoOutput(MultimodalCausalLMOutputWithPast):
    """Outputs of `MolmoForConditionalGeneration`; what was not asked for is None.

    Attributes:
        loss: Mean cross entropy over labelled tokens, a scalar.
        logits: ``[B, S or logits_to_keep, text_config.vocab_size]``.
        last_hidden_state: ``[B, S, D]``, after the final norm.
        cache: The cache that was filled.
        hidden_states: One ``[B, S, D]`` before each block, and the last after the final norm.
        attentions: One ``[B, heads, S, S]`` per block that ran (eager attention only).
        router_logits: One ``[B * S, experts]`` per block that ran (mixture of experts only).
        image_outputs: What `MolmoModel.get_image_features` returned; None where no image was looked at.
    """

    last_hidden_state: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


class MolmoVisionModel(CLIPPreTrainedModel):
    """CLIP's vision tower up to the deepest block that is used, returning the chosen blocks' outputs side by side.

    Blocks beyond the deepest used one exist (the release has their weights) but do not run. There is no
    ``post_layernorm``: no feature of the release passes through it.
    """

    config_class = CLIPVisionConfig
    main_input_name = "pixel_values"
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: CLIPVisionConfig, used_blocks: list[int]) -> None:
        super().__init__(config)
        self.used_blocks = used_blocks
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # spelled as in CLIP
        self.encoder = CLIPEncoder(config)  # type: ignore[arg-type]  # annotated as the config around this one
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Features of every patch.

        Args:
            pixel_values: ``[crops, 3, height, width]``, normalised.
            **kwargs: ``output_hidden_states``, ``output_attentions``, ``return_dict``.

        Returns:
            ``last_hidden_state`` ``[crops, 1 + N, V]`` of the deepest used block, the class token first, and
            ``pooler_output`` ``[crops, N, V * len(used_blocks)]`` without it.
        """
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        outputs = {}
        for index, block in enumerate(self.encoder.layers[: max(self.used_blocks) + 1]):
            hidden = block(hidden, attention_mask=None)
            if index in self.used_blocks:
                outputs[index] = hidden[:, 1:]
        features = torch.cat([outputs[index] for index in self.used_blocks], dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=features)


class MolmoPooling(nn.Module):
    """Attention of one query (the mean of its window) over the patches of its window; parameters named as released."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        vision = config.vision_config
        width, features = vision.hidden_size, vision.hidden_size * len(config.vit_layers)
        self.num_heads = vision.num_attention_heads
        self.wq = nn.Linear(features, width)
        self.wk = nn.Linear(features, width)
        self.wv = nn.Linear(features, width)
        self.wo = nn.Linear(width, width)

    def forward(self, windows: Tensor) -> Tensor:
        """Pool ``[windows, patches, features]`` to ``[windows, V]``."""
        query = windows.mean(dim=1, keepdim=True)
        q, k, v = (
            projection(source).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, source in ((self.wq, query), (self.wk, windows), (self.wv, windows))
        )
        return self.wo(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).squeeze(1)


class MolmoProjector(nn.Module):
    """SwiGLU from the vision width to the text width; parameters named as released."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        width, hidden = config.vision_config.hidden_size, config.text_config.intermediate_size
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, config.text_config.hidden_size, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Project ``[..., V]`` to ``[..., D]``."""
        return self.w2(F.silu(self.w1(features)) * self.w3(features))


class MolmoConnector(nn.Module):
    """From patch features to image tokens: padding vectors, window pooling, projection."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.window = (config.image_pooling_h, config.image_pooling_w)
        self.pad_embed = None
        if config.image_padding_embed is not None:
            self.pad_embed = nn.Parameter(torch.zeros(2, config.vision_config.hidden_size * len(config.vit_layers)))
        self.image_pooling_2d = MolmoPooling(config)
        self.image_projector = MolmoProjector(config)

    def forward(self, features: Tensor, image_masks: Tensor | None = None) -> Tensor:
        """Image tokens of every crop.

        Args:
            features: ``[B, T, N, V * used blocks]``.
            image_masks: ``[B, T, N]``, share of each patch that is image and not padding; None = all image.

        Returns:
            ``[B, T, M, D]``.
        """
        if self.pad_embed is not None and image_masks is not None:
            padded = (image_masks == 0).unsqueeze(-1).to(features.dtype)
            # the mask of a missing crop is -1 and counts as partly padded, as in the release
            partial = ((image_masks < 1) & (image_masks != 0)).unsqueeze(-1).to(features.dtype)
            features = features + self.pad_embed[0] * padded + self.pad_embed[1] * partial
        batch, crops = features.shape[:2]
        (rows, columns), (height, width) = self.grid_size, self.window
        grid = features.reshape(batch * crops, rows, columns, -1)
        # an odd grid is padded with zeros at its end, as in the release
        grid = F.pad(grid, (0, 0, 0, -columns % width, 0, -rows % height))
        windows = grid.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3)
        pooled = self.image_pooling_2d(windows.flatten(3, 4).flatten(0, 2))
        return self.image_projector(pooled).unflatten(0, (batch, crops, -1))


class _MolmoTextModel:
    """Gives a text model an input table with more rows than its output head has (a mixin; see `MolmoConfig`)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        rows = config.vocab_size + config.additional_vocab_size
        self.embed_tokens = nn.Embedding(rows, config.hidden_size)
        self.post_init()  # type: ignore[attr-defined]


class MolmoOlmoeModel(_MolmoTextModel, OlmoeModel):
    """Text model of MolmoE-1B."""

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for a decorator in the source of the class's own module, and would silently stay eager
        return True


class MolmoQwen2Model(_MolmoTextModel, Qwen2Model):
    """Text model of Molmo-7B-D and Molmo-72B."""


class MolmoOlmo2Model(_MolmoTextModel, Olmo2Model):
    """Text model of Molmo-7B-O."""


TEXT_MODELS: dict[str, Any] = {"olmoe": MolmoOlmoeModel, "qwen2": MolmoQwen2Model, "olmo2": MolmoOlmo2Model}


class _HasExperts:
    """Whether experts can be switched: of a model, whether it has any; of a class, whether its models may."""

    def __get__(self, model: PreTrainedModel | None, owner: type) -> Callable[[], bool]:
        return lambda: model is None or model.config.text_config.model_type == "olmoe"


class MolmoPreTrainedModel(PreTrainedModel):
    config_class = MolmoConfig
    base_model_prefix = "model"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["OlmoeDecoderLayer", "Qwen2DecoderLayer", "Olmo2DecoderLayer", "CLIPEncoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_set_experts_implementation = _HasExperts()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MolmoConnector) and module.pad_embed is not None:
            nn.init.zeros_(module.pad_embed)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers: afterwards input table and output head have the same rows, and none is input-only."""
        table = super().resize_token_embeddings(*args, **kwargs)
        rows, config = table.weight.shape[0], self.config
        config.additional_vocab_size = config.text_config.additional_vocab_size = rows - config.text_config.vocab_size
        config.tokenizer_vocab_size = min(config.tokenizer_vocab_size, rows)
        return table


class MolmoModel(MolmoPreTrainedModel):
    """Molmo without its output head."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        self.vision_tower = MolmoVisionModel(config.vision_config, config.used_vision_blocks)
        self.connector = MolmoConnector(config)
        self.language_model = TEXT_MODELS[config.text_config.model_type](config.text_config)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    def get_image_features(
        self,
        images: Tensor,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Image features in the text model's space.

        Args:
            images: ``[B, T, N, P * P * 3]``, patches in row-major order, pixels in (row, column, channel) order;
                a missing crop is filled with -1.
            image_masks: ``[B, T, N]`` share of each patch that is image, or None.
            image_input_idx: Taken so that a processor's image inputs can be given whole; features do not depend on it.
            **kwargs: ``output_hidden_states``, ``output_attentions``, ``return_dict``.

        Returns:
            ``pooler_output`` ``[B, T * M, D]``, crop by crop; the vision tower's ``last_hidden_state``
            ``[B * T, 1 + N, V]``, and its ``hidden_states`` and ``attentions`` where asked for.

        Raises:
            ValueError: If the images do not have the geometry of this model.
        """
        vision = self.config.vision_config
        rows, columns = self.config.grid_size
        expected = (rows * columns, vision.patch_size**2 * 3)
        if images.ndim != 4 or tuple(images.shape[2:]) != expected:
            raise ValueError(
                f"images must have shape [batch, crops, {expected[0]}, {expected[1]}] (patches, pixel values) "
                f"for this model, got {list(images.shape)}: does the processor's geometry fit the checkpoint?"
            )
        batch, crops = images.shape[:2]
        flat = images.flatten(0, 1).to(self.connector.image_projector.w1.weight.dtype)
        # missing only if every value is -1: after normalisation a real crop may hold single values of exactly -1
        present = (flat != -1).flatten(1).any(dim=1)
        pixels = flat.view(-1, rows, columns, vision.patch_size, vision.patch_size, 3)
        pixels = pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        outputs = self.vision_tower(pixels, return_dict=True, **kwargs)
        features = (outputs.pooler_output * present.view(-1, 1, 1)).unflatten(0, (batch, crops))
        outputs.pooler_output = self.connector(features, image_masks).flatten(1, 2)
        return outputs

    def embed(
        self,
        inputs: Tensor,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        num_cached: int = 0,
        **kwargs: Any,
    ) -> tuple[Tensor, BaseModelOutputWithPooling | None]:
        """Input embeddings with the image features added at their positions.

        Args:
            inputs: Tokens ``[B, S]``, or their embeddings ``[B, S, D]``.
            images: ``[B, T, N, P * P * 3]`` or None.
            image_masks: ``[B, T, N]`` or None.
            image_input_idx: ``[B, T, M]`` position of each image token in its own row, counted from the beginning of
                the sequence; negative = unused.
            num_cached: Tokens of the sequence before ``inputs``: image tokens among them have been seen.
            **kwargs: Passed to `get_image_features`.

        Returns:
            Embeddings ``[B, S, D]`` and what `get_image_features` gave, or None where no image token is new.

        Raises:
            ValueError: If the images do not fit the model or their positions, or a position lies behind the sequence.
        """
        embeddings = inputs if inputs.is_floating_point() else self.language_model.embed_tokens(inputs)
        if images is None:
            return embeddings, None
        if image_input_idx is None:
            raise ValueError("images were given without image_input_idx (the position of every image token)")
        length = num_cached + inputs.shape[1]
        if (image_input_idx >= length).any():
            raise ValueError(
                f"image_input_idx must lie below {length}, the length of the sequence"
                + (f" ({num_cached} cached tokens and {inputs.shape[1]} new ones)" if num_cached else "")
                + f", got {int(image_input_idx.max())}"
            )
        if not (image_input_idx >= num_cached).any():
            return embeddings, None
        outputs = self.get_image_features(images, image_masks, return_dict=True, **kwargs)
        features = outputs.pooler_output
        expected = [*images.shape[:2], features.shape[1] // images.shape[1]]
        if list(image_input_idx.shape) != expected:
            raise ValueError(
                f"image_input_idx must have shape {expected} (batch, crops, tokens of a crop), "
                f"got {list(image_input_idx.shape)}"
            )
        index = image_input_idx.flatten(1)
        row, token = ((index >= 0) & (index >= num_cached)).nonzero(as_tuple=True)
        if not inputs.is_floating_point():
            _check_padded_together(inputs, row, index[row, token] - num_cached)
        values = features[row, token].to(embeddings.dtype)
        return embeddings.index_put((row, index[row, token] - num_cached), values, accumulate=True), outputs

    @can_return_tuple
    @_old_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MultimodalMoeBaseModelOutputWithPast:
        """Hidden states ``[B, S, D]``; arguments as in `MolmoForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        assert inputs is not None
        num_cached = 0 if cache is None or images is None else int(cache.get_seq_length())
        recorded = {name: kwargs[name] for name in ("output_hidden_states", "output_attentions") if name in kwargs}
        inputs_embeds, image_outputs = self.embed(inputs, images, image_masks, image_input_idx, num_cached, **recorded)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return MultimodalMoeBaseModelOutputWithPast(**outputs, image_outputs=image_outputs)


def own_conversions(model: PreTrainedModel, **options: Any) -> list[Any]:
    """Conversions between a model's names and the released ones: of those declared, the ones of its own family."""
    dense = model.config.text_config.model_type != "olmoe"
    declared = get_model_conversion_mapping(model, **{"add_legacy": False, **options})
    # only one family's name of the head is right
    return [each for each in declared if dense or DENSE_HEAD not in each._original_source_patterns]


def _check_padded_together(input_ids: Tensor, row: Tensor, position: Tensor) -> None:
    """Refuse rows that were prepared apart and padded afterwards, as a pipeline does: their image positions moved.

    All image tokens of a row are one token. Where some rows have it at the positions given and others do not, these
    were moved; where no row has it, somebody knows what they do.
    """
    tokens = input_ids[row, position]
    low, high = (
        torch.zeros_like(input_ids[:, 0]).scatter_reduce(0, row, tokens, kind, include_self=False)
        for kind in ("amin", "amax")
    )
    same = (low == high)[row]
    if same.any() and not same.all():
        raise ValueError(
            f"image_input_idx of row {int(row[~same][0])} does not point at its image tokens: rows that were prepared "
            "one by one cannot be padded together, give the processor all of them at once (a pipeline: batch_size 1)"
        )


class MolmoForConditionalGeneration(MolmoPreTrainedModel, GenerationMixin):
    """Molmo with its output head: loads and saves released checkpoints, generates.

    The head has ``text_config.vocab_size`` rows; the tokens that exist only in the input (``additional_vocab_size``)
    cannot be generated.
    """

    prompter_class = MolmoPrompter
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        self.model = MolmoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
        # A model that was not loaded would be saved through every declared conversion. Loading replaces this list by
        # the conversions that the checkpoint needed.
        self._weight_conversions = own_conversions(self)

    def get_image_features(
        self, images: Tensor, image_masks: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See `MolmoModel.get_image_features`."""
        return self.model.get_image_features(images, image_masks, **kwargs)

    def num_vision_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Image features of each row that reach its text, long ``[batch]``."""
        return count_vision_tokens(inputs)

    def image_token_mask(self, inputs: Mapping[str, Tensor], num_cached: int = 0) -> Tensor:
        """Which tokens get an image feature, bool ``[batch, seq]``."""
        return image_token_mask(inputs, num_cached)

    @can_return_tuple
    @_old_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MolmoOutput:
        """Next-token logits.

        Args:
            input_ids: ``[B, S]``.
            attention_mask: ``[B, S]`` (1 = real token), or ``[B, 1, S, S]`` bool or additive.
            position_ids: ``[B, S]``; derived from a 2-D attention mask by default.
            cache: Cache to continue; its old name ``past_key_values`` is taken too, with a warning.
            inputs_embeds: ``[B, S, D]`` instead of ``input_ids``; image features are added to them.
            images: ``[B, T, N, P * P * 3]``; a missing crop is filled with -1. With the prompt, not while decoding; in
                a later turn on the same cache those of all turns, or the new ones alone.
            image_masks: ``[B, T, N]`` share of each patch that is image and not padding.
            image_input_idx: ``[B, T, M]`` position of each image token in its own row, counted from the beginning of
                the sequence, cached tokens included; negative = unused.
            labels: ``[B, S]`` aligned with ``input_ids``; -100 = ignored.
            use_cache: Whether to return a filled cache.
            logits_to_keep: Number of last positions (0 = all), or their indices.
            **kwargs: Passed to the text model (``output_hidden_states``, ``output_router_logits``, ...);
                ``return_dict=False`` returns a tuple, as elsewhere in transformers.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            images=images,
            image_masks=image_masks,
            image_input_idx=image_input_idx,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            # with targets that are shifted already, or a count of them over several batches
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return MolmoOutput(loss=loss, logits=logits, **outputs)

    def prepare_inputs_for_generation(  # generate passes all but input_ids by name
        self,
        input_ids: Tensor,
        is_first_iteration: bool | None = False,
        inputs_embeds: Tensor | None = None,  # named here, or generate refuses them
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            is_first_iteration=is_first_iteration,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        # cached steps must not add the image a second time; without a cache every step sees the whole prompt
        if images is not None and (is_first_iteration or not kwargs.get("use_cache", True)):
            inputs |= {"images": images, "image_masks": image_masks, "image_input_idx": image_input_idx}
        return inputs


register_conversions()
