"""Fixtures shared by every test; the environment is pinned to offline before any heavy import."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small are slower by two threads than by one

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of reference data beside the checkout; tests that need it skip where it is absent."""
    path = Path(os.environ.get("LIT_DEPTH_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    if not path.is_dir():
        pytest.skip(f"golden reference data not found at {path} (set LIT_DEPTH_GOLDEN)")
    return path


@pytest.fixture(autouse=True)
def same_environment():
    """Leave the environment as it was: Lightning's launcher writes into it what a later process takes for orders."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)
