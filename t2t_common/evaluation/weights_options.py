"""Options of the command lines that use trained weights: which, of what model, and how its images are prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from t2t_common.data.preprocess import Preprocess
from t2t_config import model_config
from t2t_config.weights.untrusted import check_metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Weights and what they belong to."""

    checkpoint: Path | None = None
    """The weights: .pth, .pth.tar, .safetensors, a folder of save_pretrained, a run's folder; in JAX also a checkpoint
    folder."""
    model: str | None = None
    """Name of the model. This and what follows: None takes what the checkpoint says, else the model's own."""
    img_size: int | tuple[int, int] | None = None
    """Side of the square input, or height and width."""
    in_chans: Literal[1, 3] | None = None
    """Channels of the input."""
    num_classes: int | None = None
    """Classes of the head."""
    mean: tuple[float, ...] | None = None
    """Mean of the pixels in 0..1, one figure per channel."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the pixels in 0..1, one figure per channel."""
    crop_pct: float | None = None
    """The images are resized to img_size / crop_pct, then cropped to the centre."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Of the resize."""
    ema: bool = True
    """Use the moving average where the checkpoint has one."""

    @property
    def weights(self) -> Path:
        """The checkpoint.

        Raises:
            ValueError: none is named.
        """
        if self.checkpoint is None:
            raise ValueError("weights are needed, random ones predict nothing: add --checkpoint PATH")
        return self.checkpoint

    def choose(self, saved: Mapping[str, Any]) -> tuple[dict[str, Any], Preprocess]:
        """Arguments of `create_model`, and the preprocessing: by option, else as saved, else the model's own.

        Raises:
            ValueError: no name of a model anywhere, or figures that make no sense.
        """
        try:
            check_metadata(saved)
        except ValueError as error:
            raise ValueError(f"cannot use {self.checkpoint}: {error}") from error
        name = self.model or saved.get("model")
        if name is None:
            raise ValueError(f"{self.checkpoint} does not say which model it is: add --model NAME")
        known = {**saved, **{field: value for field, value in vars(self).items() if value is not None}}
        how = Preprocess.of_model(model_config(name), known)
        arguments: dict[str, Any] = {"aux_head": True} if known.get("aux_head") else {}
        arguments |= known.get("overrides") or {}
        arguments |= {"img_size": how.img_size, "in_chans": how.in_chans, "num_classes": known.get("num_classes")}
        return {"name": name, **arguments}, how
