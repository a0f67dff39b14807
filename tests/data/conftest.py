"""The processor of the bundled checkpoint's geometry, built from the real parts."""

from __future__ import annotations

import datasets
import pytest

from lit_depth.recipes.shapes_tokenizer import build_tokenizer


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Converted parquet files go to a temporary folder, not to the user's cache."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets_cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def processor():
    processing = pytest.importorskip("lit_depth.models.molmo.processing_molmo", reason="MolmoProcessor is missing")
    image_processor = processing.MolmoImageProcessor(
        base_image_input_size=(56, 56),
        image_patch_size=7,
        overlap_margins=(2, 2),
        max_crops=4,
        image_token_length_h=4,
        image_token_length_w=4,
    )
    return processing.MolmoProcessor(image_processor, build_tokenizer())
