"""Molmo passes transformers' own common tests, once for each of its text families."""

from __future__ import annotations

import unittest
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image
from transformers.conversion_mapping import get_model_conversion_mapping

from lit_depth.models.molmo import MolmoForConditionalGeneration, MolmoImageProcessor, MolmoModel, MolmoProcessor
from lit_depth.models.molmo.modeling_molmo import own_conversions
from lit_depth.recipes.shapes_tokenizer import build_tokenizer
from tests.helpers.common_tests import common_tests, missing_sources
from tests.helpers.tiny_molmo import LENGTH, tiny_config, tiny_inputs

if missing_sources():
    pytest.skip(missing_sources(), allow_module_level=True)

pytestmark = pytest.mark.slow
modeling = common_tests("test_modeling_common")
# the common tests look a class up by its name in the tables of transformers' own models
TABLES = {"MODEL": "MolmoModel", "MODEL_FOR_IMAGE_TEXT_TO_TEXT": "MolmoForConditionalGeneration"}


def own_conversions_of_heads(model, **options):
    """Of the names of the head, which transformers looks up by class, a model uses those of its own text family."""
    find = own_conversions if hasattr(model.config, "text_config") else get_model_conversion_mapping
    return find(model, **options)


class ModelTester:
    """What the common tests ask of a model's own tests: a configuration and inputs."""

    batch_size, seq_length, is_training = 3, LENGTH, True
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4

    def __init__(self, family):
        self.family = family
        self.vision_config = tiny_config(family).vision_config.to_dict()

    def prepare_config_and_inputs_for_common(self):
        config = tiny_config(self.family)
        config.text_config.num_hidden_layers = self.num_hidden_layers
        return config, tiny_inputs(rows=self.batch_size)


def case(family):
    class Case(modeling.ModelTesterMixin, modeling.GenerationTesterMixin, unittest.TestCase):
        all_model_classes = (MolmoModel, MolmoForConditionalGeneration)
        _is_composite = True
        # the shape is looked for under the name pixel_values; test_molmo_in_transformers.py has the law
        skip_test_image_features_output_shape = True
        test_can_init_all_missing_weights_before_2023 = True
        # an expert that no token chose has no gradient
        test_all_params_have_gradient = family != "olmoe"

        def setUp(self):
            self.model_tester = ModelTester(family)
            self.enterContext(patch.object(modeling, "get_model_conversion_mapping", own_conversions_of_heads))
            for table, name in TABLES.items():
                names = getattr(modeling, f"{table}_MAPPING_NAMES")
                self.enterContext(patch.dict(names, {"molmo": name}))

    if family != "olmoe":
        for name in dir(Case):
            if name.startswith("test_eager_matches_batched_and_grouped_inference"):
                setattr(Case, name, unittest.skip("a dense text model has no experts")(getattr(Case, name)))
    return Case


TestOlmoe = case("olmoe")
TestQwen2 = case("qwen2")
TestOlmo2 = case("olmo2")


# ---- the processor

processing = common_tests("test_processing_common")


class TestProcessor(processing.ProcessorTesterMixin, unittest.TestCase):
    """Its crops differ with the image, so rows are long: a picture of 400 x 30 pixels takes 92 tokens here."""

    processor_class = MolmoProcessor
    images_input_name = "images"
    images_text_kwargs_max_length = images_text_kwargs_override_max_length = 140
    images_unstructured_max_length = chat_template_max_length = 140

    test_subprocessor_defaults_0_text = unittest.skip("text alone is framed too, as the release does")(
        processing.ProcessorTesterMixin.test_subprocessor_defaults_0_text
    )

    @classmethod
    def _setup_image_processor(cls):
        return MolmoImageProcessor(56, 7, (2, 2), max_crops=4, image_token_length_h=4, image_token_length_w=4)

    @classmethod
    def _setup_tokenizer(cls):
        return build_tokenizer()

    def setUp(self):
        picture = Path(self.tmpdirname) / "picture.png"
        Image.new("RGB", (90, 40), "red").save(picture)
        # no picture is fetched, and a setting that the crops have stands in for rescaling, which they do not
        self.enterContext(patch.object(processing, "url_to_local_path", lambda url: str(picture)))
        self.enterContext(patch.dict(processing.MODALITY_INPUT_DATA, {"images": [str(picture)] * 2}))
        changed = {**processing.MODALITY_TEST_SPECS["images"], "init_time_kwargs": {"image_mean": [9.0] * 3}}
        self.enterContext(patch.dict(processing.MODALITY_TEST_SPECS, {"images": changed}))
