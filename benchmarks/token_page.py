"""How fast the token masking page opens in headless Chromium, and whether it stays smooth.

- "first heat map": from the start of the navigation until after the frame that shows it, in a browser just started, for
  a page with 165,000 and with 1,000,000 rows inside. The limits are 1 s and 3 s.
- "refresh": a change of the metric, drawn. "scroll": time between frames while the rows scroll by.
- "drop": from dropping the same rows as CSV onto an empty page until they are shown.

    python benchmarks/token_page.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from environment import RESULTS, SEED, environment

from lit_depth.results.token_tables import COLUMNS
from lit_depth.studies.tokens.token_page import write_token_page

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.helpers.browser import Browser, missing_programs

OUTPUT = RESULTS / "token_page.json"
NUM_BLOCKS, NUM_HEADS = 16, 16
# rows to exceed -> (tokens of the prompt, generation steps, seconds allowed)
SIZES = {165_000: (573, 1, 1.0), 1_000_000: (577, 6, 3.0)}
FRAMES = """
const grid = document.getElementById('grid'), times = [];
return new Promise((resolve) => {
  const step = (now) => {
    times.push(now);
    grid.scrollTop += 37;
    times.length > 120 ? resolve(times.slice(1).map((time, i) => time - times[i])) : requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
});
"""
REFRESH = """
const start = performance.now();
document.querySelector('[value=cosine_distance]').click();
return new Promise((resolve) => requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start))));
"""
WATCH_DROP = """
addEventListener('drop', () => window.dropped = performance.now(), true);
const later = () => requestAnimationFrame(() => setTimeout(() => window.shown = performance.now()));
new MutationObserver(later).observe(document.getElementById('heat'), {attributeFilter: ['hidden']});
"""


def table(tokens: int, steps: int) -> pd.DataFrame:
    """Rows of the size and spread that a masking run over 16 blocks of 16 heads gives."""
    variants = ["Full", "Attn", *(f"Head_{head}" for head in range(NUM_HEADS))]
    parts = []
    for step in range(steps):
        length = tokens + step
        index = pd.MultiIndex.from_product([range(NUM_BLOCKS), range(length), variants])
        layer, position, variant = (index.get_level_values(level) for level in range(3))
        texts = np.array([f" token{i % 97}" if i > 400 else "<im_patch>" for i in range(length)], dtype=object)
        parts.append(
            pd.DataFrame(
                {
                    "generation_step": step,
                    "layer": layer,
                    "token_masked": texts[position.to_numpy()],
                    "token_position": position,
                    "variant": variant,
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    generator = np.random.default_rng(SEED)
    for metric in COLUMNS[5:]:
        frame[metric] = generator.lognormal(-3, 1.5, len(frame)).astype(np.float32)
    return frame


def load_ms(path: Path) -> tuple[float, float, list[float]]:
    """First heat map, a refresh, and the frames of a scroll in a new browser, milliseconds."""
    with Browser() as browser:
        browser.open(path)
        while not (first := browser.run("return document.documentElement.dataset.firstHeatMapMs")):
            time.sleep(0.02)
        return float(first), browser.run(REFRESH), browser.run(FRAMES)


def drop_ms(page: Path, data: Path) -> float:
    """From the drop of a file on an empty page until after the frame that shows its heat map, milliseconds."""
    with Browser() as browser:
        browser.open(page)
        browser.run(WATCH_DROP)
        browser.drop(data)
        while not (shown := browser.run("return window.shown && window.shown - window.dropped")):
            time.sleep(0.1)
        return float(shown)


def measure(least_rows: int, repeats: int, folder: Path) -> dict[str, Any]:
    tokens, steps, limit_s = SIZES[least_rows]
    frame = table(tokens, steps)
    assert len(frame) >= least_rows
    start = time.perf_counter()
    page = write_token_page(folder / "page.html", frame, title="Token masking")
    written = time.perf_counter() - start
    frame.to_csv(folder / "rows.csv", index=False)
    loads = [load_ms(page) for _ in range(repeats)]
    firsts, frames = [load[0] for load in loads], sorted(interval for load in loads for interval in load[2])
    return {
        "rows": len(frame),
        "page_mib": round(page.stat().st_size / 2**20, 1),
        "write_s": round(written, 2),
        "first_heat_map_s": round(statistics.median(firsts) / 1000, 3),
        "first_heat_map_max_s": round(max(firsts) / 1000, 3),
        "limit_s": limit_s,
        "within_limit": max(firsts) / 1000 <= limit_s,
        "refresh_ms": round(statistics.median(load[1] for load in loads), 1),
        "scroll_frame_ms": round(statistics.median(frames), 1),
        "scroll_frame_p95_ms": round(frames[int(0.95 * len(frames))], 1),
        "csv_mib": round((folder / "rows.csv").stat().st_size / 2**20, 1),
        "drop_csv_s": round(
            drop_ms(write_token_page(folder / "empty.html", None, title="t"), folder / "rows.csv") / 1000, 2
        ),
    }


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time the token masking page in headless Chromium.")
    parser.add_argument("--repeats", type=int, default=5, help="browsers started per page (default 5)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    if missing := missing_programs():
        print(f"skipped: needs {' and '.join(missing)} (Debian: apt install chromium chromium-driver)")
        return
    version = subprocess.run(["chromium", "--version"], capture_output=True, text=True).stdout.strip()
    result: dict[str, Any] = {"environment": environment(1) | {"browser": version}, "pages": []}
    for least_rows in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            result["pages"].append(measure(least_rows, arguments.repeats, Path(folder)))
        print(result["pages"][-1], flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
