"""The Trainer whose methods are the commands, so that LightningCLI shows each as a subcommand."""

import inspect
import os
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.trainer.states import TrainerFn

from lit_depth.functional.arguments import check_least
from lit_depth.studies.answers.command import answers
from lit_depth.studies.compare.command import compare
from lit_depth.studies.consistency.command import consistency
from lit_depth.studies.export.command import export
from lit_depth.studies.importance.command import importance
from lit_depth.studies.interactions.command import interactions
from lit_depth.studies.latency.command import latency
from lit_depth.studies.search.command import search
from lit_depth.studies.select.command import select
from lit_depth.studies.tokens.command import tokens


class DepthTrainer(Trainer):
    """Lightning's Trainer, with the studies of this package as further entry points.

    Under SLURM it neither writes nor loads Lightning's ``hpc_ckpt_*.ckpt`` files, which replace the model by whatever
    lies in the working folder: a study continues from its records, ``fit`` from the checkpoint in ``ckpt_path``.

    Args:
        args: As for Lightning's.
        resume_versions: Of Python and the packages under which a run may be continued: the ``same`` as before, or
            ``any``. Its manifest names all of them.
        live_seconds: Seconds between two looks at how a sweep goes, of which every logger is told; null = no look.
        executor: What spreads the batches of a sweep: ``lightning`` (its strategy, such as ddp), or ``ray``, workers of
            a Ray cluster whose nodes may come and go.
        executor_workers: With ``ray``: processes that hold the model; null = one for each GPU of the cluster, or where
            it has none for each CPU.
        kwargs: As for Lightning's.
    """

    answers = answers
    compare = compare
    consistency = consistency
    export = export
    importance = importance
    interactions = interactions
    latency = latency
    search = search
    select = select
    tokens = tokens

    def __init__(
        self,
        *args: Any,
        resume_versions: Literal["same", "any"] = "same",
        live_seconds: float | None = 30.0,
        executor: Literal["lightning", "ray"] = "lightning",
        executor_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_least(0, live_seconds=live_seconds)
        check_least(1, executor_workers=executor_workers)
        if executor_workers is not None and executor == "lightning":
            raise ValueError("--executor_workers is the number of Ray's workers: give --executor ray too")
        self.executor = executor
        self.executor_workers = executor_workers
        self.fleet: Any = None  # Ray's workers, once a sweep needs them
        self.resume_versions = resume_versions
        self.live_seconds = live_seconds
        kwargs["plugins"] = _without_requeue(kwargs.get("plugins"), kwargs.get("strategy"))
        super().__init__(*args, **kwargs)

    @property
    def default_root_dir(self) -> str:
        """Lightning's; in an evaluation under SLURM a folder of the job's own, because it loads checkpoints from it."""
        root = super().default_root_dir
        if self.state.fn in (None, TrainerFn.FITTING) or not SLURMEnvironment.detect():
            return root
        return os.path.join(root, f"slurm-{SLURMEnvironment.job_id()}")

    @wraps(Trainer.fit)
    def fit(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]  # the same, whatever the version
        given = inspect.signature(super().fit).bind(*args, **kwargs).arguments.get("ckpt_path")
        if given is None and SLURMEnvironment.detect():
            found = sorted(Path(self.default_root_dir).glob("*hpc_ckpt_*"))
            if found:
                raise ValueError(
                    f"expected no {found[0].name} in {self.default_root_dir}, which Lightning would continue from "
                    "under SLURM: move it away, or give --ckpt_path hpc if it is this training's"
                )
        super().fit(*args, **kwargs)


def _without_requeue(plugins: Any, strategy: Any) -> Any:
    """The plugins, and under SLURM one of ours, which writes no checkpoint, unless another environment was chosen."""
    given = list(plugins) if isinstance(plugins, (list, tuple)) else [] if plugins is None else [plugins]
    chosen = any(isinstance(plugin, ClusterEnvironment) for plugin in given)
    if chosen or getattr(strategy, "cluster_environment", None) or TorchElasticEnvironment.detect():
        return plugins
    return [*given, SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else plugins
