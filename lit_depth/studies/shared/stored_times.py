"""The model of time that an earlier run of ``lit-depth latency`` has left, where it is of this model and machine."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_depth.functional.latency.static_timing import Decoding
from lit_depth.functional.latency.time_model import Request, TimeModel
from lit_depth.models.weight_files import floating
from lit_depth.module import DepthModule
from lit_depth.results.reading import read_object
from lit_depth.results.store import current_versions
from lit_depth.studies.shared.time_masks import clock_settings

TIME_MODEL = "time_model.json"
# packages whose versions times depend on
_PACKAGES = ("torch", "transformers")
# arguments of a model that its times depend on
_ARGUMENTS = (
    *("checkpoint", "revision", "quantization", "device_map", "attn_implementation"),
    *("processor_kwargs", "experts_per_token", "max_crops"),
    *("phase", "decode_without_prompt", "skip_tokens"),
)


def machine_of(trainer: Trainer, model: DepthModule, decoding: Decoding = "dynamic") -> dict[str, Any]:
    """What a model of time is true of: device, threads, number formats, decoding, checkpoint and versions."""
    versions = current_versions()
    return {
        **clock_settings(trainer.strategy.root_device),
        "dtype": floating(model.model.dtype),
        "precision": str(trainer.precision),
        "decoding": decoding,
        **{name: model.hparams[name] for name in _ARGUMENTS},
        **{name: versions.get(name) for name in _PACKAGES},
    }


def stored_model(
    trainer: Trainer, model: DepthModule, output_dir: str, new_tokens: int
) -> tuple[Path, TimeModel] | None:
    """The newest model of time of this model and machine among the runs of ``latency``; None if there is none.

    One that was fitted to requests of one new token knows no decode step, and does not count where there are some.

    Raises:
        ValueError: If a file is not what ``latency`` writes.
    """
    machine = machine_of(trainer, model)
    files = sorted(Path(output_dir).glob(f"latency/*/{TIME_MODEL}"), key=lambda file: file.stat().st_mtime)
    for file in reversed(files):
        try:
            found = TimeModel.from_dict(read_object(file))
        except ValueError as error:
            raise ValueError(f"{file}: {error}: delete it, and fit it again") from error
        if found.machine == machine and (new_tokens == 1 or found.constants["decode_per_token"]):
            return file, found
    return None


def request_of(mask_id: str, batch_size: int, prompt_tokens: int, new_tokens: int) -> Request:
    """Of a mask of whole blocks.

    >>> request_of("1101", 2, 50, 4)
    Request(num_attentions=3, num_mlps=3, batch_size=2, prompt_tokens=50, new_tokens=4)
    """
    return Request(mask_id.count("1"), mask_id.count("1"), batch_size, prompt_tokens, new_tokens)
