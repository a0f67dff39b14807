"""Tasks, and the batches made of them."""

from lit_depth.data.collate import EvalCollator
from lit_depth.data.datamodule import DepthDataModule
from lit_depth.data.task import BadSample, Sample, Task, TrainingItem
from lit_depth.data.tasks import get_task
from lit_depth.data.tasks.shapes_vqa import ShapesVQA

__all__ = ["BadSample", "DepthDataModule", "EvalCollator", "Sample", "ShapesVQA", "Task", "TrainingItem", "get_task"]
