"""What a per-sample loss and a metric are. A new task is a file here and a line in `TASKS`."""

from raytrain_speedup.registry import Registry
from raytrain_speedup.tasks.base import Direction, Losses, Model, Split, SupervisedTask, Task, TaskSettings
from raytrain_speedup.tasks.causal_lm import CausalLMSettings
from raytrain_speedup.tasks.classification import ClassificationSettings
from raytrain_speedup.tasks.detection import DetectionSettings
from raytrain_speedup.tasks.diffusion import DiffusionSettings
from raytrain_speedup.tasks.mae import MAESettings
from raytrain_speedup.tasks.own import OwnTaskSettings
from raytrain_speedup.tasks.segmentation import SegmentationSettings

TASKS = Registry(
    TaskSettings,
    tag="kind",
    group="raytrain_speedup.tasks",
    entries={
        "classification": ClassificationSettings,
        "segmentation": SegmentationSettings,
        "detection": DetectionSettings,
        "mae": MAESettings,
        "diffusion": DiffusionSettings,
        "causal-lm": CausalLMSettings,
    },
    by_path=OwnTaskSettings,
)

__all__ = ["TASKS", "Direction", "Losses", "Model", "Split", "SupervisedTask", "Task", "TaskSettings"]
