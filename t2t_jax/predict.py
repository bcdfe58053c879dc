"""python -m t2t_jax.predict IMAGE... --checkpoint PATH [--model NAME]

Prints the most probable classes of images (files or folders) with their probabilities. Preprocessing is identical to
timm's for evaluation. The checkpoint is a run's folder, a checkpoint folder, a folder written by save_pretrained, or a
.pth, .pth.tar or .safetensors file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from t2t_common.evaluation.predict_command import PredictOptions, show_predictions
from t2t_common.io import cli
from t2t_jax.evaluate import load_for_evaluation
from t2t_jax.state import model_arrays, split_model
from t2t_jax.training.step import make_forward


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(PredictOptions, args, prog="python -m t2t_jax.predict", description=description)
    model, preprocess, saved = load_for_evaluation(options)
    forward, arrays = make_forward(split_model(model)[0]), model_arrays(model)
    show_predictions(options, preprocess, lambda images: np.asarray(forward(arrays, images)), model.num_classes, saved)
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
