"""Visualisation of a model's computation, independent of the framework; used by both `visualize` commands."""

from t2t_common.visualize.command import visualize_command
from t2t_common.visualize.inside import Inside, stage_grids

__all__ = ["Inside", "stage_grids", "visualize_command"]
