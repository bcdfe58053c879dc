"""Pictures of what a model computes of an image, whatever computes it; both `visualize` commands draw with this."""

from t2t_common.visualize.command import VisualizeOptions, visualize
from t2t_common.visualize.inside import Inside, stage_grids

__all__ = ["Inside", "VisualizeOptions", "stage_grids", "visualize"]
