"""A task of the user's own, by its import path: `task.kind: my_package.tasks:Task`, `task.options: {...}`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.base import Task, TaskSettings
from raytrain_speedup.user_code import OwnCall


class OwnTaskSettings(TaskSettings):
    """A subclass of `Task`, or a function that makes one, called with the options."""

    kind: str = Field(description="import path of a subclass of Task, such as my_package.tasks:Task")
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of a task that is named by its import path"
    )

    @property
    def call(self) -> OwnCall:
        """What makes the task."""
        return OwnCall("task.kind", self.kind, self.options, "task.options")

    def check_code(self) -> None:
        self.call.check()

    def build(self) -> Task:
        task = self.call({})
        if not isinstance(task, Task):
            raise UserError(
                f"task.kind: {self.kind} gives a {type(task).__name__}; expected a raytrain_speedup.tasks.Task"
            )
        return task
