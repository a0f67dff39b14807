"""What loading images costs: Molmo's image processor against the bare work on the same pixels, and data workers.

- "processor": decode a JPEG, cut it into overlapping crops, and give patches, masks and positions.
- "bare": decode the same JPEG, resize it to the same two sizes (overview and crops), normalise. Nothing is cut.
- "workers": the evaluation batches of a local parquet file of such JPEGs, decoded and tokenised by one and by two
  worker processes; with, as the bound that the machine sets, what two independent processes get done against one.

At 336 pixels a 640x480 photograph has 7 crops by Molmo's own rule; 13 is the most, which 1100x830 has. Both are timed.

    python benchmarks/loading.py [--repeats 20]
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from environment import RESULTS, SEED, environment, median_ratio
from PIL import Image
from processes import bound
from torch.nn import functional as F

from lit_depth.data import DepthDataModule
from lit_depth.models.loading import load_bundled
from lit_depth.models.molmo import MolmoImageProcessor, MolmoProcessor, MolmoPrompter
from lit_depth.models.molmo.tiling_molmo import fit_within

OUTPUT = RESULTS / "loading.json"
SIZES = ((640, 480), (1100, 830))


def photograph(width: int, height: int, seed: int = SEED) -> bytes:
    """A JPEG with the fine detail of a photograph: smooth noise of several scales."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.zeros(3, height, width)
    for scale in (4, 16, 64, 256):
        noise = torch.rand(1, 3, 1 + height // scale, 1 + width // scale, generator=generator)
        pixels += F.interpolate(noise, size=(height, width), mode="bicubic")[0]
    pixels = (pixels - pixels.amin()) / (pixels.amax() - pixels.amin())
    buffer = io.BytesIO()
    Image.fromarray((255 * pixels).byte().permute(1, 2, 0).numpy()).save(buffer, format="jpeg", quality=90)
    return buffer.getvalue()


def processor_work(processor: MolmoImageProcessor, jpeg: bytes) -> Any:
    return processor([Image.open(io.BytesIO(jpeg))])["images"]


def bare_work(processor: MolmoImageProcessor, jpeg: bytes) -> list[torch.Tensor]:
    image = torch.frombuffer(bytearray(Image.open(io.BytesIO(jpeg)).convert("RGB").tobytes()), dtype=torch.uint8)
    width, height = Image.open(io.BytesIO(jpeg)).size
    unit = image.view(height, width, 3).permute(2, 0, 1).contiguous().float().div_(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    base, window, margin = processor.base_image_input_size[0], processor._window_px, processor._margin_px
    rows, cols = processor.tiling(height, width)
    results = []
    for size in ((base, base), (rows * window + margin, cols * window + margin)):
        scaled = fit_within(height, width, *size)
        resized = F.interpolate(unit[None], size=scaled, mode="bilinear", antialias=True, align_corners=False)[0]
        results.append(resized.sub_(mean).div_(std))
    return results


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def images(repeats: int) -> list[dict[str, Any]]:
    processor = MolmoImageProcessor()
    rows = []
    for width, height in SIZES:
        jpeg = photograph(width, height)
        crops = processor_work(processor, jpeg).shape[1]
        bare_work(processor, jpeg)
        pairs = []
        for repeat in range(repeats):
            order = (processor_work, bare_work) if repeat % 2 else (bare_work, processor_work)
            found = {work: seconds(partial(work, processor, jpeg)) for work in order}
            pairs.append((found[processor_work], found[bare_work]))
        rows.append(
            {
                "image": f"{width}x{height}",
                "crops": crops,
                "processor_ms": round(1000 * statistics.median(pair[0] for pair in pairs), 2),
                "bare_ms": round(1000 * statistics.median(pair[1] for pair in pairs), 2),
                **median_ratio([first / second for first, second in pairs], digits=2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def workers(repeats: int, num_images: int = 64) -> dict[str, Any]:
    """Samples per second of the evaluation loader with one and with two workers, whose start is not timed."""
    processor = MolmoProcessor(MolmoImageProcessor(), load_bundled()[1].tokenizer)
    features = Features(
        {
            "image": ImageFeature(),
            "question": Value("string"),
            "question_id": Value("int64"),
            "image_id": Value("string"),
            "answers": List(Value("string")),
        }
    )
    rows = [
        {
            "image": {"bytes": photograph(640, 480, seed), "path": None},
            "question": "What is it?",
            "question_id": seed,
            "image_id": str(seed),
            "answers": ["noise"] * 10,
        }
        for seed in range(num_images)
    ]
    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_list(rows, features=features).to_parquet(f"{folder}/validation-00000-of-00001.parquet")
        loaders = {}
        for count in (1, 2):
            data = DepthDataModule(
                MolmoPrompter(processor), "text_vqa", path=folder, batch_size=4, num_samples=None, num_workers=count
            )
            loaders[count] = data.eval_dataloader("validation")
            len(list(loaders[count]))  # starts the workers, which stay
        pairs = []
        for _ in range(repeats):
            found = {count: seconds(partial(list, loader)) for count, loader in loaders.items()}
            pairs.append((found[1], found[2]))
        del loaders
    one, two = (statistics.median(column) for column in zip(*pairs))
    return {
        "images": num_images,
        "one_worker_images_per_s": round(num_images / one, 1),
        "two_workers_images_per_s": round(num_images / two, 1),
        **median_ratio([first / second for first, second in pairs], digits=2),
        "bound": round(bound(), 2),
    }


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time image processing against its bare work, and data workers.")
    parser.add_argument("--repeats", type=int, default=20, help="pairs of runs per ratio (default 20)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {"environment": environment(1), "images": images(arguments.repeats)}
    result["workers"] = workers(max(1, arguments.repeats // 4))
    print(result["workers"])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
