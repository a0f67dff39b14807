"""Which tokens are image tokens, and which forward a block is in."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional.inputs import count_image_tokens
from lit_depth.functional.masking.image_tokens import ImageTokens, check_image_tokens, image_token_mask
from tests.helpers.tiny_models import tiny_batch, tiny_model
from tests.helpers.tiny_molmo import tiny_inputs, tiny_molmo
from tests.helpers.visual_laws import image_places


def test_as_many_as_latency_counts():
    model = tiny_model("llava")
    inputs = tiny_batch(model)
    found = image_token_mask(model, inputs)
    assert torch.equal(found, image_places(inputs))
    assert torch.equal(found.sum(1), count_image_tokens(model.config, inputs["input_ids"]))
    own, given = tiny_molmo("olmoe"), tiny_inputs()
    assert torch.equal(image_token_mask(own, given), image_places(given))
    assert torch.equal(image_token_mask(own, given).sum(1), own.num_vision_tokens(given))


def test_places_count_from_the_beginning_of_the_sequence():
    model, inputs = tiny_molmo("olmoe"), tiny_inputs()
    rest = {**inputs, "input_ids": inputs["input_ids"][:, 5:]}
    assert torch.equal(image_token_mask(model, rest, 5), image_places(inputs)[:, 5:])


def test_a_model_that_does_not_tell_is_refused():
    with pytest.raises(ValueError, match="tells its image tokens"):
        check_image_tokens(tiny_model("llama"))
    with pytest.raises(ValueError, match="tells its image tokens"):
        check_image_tokens(torch.nn.Linear(2, 2))


def test_it_listens_inside_a_forward_only():
    model = tiny_model("llava")
    inputs, seen = tiny_batch(model), []
    image_tokens = ImageTokens(model)
    hook = model.lm_head.register_forward_hook(lambda *_: seen.append(image_tokens.now))
    with image_tokens.listening():
        cache = model(**inputs, use_cache=True).cache
        assert image_tokens.now is None
        # whatever its id, a token that the model has made is text
        longer = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        model(input_ids=torch.full((4, 1), 63), attention_mask=longer, cache=cache)
        with pytest.raises(ValueError, match="hidden states of"):
            image_tokens.now = seen[0]
            image_tokens.of(torch.zeros(4, 3, 2))
    hook.remove()
    model(**inputs)
    assert torch.equal(seen[0], image_places(inputs)) and seen[1:] == [None]
