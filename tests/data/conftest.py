"""Converted files of datasets go to a temporary folder."""

from __future__ import annotations

import datasets
import pytest

from tests.helpers.hub_datasets import DATASETS, write_dataset


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Converted parquet files go to a temporary folder, not to the user's cache."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets_cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    for name in DATASETS:
        write_dataset(name, root / name)
    return root
