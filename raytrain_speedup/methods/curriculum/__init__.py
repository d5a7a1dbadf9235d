"""The curriculum axis: how much of each sample a step shows."""

from raytrain_speedup.methods.curriculum.base import CurriculumSettings
from raytrain_speedup.methods.curriculum.none import NoCurriculum

CURRICULA: dict[str, type[CurriculumSettings]] = {
    "none": NoCurriculum,
}
