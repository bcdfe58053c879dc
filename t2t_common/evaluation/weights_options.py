"""Options shared by commands that use trained weights: checkpoint, model and preprocessing."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from t2t_common.data.preprocess import Preprocess
from t2t_config import model_config
from t2t_config.weights.load_report import LoadReport
from t2t_config.weights.untrusted import check_metadata


def warn_about(report: LoadReport) -> None:
    """Print what is notable about loaded weights on stderr."""
    if report.is_notable:
        print(report, file=sys.stderr)
    if report.not_finite:
        print(f"warning: {report.doubt}", file=sys.stderr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Options for the checkpoint, the model and its preprocessing."""

    checkpoint: Path | None = None
    """Weights to load: a .pth, .pth.tar or .safetensors file, a folder of save_pretrained, or a run's folder; in JAX
    also a checkpoint folder."""
    model: str | None = None
    """Model name. For this and the following options, None uses the checkpoint's value, else the model's default."""
    img_size: int | tuple[int, int] | None = None
    """Input size: side of a square, or height and width."""
    in_chans: Literal[1, 3] | None = None
    """Number of input channels."""
    num_classes: int | None = None
    """Number of classes of the head."""
    mean: tuple[float, ...] | None = None
    """Mean of the pixels in 0..1, one value per channel."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the pixels in 0..1, one value per channel."""
    crop_pct: float | None = None
    """Crop fraction: images are resized to img_size / crop_pct, then center-cropped."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Interpolation used when resizing."""
    ema: bool = True
    """Use the moving average (EMA) of the weights if the checkpoint has one."""

    @property
    def weights(self) -> Path:
        """Path of the checkpoint.

        Raises:
            ValueError: No checkpoint was given.
        """
        if self.checkpoint is None:
            raise ValueError("weights are required: add --checkpoint PATH")
        return self.checkpoint

    def choose(self, saved: Mapping[str, Any]) -> tuple[dict[str, Any], Preprocess]:
        """Return the arguments of `create_model` and the preprocessing.

        Options take precedence over the saved values, and these over the model's defaults.

        Raises:
            ValueError: The model name is unknown, or saved values are invalid.
        """
        try:
            check_metadata(saved)
        except ValueError as error:
            raise ValueError(f"cannot use {self.checkpoint}: {error}") from error
        name = self.model or saved.get("model")
        if name is None:
            raise ValueError(f"{self.checkpoint} does not name its model: add --model NAME")
        known = {**saved, **{field: value for field, value in vars(self).items() if value is not None}}
        preprocess = Preprocess.of_model(model_config(name), known)
        arguments: dict[str, Any] = {"aux_head": True} if known.get("aux_head") else {}
        arguments |= known.get("overrides") or {}
        arguments |= {
            "img_size": preprocess.img_size,
            "in_chans": preprocess.in_chans,
            "num_classes": known.get("num_classes"),
        }
        return {"name": name, **arguments}, preprocess
