"""What a per-sample loss and a metric are. A new task is a file here and a line in `TASKS`."""

from raytrain_speedup.tasks.base import Direction, Losses, Model, Split, SupervisedTask, Task, TaskSettings
from raytrain_speedup.tasks.classification import ClassificationSettings
from raytrain_speedup.tasks.segmentation import SegmentationSettings

TASKS: dict[str, type[TaskSettings]] = {
    "classification": ClassificationSettings,
    "segmentation": SegmentationSettings,
}

__all__ = ["TASKS", "Direction", "Losses", "Model", "Split", "SupervisedTask", "Task", "TaskSettings"]
