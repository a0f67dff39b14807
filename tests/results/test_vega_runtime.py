"""The runtime of charts: kept once it was made, and no end of the page that it stands in."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from lit_depth.results.vega_runtime import cache_folder, vega_runtime


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vega_runtime.cache_clear()
    yield
    vega_runtime.cache_clear()


def test_it_is_made_once_for_each_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    renderer = pytest.importorskip("vl_convert")
    monkeypatch.setattr(renderer, "javascript_bundle", lambda snippet: "window.vegaEmbed = '</script>';")
    version = metadata.version("vl-convert-python")
    assert cache_folder() == tmp_path / "lit_depth"
    source = vega_runtime()
    assert source == "window.vegaEmbed = '<\\/script>';"  # the same text in JavaScript
    assert (tmp_path / "lit_depth" / f"vega-{version}.js").read_text() == source
    monkeypatch.setattr(renderer, "javascript_bundle", None)
    vega_runtime.cache_clear()
    assert vega_runtime() == source


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert vega_runtime() is None


def test_a_folder_that_cannot_be_made_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    renderer = pytest.importorskip("vl_convert")
    monkeypatch.setattr(renderer, "javascript_bundle", lambda snippet: "1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert vega_runtime() == "1"
