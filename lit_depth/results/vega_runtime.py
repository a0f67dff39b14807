"""The JavaScript that draws the charts of a page: Vega, from the package ``vl-convert-python``, not from a network."""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from pathlib import Path

from lit_depth.results.store import write_text

_PACKAGE = "vl-convert-python"


@cache
def vega_runtime() -> str | None:
    """The source of Vega, Vega-Lite and Vega-Embed, 0.9 MB; None where the package is not there.

    Bundling takes seconds, so the bundle of each version is kept in the user's folder of caches.
    """
    try:
        version = metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    kept = cache_folder() / f"vega-{version}.js"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    import vl_convert

    # inside a page nothing but the page may end the script; a string may be written so
    source = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    if _can_write(kept.parent):
        write_text(kept, source)
    return source


def cache_folder() -> Path:
    """Where files are kept that can be made again: ``$XDG_CACHE_HOME/lit_depth``, else ``~/.cache/lit_depth``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lit_depth"


def _can_write(folder: Path) -> bool:
    """A page is written also where nothing can be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
