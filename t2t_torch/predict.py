"""python -m t2t_torch.predict IMAGE... --checkpoint PATH [--model NAME]

Prints the most probable classes of images (files or folders) with their probabilities. Preprocessing is identical to
timm's for evaluation. The checkpoint is a .pth, .pth.tar or .safetensors file, a run's folder, or a folder written by
save_pretrained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch

from t2t_common.evaluation.predict_command import PredictOptions, show_predictions
from t2t_common.io import cli
from t2t_torch.evaluate import load_for_evaluation


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(PredictOptions, args, prog="python -m t2t_torch.predict", description=description)
    model, preprocess, saved = load_for_evaluation(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    @torch.inference_mode()
    def forward(images_BxHxWxC: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(images_BxHxWxC).permute(0, 3, 1, 2).contiguous()
        return model(images.to(device)).cpu().numpy()

    show_predictions(options, preprocess, forward, model.num_classes, saved)
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
