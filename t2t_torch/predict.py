"""python -m t2t_torch.predict IMAGE... --checkpoint PATH [--model NAME]

The best classes of images (files, or folders of them) with their probabilities. Images are prepared exactly as timm
does for evaluation. The checkpoint is a .pth, .pth.tar or .safetensors file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from t2t_common import cli
from t2t_common.options import WeightsOptions
from t2t_common.predictions import PredictOptions, show_predictions
from t2t_common.preprocess import Preprocess
from t2t_config.metadata import from_text
from t2t_config.shapes import sizes_of
from t2t_torch.checkpoint import load_checkpoint, read_checkpoint
from t2t_torch.registry import create_model


def load_for_evaluation(options: WeightsOptions) -> tuple[Any, Preprocess, dict[str, Any]]:
    """The model of `options` with its weights, in evaluation mode; how its images are prepared; the file's metadata.

    Raises:
        FileNotFoundError, ValueError: no such file or model, or they do not belong together.
    """
    path = options.weights
    if path.is_dir():
        raise ValueError(f"{path} is a folder: rewrite it with python -m parity convert {path} FILE.pth")
    checkpoint = read_checkpoint(path, use_ema=options.ema)
    saved = sizes_of({name: tensor.shape for name, tensor in checkpoint.state_dict.items()})
    saved |= from_text(checkpoint.metadata)
    arguments, how = options.choose(saved)
    model = create_model(**arguments)
    report = load_checkpoint(model, path, use_ema=options.ema)
    if report.missing:
        raise ValueError(f"{path} has no weights for {', '.join(report.missing)}: leave --num-classes to the file")
    if report.resized or report.left_out:
        print(report, file=sys.stderr)
    return model.eval(), how, saved


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(PredictOptions, args, prog="python -m t2t_torch.predict", description=description)
    model, how, saved = load_for_evaluation(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    @torch.inference_mode()
    def forward(images_BxHxWxC: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(images_BxHxWxC).permute(0, 3, 1, 2).contiguous()
        return model(images.to(device)).cpu().numpy()

    show_predictions(options, how, forward, model.num_classes, saved)
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
